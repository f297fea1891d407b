"""The same stage on a local Ray: the same files as a plain loop, whatever the number of actors, and errors that speak."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kd import ray_data
from kd.errors import InputError, StageError
from kd.loading import device_name
from kd.ray_data import Pool
from kd.rows import Example, RowError
from kd.shards import Apply
from kd.store import Store
from tests.tiny_shards import corpus, loop, shouted, work

ONE = Pool(min_actors=1, max_actors=1, cpus_per_actor=1, gpus_per_actor=0)
TWO = Pool(min_actors=2, max_actors=2, cpus_per_actor=1, gpus_per_actor=0)


@dataclass(frozen=True)
class Fails:
    """A stage that breaks for a reason that is no row's fault, or for one that the user can mend: on the shard of one row."""

    error: Exception
    at: str = "u0"

    def open(self) -> Apply:
        def apply(rows: list[Example], _: Counter[str]) -> list[Example | RowError]:
            if self.at in [row.uid for row in rows]:
                raise self.error
            return [shouted(row) for row in rows]

        return apply


@dataclass(frozen=True)
class Noted:
    """The same stage without fault; every shard that it is given leaves a file, named after its first row."""

    folder: Path

    def open(self) -> Apply:
        def apply(rows: list[Example], _: Counter[str]) -> list[Example | RowError]:
            (self.folder / rows[0].uid).touch(exist_ok=False)
            return [shouted(row) for row in rows]

        return apply


@dataclass(frozen=True)
class Mended:
    """The same stage without any error."""

    def open(self) -> Apply:
        return lambda rows, _: [replace(row, target=(row.target or "").upper()) for row in rows]


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
    assert second.device == first.device == plain.device == device_name("cpu")
    assert seen[0] == (0, 10)
    assert seen[-1] == (10, 10)


def test_a_second_run_starts_nothing(cluster: None, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    shards = corpus(store)
    first = ray_data.run(store, [work(shards)], ONE, ignore)
    store.publish(f"examples/{shards[0].file}", b"not Parquet: reading it would fail")
    assert ray_data.run(store, [work(shards)], ONE, ignore) == first


def test_a_failure_on_a_worker_names_the_shard_and_keeps_the_others(cluster: None, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "run"))
    shards = corpus(store)
    failing = shards[-1]  # the shortest, so the last to be done
    with pytest.raises(StageError, match=rf"shout, shard {failing.name}: ZeroDivisionError: by zero"):
        ray_data.run(store, [work(shards, recipe=Fails(ZeroDivisionError("by zero"), at="u4"))], ONE, ignore)
    kept = {shard.file: store.read(f"loud/{shard.file}") for shard in shards[:-1]}
    assert not store.exists(f"loud/{failing.file}")
    (tmp_path / "asked").mkdir()
    (found,) = ray_data.run(store, [work(shards, recipe=Noted(tmp_path / "asked"))], ONE, ignore)
    assert found.rows == 5
    assert [path.name for path in (tmp_path / "asked").iterdir()] == ["u4"]
    assert {file: store.read(f"loud/{file}") for file in kept} == kept


def test_a_work_with_too_many_errors_keeps_none_behind_it_from_its_manifest(cluster: None, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    shards = corpus(store)
    works = [work(shards, target=name, max_error_frac=most) for name, most in (("one", 0.1), ("two", 0.2), ("three", 0.0))]
    for start in ("the first", "a second, which meets the same"):
        with pytest.raises(
            StageError, match=r"1 of 5 rows got an error (.|\n)*/one with their error(.|\n)*/three with their error"
        ) as said:
            ray_data.run(store, works, TWO, ignore)
        assert "/two" not in str(said.value), start
        assert [name for name in ("one", "two", "three") if store.manifest(name)] == ["two"], start
    lenient = [replace(each, max_error_frac=0.2) for each in works]
    assert [manifest.rows for manifest in ray_data.run(store, lenient, TWO, ignore)] == [5, 5, 5]


def test_errors_are_tried_once_more_in_their_shards_alone(cluster: None, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "run"))
    shards = corpus(store)
    (first,) = ray_data.run(store, [work(shards)], ONE, ignore)
    before = {shard.file: store.read(f"loud/{shard.file}") for shard in shards}
    (tmp_path / "asked").mkdir()
    again = work(shards, recipe=Noted(tmp_path / "asked"))
    assert ray_data.run(store, [again], ONE, ignore) == [first], "not without being told to"
    (same,) = ray_data.run(store, [again], ONE, ignore, retry_errors=True)
    assert [path.name for path in (tmp_path / "asked").iterdir()] == ["u3"], "of its shard only the row that had the error"
    assert (same.rows, same.errors, same.digest) == (5, {"unknown_label": 1}, first.digest)
    (mended,) = ray_data.run(store, [work(shards, recipe=Mended())], ONE, ignore, retry_errors=True)
    assert (mended.rows, mended.errors) == (5, {})
    assert mended.digest != first.digest, "what is made from these rows must be made again"
    changed = [shard.file for shard in shards if store.read(f"loud/{shard.file}") != before[shard.file]]
    assert changed == ["train-2.parquet"]


def test_a_users_mistake_found_on_a_worker_arrives_as_itself(cluster: None, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    with pytest.raises(InputError, match="no such model"):
        ray_data.run(store, [work(corpus(store), recipe=Fails(InputError("no such model")))], ONE, ignore)
