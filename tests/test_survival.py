"""A run whose processes are killed goes on from its last checkpoint, and its curve is that of an undisturbed run."""

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from kd.errors import StageError
from kd.manifests import Manifest
from kd.ray_train import train_queue
from kd.training.runs import MODEL, Queue
from kd.training.saved import CHECKPOINT_MANIFEST, CHECKPOINTS
from tests.conftest import connect
from tests.deadly import Deadly, Moment, whereabouts
from tests.tiny_runs import SHORT, history, tiny_queue

ROOT = Path(__file__).parents[1]
DEADLINE_S = 180
STEPS, SAVED_EVERY = 30, 6
GROUP = SHORT.model_copy(
    update={"steps": STEPS, "num_workers": 2, "eval_every_steps": 5, "save_every_steps": SAVED_EVERY, "zero_stage": 2}
)


def queue_at(folder: Path, dropout: float = 0.1, **changes: Any) -> Queue:
    """One run, with dropout, in a run directory that can be deadly."""
    queue = tiny_queue(folder / "run", GROUP.model_copy(update=changes), dropout=dropout)
    (folder / "notes").mkdir()
    return replace(queue, store=Deadly(queue.store.root, str(folder / "notes")), items=queue.items[:1])


def deadly(queue: Queue, **how: Any) -> Queue:
    assert isinstance(queue.store, Deadly)
    return replace(queue, store=replace(queue.store, **how))


def was_struck(queue: Queue) -> bool:
    assert isinstance(queue.store, Deadly)
    return queue.store.has_struck


def figures(queue: Queue) -> list[float]:
    """Every step's losses and gradient norm."""
    entries = history(queue)
    assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
    return [value for entry in entries for value in (*entry["loss"].values(), entry["gradient_norm"])]


def same_run(queue: Queue, undisturbed: Queue) -> None:
    """The same curve, the same best step, the same weights, bit by bit; and nothing left to go on from."""
    assert history(queue) == history(undisturbed)
    assert manifest(queue).figures == manifest(undisturbed).figures
    weights = f"{queue.items[0].folder}/{MODEL}/model.safetensors"
    assert queue.store.read(weights) == undisturbed.store.read(weights)
    assert queue.store.folders(f"{queue.items[0].folder}/{CHECKPOINTS}") == []


def manifest(queue: Queue) -> Manifest:
    found = queue.store.manifest(queue.items[0].folder)
    assert found is not None
    return found


def saved_steps(queue: Queue) -> list[int]:
    """The steps after which there is a checkpoint."""
    folder = Path(queue.store.path(queue.items[0].folder), CHECKPOINTS)
    return sorted(int(path.parent.name.partition("-")[0]) for path in folder.glob(f"*/{CHECKPOINT_MANIFEST}"))


@pytest.fixture(scope="module")
def undisturbed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Queue:
    queue = queue_at(tmp_path_factory.mktemp("undisturbed"))
    train_queue(queue)
    return queue


# --- at every moment of a checkpoint ----------------------------------------------------------------------------------


def test_a_kill_between_a_ranks_files_and_the_manifest_costs_nothing_but_time(undisturbed: Queue, tmp_path: Path) -> None:
    queue = deadly(queue_at(tmp_path), moment="a file is published", victim=1, step=12)
    train_queue(queue)
    assert was_struck(queue)
    same_run(queue, undisturbed)


def test_a_refusal_that_passes_gives_up_no_run(undisturbed: Queue, tmp_path: Path) -> None:
    queue = deadly(queue_at(tmp_path, max_failures=1), moment="a file is published", victim=1, step=12, refuses=True)
    train_queue(queue)
    assert was_struck(queue)
    same_run(queue, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "victim", "step"),
    [
        ("a file is published", 0, 6),
        ("before the manifest", 0, 18),
        ("before older ones are deleted", 0, 12),
        ("a file is published", 1, 24),
    ],
)
def test_a_kill_at_any_moment_of_a_checkpoint(undisturbed: Queue, tmp_path: Path, moment: Moment, victim: int, step: int) -> None:
    queue = deadly(queue_at(tmp_path), moment=moment, victim=victim, step=step)
    train_queue(queue)
    assert was_struck(queue)
    same_run(queue, undisturbed)


# --- at any moment ----------------------------------------------------------------------------------------------------


@contextmanager
def struck(queue: Queue, draw: random.Random, kill: Callable[[], None]) -> Iterator[list[int]]:
    """Kill once, a random moment after a random checkpoint; the steps that were saved by then are noted."""
    after, pause_s, hit, over = draw.choice([6, 12, 18]), draw.uniform(0, 0.2), [], threading.Event()

    def wait_and_kill() -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and not over.wait(0.002):
            saved = saved_steps(queue)
            if saved and saved[-1] >= after:
                over.wait(pause_s)
                if queue.todo():
                    hit.append(saved[-1])
                    kill()
                return

    other = threading.Thread(target=wait_and_kill, daemon=True)
    other.start()
    try:
        yield hit
    finally:
        over.set()
        other.join(DEADLINE_S)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_rank_is_killed_at_any_moment(undisturbed: Queue, tmp_path: Path, seed: int) -> None:
    queue, draw = queue_at(tmp_path), random.Random(seed)
    with struck(queue, draw, lambda: os.kill(whereabouts(queue, seed % 2)[0], signal.SIGKILL)) as hit:
        train_queue(queue)
    assert hit, "the run ended before anything was killed"
    same_run(queue, undisturbed)


DRIVER = """
import pickle, sys
from pathlib import Path
from kd.ray_train import train_queue
from tests.conftest import connect
connect(cpus=4)
train_queue(pickle.loads(Path(sys.argv[1]).read_bytes()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_driver_is_killed_and_the_stage_started_again(undisturbed: Queue, tmp_path: Path, seed: int) -> None:
    queue, draw = queue_at(tmp_path), random.Random(seed)
    slow = deadly(queue, pause_s=5.0)  # or the workers would finish the run before they see that their driver is dead
    (tmp_path / "queue").write_bytes(pickle.dumps(slow))
    program = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / "queue")], cwd=ROOT)
    try:
        with struck(queue, draw, program.kill) as hit:
            program.wait(timeout=DEADLINE_S)
    finally:
        program.kill()
    assert hit, "the run ended before the driver was killed"
    assert program.returncode == -signal.SIGKILL
    wait_until_gone([whereabouts(queue, number)[0] for number in (0, 1)])
    assert saved_steps(queue)
    train_queue(queue)
    same_run(queue, undisturbed)


def wait_until_gone(pids: list[int]) -> None:
    """Workers of a dead driver end by themselves."""
    deadline = time.monotonic() + DEADLINE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.slow
def test_a_kill_costs_nothing_where_weights_are_split_over_the_workers(cluster: None, tmp_path: Path) -> None:
    split = {"zero_stage": 3, "zero3_whole_below_params": 0}
    whole = queue_at(tmp_path / "whole", **split)
    train_queue(whole)
    queue = deadly(queue_at(tmp_path / "killed", **split), moment="a file is published", victim=1, step=12)
    train_queue(queue)
    assert was_struck(queue)
    assert figures(queue) == figures(whole)
    same_run(queue, whole)


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_workers_and_with_more(undisturbed: Queue, tmp_path: Path) -> None:
    whole = queue_at(tmp_path / "whole", dropout=0.0)
    train_queue(whole)
    for before, after in ((2, 1), (1, 2)):
        first = queue_at(tmp_path / str(before), dropout=0.0, num_workers=before, max_failures=0)
        with pytest.raises(StageError, match="a training worker failed"):
            train_queue(deadly(first, moment="before older ones are deleted", victim=0, step=12))
        assert saved_steps(first)[-1] == 12
        train_queue(replace(first, training=GROUP.model_copy(update={"num_workers": after})))
        assert figures(first) == pytest.approx(figures(whole), abs=1e-5)


@pytest.mark.slow
def test_a_harmed_checkpoint_ends_the_stage_with_the_name_of_the_file(undisturbed: Queue, tmp_path: Path) -> None:
    queue = queue_at(tmp_path, max_failures=0)
    with pytest.raises(StageError, match="a training worker failed"):
        train_queue(deadly(queue, moment="before the manifest", victim=0, step=12))
    lost = next(Path(queue.store.path(queue.items[0].folder), CHECKPOINTS).glob("00000006-*/engine/*zero_pp_rank_1*"))
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(StageError, match=rf"{lost.name} is not there.*Delete .*/checkpoints to start the run from its first"):
        train_queue(queue)
    lost.write_bytes(content)
    train_queue(queue)
    same_run(queue, undisturbed)


# --- a node, last, as it needs a cluster of its own -------------------------------------------------------------------


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head that runs no worker, and three nodes for one worker each."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
    for _ in range(3):
        cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    connect(cpus=6)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_node_is_lost(undisturbed: Queue, nodes: Cluster, tmp_path: Path, victim: int) -> None:
    queue = queue_at(tmp_path)

    def lose() -> None:
        node = next(node for node in nodes.worker_nodes if node.node_id == whereabouts(queue, victim)[1])
        nodes.remove_node(node, allow_graceful=False)

    with struck(queue, random.Random(victim), lose) as hit:
        train_queue(queue)
    assert hit, "the run ended before the node was lost"
    same_run(queue, undisturbed)
