"""What every worker of a Ray Train group does: the runs of a queue, one after the other, with DeepSpeed."""

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import ray
import torch
from torch import distributed

from kd.deepspeed_engine import DeepSpeedEngine
from kd.errors import UserError
from kd.training.checkpoints import Checkpoints
from kd.training.loop import State
from kd.training.progress import ProgressFile
from kd.training.ranks import by_first, together
from kd.training.runs import Claimed, Queue
from kd.training.session import open_run, publish_run
from kd.training.watchdog import Watch, Watchdog

RUNS_PER_GROUP_AT_STAGE_3 = 4
"""DeepSpeed keeps about four model copies of every ZeRO-3 run for as long as the process lives, so processes are changed."""


def work(settings: dict[str, Any]) -> None:
    """What every worker of a group does: it trains the runs that the roster gives its group, until there are none left.

    `settings` hold the `queue`, the number of the `group`, and the `roster`, an actor (`kd.training.roster.Roster`).
    """
    queue: Queue = settings["queue"]
    roster, group = settings["roster"], settings["group"]
    torch.set_num_threads(queue.training.threads_per_worker)
    rank = distributed.get_rank()
    progress = ProgressFile(queue)
    with Watchdog(queue.training.step_timeout_s, rank, lambda beat: roster.beat.remote(group, beat)) as watch:
        for _ in range(RUNS_PER_GROUP_AT_STAGE_3) if queue.training.zero_stage == 3 else count():
            position: int | None = by_first(lambda: ray.get(roster.take.remote(group)))
            if position is None:
                return
            item = queue.items[position]
            watch.run = item.run.name
            with tempfile.TemporaryDirectory(prefix="kd-train-") as scratch:
                error = _train(queue, item, Path(scratch), progress.of(item), watch)
            watch("end", 0)
            if rank == 0:
                ray.get(roster.over.remote(group, error))


def _train(queue: Queue, item: Claimed, scratch: Path, progress: Callable[[State], None], watch: Watch) -> str | None:
    """One run from its model to its manifest; or what went wrong, where every rank knows it and the group is as good as new.

    What went wrong is told as a text: the error itself would hold on to what was being opened.

    Raises:
        Exception: whatever else goes wrong on this rank alone; the others would wait for it, so the group must end.
    """
    watch("open", 0)
    rank, world = distributed.get_rank(), distributed.get_world_size()
    checkpoints = Checkpoints(queue.store, item.folder, item.digest, queue.training.keep_checkpoints)
    try:
        opened = together(lambda: open_run(queue, item.run, scratch, rank, world))
        found = checkpoints.newest(scratch)
    except UserError as error:
        return str(error)
    engine = DeepSpeedEngine(opened.student.model, queue.training, queue.device, found.checkpoint.world if found else None)
    trainer = opened.trainer(engine, queue, item.run, scratch)
    try:
        if found:
            found.load_into(trainer)
        trainer.train(progress, lambda: checkpoints.save(trainer), watch)
        watch("publish", trainer.state.step)
        by_first(lambda: publish_run(queue, item, opened, trainer))
        checkpoints.clear()
    except UserError as error:
        return str(error)
    finally:
        engine.close()
    return None
