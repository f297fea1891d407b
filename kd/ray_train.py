"""Trains a queue of runs in one Ray Train worker group, with DeepSpeed.

A start of a group costs 10-20 s and students are many, so one group works through all runs that are still to do. Each
has its own folder, and its manifest is written last: a run whose manifest is there is skipped. A group that loses a
worker is started again and goes on from the last checkpoint of the run that it was in.
"""

import gc
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import torch
from jaxtyping import Float
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor, distributed

from kd.errors import StageError, StoreError, UserError
from kd.training.config import LoopConfig, deepspeed_json
from kd.training.engine import adamw, clip_gradient, evaluating, set_learning_rate
from kd.training.loop import Trainer
from kd.training.progress import ProgressFile
from kd.training.runs import Claimed, Queue, Run
from kd.training.session import Opened, open_run, publish_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINTS = "checkpoints"
"""The folder of the run directory that holds what interrupted queues go on from."""
_RUN = "run.txt"
_TAG = "engine"
_POLL_INTERVAL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"


def train_queue(queue: Queue, labels: Mapping[str, str] | None = None) -> None:
    """Train the runs of a queue that are not finished yet, one after the other. Ray is initialised.

    Args:
        queue: The runs.
        labels: What a node must be labelled with for a worker to run on it; none: any node.

    Raises:
        UserError: what a user can mend, as itself; whatever else ended the training as a StageError. Finished runs stay.
    """
    queue.check()
    if not queue.todo():
        return
    ProgressFile(queue).start()
    try:
        with _polled_often():
            result = _trainer(queue, labels or {}).fit()
    except ray.train.TrainingFailedError as error:
        raise root_cause(error) from error
    if isinstance(result.return_value, UserError):
        raise result.return_value


def _trainer(queue: Queue, labels: Mapping[str, str]) -> TorchTrainer:
    """The worker group. Its name is the stage's, so that a half-done run is gone on with whatever else has been added to
    the queue; whose checkpoint it is that Ray Train gives back, `_resume` finds out.
    """
    training, use_gpu = queue.training, queue.device == "cuda"
    return TorchTrainer(
        _work,
        train_loop_config={"queue": queue},
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": training.threads_per_worker} | ({"GPU": 1} if use_gpu else {}),
            label_selector=dict(labels) or None,
        ),
        run_config=RunConfig(
            name=queue.stage,
            storage_path=queue.store.path(CHECKPOINTS),
            failure_config=FailureConfig(max_failures=training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=training.keep_checkpoints),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


@contextmanager
def _polled_often() -> Iterator[None]:
    """Ray Train looks at its workers twice a second inside, unless the user set how often: it sees their end sooner, and a
    checkpoint is safe once it has seen it.
    """
    mine = _POLL_INTERVAL not in os.environ
    if mine:
        os.environ[_POLL_INTERVAL] = "0.5"
    try:
        yield
    finally:
        if mine:
            del os.environ[_POLL_INTERVAL]


def root_cause(error: Exception) -> UserError:
    """What a person should read of a failed group: a user's mistake, else the error that is not a mere loss of contact."""
    wrapped = getattr(error, "worker_failures", {}).values()
    failures = [getattr(failure, "_base_exc", failure) for failure in wrapped]
    for failure in failures:
        if isinstance(failure, UserError):
            return failure
    told = [failure for failure in failures if not _is_lost_contact(failure)] or failures or [error]
    return StageError(f"a training worker failed: {told[0]!r}; finished runs and checkpoints are kept, run the stage again")


def _is_lost_contact(failure: BaseException) -> bool:
    """The echo of another worker's death: its peers only see a closed connection."""
    return any(sign in str(failure).lower() for sign in ("connection reset", "connection closed", "broken pipe"))


# --- a worker's side --------------------------------------------------------------------------------------------------


def _work(settings: dict[str, Any]) -> UserError | None:
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
        _resume(ray.train.get_checkpoint(), trainer, item)
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


def _resume(checkpoint: Checkpoint | None, trainer: Trainer, item: Claimed) -> None:
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


class DeepSpeedEngine:
    """DeepSpeed's ZeRO as the loop wants it (`kd.training.engine.Engine`), for every stage and both precisions.

    DeepSpeed averages over workers and over accumulation, so a loss is multiplied by both. On a CPU nothing is compiled:
    the optimizer is torch's, and the shared-memory operation is declared unavailable before it can be built.
    """

    def __init__(self, model: "PreTrainedModel", config: LoopConfig, device: str) -> None:
        self.rank, self.world, self.device = distributed.get_rank(), distributed.get_world_size(), device
        self.module = model
        self._parameters = list(model.parameters())
        self.config = config
        self._scale = self.world * config.accumulation
        self._deepspeed = _import_deepspeed(device)
        self._copy = self._whole_copy(model) if config.zero_stage == 3 else None
        self._optimizer = adamw(model, config)
        settings = deepspeed_json(config, self.world)
        self._engine = self._deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=settings, dist_init_required=False
        )[0]
        self.forward: Callable[..., Any] = self._engine

    def backward(self, loss: Float[Tensor, ""]) -> None:
        self._engine.backward(loss * self._scale)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def step(self, learning_rate: float) -> Float[Tensor, ""]:
        set_learning_rate(self._optimizer, learning_rate)
        if self.config.has_plain_gradients:
            norm = clip_gradient(self._parameters, self.config.clip_norm)
            self._engine.step()
            return norm
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def total(self, values: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
        summed = values.clone()
        distributed.all_reduce(summed)
        return summed

    @contextmanager
    def whole(self) -> Iterator["PreTrainedModel"]:
        model = self.module if self._copy is None else self._gathered(self._copy)
        with evaluating(model):
            yield model

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=_TAG)

    def load(self, folder: Path) -> None:
        if self._engine.load_checkpoint(str(folder), tag=_TAG)[0] is None:
            raise StoreError(f"{folder} holds no checkpoint of DeepSpeed; delete the run's checkpoints and start again")

    def close(self) -> None:
        """Free what the next run needs."""
        self._engine.destroy()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _whole_copy(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """A model of its own on every rank: under ZeRO-3 ranks that generate unequally long answers would wait forever."""
        copy = deepcopy(model)
        return copy.to(torch.bfloat16) if self.config.precision == "bfloat16" else copy

    @torch.no_grad()
    def _gathered(self, copy: "PreTrainedModel") -> "PreTrainedModel":
        """The copy with the weights of now, fetched one by one from the ranks that hold them."""
        for mine, shared in zip(copy.parameters(), self.module.parameters(), strict=True):
            with self._deepspeed.zero.GatheredParameters([shared]):
                mine.copy_(shared)
        return copy


def _import_deepspeed(device: str) -> Any:
    """DeepSpeed, which decides on the accelerator when it is imported."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
