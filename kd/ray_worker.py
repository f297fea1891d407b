"""What every worker of a Ray Train group does: the runs of a queue, one after the other, with DeepSpeed."""

import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from kd.deepspeed_engine import DeepSpeedEngine, import_deepspeed
from kd.errors import Overtaken, StageError, StoreError, UserError
from kd.manifests import Manifest
from kd.training.checkpoints import Checkpoints
from kd.training.progress import Progress, reporting
from kd.training.ranks import by_first, gathered, local_rank, rank, together, world
from kd.training.roster import End
from kd.training.runs import Claimed, Queue
from kd.training.saved import Harmed
from kd.training.session import fetch_features, open_run, publish_run
from kd.training.watchdog import Watch, Watchdog

RUNS_PER_GROUP_AT_STAGE_3 = 4
"""DeepSpeed keeps about four model copies of every ZeRO-3 run for as long as the process lives, so processes are changed."""
PAUSE_S = 5.0
"""So long a run waits that could not reach the run directory, before it is begun again."""


def work(settings: dict[str, Any]) -> None:
    """What every worker of a group does: it trains the runs that the roster gives its group, until there are none left.

    `settings` hold the `queue`, the number of the `group`, and the `roster`, an actor (`kd.training.roster.Roster`).

    Raises:
        Overtaken: a newer start of the stage, or another group, goes on with this group's work.
        StageError: the device has too little memory for a run.
    """
    queue: Queue = settings["queue"]
    roster, group = settings["roster"], settings["group"]
    torch.set_num_threads(queue.training.threads_per_worker)
    with (
        Watchdog(queue.training.step_timeout_s, rank(), lambda beat: roster.beat.remote(group, beat)) as watch,
        tempfile.TemporaryDirectory(prefix="kd-features-") as cache,
    ):
        _load_libraries(queue.device)
        features = _of_this_node(Path(cache))
        for before in range(RUNS_PER_GROUP_AT_STAGE_3) if queue.training.zero_stage == 3 else count():
            position: int | None = by_first(lambda: _told(roster.take.remote(group)))
            if position is None:
                return
            item = queue.items[position]
            watch.run = item.run.name
            with tempfile.TemporaryDirectory(prefix="kd-train-") as scratch:
                try:
                    end = _train(queue, item, Path(scratch), features, watch, lambda said: roster.report.remote(group, said))
                except torch.OutOfMemoryError as met:
                    if before:  # what earlier runs left may be in the way: new processes decide
                        raise
                    raise StageError(_too_large(queue, met)) from met
            watch("end", 0)
            if rank() == 0:
                time.sleep(PAUSE_S if end.again else 0.0)
                _told(roster.ended.remote(group, end))


def _load_libraries(device: str) -> None:
    """Import what every run needs, all but what its own model and adapters do. It stays for good: no collection of garbage looks
    through it again, a third of a second each time.
    """
    import datasets  # noqa: F401
    import tensorboardX  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    import_deepspeed(device)
    gc.collect()
    gc.freeze()


def _train(queue: Queue, item: Claimed, scratch: Path, features: Path, watch: Watch, report: Callable[[Progress], object]) -> End:
    """One run from its model to its manifest; or what went wrong, where every rank knows it and the group is as good as new.

    Raises:
        Overtaken: another group has begun the run since; every rank knows it.
        Exception: whatever else goes wrong on this rank alone; the others would wait for it, so the group must end.
    """
    watch("open", 0)
    try:
        checkpoints = Checkpoints.begin(queue.store, item.folder, item.digest, queue.training.keep_checkpoints)
        together(lambda: fetch_features(queue, item.run, features) if local_rank() == 0 else None)
        opened = together(lambda: open_run(queue, item.run, scratch, rank(), world(), features))
        found = checkpoints.newest(scratch)
    except UserError as error:
        return _end(error)
    engine = DeepSpeedEngine(opened.student.model, queue.training, queue.device, found.checkpoint.world if found else None)
    trainer = opened.trainer(engine, queue, item.run, scratch)

    def publish() -> Manifest:
        checkpoints.check_newest()
        return dataclasses.replace(publish_run(queue, item, opened, trainer), shards=())

    try:
        if found:
            found.load_into(trainer)
        trainer.train(reporting(queue, item, report), lambda: checkpoints.save(trainer), watch)
        watch("publish", trainer.state.step)
        manifest = by_first(publish)
        checkpoints.clear()
    except UserError as error:
        return _end(error)
    finally:
        engine.close()
    return End(manifest=manifest)


def _end(error: UserError) -> End:
    """What a run ends with: the error is a text there, as itself it would hold on to what was opened.

    A file system may be well again a little later: the run is begun again as after a lost worker.
    """
    if isinstance(error, Overtaken):
        raise error
    may_pass = isinstance(error, StoreError) and not isinstance(error, Harmed)
    return End(str(error), again=may_pass)


def _of_this_node(mine: Path) -> Path:
    """A folder of its first worker's, for all workers of this node."""
    places = gathered((rank() - local_rank(), mine))
    return places[places[rank()][0]][1]


def _told(reference: ray.ObjectRef) -> Any:
    """What the roster answers, or the error it raises as itself: Ray's own form of it cannot be told to the other ranks."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None


def _too_large(queue: Queue, error: torch.OutOfMemoryError) -> str:
    said, keys = str(error).partition("\n")[0], queue.section
    return (
        f"the device has too little memory for this run: {said} Lower {keys}.micro_batch_tokens or {keys}.eval_batch_tokens,"
        f" set {keys}.gradient_checkpointing: true, train adapters alone ({keys}.lora), or spread the model over more workers"
        f" ({keys}.num_workers with a higher {keys}.zero_stage, {keys}.offload)"
    )
