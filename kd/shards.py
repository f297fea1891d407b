"""A stage over shards, without any scheduler: plan, do one shard, finish.

A stage is a recipe that opens to a function from rows to rows. One shard is one unit of work and one output file of
deterministic name. Ray only decides where and when `run_shard` is called; a plain loop gives the same files.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from kd.arrow import schema_digest
from kd.errors import StageError
from kd.rows import Row, RowError, as_errored, check_conserved
from kd.store import Manifest, Shard, Store, digest

Apply = Callable[[list[Any], Counter[str]], list[Any]]
"""Good rows in; for each, in order, its result or the RowError that says why there is none. The counter is for what the
work has to tell beside its rows; it ends in the manifest."""


class Recipe(Protocol):
    """A small picklable object that opens to the work: models are loaded in `open`, on the worker."""

    def open(self) -> Apply:
        """Load what the work needs and return the function that does it."""


@dataclass(frozen=True)
class Work:
    """One stage over one list of shards: what to do, what to read, where to write.

    `config` is the slice of the config that mattered and `inputs` the digests of what is read: with the row contract
    they make the `digest` by which a finished stage is recognised. At most `max_error_frac` of the rows that come without an
    error may get one here; `max_error_key` is the config key that says so.
    """

    title: str
    recipe: Recipe
    source: str
    target: str
    reads: type[Row]
    writes: type[Row]
    shards: Sequence[Shard]
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    max_error_frac: float
    max_error_key: str

    @property
    def digest(self) -> str:
        return digest(self.title, self.config, self.inputs, schema_digest(self.writes), [[s.name, s.rows] for s in self.shards])


@dataclass(frozen=True)
class Claimed:
    """Work with its folder in a run directory, and the shards that are still to do, largest first."""

    work: Work
    folder: str
    todo: Sequence[Shard]


def claim(store: Store, work: Work) -> Claimed | Manifest:
    """Take the folder for this work; its manifest if it is complete already."""
    folder = store.folder_for(work.target, work.digest)
    manifest = store.manifest(folder)
    if manifest is not None:
        return manifest
    done = set(store.names(folder))
    todo = [shard for shard in work.shards if shard.file not in done]
    return Claimed(work, folder, sorted(todo, key=lambda shard: -shard.rows))


def is_finished(store: Store, work: Work) -> bool:
    """Whether the work has a manifest."""
    folder = store.find_folder(work.target, work.digest)
    return folder is not None and store.manifest(folder) is not None


def completed(store: Store, work: Work) -> tuple[str, Manifest]:
    """The folder and the manifest of finished work.

    Raises:
        StageError: it is not finished; the message says which stage to run.
    """
    folder = store.find_folder(work.target, work.digest)
    manifest = store.manifest(folder) if folder else None
    if folder is None or manifest is None:
        raise StageError(f"{store.path(work.target)} is not complete for this config; run the stage {work.title!r} first")
    return folder, manifest


def run_shard(store: Store, claimed: Claimed, shard: Shard, apply: Apply) -> dict[str, int]:
    """Read one shard, do the work, check the laws, publish the result; what it counted comes back.

    Raises:
        StageError: the function lost, added or reordered rows, or the shard is shorter than planned.
    """
    work = claimed.work
    rows = store.read_rows(f"{work.source}/{shard.file}", work.reads)[: shard.rows]
    if len(rows) != shard.rows:
        raise StageError(
            f"{work.source}/{shard.file}: expected {shard.rows} rows, got {len(rows)}; run prepare into a new run name"
        )
    good = [row for row in rows if row.error is None]
    tally: Counter[str] = Counter()
    results = apply(good, tally)
    if len(results) != len(good):
        raise StageError(f"{work.title}: {len(good)} rows went in and {len(results)} came out of {shard.file}")
    answers = iter(results)
    finished = [_settle(row, row.error or next(answers), work.writes) for row in rows]
    try:
        check_conserved(rows, finished)
    except ValueError as error:
        raise StageError(f"{work.title}, {shard.file}: {error}") from error
    counted = count(finished) | _count_inherited(rows) | tally
    store.publish_rows(f"{claimed.folder}/{shard.file}", finished, work.writes, counted)
    return counted


def finish(store: Store, claimed: Claimed, seconds: float, device: str) -> Manifest:
    """Write the manifest of work whose shards are all there, with the counts of every shard, resumed ones too.

    Raises:
        StageError: a shard is missing, or more rows got an error here than the config allows.
    """
    work = claimed.work
    missing = {shard.file for shard in work.shards} - set(store.names(claimed.folder))
    if missing:
        raise StageError(
            f"{work.title}: {len(missing)} of {len(work.shards)} shards are missing, {min(missing)} first; run it again"
        )
    with ThreadPoolExecutor(8) as readers:
        notes = readers.map(lambda shard: store.read_notes(f"{claimed.folder}/{shard.file}"), work.shards)
        counts: Counter[str] = sum((Counter(note) for note in notes), Counter())
    manifest = summarise(work.title, counts, seconds, rows_done=sum(shard.rows for shard in claimed.todo))
    check_errors(manifest, work.max_error_frac, work.max_error_key, store.path(claimed.folder))
    return store.publish_manifest(
        claimed.folder,
        Manifest(
            **manifest
            | {
                "digest": work.digest,
                "config": dict(work.config),
                "inputs": dict(work.inputs),
                "row_type": work.writes.__name__,
                "schema_digest": schema_digest(work.writes),
                "shards": list(work.shards),
                "device": device,
            }
        ),
    )


def count(rows: Sequence[Row]) -> dict[str, int]:
    """Rows, errors by reason and what the row type tallies, as flat keys: `rows`, `error.<reason>`, `<tally>`."""
    counted = Counter(key for row in rows for key in row.tally())
    counted.update(f"error.{row.error.reason}" for row in rows if row.error)
    return {"rows": len(rows)} | dict(counted)


def _count_inherited(rows: Sequence[Row]) -> dict[str, int]:
    """Rows that came with an error, by its reason: `inherited_<reason>`. `count` has them among all the errors too."""
    return dict(Counter(f"inherited_{row.error.reason}" for row in rows if row.error))


def summarise(stage: str, counts: Mapping[str, int], seconds: float, rows_done: int) -> dict[str, Any]:
    """The manifest fields that follow from the counts."""
    return {
        "stage": stage,
        "rows": counts.get("rows", 0),
        "errors": {key.removeprefix("error."): n for key, n in counts.items() if key.startswith("error.")},
        "counts": {key: n for key, n in counts.items() if key != "rows" and not key.startswith("error.")},
        "seconds": round(seconds, 3),
        "rows_per_s": round(rows_done / seconds, 3) if seconds and rows_done else None,
    }


def check_errors(summary: Mapping[str, Any], max_error_frac: float, key: str, where: str) -> None:
    """Raise StageError where more of the rows that came without an error got one than the config's `key` allows."""
    inherited = {reason: summary["counts"].get(f"inherited_{reason}", 0) for reason in summary["errors"]}
    new = {reason: n - inherited[reason] for reason, n in sorted(summary["errors"].items()) if n > inherited[reason]}
    failed, rows = sum(new.values()), summary["rows"] - sum(inherited.values())
    if failed > max_error_frac * rows:
        reasons = ", ".join(f"{reason} {n}" for reason, n in new.items())
        raise StageError(
            f"{summary['stage']}: {failed} of {rows} rows got an error ({reasons}), more than {key} = {max_error_frac}."
            f" The rows are in {where} with their error; mend the corpus or raise {key}, then run it again."
        )


def _settle(row: Row, result: Row | RowError, row_type: type[Row]) -> Row:
    return as_errored(row, row_type, result) if isinstance(result, RowError) else result
