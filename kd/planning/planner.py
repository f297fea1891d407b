"""Makes a plan from a config, a sample of its corpus and a table of prices."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from kd.attribution.engine import Attribute
from kd.config import Config
from kd.evaluation.answers import Answer
from kd.models import ModelSource
from kd.planning.batches import suggested_batches
from kd.planning.compute import attributed
from kd.planning.here import Measured, learners_here, run_here
from kd.planning.learning_probe import Lesson, probe_learning
from kd.planning.lengths import histogram, openable
from kd.planning.output import output_bytes
from kd.planning.plan import BatchPlan, Plan, SplitPlan, cut_in_shards, on_actors, on_gpu, suggested_shard
from kd.planning.price import Prices
from kd.planning.probe import Probe, actors_here, actors_like_these, probe, probe_processes, spread
from kd.planning.sample import SplitSample
from kd.planning.sampled import Sampled
from kd.planning.stages import stage_plans
from kd.rows import Features
from kd.training.config import LoopConfig
from kd.training.objectives import AnyObjective


def make_plan(
    config: Config,
    samples: Mapping[str, SplitSample],
    prices: Prices,
    teacher: ModelSource | None,
    *,
    probing: bool,
    local: bool,
) -> Plan:
    """The plan of a run.

    Args:
        samples: by split. teacher: the one that `teach` left, if it has; else its starting weights stand for it. In a run
            without a teacher nothing is explained, and so nothing probed.
        probing: whether rows are explained here, to see how fast; otherwise no weights are loaded.
        local: whether the run will have this machine alone, and no running cluster.

    Raises:
        ConfigError, InputError: a model cannot be opened, or no sampled row can be read or learned by it.
    """
    phrases = sorted({phrase for variant in config.training.variants for phrase in variant.objective.prefixes})
    rows = samples["train"].examples
    with ExitStack() as opened:
        source = teacher
        if source is None and config.teacher is not None:
            source = opened.enter_context(openable(config.teacher, rows, phrases))
        student = opened.enter_context(openable(config.student, rows, phrases))
        sampled = Sampled(config, samples, source, student)
        found, here = _measured(sampled, local) if probing else (None, None)
        return _planned(sampled, prices, found, here, local, starting=config.teach is not None and teacher is None)


def _planned(sampled: Sampled, prices: Prices, found: Probe | None, here: Measured | None, local: bool, starting: bool) -> Plan:
    config, splits = sampled.config, _splits(sampled)
    stages = stage_plans(sampled, splits)
    explained = list(sampled.explained.values()) or [sampled.rationalised]
    shards = [size for rows in explained for size in cut_in_shards(rows, config.prepare.rows_per_shard)]
    cluster, rate = config.cluster, found.rows_per_s if found else None
    return Plan(
        name=config.name,
        splits=splits,
        stages=stages,
        batches=_batches(sampled, found) if sampled.teacher else None,
        gpus=[on_gpu(gpu, prices, stages) for gpu in prices.gpus],
        output_bytes=output_bytes(sampled, stages, found),
        probe=found,
        attribution=on_actors(found, actors_like_these(cluster, local), local, shards) if found else None,
        here=run_here(sampled, stages, here) if here else None,
        rows_per_shard=suggested_shard(sum(shards), cluster.max_actors, config.prepare.rows_per_shard, rate),
        notes=_notes(config, prices, starting and found is not None),
    )


def _measured(sampled: Sampled, local: bool) -> tuple[Probe | None, Measured | None]:
    """A shard's rows explained on this machine; and for a run on it alone, the models that learn and answer."""
    config, cluster = sampled.config, sampled.config.cluster
    actors, learners = actors_here(cluster), learners_here(config.training, sampled.students, cluster.device)
    teachers = learners_here(config.teach, 1, cluster.device) if config.teach else 0
    with probe_processes(cluster.model_device, max(actors, learners, teachers)) as processes:
        found = None
        if sampled.teacher is not None:
            recipe = Attribute(config.attribution, sampled.teacher, cluster.model_device, cluster.threads_per_actor)
            rows = sampled.lengths[sampled.largest].rows
            found = probe(processes, recipe, spread(rows, min(len(rows), config.prepare.rows_per_shard)), actors)
        if not local:
            return found, None
        taught = None
        if sampled.teacher is not None and config.teach is not None:
            lesson = _lesson(sampled, sampled.teacher, config.teach, config.teach.objective, sampled.taught)
            taught = probe_learning(processes, lesson, teachers)
        student = probe_learning(processes, lesson_of_students(sampled), learners)
        return found, Measured(explained=found, teacher=taught, student=student)


def lesson_of_students(sampled: Sampled) -> Lesson:
    """What is probed of the students: the first variant."""
    training, variant = sampled.config.training, sampled.config.training.variants[0]
    return _lesson(sampled, sampled.student, training, variant.objective, sampled.learned[variant.name])


def _lesson(sampled: Sampled, model: ModelSource, loop: LoopConfig, objective: AnyObjective, rows: Sequence[Features]) -> Lesson:
    config, cluster = sampled.config, sampled.config.cluster
    device, threads = cluster.device, loop.threads_per_worker  # a model that is trained is on one device
    answer = Answer(config.evaluation, config.task, model, objective.answer_prefix, "probe", 0, device, threads)
    return Lesson(model, objective, loop, rows, answer, sampled.samples[config.evaluation.split].examples)


def _batches(sampled: Sampled, found: Probe | None) -> BatchPlan:
    """Micro-batches for the rows of one shard."""
    sizes = [row.size for row in sampled.lengths[sampled.largest].of_rows][: sampled.config.prepare.rows_per_shard]
    return suggested_batches(sizes, sampled.config.attribution.batch_tokens, found.rows_per_s_by_budget if found else {})


def _splits(sampled: Sampled) -> dict[str, SplitPlan]:
    shape, has_teacher = sampled.shape(sampled.reader), sampled.teacher is not None
    found = {}
    for split, sample in sampled.samples.items():
        lengths = sampled.lengths[split]
        flops = [attributed(shape, sampled.config.attribution, row) if has_teacher else 0.0 for row in lengths.of_rows]
        found[split] = SplitPlan(
            rows=sample.rows,
            counted=sample.counted,
            explained=sampled.explained.get(split, 0),
            sampled=len(sample.examples) + sample.bad,
            bad=sample.bad,
            faults=dict(lengths.faults),
            mean_input_tokens=statistics.fmean(lengths.inputs),
            median_input_tokens=statistics.median(lengths.inputs),
            longest_input_tokens=max(lengths.inputs),
            histogram=histogram(lengths.inputs),
            truncated_frac=lengths.truncated_frac,
            attribution_gflop_per_row=statistics.fmean(flops) / 1e9,
        )
    return found


def _notes(config: Config, prices: Prices, starting: bool) -> list[str]:
    """What limits the numbers, in sentences. `starting`: the probe used a teacher that is yet to be fine-tuned."""
    precisions = {"teacher.dtype": config.teacher.dtype} if config.teacher else {}
    precisions |= {"training.precision": config.training.precision}
    precisions |= {"teach.precision": config.teach.precision} if config.teach else {}
    slow = [key for key, precision in precisions.items() if precision == "float32"]
    said = {
        f"From the best case to the worst of configs/prices.yaml, which assume that {prices.worst.share_of_peak:.0%} to"
        f" {prices.best.share_of_peak:.0%} of the bfloat16 peak is reached, {prices.best.kernel_us:g} to"
        f" {prices.worst.kernel_us:g} us per operation that a GPU starts, and no padding. Its prices are examples.": True,
        "Not in it: the CPU stages (prepare, rationalize, report), lost nodes, and a stage that waits for machines.": True,
        f"{', '.join(slow)}: float32, which GPUs multiply at a fraction of that peak.": bool(slow),
        "The probe used the teacher's starting weights; once fine-tuned it may end its answers sooner.": starting,
        "How many rows of train are held out for validation is approximate.": config.task.holdout is not None,
    }
    return [note for note, applies in said.items() if applies]
