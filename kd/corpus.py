"""The files of a corpus, wherever they are, and the records in them: one JSON object as text per record.

Parquet, JSON lines and CSV all become the same stream, so nothing that comes after depends on the format, and no type is
guessed from the first rows of a file. A record that cannot be read stays in the stream and becomes a row with its error.
"""

import codecs
import csv
import hashlib
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kd.csv_rows import LONGEST_CELL, CsvRows, Malformed
from kd.errors import InputError
from kd.manifests import digest
from kd.places import Place
from kd.tasks.base import TaskConfig
from kd.tasks.fields import iconv, wrong_byte

FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv"}
PROBED_RECORDS = 100
READ_BYTES = 2**20
GZIP = b"\x1f\x8b"
"""How a file begins that gzip has compressed."""
NOT_THERE = frozenset(("", "nan", "NaN", "-nan", "-NaN"))
"""Cells of CSV without a value: empty ones, and what programs write there for a number that is none."""
_UNREADABLE = "unreadable record"
_CANNOT = (ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException)
"""What the conversion of an Arrow value to a Python one raises: a year beyond 9999, text that is no UTF-8, an unknown zone."""


@dataclass(frozen=True)
class SourceFile:
    """One file: its path in its file system, its name below the folder, its size, `parquet`, `jsonl` or `csv`.

    `modified` is when it was changed last, as text that sorts by time; None where its file system does not say.
    """

    path: str
    name: str
    size_bytes: int
    format: str
    modified: str | None = None


@dataclass(frozen=True)
class Source:
    """The files that belong together, in the order of their names. Small and picklable: it travels to the workers.

    `columns_read` are those that matter, None for all: Parquet's others are not read. `delimiter` parts the cells of CSV, and
    `owner` is the config key that all this is set below.
    """

    place: Place
    files: tuple[SourceFile, ...]
    columns_read: frozenset[str] | None = None
    delimiter: str | None = None
    owner: str = "task"

    @property
    def size_bytes(self) -> int:
        """The size of all the files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def fingerprint(self) -> str:
        """What identifies these files in a manifest: how many, and a digest of their names and sizes."""
        marks = [[file.name, file.size_bytes] for file in self.files]
        return f"{len(self.files)} files, {self.size_bytes} bytes, {digest(marks)}"

    def records(self, index: int) -> Iterator[str]:
        """The records of one file as JSON text, streamed. Raises InputError if the file cannot be read."""
        file = self.files[index]
        filesystem = self.place.where[0]
        with _readable(file, self.owner):
            if file.format == "parquet":
                yield from _parquet(filesystem, file.path, self.columns_read)
            elif file.format == "csv":
                yield from _csv(filesystem, file.path, self.delimiter)
            else:
                yield from _jsonl(filesystem, file.path)

    def sha256(self, index: int) -> str:
        """The digest of one file's bytes. Raises InputError if it cannot be read."""
        file, found = self.files[index], hashlib.sha256()
        with _readable(file, self.owner), self.place.where[0].open_input_stream(file.path, compression=None) as stream:
            while some := stream.read(2**20):
                found.update(some)
        return found.hexdigest()

    def count(self, index: int) -> int:
        """How many records a file has: Parquet says so itself, others are read. Raises InputError if it cannot be read."""
        if self.files[index].format != "parquet":
            return sum(1 for _ in self.records(index))
        return int(self._footer(index).num_rows)

    def all_records(self) -> Iterator[str]:
        """The records of all files, one file after the other."""
        return itertools.chain.from_iterable(self.records(index) for index in range(len(self.files)))

    def columns(self) -> set[str]:
        """The columns of the first records. Raises InputError if there is no record, or the first ones are no objects."""
        if self.files[0].format == "parquet" and self.count(0):
            return set(self._footer(0).schema.to_arrow_schema().names)
        first = list(itertools.islice(self.all_records(), PROBED_RECORDS))
        readable = [record for record in map(decoded, first) if record is not None]
        if not readable or (self.files[0].format == "jsonl" and first[0].startswith("[")):
            found = f"it begins with {str(why_unreadable(first[0])[1])[:40]!a}" if first else "it is empty"
            raise InputError(
                f"{self.files[0].path}: expected one JSON object per line, Parquet, or CSV with lines as long as its header;"
                f" {found}"
            )
        return {column for record in readable for column in record}

    def _footer(self, index: int) -> pq.FileMetaData:
        """What a Parquet file says of itself. Raises InputError if it cannot be read."""
        file = self.files[index]
        with _readable(file, self.owner), self.place.where[0].open_input_file(file.path) as stream:
            return pq.ParquetFile(stream).metadata

    @property
    def is_empty(self) -> bool:
        """Whether no file holds a record. Raises InputError if they cannot be read."""
        return next(self.all_records(), None) is None

    def may_have_more_columns(self) -> bool:
        """Whether later records may have columns that the first ones do not have: JSON lines have no header."""
        goes_on = itertools.islice(self.all_records(), PROBED_RECORDS, None)
        return any(file.format == "jsonl" for file in self.files) and next(goes_on, None) is not None


def is_there(path: str, pattern: str = "*") -> bool:
    """Whether a folder holds anything of that name; not where its file system does not answer."""
    place = Place.at(path)
    try:
        return place.exists() and bool(place.glob(pattern))
    except InputError:
        return False


def find(
    path: str,
    pattern: str,
    wanted: str,
    key: str,
    columns_read: frozenset[str] | None = None,
    delimiter: str | None = None,
) -> Source:
    """The files below `path` that match `pattern`; alternatives are parted by `|`. `key` is the config key that says so.

    The rest is as in `Source`.

    Raises:
        InputError: no such folder, nothing matches, or a file whose name does not tell its format.
    """
    place = Place.at(path)
    owner = key.partition(".files")[0].removesuffix(".path")
    if not place.exists():
        raise InputError(f"there is no folder {place.address}; set {owner}.path to where the data are")
    files = {name: said for part in pattern.split("|") for name, said in place.glob(part.strip()).items() if said is not None}
    if not files:
        there = sorted(PurePosixPath(name).name for name in place.glob("*"))[:10]
        raise InputError(f"{key}: {pattern!r} matches no file in {place.address}; there are: {', '.join(there) or 'no files'}")
    base = place.where[1]
    return Source(
        place,
        tuple(
            SourceFile(name, name.removeprefix(base).lstrip("/"), size, _format_of(name, wanted, owner, delimiter), modified)
            for name, (size, modified) in sorted(files.items())
        ),
        columns_read,
        delimiter,
        owner,
    )


def find_splits(task: TaskConfig) -> dict[str, Source]:
    """The files of every split that has some. Raises InputError; also where one file would be in two splits."""
    patterns = {split: pattern for split, pattern in task.files.model_dump().items() if pattern}
    asked = task.columns_read, task.delimiter
    found = {split: find(task.path, each, task.format, f"task.files.{split}", *asked) for split, each in patterns.items()}
    for (one, a), (other, b) in itertools.combinations(found.items(), 2):
        shared = {file.path for file in a.files} & {file.path for file in b.files}
        if shared:
            raise InputError(f"{min(shared)} matches task.files.{one} and task.files.{other}; a file belongs to one split")
    return found


def columns_of(sources: Mapping[str, Source]) -> dict[str, set[str]]:
    """The columns of every split. One without records has none and is left out, but for train: that is refused like `columns`."""
    return {split: source.columns() for split, source in sources.items() if split == "train" or not source.is_empty}


def decoded(text: str) -> dict[str, Any] | None:
    """A record's fields; None where the text is no JSON object."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def unreadable(reason: str, content: Any) -> str:
    """What stands for a record that cannot be read: no object, so that it is decoded as None; see `why_unreadable`.

    `content` is the record's text, or what could be read of its fields.
    """
    return json.dumps([_UNREADABLE, reason, content])


def why_unreadable(text: str) -> tuple[str, Any]:
    """What is wrong with a record that is decoded as None, and its content as `unreadable` has it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and len(found) == 3 and found[0] == _UNREADABLE:
        return str(found[1]), found[2]
    return f"expected an object with fields, got {text[:60]!a}", text


@contextmanager
def _readable(file: SourceFile, owner: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, UnicodeError, pa.ArrowException, csv.Error) as error:
        raise InputError(
            f"cannot read {file.path} as {file.format}: {error}; mend it, or move it out of the corpus, or set {owner}.format"
        ) from error


def _format_of(name: str, wanted: str, owner: str, delimiter: str | None) -> str:
    if wanted != "auto":
        return wanted
    suffix = PurePosixPath(name.removesuffix(".gz")).suffix
    if suffix == ".tsv":
        if delimiter is None:
            raise InputError(
                f"{name}: CSV has commas between its cells, this has tabs by its suffix; set {owner}.delimiter to tab"
            )
        return "csv"
    if suffix not in FORMATS:
        raise InputError(f"{name}: the suffix does not tell the format; expected {', '.join(FORMATS)}, or set {owner}.format")
    return FORMATS[suffix]


def _text_stream(filesystem: pafs.FileSystem, path: str, **decoding: Any) -> io.TextIOWrapper:
    """A file's text. Raises UnicodeError where it begins as no UTF-8 text can."""
    compression = "gzip" if path.endswith(".gz") else None
    stream = io.BufferedReader(filesystem.open_input_stream(path, compression=compression), READ_BYTES)
    begins = stream.peek(2)[:2]
    if begins == GZIP:
        raise UnicodeError("it is compressed by gzip, expected text or a name that ends in .gz")
    if begins in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in begins:
        raise UnicodeError(f"it begins like UTF-16, expected UTF-8: {iconv('UTF-16')}")
    return io.TextIOWrapper(stream, encoding="utf-8-sig", **decoding)


def _as_escape(error: UnicodeError) -> tuple[str, int]:
    """Bytes that are no UTF-8 as JSON's escapes of half surrogate pairs, as `surrogateescape` has them; no task takes these for
    text."""
    assert isinstance(error, UnicodeDecodeError)  # it is used for decoding only
    wrong = error.object[error.start : error.end]
    return "".join(f"\\u{0xDC00 + byte:04x}" for byte in wrong), error.end


codecs.register_error("kd_json_escape", _as_escape)


def _jsonl(filesystem: pafs.FileSystem, path: str) -> Iterator[str]:
    """Lines as they are, but for bytes that are no UTF-8."""
    with _text_stream(filesystem, path, errors="kd_json_escape", newline="\n") as stream:
        for line in stream:
            if line.strip():
                yield line.rstrip("\r\n")


def _csv(filesystem: pafs.FileSystem, path: str, delimiter: str | None) -> Iterator[str]:
    """Cells as text, those without a value as null."""
    with _text_stream(filesystem, path, errors="surrogateescape", newline="") as stream:
        rows = CsvRows(stream, delimiter or ",")
        header = [cell for row in _some(rows, 1) for cell in row]
        _check_header(header, delimiter)
        while some := _some(rows, 100):
            for row in some:
                if isinstance(row, Malformed):
                    yield unreadable(f"{row.lines}: {row.reason}", row.text)
                else:
                    yield json.dumps({name: None if cell in NOT_THERE else cell for name, cell in zip(header, row, strict=True)})


def _some(rows: CsvRows, count: int) -> list[Any]:
    """The next rows; a cell may be of any length, where the library's own limit is 131,072 characters."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        return list(itertools.islice(rows, count))
    finally:
        csv.field_size_limit(before)


def _check_header(header: Sequence[str], delimiter: str | None) -> None:
    """Raise csv.Error where a header cannot be one."""
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise csv.Error(f"its header has {twice[0]!r} more than once")
    if fault := wrong_byte("".join(header)):
        raise csv.Error(f"line 1: {fault}")
    other = [name for name, mark in (("tab", "\t"), ("';'", ";")) if mark in header[0]] if len(header) == 1 else []
    if other and delimiter is None:
        raise csv.Error(f"its header is {header[0]!a:.80} without a comma; set delimiter to {other[0]}")


def _parquet(filesystem: pafs.FileSystem, path: str, columns_read: frozenset[str] | None) -> Iterator[str]:
    """Rows batch by batch; values that JSON does not know (dates, decimals, bytes) as text. Only what is read is converted."""
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        names = file.schema_arrow.names
        read = [name for name in names if columns_read is None or name in columns_read]
        twice = [name for name in read if read.count(name) > 1]
        if twice:
            raise pa.ArrowInvalid(f"it has the column {twice[0]!r} more than once")
        for batch in file.iter_batches(batch_size=1000, columns=read):
            yield from _of_batch(batch)


def _of_batch(batch: pa.RecordBatch) -> list[str]:
    try:
        return [json.dumps(row, default=_as_text) for row in batch.to_pylist()]
    except _CANNOT:
        return [_of_row(batch, row) for row in range(batch.num_rows)]


def _of_row(batch: pa.RecordBatch, row: int) -> str:
    """One row of a batch that holds a value which cannot be converted: without that, and with the reason."""
    record, reasons = {}, []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            record[name] = json.loads(json.dumps(column[row].as_py(), default=_as_text))
        except _CANNOT as error:
            reasons.append(f"the column {name} ({column.type}) holds a value that cannot be read: {error}")
    return unreadable("; ".join(reasons), record) if reasons else json.dumps(record)


def _as_text(value: Any) -> str:
    """Bytes as UTF-8, and those that are none as half surrogates, which no task takes for text; anything else as it prints."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
