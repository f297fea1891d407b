"""Makes a corpus into shards of examples with Ray Data: the one stage that reads something else than shards.

A split is read as a stream of records, each with its place (file, row); the hold-out takes its part; the stream is cut into
blocks of exactly so many records; a task per block parses them and publishes one shard. Only counts and places come back, and
they prove that every record went into one shard, in the order of the files.
"""

import itertools
import math
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from kd.attempts import begin_attempt, check_newest
from kd.corpus import Source, columns_of
from kd.errors import InputError, UserError
from kd.examples import Place, Stream, Written, check_complete, finished, plan
from kd.manifests import Manifest, Shard, digest
from kd.ray_data import as_they_come, packed, quiet_context, raise_packed, readable_errors
from kd.rows import Example
from kd.shards import check_errors, errored_rows, summarise
from kd.side import side_size
from kd.sources import check_unchanged, find_sources, freeze, sources_still_there
from kd.store import Store
from kd.tasks.base import PrepareConfig, TaskConfig
from kd.uids import UIDS_PER_BUCKET, Repeats, find_repeats, rename

Progress = Callable[[int, int | None], None]
"""Called with the rows done and, where it is known, the rows in all."""
READ_AT_ONCE = 1000
READ_BLOCK_BYTES = 16 * 2**20


def prepare(
    task: TaskConfig,
    config: PrepareConfig,
    store: Store,
    progress: Progress,
    folder: str = "examples",
    retry_errors: bool = False,
) -> Manifest:
    """Read a task's corpus, publish its examples as shards below `folder`, and say so in a manifest.

    Rows keep the order of the files. Every shard of a split but the last has exactly `config.rows_per_shard` rows. With
    `retry_errors` the shards that hold errors are made again, also of a corpus that is complete, which it is not from then on.

    Raises:
        InputError: no such files, unreadable ones, a column that is not there, an id that occurs twice, no rows of train.
        StoreError: the folder holds examples of another corpus or config, or a file has changed since they were begun.
        StageError: records were lost, more of them are bad than the config allows, or another attempt has taken over.
    """
    started = time.monotonic()
    complete = finished(store, folder, task, config, retry_errors)
    if complete:
        return complete
    sources = find_sources(task)
    splits = {name: source for name, source in sources.items() if name != "llm"}
    may_have_more = any(source.may_have_more_columns() for source in splits.values())
    task.check_columns(columns_of(splits), may_have_more)
    attempt = begin_attempt(store, folder)
    freeze(store, folder, sources)
    if retry_errors:
        store.delete_manifest(folder)
    planned, llm = plan(task, config, sources), sources.get("llm")
    made = partial(Stream, task, store=store, folder=folder, rows_per_shard=config.rows_per_shard, plan=planned.digest, llm=llm)
    quiet_context()
    figures: dict[str, float | str | None] = {}
    with _users_errors():
        if llm:
            figures["llm_side_records"] = ray.get(ray.remote(side_size).remote(task.llm, llm))
        streams = _streams(task, splits, partial(made, attempt=attempt, retry_errors=retry_errors))
        written = _write_all(streams, progress)
        shards, figures["repeated_records"] = _make_unique(task, store, folder, attempt, [item.shard for item in written])
    counts: Counter[str] = sum((Counter(item.counts) for item in written), Counter())
    summary = summarise("prepare", counts, time.monotonic() - started, rows_done=counts["rows"])
    failed = errored_rows(store, folder, shards, Example)
    check_errors(summary, config.max_error_frac, "prepare.max_error_frac", store.path(folder), failed)
    check_unchanged(store, folder, sources_still_there(task))
    check_newest(store, folder, attempt, "prepare")
    identified = digest(planned.digest, summary["errors"])
    return store.publish_manifest(folder, replace(planned, digest=identified, shards=shards, figures=figures, **summary))


class RecordFiles(Datasource):  # type: ignore[misc]
    """The records of a split as a table of `file`, `row`, `record`, streamed by one read task per file.

    Ray's own readers guess types per block, so that a column which is null in one and a list in another breaks a corpus, and
    do not say where a row came from. `failure` tells of an unreadable file: as data, since Ray keeps only an error's text.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    def estimate_inmemory_data_size(self) -> int | None:
        return self.stream.source.size_bytes

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_read, self.stream, index),
                BlockMetadata(num_rows=None, size_bytes=file.size_bytes, input_files=[file.path], exec_stats=None),
            )
            for index, file in enumerate(self.stream.source.files)
        ]


def _streams(task: TaskConfig, sources: Mapping[str, Source], made: Callable[..., Stream]) -> list[Stream]:
    """The splits to make, in order; train is followed by what is held out of it."""
    streams = []
    count = ray.remote(Source.count)
    for name, source in sources.items():
        splits = ["train", "validation"] if name == "train" and task.holdout else [name]
        limits = [task.limit_rows.of(split) for split in splits]
        by_position = len(splits) > 1 and task.holdout is not None and task.holdout.by == "position"
        counted = by_position or None in limits
        records = ray.get([count.remote(source, index) for index in range(len(source.files))]) if counted else []
        streams += [made(source, name, split, records=records) for split in splits]
    return streams


def _write_all(streams: Sequence[Stream], progress: Progress) -> list[Written]:
    """Write the shards of every split; what was written, in the order of the splits and the files."""
    limited = any(stream.limit for stream in streams)
    total = None if limited else sum(sum(stream.records) for stream in streams if stream.split == stream.source_split)
    written: dict[str, list[Written]] = {}
    done = 0
    for stream in streams:
        written[stream.split] = []
        for item in _write(stream):
            written[stream.split].append(item)
            done += item.shard.rows
            progress(done, total)
        written[stream.split].sort(key=lambda item: item.first)
        stream.check(written[stream.split])
    for _, parts in itertools.groupby(streams, lambda stream: stream.source_split):
        _check_complete(list(parts), written)
    return [item for stream in streams for item in written[stream.split]]


def _write(stream: Stream) -> Iterator[Written]:
    """Run one split through Ray Data; what its tasks say, as it comes."""
    with _source_order():
        records = ray.data.read_datasource(RecordFiles(stream), override_num_blocks=len(stream.source.files))
    if stream.limit:
        records = records.limit(stream.limit)
    blocks = records.repartition(target_num_rows_per_block=stream.rows_per_shard, strict=True)
    shards = blocks.map_batches(partial(_write_shard, stream), batch_size=None, batch_format="pyarrow")
    for row in as_they_come(shards):
        raise_packed(row["failure"])
        yield pickle.loads(row["written"])


def _read(stream: Stream, file: int) -> Iterator[pa.Table]:
    """The records of one file that belong to the split, in tables."""
    numbered = enumerate(stream.source.records(file))
    try:
        while some := list(itertools.islice(numbered, READ_AT_ONCE)):
            kept = stream.keeps([(file, row) for row, _ in some], [record for _, record in some])
            yield _table(file, [entry for entry, keep in zip(some, kept, strict=True) if keep], b"")
    except UserError as error:
        yield _table(file, [(0, "")], packed(error, "reading"))


def _table(file: int, records: Sequence[tuple[int, str]], failure: bytes) -> pa.Table:
    columns = {
        "file": pa.array([file] * len(records), pa.int32()),
        "row": pa.array([row for row, _ in records], pa.int64()),
        "record": pa.array([record for _, record in records], pa.string()),
        "failure": pa.array([failure] * len(records), pa.binary()),
    }
    return pa.table(columns)


def _write_shard(stream: Stream, batch: pa.Table) -> pa.Table:
    written, failure = b"", b""
    try:
        for failed in filter(None, batch["failure"].to_pylist()):
            raise_packed(failed)
        places: list[Place] = list(zip(batch["file"].to_pylist(), batch["row"].to_pylist(), strict=True))
        written = pickle.dumps(stream.write(places, batch["record"].to_pylist()))
    except Exception as error:  # noqa: BLE001 - raised again in the driver
        failure = packed(error, f"prepare, {stream.split}")
    return pa.table({"written": [written], "failure": [failure]})


def _check_complete(parts: Sequence[Stream], written: Mapping[str, Sequence[Written]]) -> None:
    """Where the files were counted and are wanted whole, every record is in one shard."""
    if parts[0].records and not any(part.limit for part in parts):
        check_complete(parts[0].source, parts[0].records, [item for part in parts for item in written[part.split]])


def _make_unique(task: TaskConfig, store: Store, folder: str, attempt: str, shards: Sequence[Shard]) -> tuple[list[Shard], int]:
    """The shards with equal records named apart, and how many these are. Raises InputError where an id occurs twice."""
    buckets = math.ceil(sum(shard.rows for shard in shards) / UIDS_PER_BUCKET)
    find = ray.remote(num_returns=2)(find_repeats)
    tasks = [find.remote(store, folder, shards, bucket, buckets) for bucket in range(buckets)]
    found: list[Repeats] = ray.get([repeats for repeats, _ in tasks])
    ids = [uid for repeats in found for uid in repeats.ids]
    if ids:
        raise InputError(
            f"task.id: expected ids that occur once in a split, but {task.id!r} in {task.path} has {', '.join(ids[:3])} more than"
            " once. Name another column, or null for ids made from the content"
        )
    changed = {name for repeats in found for name in repeats.shards}
    renames = [renames for _, renames in tasks]
    again = ray.remote(rename)
    waiting = {shard.name: again.remote(store, folder, attempt, shard, *renames) for shard in shards if shard.name in changed}
    renamed: dict[str, tuple[Shard, int]] = dict(zip(waiting, ray.get(list(waiting.values())), strict=True))
    unique = [renamed[shard.name][0] if shard.name in renamed else shard for shard in shards]
    return unique, sum(count for _, count in renamed.values())


@contextmanager
def _source_order() -> Iterator[None]:
    """Data sets made in here keep the order of the files, so that blocks, and with them shards, are always the same.

    They are read in small blocks, so that the memory of a reader does not grow with its file.
    """
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.target_max_block_size
    context.execution_options.preserve_order, context.target_max_block_size = True, READ_BLOCK_BYTES
    try:
        yield
    finally:
        context.execution_options.preserve_order, context.target_max_block_size = before


@contextmanager
def _users_errors() -> Iterator[None]:
    """What a plain Ray task found wrong with the input, as itself; anything else as a StageError."""
    with readable_errors():
        try:
            yield
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
