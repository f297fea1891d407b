"""One run, from the run directory and back to it; wherever it is trained in between."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from kd.families.opening import open_family
from kd.manifests import Manifest
from kd.models import Loaded, load
from kd.training.data import open_features
from kd.training.engine import Engine, TorchEngine
from kd.training.events import EventFile
from kd.training.loop import BEST, Lessons, Trainer
from kd.training.order import Order
from kd.training.progress import ProgressFile
from kd.training.runs import HISTORY, MODEL, TIMINGS, Claimed, Queue, Run
from kd.training.validation import Validation, open_validation, sample


@dataclass(frozen=True)
class Opened:
    """What a run needs, read from the run directory."""

    student: Loaded
    parameters: int
    lessons: Lessons
    validation: Validation | None

    def trainer(self, engine: Engine, queue: Queue, run: Run, scratch: Path) -> Trainer:
        """The run, ready to start; its best model is kept below `scratch`."""
        limits = run.model.config
        return Trainer(engine, self.student, limits, self.lessons, self.validation, queue.training, run.seed, scratch)


def open_run(queue: Queue, run: Run, scratch: Path, rank: int, world: int) -> Opened:
    """The run's model, features and validation questions. What is fetched lies below `scratch` and is read from there.

    Weights are loaded in fp32, whatever precision they are used in later.

    Raises:
        UserError: a model, a shard or a setting is not what the config says.
    """
    training, limits = queue.training, run.model.config
    full = limits.model_copy(update={"dtype": "float32"})
    student = load(dataclasses.replace(run.model, config=full), queue.device)
    family = open_family(student, limits)
    table = open_features(queue.store, run.features, run.shards, scratch)
    order = Order([shard.rows for shard in run.shards], training.batch_rows, training.window_shards, run.seed)
    rows = sample(queue.store, run.examples, run.validation, training.eval_rows)
    prefix, budget = run.objective.answer_prefix, training.eval_batch_tokens
    validation = open_validation(rows, family, prefix, queue.judge, budget, rank, world)
    parameters = sum(parameter.numel() for parameter in student.model.parameters())
    return Opened(student, parameters, Lessons(table, order, run.objective.terms), validation)


def publish_run(queue: Queue, item: Claimed, opened: Opened, trainer: Trainer) -> Manifest:
    """Write the best step's model, the history, its timings and curves, and last of all the manifest."""
    store, state, run = queue.store, trainer.state, item.run
    store.upload(trainer.folder / BEST, f"{item.folder}/{MODEL}")
    store.publish_json(f"{item.folder}/{HISTORY}", {"history": state.history})
    store.publish_json(f"{item.folder}/{TIMINGS}", {"timings": state.timings})
    EventFile(store, item.folder, opened.lessons.terms).publish(state)
    manifest = Manifest(
        stage=run.stage,
        digest=item.digest,
        config=run.config(queue.training),
        inputs=dict(run.inputs),
        figures={
            "best_step": state.best_step,
            "validation_accuracy": state.best.accuracy if state.best else None,
            "validation_loss": state.best.loss_nats if state.best else None,
            "validation_rows": opened.validation.total if opened.validation else 0,
            **{f"final_loss_{name}": loss for name, loss in state.history[-1]["loss"].items()},
            "parameters": opened.parameters,
            "started_from": opened.student.name,
        },
        shards=list(run.shards),
        rows=len(opened.lessons.table),
        device=queue.device,
        seconds=round(state.seconds, 3),
        rows_per_s=round(state.step * queue.training.batch_rows / state.seconds, 3),
    )
    stamped = store.publish_manifest(item.folder, manifest)
    ProgressFile(queue).finish(item, state)
    return stamped


def train_here(queue: Queue) -> None:
    """Work through a queue in this process, with plain torch: no Ray, no DeepSpeed, no checkpoints."""
    queue.check()
    progress = ProgressFile(queue)
    for item in queue.todo():
        with _threads(queue.training.threads_per_worker), tempfile.TemporaryDirectory(prefix="kd-train-") as scratch:
            opened = open_run(queue, item.run, Path(scratch), rank=0, world=1)
            engine = TorchEngine(opened.student.model, queue.training, queue.device)
            trainer = opened.trainer(engine, queue, item.run, Path(scratch))
            trainer.train(progress.of(item), checkpoint=lambda: None)
            publish_run(queue, item, opened, trainer)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many torch threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
