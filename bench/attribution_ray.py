"""The engine under Ray Data, in the steady state: shards in a run directory, actors, and a plain loop beside them."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import ray
import torch

from kd import ray_data
from kd.attribution.engine import Attribute, AttributionConfig
from kd.models import ModelConfig, ModelSource
from kd.ray_data import Pool
from kd.rows import Attribution, Example
from kd.shards import Claimed, Work, claim, run_shard
from kd.store import Shard, Store

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
        os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
        ray.init(num_cpus=4, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
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
        """A plain loop over the same shards, the first of them not timed."""
        before = torch.get_num_threads()
        claimed = claim(self._store, self._work(threads=1))
        assert isinstance(claimed, Claimed)
        apply = claimed.work.recipe.open()
        run_shard(self._store, claimed, self._shards[0], apply)
        started = time.perf_counter()
        for shard in self._shards[1:]:
            run_shard(self._store, claimed, shard, apply)
        seconds = time.perf_counter() - started
        torch.set_num_threads(before)
        return sum(shard.rows for shard in self._shards[1:]) / seconds

    def _under_ray(self, actors: int, threads: int) -> float:
        """From when every actor has done its first shard to the end."""
        seen: list[tuple[float, int]] = []
        pool = Pool(actors, actors, cpus_per_actor=1, gpus_per_actor=0)
        ray_data.run(self._store, [self._work(threads)], pool, lambda done, _: seen.append((time.perf_counter(), done)))
        (started, before), (ended, done) = seen[actors], seen[-1]
        return (done - before) / (ended - started)

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
