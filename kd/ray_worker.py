"""What every worker of a Ray Train group does: the runs of a queue, one after the other, with DeepSpeed."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from kd.deepspeed_engine import DeepSpeedEngine
from kd.errors import StoreError, UserError
from kd.training.checkpoints import Checkpoints
from kd.training.progress import ProgressFile
from kd.training.ranks import by_first
from kd.training.runs import Claimed, Queue, Run
from kd.training.session import Opened, open_run, publish_run


def work(settings: dict[str, Any]) -> UserError | None:
    """What every worker of the group does. An error that all of them have is returned, since trying again is no use."""
    queue: Queue = settings["queue"]
    torch.set_num_threads(queue.training.threads_per_worker)
    for item in by_first(queue.todo):
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
    checkpoints = Checkpoints(queue.store, item.folder, item.digest, queue.training.keep_checkpoints)
    try:
        found = checkpoints.newest(scratch)
    except StoreError as error:
        return error
    engine = DeepSpeedEngine(opened.student.model, queue.training, queue.device, found.checkpoint.world if found else None)
    trainer = opened.trainer(engine, queue, item.run, scratch)
    try:
        if found:
            found.load_into(trainer)
        trainer.train(ProgressFile(queue).of(item), checkpoint=lambda: checkpoints.save(trainer))
        by_first(lambda: publish_run(queue, item, opened, trainer))
        checkpoints.clear()
    except UserError as error:
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
