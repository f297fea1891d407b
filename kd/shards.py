"""A stage over shards, without any scheduler: plan, do one shard, finish.

A stage is a recipe that opens to a function from rows to rows. One shard is one unit of work and one output file of
deterministic name, a function of the input shard and the config: attempts that overlap can only write the same rows again.
Ray only decides where and when `run_shard` is called; a plain loop gives the same files.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from kd.arrow import schema_digest
from kd.attempts import NEWEST_WITHIN_S, begin_attempt, check_newest
from kd.errors import StageError
from kd.manifests import MANIFEST, Manifest, Shard, digest
from kd.portions import exact
from kd.rows import Row, RowError, as_errored
from kd.store import Store

_DEVICE = "device."
"""Before the name of a device: the count of the rows that it did."""
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
    """Work with its folder in a run directory, this attempt's token, and the shards that are still to do, largest first.

    `again` are shards that are there, with rows that got an error which are to be tried once more.
    """

    work: Work
    folder: str
    attempt: str
    todo: Sequence[Shard]
    again: frozenset[str] = frozenset()


def claim(store: Store, work: Work, retry_errors: bool = False) -> Claimed | Manifest:
    """Take the folder for this work; its manifest if it is complete already.

    With `retry_errors` the shards that hold rows with an error of this stage are to be done again, for these rows alone. The
    stage is unfinished from then on: what is made from it waits for the new manifest.
    """
    folder = store.folder_for(work.target, work.digest)
    if store.knows_manifest(folder) and (manifest := _finished(store, folder, retry_errors)):
        return manifest
    there = set(store.names(folder))
    if MANIFEST in there and (manifest := _finished(store, folder, retry_errors)):
        return manifest
    again = list(_with_errors(store, folder, [shard for shard in work.shards if shard.file in there])) if retry_errors else []
    todo = [shard for shard in work.shards if shard.file not in there] + again
    if MANIFEST in there:
        store.delete_manifest(folder)
    by_size = sorted(todo, key=lambda shard: -shard.rows)
    return Claimed(work, folder, begin_attempt(store, folder), by_size, frozenset(shard.name for shard in again))


def finished_in(store: Store, work: Work, retry_errors: bool = False) -> Manifest | None:
    """The manifest of the work; None where it has none, or with `retry_errors` rows in it that got an error here.

    The work has its folder from then on, so that who goes on with it need not ask for one again.
    """
    return _finished(store, store.folder_for(work.target, work.digest), retry_errors)


def _finished(store: Store, folder: str, retry_errors: bool) -> Manifest | None:
    manifest = store.manifest(folder)
    return None if manifest is None or (retry_errors and added_errors(manifest.errors, manifest.counts)) else manifest


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


def run_shard(store: Store, claimed: Claimed, shard: Shard, apply: Apply, device: str | None = None) -> dict[str, int]:
    """Read one shard, do the work, check the laws, publish the result; what it counted comes back.

    A shard that is done again keeps its rows and does only those that got an error here. `device` is the name of the CPU or
    GPU that does it; it is counted with the rows.

    Raises:
        StageError: the function lost, added or reordered rows, the shard is shorter than planned, or this attempt was overtaken.
    """
    work = claimed.work
    rows = store.read_rows(f"{work.source}/{shard.file}", work.reads)[: shard.rows]
    if len(rows) != shard.rows:
        raise StageError(
            f"{work.source}/{shard.file}: expected {shard.rows} rows, got {len(rows)}; run prepare into a new run name"
        )
    target = f"{claimed.folder}/{shard.file}"
    before = store.read_rows(target, work.writes) if shard.name in claimed.again else []
    kept = {row.uid: row for row in before if row.error is None}
    tally = _told(store.read_notes(target), before) if before else Counter()
    good = [row for row in rows if row.error is None and row.uid not in kept]
    results = apply(good, tally)
    if device and good:
        tally[f"{_DEVICE}{device}"] += len(good)
    if len(results) != len(good):
        raise StageError(f"{work.title}: {len(good)} rows went in and {len(results)} came out of {shard.file}")
    answers = iter(results)
    finished = [kept.get(row.uid) or _settle(row, row.error or next(answers), work.writes) for row in rows]
    try:
        check_conserved(rows, finished)
    except ValueError as error:
        raise StageError(f"{work.title}, {shard.file}: {error}") from error
    counted = count(finished) | _count_inherited(rows) | tally
    check_newest(store, claimed.folder, claimed.attempt, work.title, NEWEST_WITHIN_S)
    store.publish_rows(target, finished, work.writes, counted)
    return counted


def check_conserved(before: Sequence[Row], after: Sequence[Row]) -> None:
    """The law of every stage: as many rows out as in, the same uids in the same order, none twice.

    Raises:
        ValueError: naming the first uid that breaks it.
    """
    went_in = [row.uid for row in before]
    came_out = [row.uid for row in after]
    if len(set(went_in)) != len(went_in):
        seen: set[str] = set()
        twice = next(uid for uid in went_in if uid in seen or seen.add(uid))  # type: ignore[func-returns-value]
        raise ValueError(f"uid {twice!r} occurs twice in the input of a stage; expected every uid once")
    if went_in != came_out:
        missing = sorted(set(went_in) - set(came_out))[:3]
        added = sorted(set(came_out) - set(went_in))[:3]
        raise ValueError(
            f"a stage took {len(went_in)} rows and gave {len(came_out)}; missing {missing}, added {added}, or reordered"
        )


def finish(store: Store, claimed: Claimed, seconds: float, device: str, counted: Mapping[str, int] | None = None) -> Manifest:
    """Write the manifest of work whose shards are all there, with the counts of every shard, resumed ones too.

    `counted` is the sum of what `run_shard` gave for the shards of this attempt; of the others, or where it is not given of
    all, the files' footers are read. `device` is said where no shard tells by name what did it.

    Raises:
        StageError: a shard is missing, more rows got an error here than the config allows, or this attempt was overtaken.
    """
    work = claimed.work
    check_newest(store, claimed.folder, claimed.attempt, work.title)
    missing = {shard.file for shard in work.shards} - set(store.names(claimed.folder))
    if missing:
        raise StageError(
            f"{work.title}: {len(missing)} of {len(work.shards)} shards are missing, {min(missing)} first; run it again"
        )
    counts = Counter(counted)
    here = {shard.name for shard in claimed.todo} if counted is not None else set()
    for _, notes in _notes(store, claimed.folder, [shard for shard in work.shards if shard.name not in here]):
        counts.update(notes)
    rows_done = sum(shard.rows for shard in claimed.todo if shard.name not in claimed.again)
    manifest = summarise(work.title, counts, seconds, rows_done)
    failed = _failed_here(store, claimed)
    check_errors(manifest, work.max_error_frac, work.max_error_key, store.path(claimed.folder), failed)
    return store.publish_manifest(
        claimed.folder,
        Manifest(
            **manifest
            | {
                "digest": digest(work.digest, added_errors(manifest["errors"], manifest["counts"])),
                "config": dict(work.config),
                "inputs": dict(work.inputs),
                "row_type": work.writes.__name__,
                "schema_digest": schema_digest(work.writes),
                "shards": list(work.shards),
                "device": ", ".join(sorted(key.removeprefix(_DEVICE) for key in counts if key.startswith(_DEVICE))) or device,
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
        "errors": _by_reason(counts),
        "counts": {key: n for key, n in counts.items() if key != "rows" and not key.startswith(("error.", _DEVICE))},
        "seconds": round(seconds, 3),
        "rows_per_s": round(rows_done / seconds, 3) if seconds and rows_done else None,
    }


def added_errors(errors: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, int]:
    """Rows that got an error in this stage, by its reason: those of a manifest without those that came with one."""
    new = {reason: n - counts.get(f"inherited_{reason}", 0) for reason, n in sorted(errors.items())}
    return {reason: n for reason, n in new.items() if n}


def check_errors(summary: Mapping[str, Any], max_error_frac: float, key: str, where: str, failed_rows: Iterator[Row]) -> None:
    """Raise StageError where more of the rows that came without an error got one than the config's `key` allows.

    `failed_rows` are rows with an error; the first three stand in the message with their reason, more are not read.
    """
    new = added_errors(summary["errors"], summary["counts"])
    failed, rows = sum(new.values()), summary["rows"] - sum(summary["errors"].values()) + sum(new.values())
    if failed > exact(max_error_frac) * rows:
        reasons = ", ".join(f"{reason} {n}" for reason, n in new.items())
        raise StageError(
            f"{summary['stage']}: {failed} of {rows} rows got an error ({reasons}), more than {key} = {max_error_frac};"
            f" for example\n{''.join(map(_said, itertools.islice(failed_rows, 3)))}The rows are in {where} with their error; mend"
            f" the corpus or raise {key}, then run it again. With --retry-errors these rows are tried once more."
        )


def _said(row: Row) -> str:
    """A row's error as a line."""
    return f"  {row.uid}: {row.error.reason}, {' '.join(row.error.detail.split()):.300}\n" if row.error else ""


def errored_rows(store: Store, folder: str, shards: Sequence[Shard], row_type: type[Row]) -> Iterator[Row]:
    """Rows with an error, shard by shard; only shards that hold some are read."""
    for shard, notes in _notes(store, folder, shards):
        if any(key.startswith("error.") for key in notes):
            yield from (row for row in store.read_rows(f"{folder}/{shard.file}", row_type) if row.error is not None)


def _with_errors(store: Store, folder: str, shards: Sequence[Shard]) -> Iterator[Shard]:
    """The shards that hold rows which got an error in this stage."""
    return (shard for shard, notes in _notes(store, folder, shards) if added_errors(_by_reason(notes), notes))


def _failed_here(store: Store, claimed: Claimed) -> Iterator[Row]:
    """The rows that got an error in this stage, shard by shard."""
    work = claimed.work
    for shard in _with_errors(store, claimed.folder, work.shards):
        came = {row.uid for row in store.read_rows(f"{work.source}/{shard.file}", work.reads) if row.error}
        rows = store.read_rows(f"{claimed.folder}/{shard.file}", work.writes)
        yield from (row for row in rows if row.error and row.uid not in came)


def _notes(store: Store, folder: str, shards: Sequence[Shard]) -> Iterator[tuple[Shard, dict[str, int]]]:
    """What every shard counted, from the files' footers."""
    with ThreadPoolExecutor(8) as readers:
        yield from zip(shards, readers.map(lambda shard: store.read_notes(f"{folder}/{shard.file}"), shards), strict=True)


def _told(notes: Mapping[str, int], rows: Sequence[Row]) -> Counter[str]:
    """What the work told beside its rows when it did a shard before."""
    of_rows = count(rows)
    return Counter({key: n for key, n in notes.items() if key not in of_rows and not key.startswith("inherited_")})


def _by_reason(counts: Mapping[str, int]) -> dict[str, int]:
    return {key.removeprefix("error."): n for key, n in counts.items() if key.startswith("error.")}


def _settle(row: Row, result: Row | RowError, row_type: type[Row]) -> Row:
    return as_errored(row, row_type, result) if isinstance(result, RowError) else result
