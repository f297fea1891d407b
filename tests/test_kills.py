"""A stage whose processes are killed at random moments gives the rows of an undisturbed one, and does only what was missing."""

import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from jobs.console import Console
from jobs.watching import watched
from kd import ray_data
from kd.errors import StageError
from kd.manifests import Manifest, Shard
from kd.ray_data import Pool
from kd.rows import Example, RowError
from kd.shards import Apply, Work
from kd.store import Store
from tests.conftest import connect
from tests.tiny_shards import corpus, loop, shouted, work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROUNDS = range(10)
ROWS, ROWS_PER_SHARD = 480, 20
TWO = Pool(min_actors=2, max_actors=2, cpus_per_actor=1, gpus_per_actor=0)
DEADLINE_S = 120
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Slowly:
    """Targets in capitals, a tenth of a second per shard. Who begins or ends a shard writes a line."""

    notes: str

    def open(self) -> Apply:
        return self.apply

    def apply(self, rows: list[Example], _: Counter[str]) -> list[Example | RowError]:
        self._note("begun")
        time.sleep(0.1)
        self._note("ended")
        return [shouted(row) for row in rows]

    def _note(self, what: str) -> None:
        with Path(self.notes, "log.txt").open("a") as stream:
            stream.write(f"{what} {os.getpid()} {ray.get_runtime_context().get_node_id()}\n")


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


Worker = tuple[int, str]
"""The pid of an actor and the id of its node."""


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

    def noted(self, what: str) -> list[Worker]:
        """Who has begun or ended a shard, once for each."""
        log = self.notes / "log.txt"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        parts = [line.split() for line in lines if line.endswith("\n")]
        return [(int(pid), node) for noted, pid, node in parts if noted == what]

    def at_work(self) -> list[Worker]:
        """Who has begun more shards than it has ended."""
        return sorted((Counter(self.noted("begun")) - Counter(self.noted("ended"))).keys())

    def published(self) -> list[str]:
        return [name for name in self.store.names("loud") if name.endswith(".parquet")]


def ignore(done: int, total: int) -> None:
    """No progress line in tests."""


@dataclass
class Strike:
    """What a kill hit: who was at work on a shard (none: it did not come to it), how far the stage was, whether it was over."""

    victim: Worker | None = None
    published: int = 0
    over: bool = False

    def check(self, run: Run) -> None:
        """It hit a process that had a shard in hand, before the stage was over."""
        assert self.victim is not None, "the stage ended, or never began, before anything was killed"
        assert not self.over
        assert self.published < len(run.shards)


@contextmanager
def struck(run: Run, draw: random.Random, kill: Callable[[Worker], None], among: Collection[str] = ()) -> Iterator[Strike]:
    """Kill somebody at work, on one of these nodes if some are named, at a random moment of the first half of the stage."""
    strike, ended = Strike(), threading.Event()
    after, pause_s = draw.randint(1, len(run.shards) // 2), draw.uniform(0, 0.1)

    def wait_and_kill() -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and not ended.wait(0.005):
            if len(run.noted("ended")) < after or ended.wait(pause_s):
                continue
            candidates = [worker for worker in run.at_work() if not among or worker[1] in among]
            if candidates:
                victim = draw.choice(candidates)
                strike.published, strike.over = len(run.published()), run.store.manifest("loud") is not None
                kill(victim)
                strike.victim = victim
                return

    other = threading.Thread(target=wait_and_kill, daemon=True)
    other.start()
    try:
        yield strike
    finally:
        ended.set()
        other.join(DEADLINE_S)


def wait_for_a_shard(run: Run) -> None:
    """Raises TimeoutError where the stage does not come to end one."""
    deadline = time.monotonic() + DEADLINE_S
    while not run.noted("ended"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no shard in {DEADLINE_S} s")
        time.sleep(0.01)


@pytest.mark.parametrize("seed", ROUNDS)
def test_a_node_is_lost(tmp_path: Path, seed: int) -> None:
    run, draw = Run.at(tmp_path), random.Random(seed)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100_000_000})
    try:
        added = [cluster.add_node(num_cpus=2, object_store_memory=100_000_000) for _ in range(2)]
        nodes = {node.node_id: node for node in added}
        ray.init(address=cluster.address, log_to_driver=False)
        pool = Pool(min_actors=3, max_actors=3, cpus_per_actor=1, gpus_per_actor=0)

        def lose(worker: Worker) -> None:
            cluster.remove_node(nodes[worker[1]], allow_graceful=False)

        screen = io.StringIO()
        with struck(run, draw, lose, among=nodes.keys()) as strike, watched(Console(screen).stage("shout"), pool):
            (found,) = ray_data.run(run.store, [run.work()], pool, ignore)
    finally:
        ray.shutdown()
        cluster.shutdown()
    strike.check(run)
    same_rows(run.store, run.shards, run.undisturbed, found)
    assert re.fullmatch(
        r"shout        a node was lost: \S+, with [12] of 3 actors; finished shards are kept, .*\n", screen.getvalue()
    )


@pytest.fixture(scope="module")
def local() -> Iterator[None]:
    ray.shutdown()
    connect(cpus=4)
    yield
    ray.shutdown()


@pytest.mark.parametrize("seed", ROUNDS)
def test_an_actor_is_killed(local: None, tmp_path: Path, seed: int) -> None:
    run, draw = Run.at(tmp_path), random.Random(seed)
    with struck(run, draw, lambda worker: os.kill(worker[0], signal.SIGKILL)) as strike:
        (found,) = ray_data.run(run.store, [run.work()], TWO, ignore)
    strike.check(run)
    same_rows(run.store, run.shards, run.undisturbed, found)
    assert len(run.noted("begun")) <= len(run.shards) + 2, "a kill costs at most what was in hand"


DRIVER = """
import sys
from pathlib import Path
import ray
from kd import ray_data
from tests.test_kills import TWO, Run, ignore, slow_work
from kd.manifests import Shard
from kd.store import Store
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
    try:
        with struck(run, draw, lambda _: program.kill()) as strike:
            program.communicate()
    finally:
        program.kill()
    strike.check(run)
    assert program.returncode == -signal.SIGKILL
    time.sleep(1)  # actors of a dead driver end by themselves, after what they have in hand
    (run.notes / "log.txt").unlink()
    published = run.published()
    assert run.store.manifest("loud") is None
    (found,) = ray_data.run(run.store, [run.work()], TWO, ignore)
    same_rows(run.store, run.shards, run.undisturbed, found)
    assert len(run.noted("ended")) == len(run.shards) - len(published)


def test_of_two_attempts_the_older_says_that_it_was_overtaken_and_every_row_is_there_once(local: None, tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    older = driver(tmp_path, run.shards)
    try:
        wait_for_a_shard(run)
        (found,) = ray_data.run(run.store, [run.work()], TWO, ignore)
        _, said = older.communicate(timeout=DEADLINE_S)
    finally:
        older.kill()
    assert older.returncode != 0
    assert StageError.__name__ in said.decode()
    assert "another job has started this stage" in said.decode()
    same_rows(run.store, run.shards, run.undisturbed, found)
