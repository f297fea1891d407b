"""What every worker of a Ray Train group does: the runs of a queue, one after the other, with DeepSpeed."""

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import ray.train
import torch
from ray.actor import ActorHandle
from ray.train import Checkpoint
from torch import distributed

from kd.deepspeed_engine import DeepSpeedEngine
from kd.errors import StageError, UserError
from kd.training.loop import State, Trainer
from kd.training.progress import ProgressFile
from kd.training.roster import Turn
from kd.training.runs import Claimed, Queue
from kd.training.session import open_run, publish_run
from kd.training.watchdog import Watch, Watchdog

_RUN = "run.txt"
RUNS_PER_GROUP_AT_STAGE_3 = 4
"""DeepSpeed keeps about four model copies of every ZeRO-3 run for as long as the process lives, so processes are changed."""
T = TypeVar("T")


def work(settings: dict[str, Any]) -> None:
    """What every worker of a group does: it trains the runs that the roster gives its group, until there are none left.

    `settings` hold the `queue`, the number of the `group`, and the `roster`, an actor (`kd.training.roster.Roster`).
    """
    queue: Queue = settings["queue"]
    roster, group = settings["roster"], settings["group"]
    torch.set_num_threads(queue.training.threads_per_worker)
    rank = distributed.get_rank()
    progress = ProgressFile(queue, group)
    with Watchdog(queue.training.step_timeout_s, rank, lambda beat: roster.beat.remote(group, beat)) as watch:
        for _ in range(RUNS_PER_GROUP_AT_STAGE_3) if queue.training.zero_stage == 3 else count():
            turn = _turn(roster, group, rank)
            if turn.position is None:
                return
            item = queue.items[turn.position]
            watch.run = item.run.name
            with tempfile.TemporaryDirectory(prefix="kd-train-") as scratch:
                error = _train(queue, item, Path(scratch), progress.of(item, turn.ended), watch)
            watch("end", 0)
            if rank == 0:
                ray.get(roster.over.remote(group, error))


def _turn(roster: ActorHandle, group: int, rank: int) -> Turn:
    """What the group trains next, the same for every rank."""
    turns: list[Turn | None] = [ray.get(roster.take.remote(group)) if rank == 0 else None]
    distributed.broadcast_object_list(turns, src=0)
    assert turns[0] is not None  # the first rank has asked
    return turns[0]


def _train(queue: Queue, item: Claimed, scratch: Path, progress: Callable[[State], None], watch: Watch) -> str | None:
    """One run from its model to its manifest; or what went wrong, where every rank knows it and the group is as good as new.

    Raises:
        Exception: whatever else goes wrong on this rank alone; the others would wait for it, so the group must end.
    """
    watch("open", 0)
    rank, world = distributed.get_rank(), distributed.get_world_size()
    opened, error = _together(lambda: open_run(queue, item.run, scratch, rank, world))
    if opened is None or error is not None:
        return error
    engine = DeepSpeedEngine(opened.student.model, queue.training, queue.device)
    trainer = opened.trainer(engine, queue, item.run, scratch)
    try:
        resume(ray.train.get_checkpoint(), trainer, item)
        trainer.train(progress, lambda: _checkpoint(trainer, item), watch)
        watch("publish", trainer.state.step)
        return _together(lambda: publish_run(queue, item, opened, trainer) if rank == 0 else None)[1]
    except StageError as error:
        return str(error)
    finally:
        engine.close()


def _together(do: Callable[[], T]) -> tuple[T | None, str | None]:
    """Do something, and say the first error that any rank met: none may wait for one that has given up.

    An error is told as a text: the error itself would hold on to what was being opened.
    """
    mine, error = None, None
    try:
        mine = do()
    except UserError as raised:
        error = str(raised)
    errors: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(errors, error)
    return mine, next((error for error in errors if error is not None), None)


def resume(checkpoint: Checkpoint | None, trainer: Trainer, item: Claimed) -> None:
    """Go on from the group's last checkpoint if it is one of this run; of another's, only the name of its run is read."""
    if checkpoint is None:
        return
    with checkpoint.filesystem.open_input_file(f"{checkpoint.path}/{_RUN}") as stream:
        owner = stream.read().decode()
    if owner == item.digest:
        with checkpoint.as_directory() as folder:
            trainer.load(Path(folder))


def _checkpoint(trainer: Trainer, item: Claimed) -> None:
    """Hand every rank's files to Ray Train, which merges them in one folder."""
    with tempfile.TemporaryDirectory(prefix="kd-checkpoint-") as folder:
        trainer.save(Path(folder))
        (Path(folder) / _RUN).write_text(item.digest)
        ray.train.report({"run": item.run.name, "step": trainer.state.step}, Checkpoint.from_directory(folder))
