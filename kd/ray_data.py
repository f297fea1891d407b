"""Runs plain stages over the shards of a run directory on the cluster.

One shard is one unit of work, scheduled by Ray Data over a pool of actors. An actor reads its shard, computes, builds
the file in memory and publishes it; only counts come back, so the driver and the object store hold the list of shards and
never a row. Several works may share one pool: a start costs seconds, and students to evaluate are many.
"""

import dataclasses
import json
import pickle
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
import ray.data
import ray.exceptions
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kd.errors import StageError, UserError, each_in_turn
from kd.loading import device_name
from kd.manifests import Manifest, Shard
from kd.shards import Apply, Claimed, Work, claim, finish, run_shard
from kd.store import Store
from kd.tries import Tries, check_tries

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""
SHARDS_BYTES = 32 * 2**20
"""So much of what it has read an actor keeps, as it is on disk: works that share a pool often read the same shards."""


@dataclass(frozen=True)
class Pool:
    """How many actors of what size, on nodes with which labels (none: on any).

    Actors read and write by themselves, so nothing else competes for their CPUs.
    """

    min_actors: int
    max_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """What an actor works on: "cuda" or "cpu"."""
        return "cuda" if self.gpus_per_actor else "cpu"

    def options(self, units: int) -> dict[str, Any]:
        """The pool as `map_batches` wants it for so many units of work: no actor more than that.

        An actor asks for a GPU or for CPUs: asking for both is experimental.
        """
        least, most = min(self.min_actors, units), min(self.max_actors, units)
        strategy = ray.data.ActorPoolStrategy(min_size=least, max_size=most, initial_size=least)
        size = {"num_gpus": self.gpus_per_actor} if self.gpus_per_actor else {"num_cpus": self.cpus_per_actor}
        return {"compute": strategy, "label_selector": dict(self.labels) or None, **size}


def run(store: Store, works: Sequence[Work], pool: Pool, progress: Progress, retry_errors: bool = False) -> list[Manifest]:
    """Do what is still to do of every work, in one pool; their manifests, in order. See `claim` for `retry_errors`.

    Raises:
        StageError: a stage broke a law, or failed for a reason that is no row's fault. Finished shards stay: the next call
            goes on behind them. Or works have too many errored rows: all others are finished.
    """
    claimed = [claim(store, work, retry_errors) for work in works]
    started = [item for item in claimed if isinstance(item, Claimed)]
    units = [Unit(index, shard) for index, item in enumerate(started) for shard in item.todo]
    spans: list[tuple[float, float] | None] = [None] * len(started)
    counted: list[Counter[str]] = [Counter() for _ in started]
    total = sum(shard.rows for item in started for shard in item.work.shards)
    done = total - sum(unit.shard.rows for unit in units)
    progress(done, total)
    for result in _results(store, started, units, pool):
        done += result["rows"]
        index = result["work"]
        first, last = spans[index] or (result["started_s"], result["ended_s"])
        spans[index] = min(first, result["started_s"]), max(last, result["ended_s"])
        counted[index].update(json.loads(result["counted"]))
        progress(done, total)
    seconds = [span[1] - span[0] if span else 0.0 for span in spans]
    ends = [partial(finish, store, item, seconds[index], pool.device, counted[index]) for index, item in enumerate(started)]
    finished = iter(each_in_turn(ends))
    return [next(finished) if isinstance(item, Claimed) else item for item in claimed]


@dataclass(frozen=True)
class Unit:
    """One shard of one work."""

    work: int
    shard: Shard


class ShardWorker:
    """The actor: opens the recipe of the work it was last handed, and does shard after shard with it.

    It is made without the list of shards: which one it is to do comes with each call.
    """

    def __init__(self, store: Store, claimed: Sequence[Claimed], device: str, tries: ActorHandle) -> None:
        self.store = store.remembering(SHARDS_BYTES)
        self.claimed = claimed
        self.device = device
        self.tries = tries
        self.node = ray.get_runtime_context().get_node_id()
        self.opened: tuple[int, Apply] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        shard = Shard(str(batch["name"][0]), str(batch["split"][0]), int(batch["rows"][0]))
        unit = Unit(int(batch["work"][0]), shard)
        started, failure, counted = time.time(), b"", "{}"
        try:
            claimed = self.claimed[unit.work]
            with self._noted(claimed.folder, unit.shard.name):
                apply = self._apply(unit.work)
                counted = json.dumps(run_shard(self.store, claimed, unit.shard, apply, device_name(self.device)))
        except Exception as error:  # noqa: BLE001 - raised again in the driver
            failure = packed(error, f"{self.claimed[unit.work].work.title}, shard {unit.shard.name}")
        done = {"work": unit.work, "rows": unit.shard.rows, "counted": counted}
        done |= {"started_s": started, "ended_s": time.time(), "failure": failure}
        return {key: [value] for key, value in done.items()}

    @contextmanager
    def _noted(self, folder: str, shard: str) -> Iterator[None]:
        """Inside, a shard is being done: a note of that outlives this process. Raises StageError at one try too many."""
        key = f"{folder}/{shard}"
        died, lost = ray.get(self.tries.begin.remote(key, self.node))
        check_tries(died, lost, self.store.path(folder), shard)
        try:
            yield
        finally:
            self.tries.end.remote(key)

    def _apply(self, work: int) -> Apply:
        if self.opened is None or self.opened[0] != work:
            self.opened = None  # frees the model before the next one is loaded
            self.opened = work, self.claimed[work].work.recipe.open()
        return self.opened[1]


def _results(store: Store, claimed: Sequence[Claimed], units: Sequence[Unit], pool: Pool) -> Iterator[dict[str, Any]]:
    """What the actors report, as it comes."""
    if not units:
        return
    quiet_context()
    items = [{"work": unit.work, **dataclasses.asdict(unit.shard)} for unit in units]
    tries = beside_the_driver(Tries, _nodes_that_are_there)
    arguments = {"store": store, "claimed": [_without_shards(item) for item in claimed], "device": pool.device, "tries": tries}
    todo = ray.data.from_items(items, override_num_blocks=len(items))
    results = todo.map_batches(ShardWorker, batch_size=1, fn_constructor_kwargs=arguments, **pool.options(len(units)))
    with readable_errors():
        for result in as_they_come(results):
            raise_packed(result["failure"])
            yield result


def beside_the_driver(kind: type, *arguments: Any) -> ActorHandle:
    """An object of this kind that all workers can call. It is lost with the driver's node only, and ends with its last handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(kind).remote(*arguments)


def _nodes_that_are_there() -> Collection[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def as_they_come(results: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """The rows of what is made block by block, each at once: `iter_rows` holds a block back until the next one is there."""
    for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from table.to_pylist()


def _without_shards(claimed: Claimed) -> Claimed:
    """What an actor needs to know of a work: all but its list of shards."""
    return dataclasses.replace(claimed, todo=(), work=dataclasses.replace(claimed.work, shards=()))


def quiet_context() -> None:
    """Ray Data as this project wants it: no progress bars of its own, and waiting for a machine is not a failure."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = -1


@contextmanager
def readable_errors() -> Iterator[None]:
    """What Ray itself reports (lost workers, no memory) as a StageError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise StageError(f"Ray gave up: {error}; finished shards are kept, the log has the whole story") from error


def packed(error: Exception, where: str) -> bytes:
    """A failure as bytes, to be returned as data: Ray Data keeps no more of a worker's exception than its text.

    A user's mistake travels as itself; anything else as a StageError that says where it happened.
    """
    traceback.print_exception(error)
    carried = error if isinstance(error, UserError) else StageError(f"{where}: {type(error).__name__}: {error}")
    return pickle.dumps(carried)


def raise_packed(failure: bytes) -> None:
    """Raise what a worker packed, if it packed anything."""
    if failure:
        raise pickle.loads(failure)
