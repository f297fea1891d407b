"""What every worker of a Ray Train group does: the runs of a queue, one after the other, with DeepSpeed."""

import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint
from torch import distributed

from kd.deepspeed_engine import DeepSpeedEngine
from kd.errors import StageError, UserError
from kd.training.loop import Trainer
from kd.training.progress import ProgressFile
from kd.training.runs import Claimed, Queue, Run
from kd.training.session import Opened, open_run, publish_run

_RUN = "run.txt"


def work(settings: dict[str, Any]) -> UserError | None:
    """What every worker of the group does. An error that all of them have is returned, since trying again is no use."""
    queue: Queue = settings["queue"]
    torch.set_num_threads(queue.training.threads_per_worker)
    for item in queue.todo():
        with tempfile.TemporaryDirectory(prefix="kd-train-") as scratch:
            error = _train(queue, item, Path(scratch))
        if error is not None:
            return error
    return None


def _train(queue: Queue, item: Claimed, scratch: Path) -> UserError | None:
    """One run from its model to its manifest."""
    opened = _open_together(queue, item.run, scratch)
    if isinstance(opened, UserError):
        return opened
    engine = DeepSpeedEngine(opened.student.model, queue.training, queue.device)
    trainer = opened.trainer(engine, queue, item.run, scratch)
    try:
        resume(ray.train.get_checkpoint(), trainer, item)
        trainer.train(ProgressFile(queue).of(item), checkpoint=lambda: _checkpoint(trainer, item))
        if engine.rank == 0:
            publish_run(queue, item, opened, trainer)
    except StageError as error:
        return error
    finally:
        engine.close()
    return None


def _open_together(queue: Queue, run: Run, scratch: Path) -> Opened | UserError:
    """Open the run, or give the first error that any rank met: none may wait for one that has given up."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    mine: Opened | UserError
    try:
        mine = open_run(queue, run, scratch, rank, world)
    except UserError as error:
        mine = error
    errors: list[UserError | None] = [None] * world
    distributed.all_gather_object(errors, mine if isinstance(mine, UserError) else None)
    return next((error for error in errors if error is not None), mine)


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
