"""What a plan knows of the corpus: how many rows each split has, and some of them."""

import gzip
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kd.corpus import Source, SourceFile, columns_of, decoded, find_splits
from kd.errors import InputError
from kd.examples import as_example
from kd.manifests import Manifest
from kd.rows import Example
from kd.side import attach, find_side, side_table
from kd.store import Store
from kd.tasks.base import TaskConfig

SAMPLED_ROWS = 1000
"""Rows of a split that are read, about."""
SAMPLED_FILES = 4
"""Files of a split that they are read from: the first, and others at even distances. Of small shards it takes more."""
COUNTED_BYTES = 64 * 2**20
"""Up to this size files that do not say how many records they have are read to the end."""


@dataclass(frozen=True)
class SplitSample:
    """One split: its rows, where that number comes from, the sampled rows without an error, and how many had one."""

    split: str
    rows: int
    counted: str
    examples: Sequence[Example]
    bad: int


def of_examples(store: Store, folder: str, examples: Manifest) -> dict[str, SplitSample]:
    """The splits of a corpus that is prepared, by name."""
    found = {}
    for split in dict.fromkeys(shard.split for shard in examples.shards):
        shards = examples.shards_of(split)
        needed = math.ceil(SAMPLED_ROWS / max(shard.rows for shard in shards))
        chosen = [shards[place] for place in _places(len(shards), max(SAMPLED_FILES, needed))]
        each = math.ceil(SAMPLED_ROWS / len(chosen))
        rows = [row for shard in chosen for row in store.read_rows(f"{folder}/{shard.file}", Example)[:each]]
        found[split] = _sampled(split, sum(shard.rows for shard in shards), "prepared", rows)
    return found


def of_corpus(task: TaskConfig) -> dict[str, SplitSample]:
    """The splits of a corpus that is not prepared yet, by name; without those that have no record.

    Raises:
        InputError: what `prepare` would raise of the files and the columns; or no sampled row of a split can be read.
    """
    sources = find_splits(task)
    may_have_more = any(source.may_have_more_columns() for source in sources.values())
    there = columns_of(sources)
    task.check_columns(there, may_have_more)
    found = [sample for split in there for sample in _of_source(task, split, sources[split])]
    return {sample.split: sample for sample in found}


def _of_source(task: TaskConfig, split: str, source: Source) -> list[SplitSample]:
    """The split of these files, and the one held out of it."""
    records = _records(source)
    rows = [as_example(task, split, record) for record in records]
    if task.llm:
        rows, _ = attach(rows, side_table(task.llm, find_side(task.llm)))
    total, counted = _count(source, records)
    held = math.ceil(task.holdout.fraction * total) if task.holdout and split == "train" else 0
    parts = [(split, total - held), *([("validation", held)] if held else [])]
    return [_sampled(name, min(size, task.limit_rows.of(name) or size), counted, rows) for name, size in parts]


def _sampled(split: str, rows: int, counted: str, examples: Sequence[Example]) -> SplitSample:
    good = [row for row in examples if row.error is None]
    if not good:
        detail = next((row.error.detail for row in examples if row.error), "there is none")
        raise InputError(f"the {split} split: none of the {len(examples)} sampled rows can be read: {detail}; see `task`")
    return SplitSample(split, rows, counted, good, len(examples) - len(good))


def _records(source: Source) -> list[str]:
    """The first records of some of the files."""
    chosen = _places(len(source.files), SAMPLED_FILES)
    each = SAMPLED_ROWS // len(chosen)
    return [record for index in chosen for record in itertools.islice(source.records(index), each)]


def _places(count: int, most: int) -> list[int]:
    """The first of so many files or shards, and others at even distances."""
    return sorted({place * count // most for place in range(most)})


def _count(source: Source, records: Sequence[str]) -> tuple[int, str]:
    """How many records the files hold, and how that is known."""
    says_so = all(file.format == "parquet" for file in source.files)
    size = source.size_bytes
    if says_so or size <= COUNTED_BYTES:
        with ThreadPoolExecutor(16) as readers:
            return sum(readers.map(source.count, range(len(source.files)))), "file footers" if says_so else "counted"
    return round(size / bytes_per_record(source.files[0], records)), "estimated from file sizes"


def bytes_per_record(file: SourceFile, records: Sequence[str]) -> float:
    """What a record takes in a file like this one: JSON as it is, CSV as its cells, either compressed where the file is."""
    lines = [_as_line(record, file.format) for record in records]
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
    return len(gzip.compress(data) if file.path.endswith(".gz") else data) / len(records)


def _as_line(record: str, file_format: str) -> str:
    fields = decoded(record) if file_format == "csv" else None
    return record if fields is None else ",".join(str(cell or "") for cell in fields.values())
