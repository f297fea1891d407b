"""The attribution engine under Ray Data, in the steady state, beside a plain loop over the same shards.

`make bench-attribution` runs it behind `bench/attribution.py`, with the same model and rows. The loop has a process of its
own, as an actor has.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Self

import ray

from bench.record import Record, ratio
from bench.setting import LIMITS, arguments, describe, end, model_and_rows
from kd import ray_data
from kd.attribution.engine import Attribute, AttributionConfig
from kd.manifests import Shard
from kd.models import ModelConfig, ModelSource
from kd.ray_data import Pool
from kd.rows import Attribution, Example
from kd.shards import Claimed, Work, claim, run_shard
from kd.store import Store

SHARDS = 8


class UnderRay:
    """A local cluster with a run directory that holds the rows in equal shards."""

    def __init__(self, model: Path, run: Path, rows: Sequence[Example], budget: int, limits: ModelConfig) -> None:
        self._store = Store.at(str(run))
        self._source = ModelSource(limits.model_copy(update={"name": str(model)}))
        self._config = AttributionConfig(batch_tokens=budget)
        self._shards = []
        size = len(rows) // SHARDS
        for number in range(SHARDS):
            shard = Shard(f"train-{number}", "train", size)
            self._store.publish_rows(f"examples/{shard.file}", rows[number::SHARDS][:size], Example, {})
            self._shards.append(shard)
        self._made = 0

    def __enter__(self) -> Self:
        ray.init(address="local", num_cpus=4, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        ray.shutdown()

    def cases(self) -> dict[str, Callable[[], float]]:
        """Each measures rows per second once."""
        return {
            "b: engine alone, 1 thread": self._alone,
            "b: 1 actor": lambda: self._under_ray(actors=1, threads=1),
            "b: 2 actors": lambda: self._under_ray(actors=2, threads=1),
            "b: 1 actor of 2 threads": lambda: self._under_ray(actors=1, threads=2),
        }

    def _alone(self) -> float:
        """A plain loop over the same shards with one thread, the first shard not timed."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
            return other.submit(loop, self._store, self._work(threads=1), self._shards).result()

    def _under_ray(self, actors: int, threads: int) -> float:
        """From when every actor has done its first shard to the end, by when the shards were published.

        The driver hears of a shard when the next one is done, so its own clock would leave a shard's time out.
        """
        work = self._work(threads)
        ray_data.run(self._store, [work], Pool(actors, actors, cpus_per_actor=1, gpus_per_actor=0), lambda *_: None)
        published = sorted(Path(self._store.path(f"{work.target}/{shard.file}")).stat().st_mtime for shard in self._shards)
        rows = sum(shard.rows for shard in self._shards[actors:])  # shards are of one size
        return rows / (published[-1] - published[actors - 1])

    def _work(self, threads: int) -> Work:
        """The same stage again and again, each time into a folder of its own."""
        self._made += 1
        return Work(
            title="attribute",
            recipe=Attribute(self._config, self._source, "cpu", threads),
            source="examples",
            target=f"attributions/{self._made}",
            reads=Example,
            writes=Attribution,
            shards=self._shards,
            config={"made": self._made},
            inputs={},
            max_error_frac=0,
            max_error_key="none",
        )


def loop(store: Store, work: Work, shards: Sequence[Shard]) -> float:
    """Rows per second over all shards but the first."""
    claimed = claim(store, work)
    assert isinstance(claimed, Claimed)
    apply = work.recipe.open()
    run_shard(store, claimed, shards[0], apply)
    started = time.perf_counter()
    for shard in shards[1:]:
        run_shard(store, claimed, shard, apply)
    return sum(shard.rows for shard in shards[1:]) / (time.perf_counter() - started)


def main() -> None:
    """Measure every case in turn, as often as there are rounds, and leave with the bars' status."""
    given = arguments(__doc__)
    record = Record("attribution_ray", given.out)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch) / "model"
        rows = model_and_rows(folder, given.data)[: given.rows]
        describe(record, given, len(rows))
        with UnderRay(folder, Path(scratch) / "run", rows, given.budget, LIMITS) as bench:
            cases = bench.cases()
            found: dict[str, list[float]] = {case: [] for case in cases}
            for _ in range(given.rounds):
                for case, measure in cases.items():
                    found[case].append(measure())
    for case, each in found.items():
        record.figure(case, "rate", statistics.median(each), "rows/s")
    record.bar("b: one actor / engine alone", ratio(found, "b: 1 actor", "b: engine alone, 1 thread"), "at_least", 0.9)
    record.bar("b: two actors / one", ratio(found, "b: 2 actors", "b: 1 actor"), "at_least", 1.7)
    end(record, given)


if __name__ == "__main__":
    main()
