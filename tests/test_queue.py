"""A queue of runs on Ray: one that fails loses no other, groups work side by side, a hang is an error, nothing piles up."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from safetensors.torch import load_file

from kd import ray_train
from kd.errors import StageError
from kd.ray_train import groups_that_fit, train_queue
from kd.ray_worker import RUNS_PER_GROUP_AT_STAGE_3
from kd.training.objectives import LabelOnly
from kd.training.runs import MODEL, Claimed, Queue, failure
from tests import traps
from tests.tiny_runs import SHORT, history, tiny_queue

QUICK = SHORT.model_copy(update={"save_every_steps": 0, "max_failures": 0, "parallel_runs": 1})
TWO = QUICK.model_copy(update={"num_workers": 2, "zero_stage": 1})

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(900)]


def labels(queue: Queue, *objectives: LabelOnly) -> Queue:
    """The queue's run on labels, once with each of these objectives."""
    run = queue.items[-1].run
    runs = [replace(run, variant=f"v{number}", objective=each, target=f"v{number}") for number, each in enumerate(objectives)]
    return Queue.of(queue.store, queue.stage, runs, queue.training, queue.device, queue.judge)


def weights(queue: Queue, item: Claimed) -> dict[str, Any]:
    return load_file(queue.store.path(f"{item.folder}/{MODEL}/model.safetensors"))


def mended(queue: Queue) -> Queue:
    """The same runs without traps; a trap calls itself what it is in place of."""
    items = [replace(item, run=replace(item.run, objective=LabelOnly())) for item in queue.items]
    return replace(queue, items=items)


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Queue, str]:
    """Runs that fail in three ways, with a good one in front and one behind; and what the stage said at its end."""
    folder = tmp_path_factory.mktemp("broken")
    queue = labels(tiny_queue(folder, TWO), LabelOnly(), traps.Diverges(), traps.Raises(), traps.Dies(), LabelOnly())
    with pytest.raises(StageError) as raised:
        train_queue(queue)
    return queue, str(raised.value)


def test_runs_that_fail_lose_no_other(broken: tuple[Queue, str]) -> None:
    queue, said = broken
    assert [item.run.variant for item in queue.todo()] == ["v1", "v2", "v3"]
    lines = said.splitlines()
    assert lines[0].startswith("train: 3 of 5 runs failed; the others are finished and kept")
    assert [line.split()[0] for line in lines[1:4]] == ["v1/0", "v2/0", "v3/0"]
    assert "expected finite numbers" in lines[1]
    assert "a defect of one rank" in said
    assert torch.equal(*[weights(queue, item)["shared.weight"] for item in (queue.items[0], queue.items[4])])


def test_a_failed_run_says_why_in_its_folder_and_is_tried_again(broken: tuple[Queue, str]) -> None:
    queue, _ = broken
    found = [failure(queue.store, item.run, queue.training) for item in queue.items]
    assert [each is not None for each in found] == [False, True, True, True, False]
    assert found[1] is not None
    assert (found[1].run, found[1].attempts) == ("v1/0", 1)
    again = mended(replace(queue, items=[queue.items[index] for index in (0, 2, 3, 4)]))
    train_queue(again)
    assert again.todo() == []
    assert [failure(queue.store, item.run, queue.training) for item in again.items] == [None] * 4


# --- side by side -----------------------------------------------------------------------------------------------------


def test_two_groups_train_what_one_does_and_a_failure_in_one_leaves_the_other_alone(tmp_path: Path) -> None:
    side = QUICK.model_copy(update={"parallel_runs": 2})
    first = tiny_queue(tmp_path / "one", QUICK, dropout=0.1, seeds=(0, 1))
    train_queue(first)
    both = tiny_queue(tmp_path / "two", side, dropout=0.1, seeds=(0, 1))
    trap = labels(both, traps.Dies()).items[0]
    both = replace(both, items=[both.items[0], trap, *both.items[1:]])
    with pytest.raises(StageError, match=r"1 of 5 runs failed"):
        train_queue(both)
    assert both.todo() == [trap]
    for index, item in enumerate(first.items):
        other = both.items[index + (index > 0)]
        assert both.store.read_json(f"{other.folder}/history.json") == {"history": history(first, index)}
        mine, theirs = weights(first, item), weights(both, other)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_as_many_groups_as_find_room_and_no_more_than_there_are_runs(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, QUICK.model_copy(update={"parallel_runs": None}), seeds=(0, 1))
    room = min(os.cpu_count() or 1, int(ray.cluster_resources()["CPU"]))
    assert groups_that_fit(queue, {}, 4) == min(4, room)
    assert groups_that_fit(replace(queue, training=queue.training.model_copy(update={"threads_per_worker": 99})), {}, 4) == 1
    assert groups_that_fit(queue, {"market": "nowhere"}, 4) == 1
    assert groups_that_fit(replace(queue, training=QUICK.model_copy(update={"parallel_runs": 3})), {}, 4) == 3
    assert groups_that_fit(replace(queue, training=QUICK.model_copy(update={"parallel_runs": 3})), {}, 2) == 2


def test_a_group_waits_for_room_longer_than_ray_train_would_and_no_failure_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    queue, lives, begin = tiny_queue(tmp_path, QUICK), list[int](), ray_train._trainer
    monkeypatch.setattr(ray_train, "_trainer", lambda *args: (lives.append(1), begin(*args))[1])
    taken = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(taken.ready())

    def make_room() -> None:
        deadline = time.monotonic() + 60
        while len(lives) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        remove_placement_group(taken)

    other = Thread(target=make_room, daemon=True)
    other.start()
    train_queue(replace(queue, items=queue.items[:1]))
    other.join()
    assert len(lives) >= 3
    assert len(queue.todo()) == len(queue.items) - 1


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_device_without_enough_memory_is_told_at_once_with_what_to_set(tmp_path: Path) -> None:
    queue = labels(tiny_queue(tmp_path, QUICK.model_copy(update={"max_failures": 3})), traps.TooLarge())
    with pytest.raises(StageError, match=r"\(attempts: 1\): the device has too little memory .* training\.micro_batch_tokens"):
        train_queue(queue)


# --- hangs ------------------------------------------------------------------------------------------------------------


def training_workers() -> Sequence[psutil.Process]:
    """The worker processes of Ray Train below this one; the system keeps fifteen letters of a name."""
    return [process for process in psutil.Process().children(recursive=True) if "RayTrainWo" in process.name()]


def test_a_hang_becomes_an_error_that_names_stage_run_and_rank(tmp_path: Path) -> None:
    queue = labels(tiny_queue(tmp_path, TWO.model_copy(update={"step_timeout_s": 45.0})), traps.Sleeps())
    with pytest.raises(StageError, match=r"rank 1 of train hung in step of v0/0 at step 4 for 4\d s; ranks that waited: 0"):
        train_queue(queue)
    deadline = time.monotonic() + 30
    while training_workers() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert training_workers() == []


# --- nothing piles up -------------------------------------------------------------------------------------------------


def living(folder: Path) -> list[list[int]]:
    """How many tensors lived when a run was opened, by process."""
    return [[int(line) for line in path.read_text().split()] for path in sorted(folder.glob("*.txt"))]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_run_leaves_no_tensor_behind(tmp_path: Path, stage: int) -> None:
    queue = tiny_queue(tmp_path, TWO.model_copy(update={"zero_stage": stage, "steps": 3}))
    train_queue(labels(queue, *[traps.Counts(folder=str(tmp_path))] * 4))
    (counts,) = living(tmp_path)
    assert len(counts) == 4
    assert counts[0] > 0
    assert counts == [counts[0]] * 4


@pytest.mark.slow
def test_at_stage_3_which_leaks_processes_are_changed_every_few_runs(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, TWO.model_copy(update={"zero_stage": 3, "steps": 3}))
    queue = labels(queue, *[traps.Counts(folder=str(tmp_path))] * (RUNS_PER_GROUP_AT_STAGE_3 + 1))
    train_queue(queue)
    assert sorted(map(len, living(tmp_path))) == [1, RUNS_PER_GROUP_AT_STAGE_3]
    assert queue.todo() == []
