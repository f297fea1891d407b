"""From the records of a corpus to shards of examples: what a block of records becomes, and whose examples a folder holds."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from kd.arrow import schema_digest
from kd.attempts import NEWEST_WITHIN_S, check_newest
from kd.corpus import Source, SourceFile, decoded, why_unreadable
from kd.errors import InputError, RowFault, StageError, StoreError
from kd.manifests import Manifest, Shard, digest
from kd.rows import Example
from kd.shards import count
from kd.side import attach, find_side, side_digest, side_table
from kd.sources import check_unchanged, sources_still_there
from kd.spans import is_unspaced
from kd.store import Store
from kd.tasks.base import PrepareConfig, SideFile, TaskConfig, content_uid
from kd.tasks.holdout import Holdout

UNSPACED = "rows_without_spaces"
"""What counts the rows with text of a script that puts no spaces between words (`kd/spans.py`)."""
Place = tuple[int, int]
"""Where a record is: the index of its file, and its row in there."""


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
    llm: Source | None = None
    """The files of the side file, if the task has one."""
    attempt: str | None = None
    """The token of this attempt, which stops where it finds a newer one; None: nobody else can be at work."""
    retry_errors: bool = False
    """Whether a shard that holds errors is made again although it is there."""

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

        Its name depends on the plan, on what the side file says, on the records, and on where they begin.
        """
        text = hashlib.sha256("\n".join(records).encode(errors="surrogatepass")).hexdigest()
        side = side_digest(*self._side) if self._side else None
        shard = Shard(f"{self.split}-{digest(self.plan, side, places[0], text)[:12]}", self.split, len(records))
        counts = self._published(shard) or self._publish(shard, places, records)
        return Written(shard, places[0], places[-1], Counter(file for file, _ in places), counts)

    @property
    def _side(self) -> tuple[SideFile, Source] | None:
        config = self.task.llm
        return (config, self.llm or find_side(config)) if config else None

    def _published(self, shard: Shard) -> dict[str, int] | None:
        """What an earlier attempt counted in a shard; None where it is not there, not whole, or is to be made again."""
        path = f"{self.folder}/{shard.file}"
        try:
            notes = self.store.read_notes(path)
        except StoreError as error:
            if isinstance(error.__cause__, ValueError | FileNotFoundError):  # no Parquet; what cannot be read is an OSError
                return None
            raise
        again = self.retry_errors and notes is not None and any(key.startswith("error.") for key in notes)
        return None if again else notes

    def _publish(self, shard: Shard, places: Sequence[Place], records: Sequence[str]) -> dict[str, int]:
        parsed = (as_example(self.task, self.source_split, record) for record in records)
        located = (_located(row, self.source.files, place) for row, place in zip(parsed, places, strict=True))
        rows = [replace(row, split=self.split) for row in located]
        counts: dict[str, int] = {}
        if self._side:
            rows, counts = attach(rows, side_table(*self._side))
        unspaced = sum(is_unspaced(text) for row in rows for text in [" ".join(part.text for part in row.segments)])
        counts = count(rows) | counts | ({UNSPACED: unspaced} if unspaced else {})
        if self.attempt:
            check_newest(self.store, self.folder, self.attempt, "prepare", NEWEST_WITHIN_S)
        self.store.publish_rows(f"{self.folder}/{shard.file}", rows, Example, counts)
        return counts

    def check(self, written: Sequence[Written]) -> None:
        """The shards of this split follow one another in the order of the files, all but the last full; train has some.

        Another split may have none: what is measured on it is then null, with the reason.

        Raises:
            StageError: they do not, which would be a fault of the reading.
            InputError: train has no rows.
        """
        if not written and self.split == "train":
            reason = "the hold-out left it none" if self.task.holdout else "its files are empty"
            raise InputError(f"the train split of {self.task.path} has no rows: {reason}; see task.files and task.holdout")
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


def finished(store: Store, folder: str, task: TaskConfig, config: PrepareConfig, retry_errors: bool = False) -> Manifest | None:
    """The manifest of a task's examples, if they are complete; with `retry_errors` only if no row has an error.

    No record is read. The files are looked at as long as they are there: what is finished does without its corpus.

    Raises:
        StoreError: the folder holds the examples of another corpus or config, or a file has changed since.
        InputError: the corpus' folder holds other files than the task asks for.
    """
    found = store.manifest(folder)
    if found is None:
        return None
    sources = sources_still_there(task)
    there, asked = _marks(found), _marks(plan(task, config, sources))
    if found.config["task"] == task.described:
        check_unchanged(store, folder, sources)
    differs = [key for key, value in sorted(asked.items()) if there.get(key) != value]
    if differs:
        raise StoreError(
            f"{store.path(folder)} holds the examples of another corpus or config, as these differ: {', '.join(differs)}."
            " Use a new run name"
        )
    return None if retry_errors and found.errors else found


def _marks(manifest: Manifest) -> dict[str, object]:
    """By what the examples of two configs are told apart, under the names that a person knows."""
    files = {f"files of {name}": fingerprint for name, fingerprint in manifest.inputs.items()}
    rows = {"rows_per_shard": manifest.config["rows_per_shard"], "row type": manifest.schema_digest}
    return {**manifest.config["task"], **rows, **files}


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
    return task.errored(uid_of(task, split, text), split, RowFault("unparsable", why_unreadable(text)[0]))


def uid_of(task: TaskConfig, split: str, text: str) -> str:
    """The uid of that row, without the rest of it."""
    record = decoded(text)
    content = why_unreadable(text)[1] if record is None else record
    return task.uid(content, split) if isinstance(content, dict) else content_uid({"unreadable": content}, split)


def _located(row: Example, files: Sequence[SourceFile], place: Place) -> Example:
    """The row, with the place of its record in what is said of its error."""
    if row.error is None:
        return row
    where = f"{files[place[0]].name}, record {place[1] + 1}"
    return replace(row, error=replace(row.error, detail=f"{row.error.detail} ({where})"))


@lru_cache(maxsize=1)
def _held_positions(holdout: Holdout, records: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    return holdout.positions(records)
