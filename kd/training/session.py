"""One run, from the run directory and back to it; wherever it is trained in between."""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kd.errors import ConfigError
from kd.families.opening import open_family
from kd.loading import check_device, load, seeded, set_threads
from kd.manifests import Manifest
from kd.models import Loaded
from kd.training.adapters import add_adapters
from kd.training.config import LoopConfig
from kd.training.data import open_features
from kd.training.engine import Engine, TorchEngine
from kd.training.events import EventFile
from kd.training.loop import BEST, LAST, Lessons, State, Trainer
from kd.training.order import Order
from kd.training.progress import reporting
from kd.training.runs import HISTORY, LAST_MODEL, MODEL, TIMINGS, Claimed, Queue, Run
from kd.training.saved import clear_finished
from kd.training.validation import Validation, named, open_validation, sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """What a run needs, read from the run directory. `parameters` are those of the exported model."""

    student: Loaded
    parameters: int
    trained_parameters: int
    lessons: Lessons
    validation: Validation | None

    def trainer(self, engine: Engine, queue: Queue, run: Run, scratch: Path) -> Trainer:
        """The run, ready to start; its best model is kept below `scratch`."""
        limits = run.model.config
        return Trainer(engine, self.student, limits, self.lessons, self.validation, queue.training, run.seed, scratch)


def fetch_features(queue: Queue, run: Run, folder: Path) -> None:
    """Have the run's features below a local folder, as `open_run` reads them; what is there already is left as it is.

    Raises:
        UserError: a shard cannot be read, or is not what its manifest promises.
    """
    open_features(queue.store, run.features, run.shards, folder)


def open_run(queue: Queue, run: Run, scratch: Path, rank: int, world: int, features: Path | None = None) -> Opened:
    """The run's model, features and validation questions. What is fetched lies below `scratch` and is read from there.

    Features that `fetch_features` put below `features` serve many runs and many ranks, one at a time or all together.
    Weights are loaded in fp32, whatever precision they are used in later, and on the CPU where ZeRO splits them: the engine
    brings them to the device in the precision that they are used in.

    Raises:
        UserError: a model, a shard or a setting is not what the config says.
    """
    training, limits = queue.training, run.model.config
    full = limits.model_copy(update={"dtype": "float32"})
    check_device(queue.device)
    student = load(dataclasses.replace(run.model, config=full), "cpu" if training.zero_stage == 3 else queue.device)
    parameters = sum(parameter.numel() for parameter in student.model.parameters())
    _fit_for_training(student, training, run.seed)
    family = open_family(student, limits)
    table = open_features(queue.store, run.features, run.shards, features or scratch)
    order = Order([shard.rows for shard in run.shards], training.batch_rows, training.window_shards, run.seed)
    rows = sample(queue.store, run.examples, run.validation, training.eval_rows)
    prefix, budget = run.objective.answer_prefix, training.eval_batch_tokens
    validation = open_validation(rows, family, prefix, queue.judge, budget, rank, world)
    if validation is None and training.patience_evals and rank == 0:
        log.warning("%s: no row of validation has a label, so nothing is validated and patience_evals ends no run", run.name)
    trained = sum(parameter.numel() for parameter in student.model.parameters() if parameter.requires_grad)
    return Opened(student, parameters, trained, Lessons(table, order, run.objective.terms), validation)


def _fit_for_training(student: Loaded, training: LoopConfig, seed: int) -> None:
    """Add what the config wants of the model while it learns, in place. Nothing of it is in an exported model.

    Raises:
        ConfigError: the model cannot have it.
    """
    if training.lora:
        with seeded(seed):
            add_adapters(student.model, training.lora)
    if training.gradient_checkpointing:
        if not student.model.supports_gradient_checkpointing:
            raise ConfigError(f"{student.name} cannot recompute its layers; set gradient_checkpointing: false")
        student.model.activation_checkpointing_enable({"use_reentrant": False})
        student.model.disable_input_require_grads()  # which only the reentrant kind needs


def publish_run(queue: Queue, item: Claimed, opened: Opened, trainer: Trainer) -> Manifest:
    """Write the models of the best and the last step, history, timings and curves, and last of all the manifest."""
    store, state, run = queue.store, trainer.state, item.run
    store.upload(trainer.folder / BEST, f"{item.folder}/{MODEL}")
    if (trainer.folder / LAST).exists():
        store.upload(trainer.folder / LAST, f"{item.folder}/{LAST_MODEL}")
    store.publish_json(f"{item.folder}/{HISTORY}", {"history": state.history})
    store.publish_json(f"{item.folder}/{TIMINGS}", {"timings": state.timings})
    EventFile(store, item.folder, opened.lessons.terms).publish(state)
    manifest = Manifest(
        stage=run.stage,
        digest=item.digest,
        config=run.config(queue.training),
        inputs=dict(run.inputs),
        figures={
            **_selected(state, queue.training),
            "validation_rows": opened.validation.total if opened.validation else 0,
            **{f"final_loss_{name}": loss for name, loss in state.history[-1]["loss"].items()},
            "parameters": opened.parameters,
            "trained_parameters": opened.trained_parameters,
            "started_from": opened.student.name,
        },
        shards=list(run.shards),
        rows=len(opened.lessons.table),
        device=queue.device,
        seconds=round(state.seconds, 3),
        rows_per_s=round(state.step * queue.training.batch_rows / state.seconds, 3),
    )
    return store.publish_manifest(item.folder, manifest)


def _selected(state: State, training: LoopConfig) -> dict[str, float | str | None]:
    """The best step and the last one, how both validate, and the folder of the last one's model: the best's if it is that."""
    is_best = state.best_step == state.step
    return {
        "best_step": state.best_step,
        **named(state.best),
        "last_step": state.step,
        **{f"last_{name}": value for name, value in named(state.last).items()},
        "last_model": MODEL if is_best else LAST_MODEL if training.keep_last else None,
    }


def begin(queue: Queue) -> Sequence[Claimed]:
    """What is to be trained in this start of a queue; what earlier ones have left behind that none needs is taken away.

    Raises:
        StageError: a run would learn from nothing.
    """
    todo = queue.todo()
    queue.check(todo)
    clear_finished(queue, todo)
    return todo


def train_here(queue: Queue) -> None:
    """Work through a queue in this process, with plain torch: no Ray, no DeepSpeed, no checkpoints."""
    for item in begin(queue):
        with set_threads(queue.training.threads_per_worker), tempfile.TemporaryDirectory(prefix="kd-train-") as scratch:
            opened = open_run(queue, item.run, Path(scratch), rank=0, world=1)
            engine = TorchEngine(opened.student.model, queue.training, queue.device)
            trainer = opened.trainer(engine, queue, item.run, Path(scratch))
            trainer.train(reporting(queue, item, lambda _: None), checkpoint=lambda: None)
            publish_run(queue, item, opened, trainer)
