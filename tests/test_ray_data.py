"""The same stage on a local Ray: the same files as a plain loop, whatever the number of actors, and errors that speak."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from kd import ray_data
from kd.errors import InputError, StageError
from kd.ray_data import Pool
from kd.shards import Apply
from kd.store import Store
from tests.tiny_shards import Shout, corpus, loop, work

ONE = Pool(min_actors=1, max_actors=1, cpus_per_actor=1, gpus_per_actor=0)
TWO = Pool(min_actors=2, max_actors=2, cpus_per_actor=1, gpus_per_actor=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Fails:
    """A stage that breaks for a reason that is no row's fault, or for one that the user can mend."""

    error: Exception

    def open(self) -> Apply:
        def apply(rows: list[object], _: object) -> list[object]:
            raise self.error

        return apply


def ignore(done: int, total: int) -> None:
    """No progress line in tests."""


@pytest.mark.parametrize("pool", [ONE, TWO])
def test_ray_writes_the_files_of_a_plain_loop(cluster: None, tmp_path: Path, pool: Pool) -> None:
    store = Store.at(str(tmp_path))
    shards = corpus(store)
    plain = loop(store, work(shards, target="plain"))
    seen: list[tuple[int, int]] = []
    works = [work(shards, target="first"), work(shards, target="second", config={"volume": 12})]
    first, second = ray_data.run(store, works, pool, lambda done, total: seen.append((done, total)))
    for shard in shards:
        bytes_plain = store.read(f"plain/{shard.file}")
        assert store.read(f"first/{shard.file}") == bytes_plain
        assert store.read(f"second/{shard.file}") == bytes_plain
    assert (first.rows, first.errors, first.counts) == (plain.rows, plain.errors, plain.counts)
    assert second.digest != first.digest
    assert seen[0] == (0, 10)
    assert seen[-1] == (10, 10)


def test_a_second_run_starts_nothing(cluster: None, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    shards = corpus(store)
    first = ray_data.run(store, [work(shards)], ONE, ignore)
    store.publish(f"examples/{shards[0].file}", b"not Parquet: reading it would fail")
    assert ray_data.run(store, [work(shards)], ONE, ignore) == first


def test_a_failure_on_a_worker_names_the_shard_and_keeps_the_others(cluster: None, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    shards = corpus(store)
    with pytest.raises(StageError, match=r"shout, shard train-\d: ZeroDivisionError: by zero"):
        ray_data.run(store, [work(shards, recipe=Fails(ZeroDivisionError("by zero")))], ONE, ignore)
    assert ray_data.run(store, [work(shards, recipe=Shout())], ONE, ignore)[0].rows == 5


def test_a_users_mistake_found_on_a_worker_arrives_as_itself(cluster: None, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    with pytest.raises(InputError, match="no such model"):
        ray_data.run(store, [work(corpus(store), recipe=Fails(InputError("no such model")))], ONE, ignore)
