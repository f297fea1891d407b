"""The files of a corpus, wherever they are, and the records in them: one JSON object as text per record.

Parquet, JSON lines and CSV all become the same stream, so nothing that comes after depends on the format, and no type is
guessed from the first rows of a file. A record that cannot be read stays in the stream and becomes a row with its error.
"""

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kd.errors import InputError
from kd.manifests import digest
from kd.places import Place
from kd.tasks.base import TaskConfig

FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv"}
PROBED_RECORDS = 100
LONGEST_CELL = 2**31 - 1


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
    """The files that belong together, in the order of their names. Small and picklable: it travels to the workers."""

    place: Place
    files: tuple[SourceFile, ...]

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
        with _readable(file):
            yield from _READERS[file.format](self.place.where[0], file.path)

    def sha256(self, index: int) -> str:
        """The digest of one file's bytes. Raises InputError if it cannot be read."""
        file, found = self.files[index], hashlib.sha256()
        with _readable(file), self.place.where[0].open_input_stream(file.path, compression=None) as stream:
            while some := stream.read(2**20):
                found.update(some)
        return found.hexdigest()

    def count(self, index: int) -> int:
        """How many records a file has: Parquet says so itself, others are read. Raises InputError if it cannot be read."""
        file = self.files[index]
        if file.format != "parquet":
            return sum(1 for _ in self.records(index))
        with _readable(file), self.place.where[0].open_input_file(file.path) as stream:
            return int(pq.ParquetFile(stream).metadata.num_rows)

    def all_records(self) -> Iterator[str]:
        """The records of all files, one file after the other."""
        return itertools.chain.from_iterable(self.records(index) for index in range(len(self.files)))

    def columns(self) -> set[str]:
        """The columns of the first records. Raises InputError if there is no record, or the first ones are no objects."""
        first = list(itertools.islice(self.all_records(), PROBED_RECORDS))
        readable = [record for record in map(decoded, first) if record is not None]
        if not readable or (self.files[0].format == "jsonl" and first[0].startswith("[")):
            found = f"it begins with {first[0][:40]!a}" if first else "it is empty"
            raise InputError(
                f"{self.files[0].path}: expected one JSON object per line, Parquet, or CSV with lines as long as its header;"
                f" {found}"
            )
        return {column for record in readable for column in record}

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


def find(path: str, pattern: str, wanted: str, key: str) -> Source:
    """The files below `path` that match `pattern`; alternatives are parted by `|`. `key` is the config key that says so.

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
            SourceFile(name, name.removeprefix(base).lstrip("/"), size, _format_of(name, wanted, owner), modified)
            for name, (size, modified) in sorted(files.items())
        ),
    )


def find_splits(task: TaskConfig) -> dict[str, Source]:
    """The files of every split that has some. Raises InputError; also where one file would be in two splits."""
    patterns = {split: pattern for split, pattern in task.files.model_dump().items() if pattern}
    found = {split: find(task.path, pattern, task.format, f"task.files.{split}") for split, pattern in patterns.items()}
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


@contextmanager
def _readable(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, UnicodeError, pa.ArrowException, csv.Error) as error:
        raise InputError(
            f"cannot read {file.path} as {file.format}: {error}; mend it, or move it out of the corpus, or set its format"
        ) from error


def _format_of(name: str, wanted: str, owner: str) -> str:
    if wanted != "auto":
        return wanted
    suffix = PurePosixPath(name.removesuffix(".gz")).suffix
    if suffix not in FORMATS:
        raise InputError(f"{name}: the suffix does not tell the format; expected {', '.join(FORMATS)}, or set {owner}.format")
    return FORMATS[suffix]


def _text_stream(filesystem: pafs.FileSystem, path: str, **decoding: Any) -> io.TextIOWrapper:
    compression = "gzip" if path.endswith(".gz") else None
    return io.TextIOWrapper(filesystem.open_input_stream(path, compression=compression), **decoding)


def _jsonl(filesystem: pafs.FileSystem, path: str) -> Iterator[str]:
    """Lines as they are; a byte that is no UTF-8 is written out, which makes the line no JSON."""
    with _text_stream(filesystem, path, encoding="utf-8-sig", errors="backslashreplace", newline="\n") as stream:
        for line in stream:
            if line.strip():
                yield line.rstrip("\r\n")


def _csv(filesystem: pafs.FileSystem, path: str) -> Iterator[str]:
    """Cells as text, an empty one as null; a line of another length than the header's as a list."""
    with _text_stream(filesystem, path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        header = _cells(rows) or []
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise csv.Error(f"its header has {twice[0]!r} more than once")
        for cells in filter(None, iter(lambda: _cells(rows), None)):
            fits = len(cells) == len(header)
            yield json.dumps({name: cell or None for name, cell in zip(header, cells, strict=True)} if fits else cells)


def _cells(rows: Iterator[list[str]]) -> list[str] | None:
    """The next line, None after the last; a cell may be of any length, where the library's own limit is 131,072 characters."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(before)


def _parquet(filesystem: pafs.FileSystem, path: str) -> Iterator[str]:
    """Rows batch by batch; values that JSON does not know (dates, decimals, bytes) as text."""
    with filesystem.open_input_file(path) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=1000):
            yield from (json.dumps(row, default=_as_text) for row in batch.to_pylist())


def _as_text(value: Any) -> str:
    """Bytes as UTF-8, and those that are none as half surrogates, which no task takes for text; anything else as it prints."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


_READERS: dict[str, Callable[[pafs.FileSystem, str], Iterable[str]]] = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}
