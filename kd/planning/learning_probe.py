"""How fast a model learns and answers here: the run's own loop on sampled rows, in processes like the workers that will do it."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from tempfile import TemporaryDirectory

from kd.evaluation.answers import Answer
from kd.manifests import Manifest, Shard
from kd.models import ModelSource
from kd.planning.probe import GROWTH, Probing, spread
from kd.rows import Example, Features
from kd.store import Store
from kd.training.config import LoopConfig
from kd.training.objectives import AnyObjective
from kd.training.runs import TIMINGS, Queue, Run

LEARN_SECONDS = 8.0
"""The timed steps take about this at most, and so do the answers, unless one alone takes longer."""
MOST_STEPS = 200
WARM_STEPS = 2
"""Steps that are not timed: the first ones take memory that later ones have."""


@dataclass(frozen=True)
class Lesson:
    """What is probed: a model that learns these rows by this loop, and answers these examples by this recipe."""

    model: ModelSource
    objective: AnyObjective
    loop: LoopConfig
    features: Sequence[Features]
    answer: Answer
    examples: Sequence[Example]


@dataclass(frozen=True)
class LearningProbe:
    """What was measured in `at_once` processes side by side. `step_s` is one update, of a worker's share of the batch.

    `load_s` are from the start of a process' work to its first step, libraries included; `open_s` to open the model once more.
    """

    at_once: int
    load_s: float
    open_s: float
    step_s: float
    answered_rows_per_s: float
    """Of one process, while the others work."""


def probe_learning(processes: Probing, lesson: Lesson, at_once: int) -> LearningProbe:
    """Learn and answer in `at_once` processes at the same time. Raises StageError as `Probing.side_by_side` does."""
    found = processes.side_by_side(measure_learning, lesson, at_once=at_once)
    means = {name: fmean(one[name] for one in map(vars, found)) for name in ("open_s", "step_s", "answered_rows_per_s")}
    return LearningProbe(at_once=at_once, load_s=processes.libraries_s + max(one.load_s for one in found), **means)


def measure_learning(lesson: Lesson) -> LearningProbe:
    """The same in this process: more and more steps and rows, until they take long enough; the last time counts."""
    from kd.families.opening import load_family

    started = time.perf_counter()
    step_s = _step_seconds(lesson, WARM_STEPS + 1)
    load_s = time.perf_counter() - started - step_s * (WARM_STEPS + 1)
    steps = WARM_STEPS + max(3, min(MOST_STEPS, math.ceil(LEARN_SECONDS / step_s)))
    step_s = _step_seconds(lesson, steps)
    began = time.perf_counter()
    load_family(lesson.model, lesson.answer.device, lesson.answer.threads)
    open_s = time.perf_counter() - began
    return LearningProbe(1, load_s, open_s, step_s, _answered_rows_per_s(lesson))


def _step_seconds(lesson: Lesson, steps: int) -> float:
    """Seconds of an update, the middle of so many but the first ones. The loop is a worker's, alone and in plain torch."""
    from kd.training.session import train_here

    loop = lesson.loop
    alone = {"num_workers": 1, "zero_stage": 0, "offload": "none", "precision": "float32", "cut_for_workers": None}
    only_steps = {"steps": steps, "warmup_steps": 0, "eval_rows": 0, "patience_evals": None, "save_every_steps": 0}
    rows = {"batch_rows": math.ceil(loop.batch_rows / loop.num_workers), "log_every_steps": 1}
    with TemporaryDirectory(prefix="kd-probe-") as folder:
        queue = _queue(Store.at(folder), lesson, loop.model_copy(update=alone | only_steps | rows))
        train_here(queue)
        timings = queue.store.read_json(f"{queue.items[0].folder}/{TIMINGS}")["timings"]
    return float(median(entry["seconds"] for entry in timings[WARM_STEPS:]))


def _queue(store: Store, lesson: Lesson, loop: LoopConfig) -> Queue:
    """A queue of one run in a run directory of its own, which holds what is learned."""
    shard = Shard("train-0", "train", len(lesson.features))
    store.publish_rows(f"features/{shard.file}", lesson.features, Features, {"rows": shard.rows})
    manifest = Manifest(stage="features", digest="probe", config={}, inputs={}, rows=shard.rows)
    store.publish_manifest("features", manifest)
    run = Run(
        stage="probe",
        variant="probe",
        seed=0,
        model=lesson.model,
        objective=lesson.objective,
        features="features",
        shards=[shard],
        examples="examples",
        validation=[],
        target="students/probe",
        inputs={},
    )
    return Queue.of(store, "probe", [run], loop, lesson.answer.device, lesson.answer.task.judge)


def _answered_rows_per_s(lesson: Lesson) -> float:
    """Rows per second, from more and more rows."""
    answer, taken = lesson.answer.open(), min(8, len(lesson.examples))
    while True:
        rows = [replace(row, error=None) for row in spread(lesson.examples, taken)]
        began = time.perf_counter()
        answer(rows, Counter())
        seconds = time.perf_counter() - began
        if taken == len(lesson.examples) or seconds * GROWTH > LEARN_SECONDS:
            return taken / seconds
        taken = min(len(lesson.examples), taken * GROWTH)
