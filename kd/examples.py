"""From the records of a corpus to shards of examples: what a block of records becomes, and whose examples a folder holds."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from kd.arrow import schema_digest
from kd.corpus import Source, decoded, find, find_splits, is_there
from kd.errors import InputError, RowFault, StageError, StoreError
from kd.rows import Example
from kd.shards import count
from kd.store import Manifest, Shard, Store, digest
from kd.tasks.base import PrepareConfig, SideFile, TaskConfig, content_uid, folder_and_pattern
from kd.tasks.fields import Record, id_at, optional_text_at
from kd.tasks.holdout import Holdout
from kd.uids import RENAMED

Place = tuple[int, int]
"""Where a record is: the index of its file, and its row in there."""
SideTable = Mapping[str, tuple[str | None, str | None]]
"""From a record's id to another model's rationale and answer."""


@dataclass(frozen=True)
class Written:
    """What there is to say of a shard: the places of its first and last record, how many of each file, what was counted."""

    shard: Shard
    first: Place
    last: Place
    files: Mapping[int, int]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Stream:
    """One split in the making: which records of which files, and where its shards go. Picklable: it travels to the workers.

    `source_split` is the split whose files are read: train also for the rows held out of it. `records` is the number of
    records in each file, empty where that is not known, because only the first rows are wanted.
    """

    task: TaskConfig
    source: Source
    source_split: str
    split: str
    store: Store
    folder: str
    rows_per_shard: int
    records: Sequence[int]
    plan: str = ""
    """The digest of what is planned: a shard that an earlier attempt at the same has published is not made again."""

    @property
    def limit(self) -> int | None:
        """How many rows of the split to take; None for all."""
        return self.task.limit_rows.of(self.split)

    def keeps(self, places: Sequence[Place], records: Sequence[str]) -> list[bool]:
        """For each record, whether it belongs to this split: the hold-out parts train in two."""
        holdout = self.task.holdout
        if holdout is None or self.source_split != "train":
            return [True] * len(records)
        if holdout.by == "uid":
            held = [holdout.takes(uid_of(self.task, "train", record)) for record in records]
        else:
            positions, starts = _held_positions(holdout, sum(self.records)), np.cumsum([0, *self.records])
            held = [bool(positions[starts[file] + row]) for file, row in places]
        return [taken == (self.split == "validation") for taken in held]

    def write(self, places: Sequence[Place], records: Sequence[str]) -> Written:
        """Parse a block of records and publish it as one shard, unless it is there.

        Its name depends on the plan, on the records, and on where they begin.
        """
        text = hashlib.sha256("\n".join(records).encode(errors="surrogatepass")).hexdigest()
        shard = Shard(f"{self.split}-{digest(self.plan, places[0], text)[:12]}", self.split, len(records))
        counts = self._published(shard) or self._publish(shard, records)
        return Written(shard, places[0], places[-1], Counter(file for file, _ in places), counts)

    def _published(self, shard: Shard) -> dict[str, int] | None:
        """What an earlier attempt counted in a shard; None where it is not there, not whole, or has had uids changed since."""
        path = f"{self.folder}/{shard.file}"
        try:
            notes = self.store.read_notes(path) if self.store.exists(path) else None
        except StoreError:
            return None
        return None if notes is None or RENAMED in notes else notes

    def _publish(self, shard: Shard, records: Sequence[str]) -> dict[str, int]:
        parsed = (as_example(self.task, self.source_split, record) for record in records)
        rows = [replace(row, split=self.split) for row in parsed]
        counts: dict[str, int] = {}
        if self.task.llm:
            rows, counts = attach(rows, side_table(self.task.llm))
        counts = count(rows) | counts
        self.store.publish_rows(f"{self.folder}/{shard.file}", rows, Example, counts)
        return counts

    def check(self, written: Sequence[Written]) -> None:
        """The shards of this split follow one another in the order of the files, all but the last full.

        Raises:
            StageError: they do not, which would be a fault of the reading.
            InputError: there is none.
        """
        if not written:
            reason = (
                "the hold-out left it none" if self.source_split != self.split or self.task.holdout else "its files are empty"
            )
            raise InputError(f"the {self.split} split of {self.task.path} has no rows: {reason}; see task.files and task.holdout")
        full = all(item.shard.rows == self.rows_per_shard for item in written[:-1])
        ordered = all(one.last < other.first for one, other in itertools.pairwise(written))
        if not full or not ordered:
            raise StageError(
                f"prepare, {self.split}: expected shards of {self.rows_per_shard} rows in the order of the files, got"
                f" {[(item.first, item.last, item.shard.rows) for item in written[:5]]} ...; try a smaller prepare.rows_per_shard"
            )


def plan(task: TaskConfig, config: PrepareConfig, sources: Mapping[str, Source]) -> Manifest:
    """The manifest of a task's examples as far as it is known before the work.

    `sources` are the files of every split, and under `llm` those of the side file.
    """
    settings = {"task": task.described, "rows_per_shard": config.rows_per_shard}
    inputs = {name: source.fingerprint for name, source in sources.items()}
    contract = schema_digest(Example)
    return Manifest(
        stage="prepare",
        digest=digest("prepare", settings, inputs, contract),
        config=settings,
        inputs=inputs,
        row_type=Example.__name__,
        schema_digest=contract,
    )


def finished(store: Store, folder: str, task: TaskConfig, config: PrepareConfig) -> Manifest | None:
    """The manifest of a task's examples, if they are complete. No record is read.

    Files are compared by name and size as long as they are there: what is finished does without its corpus.

    Raises:
        StoreError: the folder holds the examples of another corpus or config.
        InputError: the corpus' folder holds other files than the task asks for.
    """
    found = store.manifest(folder)
    if found is None:
        return None
    there, asked = _marks(found), _marks(plan(task, config, _sources_still_there(task)))
    differs = [key for key, value in sorted(asked.items()) if there.get(key) != value]
    if differs:
        raise StoreError(
            f"{store.path(folder)} holds the examples of another corpus or config, as these differ: {', '.join(differs)}."
            " Use a new run name"
        )
    return found


def _marks(manifest: Manifest) -> dict[str, object]:
    """By what the examples of two configs are told apart, under the names that a person knows."""
    files = {f"files of {name}": fingerprint for name, fingerprint in manifest.inputs.items()}
    rows = {"rows_per_shard": manifest.config["rows_per_shard"], "row type": manifest.schema_digest}
    return {**manifest.config["task"], **rows, **files}


def _sources_still_there(task: TaskConfig) -> dict[str, Source]:
    sources = find_splits(task) if is_there(task.path) else {}
    if task.llm and is_there(*_side_place(task.llm)):
        sources["llm"] = find_side(task.llm)
    return sources


def check_complete(source: Source, records: Sequence[int], written: Iterable[Written]) -> None:
    """Every record of these files went into one shard. Raises StageError."""
    found: Counter[int] = sum((Counter(item.files) for item in written), Counter())
    for index, (file, expected) in enumerate(zip(source.files, records, strict=True)):
        if found[index] != expected:
            raise StageError(
                f"{file.path} has {expected} records, but {found[index]} came into shards; did the file change? Run it again"
            )


def as_example(task: TaskConfig, split: str, text: str) -> Example:
    """The row that a record of this split's files becomes."""
    record = decoded(text)
    if record is not None:
        return task.example(record, split)
    fault = RowFault("unparsable", f"expected an object with fields, got {text[:60]!a}")
    return task.errored(uid_of(task, split, text), split, fault)


def uid_of(task: TaskConfig, split: str, text: str) -> str:
    """The uid of that row, without the rest of it."""
    record = decoded(text)
    return content_uid({"unreadable": text}, split) if record is None else task.uid(record, split)


def attach(rows: Sequence[Example], side: SideTable) -> tuple[list[Example], dict[str, int]]:
    """The rows with the side file's rationales in place of their own, and how many have one there."""
    found = [side.get(row.uid.partition("/")[2]) if row.error is None else None for row in rows]
    attached = sum(entry is not None for entry in found)
    pairs = ((row, entry or (None, None)) for row, entry in zip(rows, found, strict=True))
    changed = [replace(row, llm_rationale=rationale, llm_label=label) for row, (rationale, label) in pairs]
    return changed, {"llm_attached": attached, "llm_missing": len(rows) - attached}


def find_side(config: SideFile) -> Source:
    """The files of a side file. Raises InputError."""
    folder, pattern = _side_place(config)
    return find(folder, pattern, config.format, "task.llm.path")


def _side_place(config: SideFile) -> tuple[str, str]:
    """The folder, and the pattern of the files in it."""
    folder, pattern = folder_and_pattern(config.path)
    return folder, pattern or "*"


@lru_cache(maxsize=1)
def side_table(config: SideFile) -> SideTable:
    """A side file in memory, read once per process. Raises InputError where a record has no id, or another's."""
    table: dict[str, tuple[str | None, str | None]] = {}
    for text in find_side(config).all_records():
        record: Record = decoded(text) or {}
        try:
            key = id_at(record, config.id)
            entry = optional_text_at(record, config.rationale), optional_text_at(record, config.label)
        except RowFault as fault:
            raise InputError(
                f"{config.path}: {fault.detail} in {text[:80]!a}; mend it, or name the column in task.llm"
            ) from fault
        if key in table:
            raise InputError(f"{config.path}: id {key!r} occurs twice; a side file has one record per id")
        table[key] = entry
    return table


def side_size(config: SideFile) -> int:
    """How many records a side file has. Raises InputError, like `side_table`."""
    return len(side_table(config))


@lru_cache(maxsize=1)
def _held_positions(holdout: Holdout, records: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    return holdout.positions(records)
