"""A stage whose processes are killed at random moments gives the rows of an undisturbed one, and does only what was missing."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from kd import ray_data
from kd.errors import StageError
from kd.ray_data import Pool
from kd.rows import Example, RowError
from kd.shards import Apply, Work
from kd.store import Manifest, Shard, Store
from tests.tiny_shards import corpus, loop, work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROUNDS = range(10)
ROWS, ROWS_PER_SHARD = 480, 20
TWO = Pool(min_actors=2, max_actors=2, cpus_per_actor=1, gpus_per_actor=0)
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Slowly:
    """Targets in capitals, a tenth of a second per shard. Who works writes its pid, and what it does a line."""

    notes: str

    def open(self) -> Apply:
        Path(self.notes, f"{os.getpid()}.pid").touch()
        return self.apply

    def apply(self, rows: list[Example], _: Counter[str]) -> list[Example | RowError]:
        time.sleep(0.1)
        with Path(self.notes, "done.txt").open("a") as stream:
            stream.write(f"{rows[0].uid}\n")
        return [RowError("unknown_label", "bad") if row.target == "bad" else _loud(row) for row in rows]


def _loud(row: Example) -> Example:
    return Example(**{name: getattr(row, name) for name in Example.__dataclass_fields__} | {"target": (row.target or "").upper()})


def slow_work(shards: list[Shard], notes: Path) -> Work:
    notes.mkdir(exist_ok=True)
    return work(shards, recipe=Slowly(str(notes)))


def same_rows(store: Store, shards: list[Shard], undisturbed: Manifest, found: Manifest) -> None:
    """Byte for byte: files are named and filled by their shard alone."""
    assert (found.rows, found.errors, found.counts, found.digest) == (
        undisturbed.rows,
        undisturbed.errors,
        undisturbed.counts,
        undisturbed.digest,
    )
    for shard in shards:
        assert store.read(f"loud/{shard.file}") == store.read(f"undisturbed/{shard.file}")
    uids = [row.uid for shard in shards for row in store.read_rows(f"loud/{shard.file}", Example)]
    assert len(uids) == len(set(uids)) == ROWS


@dataclass(frozen=True)
class Run:
    """A run directory with a corpus, and what an undisturbed stage makes of it."""

    store: Store
    shards: list[Shard]
    undisturbed: Manifest
    notes: Path

    @classmethod
    def at(cls, folder: Path) -> "Run":
        store = Store.at(str(folder / "run"))
        shards = corpus(store, ROWS_PER_SHARD, ROWS)
        return cls(store, shards, loop(store, work(shards, target="undisturbed")), folder / "notes")

    def work(self) -> Work:
        return slow_work(self.shards, self.notes)

    def pids(self) -> list[int]:
        return [int(path.stem) for path in self.notes.glob("*.pid")]


def ignore(done: int, total: int) -> None:
    """No progress line in tests."""


@contextmanager
def once_it_works(run: Run, draw: random.Random, act: Callable[[], None]) -> Iterator[None]:
    """Do something at a random moment after the first actor has started to work."""

    def wait_and_act() -> None:
        while not (run.notes / "done.txt").exists():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1))
        act()

    other = threading.Thread(target=wait_and_act)
    other.start()
    yield
    other.join()


@pytest.mark.parametrize("seed", ROUNDS)
def test_a_node_is_lost(tmp_path: Path, seed: int) -> None:
    run, draw = Run.at(tmp_path), random.Random(seed)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100_000_000})
    try:
        nodes = [cluster.add_node(num_cpus=2, object_store_memory=100_000_000) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        pool = Pool(min_actors=3, max_actors=3, cpus_per_actor=1, gpus_per_actor=0)
        with once_it_works(run, draw, lambda: cluster.remove_node(draw.choice(nodes), allow_graceful=False)):
            (found,) = ray_data.run(run.store, [run.work()], pool, ignore)
    finally:
        ray.shutdown()
        cluster.shutdown()
    same_rows(run.store, run.shards, run.undisturbed, found)


@pytest.fixture(scope="module")
def local() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("seed", ROUNDS)
def test_an_actor_is_killed(local: None, tmp_path: Path, seed: int) -> None:
    run, draw = Run.at(tmp_path), random.Random(seed)
    with once_it_works(run, draw, lambda: os.kill(draw.choice(sorted(run.pids())), signal.SIGKILL)):
        (found,) = ray_data.run(run.store, [run.work()], TWO, ignore)
    same_rows(run.store, run.shards, run.undisturbed, found)
    assert len((run.notes / "done.txt").read_text().split()) <= len(run.shards) + 2, "a kill costs at most what was in hand"


DRIVER = """
import sys
from pathlib import Path
import ray
from kd import ray_data
from tests.test_kills import TWO, Run, ignore, slow_work
from kd.store import Shard, Store
folder = Path(sys.argv[1])
store = Store.at(str(folder / "run"))
ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
shards = [Shard(name, "train", int(rows)) for name, rows in (part.split(":") for part in sys.argv[2].split(","))]
ray_data.run(store, [slow_work(shards, folder / "notes")], TWO, ignore)
"""


def driver(folder: Path, shards: list[Shard]) -> subprocess.Popen[bytes]:
    """The stage as a program of its own, with a cluster of its own."""
    listed = ",".join(f"{shard.name}:{shard.rows}" for shard in shards)
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), listed], cwd=ROOT, stderr=subprocess.PIPE)


@pytest.mark.parametrize("seed", ROUNDS)
def test_the_driver_is_killed_and_a_rerun_does_only_what_was_missing(local: None, tmp_path: Path, seed: int) -> None:
    run, draw = Run.at(tmp_path), random.Random(seed)
    program = driver(tmp_path, run.shards)
    with once_it_works(run, draw, program.kill):
        program.communicate()
    assert program.returncode == -signal.SIGKILL
    time.sleep(1)  # actors of a dead driver end by themselves, after what they have in hand
    (run.notes / "done.txt").unlink()
    published = [name for name in run.store.names("loud") if name.endswith(".parquet")]
    assert run.store.manifest("loud") is None
    (found,) = ray_data.run(run.store, [run.work()], TWO, ignore)
    same_rows(run.store, run.shards, run.undisturbed, found)
    assert len((run.notes / "done.txt").read_text().split()) == len(run.shards) - len(published)


def test_of_two_attempts_the_older_says_that_it_was_overtaken_and_every_row_is_there_once(local: None, tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    older = driver(tmp_path, run.shards)
    while not (run.notes / "done.txt").exists():
        time.sleep(0.01)
    (found,) = ray_data.run(run.store, [run.work()], TWO, ignore)
    _, said = older.communicate()
    assert older.returncode != 0
    assert StageError.__name__ in said.decode()
    assert "another job has started this stage" in said.decode()
    same_rows(run.store, run.shards, run.undisturbed, found)
