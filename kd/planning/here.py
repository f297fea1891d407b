"""How long the whole run takes on this machine, by what was probed here and a few starts that are assumed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from kd.loading import gpus_here
from kd.planning.compute import answered, learned, validations
from kd.planning.learning_probe import LearningProbe
from kd.planning.plan import HerePlan, Span, StagePlan, cut_in_shards, makespan
from kd.planning.probe import Probe, actors_like_these
from kd.planning.sampled import Sampled, read
from kd.training.config import LoopConfig

JOB_S = 8.0
"""A job's own start: Python, its libraries, a local Ray."""
POOL_S = 6.0
"""From a stage's start to the first work of its actors, which have no model; and until they are gone."""
GROUP_S = 12.0
"""From the start of a group of training workers until they open their first run, and after its last."""
SPREAD = 0.25
"""The same machine is so much faster or slower from one hour to the next."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was probed: rows explained, and the models that learn and answer. What a run does not have is None."""

    explained: Probe | None
    teacher: LearningProbe | None
    student: LearningProbe


def run_here(sampled: Sampled, stages: Mapping[str, StagePlan], found: Measured) -> HerePlan:
    """The run as one pipeline on a local cluster."""
    config, cluster = sampled.config, sampled.config.cluster
    seconds = {"start": JOB_S, "prepare": 2 * POOL_S}
    if config.teach is not None and found.teacher is not None:
        seconds["teach"] = POOL_S + _learning(sampled, config.teach, found.teacher, [1.0], runs=1)
    if found.explained is not None:
        actors = actors_like_these(cluster, local=True)
        shards = [size for rows in sampled.explained.values() for size in cut_in_shards(rows, config.prepare.rows_per_shard)]
        seconds["attribute"] = POOL_S + found.explained.load_s + makespan(shards, actors) / found.explained.rows_per_s
        flops_per_s = _explaining_flops_per_s(stages, found.explained)
        asked = stages["audit"].flops / flops_per_s / actors if "audit" in stages else 0.0
        seconds["audit"] = POOL_S + found.explained.load_s + asked
    seconds["rationalize"] = POOL_S
    seconds["train"] = POOL_S + _learning(sampled, config.training, found.student, _ratios(sampled), len(config.training.seeds))
    seconds["evaluate"] = POOL_S + _evaluation(sampled, stages, found)
    return HerePlan(seconds={title: _spread(value) for title, value in seconds.items()}, total=_spread(sum(seconds.values())))


def groups_here(loop: LoopConfig, runs: int, device: str) -> int:
    """How many groups of workers train at once: as many as have cores, and a GPU for each worker, or as the config says."""
    room = (os.cpu_count() or 1) // (loop.num_workers * loop.threads_per_worker)
    if device != "cpu":
        room = min(room, gpus_here() // loop.num_workers)
    return min(loop.parallel_runs or max(1, room), runs)


def learners_here(loop: LoopConfig, runs: int, device: str) -> int:
    """How many workers are probed at once: as many as train at once, since they share the cores. A GPU is one worker's own."""
    return loop.num_workers * groups_here(loop, runs, device) if device == "cpu" else 1


def _learning(sampled: Sampled, loop: LoopConfig, found: LearningProbe, ratios: Sequence[float], runs: int) -> float:
    """A queue of runs, by how much one of each kind costs beside the one that was probed."""
    rows = min(sampled.validation_rows, loop.eval_rows)
    checked = validations(loop, sampled.validation_rows) * rows / (found.answered_rows_per_s * loop.num_workers)
    each = [found.open_s + loop.steps * found.step_s * ratio + checked for ratio in ratios for _ in range(runs)]
    groups = groups_here(loop, len(each), sampled.config.cluster.device)
    return GROUP_S + found.load_s + makespan(each, groups)


def _ratios(sampled: Sampled) -> list[float]:
    """What a step of each variant computes, beside one of the first."""
    shape = sampled.shape(sampled.student_family)
    costs = [learned(shape, rows) for rows in sampled.learned.values()]
    return [cost / costs[0] for cost in costs]


def _evaluation(sampled: Sampled, stages: Mapping[str, StagePlan], found: Measured) -> float:
    """Every model opened, the split answered, and students explained at the pace at which they answer."""
    config, actors = sampled.config.evaluation, actors_like_these(sampled.config.cluster, local=True)
    split = sampled.samples[config.split].rows
    rows = min(split, config.limit_rows or split)
    models = [(found.student, sampled.students)] + ([(found.teacher, 1)] if found.teacher else [])
    each = [count * (probed.open_s + rows / probed.answered_rows_per_s) for probed, count in models]
    answered = found.student.load_s + sum(each) / actors + _teacher_as_it_is(sampled, stages, found, rows)
    if "agreement" not in stages:
        return answered
    explained = stages["agreement"].flops / (found.student.answered_rows_per_s * _answer_flops(sampled))
    return answered + POOL_S + found.student.load_s + (explained + sampled.students * found.student.open_s) / actors


def _teacher_as_it_is(sampled: Sampled, stages: Mapping[str, StagePlan], found: Measured, rows: int) -> float:
    """Seconds of a teacher that nobody teaches: it answers on one actor, with as many operations a second as it explains."""
    if found.teacher is not None or found.explained is None or sampled.teacher_family is None:
        return 0.0
    config, shape = sampled.config.evaluation, sampled.shape(sampled.teacher_family)
    lengths = read(sampled.teacher_family, sampled.samples[config.split])
    flops = rows * fmean(answered(shape, config, row) for row in lengths.of_rows)
    return found.explained.load_s + flops / _explaining_flops_per_s(stages, found.explained)


def _explaining_flops_per_s(stages: Mapping[str, StagePlan], explained: Probe) -> float:
    """Of one actor that explains."""
    return stages["attribute"].flops / max(1, stages["attribute"].rows) * explained.rows_per_s


def _answer_flops(sampled: Sampled) -> float:
    """Of one row answered by a student."""
    family, config = sampled.student_family, sampled.config.evaluation
    shape = sampled.shape(family)
    return fmean(answered(shape, config, row) for row in read(family, sampled.samples[config.split]).of_rows)


def _spread(seconds: float) -> Span:
    return seconds * (1 - SPREAD), seconds * (1 + SPREAD)
