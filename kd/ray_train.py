"""Trains a queue of runs in one Ray Train worker group, with DeepSpeed.

A start of a group costs 10-20 s and students are many, so one group works through all runs that are still to do. Each
has its own folder, and its manifest is written last: a run whose manifest is there is skipped. A group that loses a
worker is started again and goes on from the last checkpoint of the run that it was in.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray.train
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from kd.errors import StageError, UserError
from kd.ray_worker import work
from kd.training.progress import ProgressFile
from kd.training.runs import Queue

RAY_FILES = "logs/ray"
"""The folder of the run directory for Ray Train's own notes. Checkpoints are no part of them: each run keeps its own."""
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
    """The worker group."""
    training, use_gpu = queue.training, queue.device == "cuda"
    return TorchTrainer(
        work,
        train_loop_config={"queue": queue},
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": training.threads_per_worker} | ({"GPU": 1} if use_gpu else {}),
            label_selector=dict(labels) or None,
        ),
        run_config=RunConfig(
            name=queue.stage,
            storage_path=queue.store.path(RAY_FILES),
            failure_config=FailureConfig(max_failures=training.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


@contextmanager
def _polled_often() -> Iterator[None]:
    """Ray Train looks at its workers twice a second inside, unless the user set how often: it sees their end sooner."""
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
