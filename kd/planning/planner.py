"""Makes a plan from a config, a sample of its corpus and a table of prices."""

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from kd.attribution.engine import Attribute
from kd.config import Config
from kd.cost import shape_of
from kd.evaluation.faithfulness import FaithfulnessConfig
from kd.families.base import Family
from kd.models import ModelSource
from kd.planning.batches import suggested_batches
from kd.planning.compute import answered, asked_again, attributed, trained
from kd.planning.lengths import histogram, openable
from kd.planning.output import output_bytes, weight_bytes
from kd.planning.plan import BatchPlan, Plan, SplitPlan, StagePlan, cut_in_shards, on_actors, on_gpu, suggested_shard
from kd.planning.price import Prices
from kd.planning.probe import Probe, actors_here, actors_like_these, probe, spread
from kd.planning.sample import SplitSample
from kd.planning.sampled import Sampled, read
from kd.rationales import AttributionSource
from kd.training.config import TeachConfig

TRAINING_BYTES = 16
"""Of a weight in training: itself, its gradient, AdamW's two states and, in bfloat16, the copy in float32."""


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
        found = _probed(sampled, source) if probing and source is not None else None
        return _planned(sampled, prices, found, local, starting=config.teach is not None and teacher is None)


def _planned(sampled: Sampled, prices: Prices, found: Probe | None, local: bool, starting: bool) -> Plan:
    config, splits = sampled.config, _splits(sampled)
    stages = _stages(sampled, splits)
    explained = list(sampled.explained.values()) or [sampled.rationalised]
    shards = [size for rows in explained for size in cut_in_shards(rows, config.prepare.rows_per_shard)]
    cluster, rate = config.cluster, found.rows_per_s if found else None
    return Plan(
        name=config.name,
        splits=splits,
        stages=stages,
        batches=_batches(sampled, found) if sampled.teacher else None,
        gpus=[on_gpu(gpu, prices, stages) for gpu in prices.gpus],
        share_of_peak=prices.share_of_peak,
        output_bytes=output_bytes(sampled, stages, found),
        probe=found,
        attribution=on_actors(found, actors_like_these(cluster, local), local, shards) if found else None,
        rows_per_shard=suggested_shard(sum(shards), cluster.max_actors, config.prepare.rows_per_shard, rate),
        notes=_notes(config, prices, starting and found is not None),
    )


def _probed(sampled: Sampled, teacher: ModelSource) -> Probe:
    """A shard's rows explained on this machine."""
    config, cluster = sampled.config, sampled.config.cluster
    recipe = Attribute(config.attribution, teacher, cluster.model_device, cluster.threads_per_actor)
    rows = sampled.lengths[sampled.largest].rows
    return probe(recipe, spread(rows, min(len(rows), config.prepare.rows_per_shard)), actors_here(cluster))


def _batches(sampled: Sampled, found: Probe | None) -> BatchPlan:
    """Micro-batches for the rows of one shard."""
    sizes = [row.size for row in sampled.lengths[sampled.largest].of_rows][: sampled.config.prepare.rows_per_shard]
    return suggested_batches(sizes, sampled.config.attribution.batch_tokens, found.rows_per_s_by_budget if found else {})


def _splits(sampled: Sampled) -> dict[str, SplitPlan]:
    shape, has_teacher = shape_of(sampled.reader.loaded), sampled.teacher is not None
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


# --- the stages that need a model -------------------------------------------------------------------------------------


def _stages(sampled: Sampled, splits: Mapping[str, SplitPlan]) -> dict[str, StagePlan]:
    """In the order in which they run."""
    stages = {}
    if sampled.config.teach is not None:
        stages["teach"] = _teaching(sampled, sampled.config.teach)
    if sampled.teacher is not None:
        flops = sum(split.explained * split.attribution_gflop_per_row * 1e9 for split in splits.values())
        stages["attribute"] = StagePlan(sum(sampled.explained.values()), flops, _gib(sampled.reader))
    if sampled.teacher is not None and sampled.config.audit.faithfulness is not None:
        stages["audit"] = _auditing(sampled, sampled.config.audit.faithfulness)
    stages |= {"train": _training(sampled), "evaluate": _evaluation(sampled)}
    if sampled.teacher is not None and sampled.config.evaluation.agreement_rows:
        stages["agreement"] = _agreement(sampled)
    return stages


def _teaching(sampled: Sampled, teach: TeachConfig) -> StagePlan:
    family = sampled.reader
    flops = trained(shape_of(family.loaded), teach, sampled.taught, _validation(sampled))
    return StagePlan(teach.steps * teach.batch_rows, flops, _gib(family, TRAINING_BYTES))


def _auditing(sampled: Sampled, faithfulness: FaithfulnessConfig) -> StagePlan:
    """The teacher asked again about a sample of each source's rows, without the words of their rationales."""
    split, sources = sampled.config.audit.split, sampled.config.rationales.sources
    rows = min(sampled.explained[split], faithfulness.rows)
    texts = sum(faithfulness.texts(isinstance(source, AttributionSource)) for source in sources)
    shape = shape_of(sampled.reader.loaded)
    flops = statistics.fmean(asked_again(shape, texts, row) for row in sampled.lengths[split].of_rows)
    return StagePlan(rows * len(sources), rows * flops, _gib(sampled.reader))


def _training(sampled: Sampled) -> StagePlan:
    training, family = sampled.config.training, sampled.student_family
    shape, validation = shape_of(family.loaded), _validation(sampled)
    flops = sum(trained(shape, training, rows, validation) for rows in sampled.learned.values())
    rows = training.steps * training.batch_rows * sampled.students
    return StagePlan(rows, flops * len(training.seeds), _gib(family, TRAINING_BYTES))


def _evaluation(sampled: Sampled) -> StagePlan:
    """The teacher, if there is one, and every student answer the evaluated split."""
    config = sampled.config.evaluation
    sample = sampled.samples[config.split]
    rows = min(sample.rows, config.limit_rows or sample.rows)
    models = [(sampled.student_family, sampled.students)]
    models += [(sampled.teacher_family, 1)] if sampled.teacher_family else []
    flops = 0.0
    for family, count in models:
        shape = shape_of(family.loaded)
        flops += count * rows * statistics.fmean(answered(shape, config, row) for row in read(family, sample).of_rows)
    return StagePlan(rows * sum(count for _, count in models), flops, max(_gib(family) for family, _ in models))


def _agreement(sampled: Sampled) -> StagePlan:
    """Every student explained, for an answer that is given, on rows that its teacher was explained on.

    Of a row without a label that is the teacher's own answer, taken to be as long as the row's longest.
    """
    config, family = sampled.config, sampled.student_family
    split = config.evaluation.split if sampled.explained.get(config.evaluation.split) else "train"
    rows = min(sampled.explained[split], config.evaluation.agreement_rows)
    method = config.attribution.model_copy(update={"explained": "gold", "answers": False})
    shape, lengths = shape_of(family.loaded), read(family, sampled.samples[split]).of_rows
    given = [replace(row, target=row.longest) if row.target is None else row for row in lengths]
    flops = statistics.fmean(attributed(shape, method, row) for row in given)
    return StagePlan(rows * sampled.students, rows * sampled.students * flops, _gib(family))


def _validation(sampled: Sampled) -> int:
    return sampled.samples["validation"].rows if "validation" in sampled.samples else 0


def _gib(family: Family, bytes_per_weight: int | None = None) -> float:
    """A model's weights, or what training keeps of each."""
    return weight_bytes(family, bytes_per_weight) / 2**30


def _notes(config: Config, prices: Prices, starting: bool) -> list[str]:
    """What limits the numbers, in sentences. `starting`: the probe used a teacher that is yet to be fine-tuned."""
    precisions = {"teacher.dtype": config.teacher.dtype} if config.teacher else {}
    precisions |= {"training.precision": config.training.precision}
    precisions |= {"teach.precision": config.teach.precision} if config.teach else {}
    slow = [key for key, precision in precisions.items() if precision == "float32"]
    said = {
        f"GPU-hours assume {prices.share_of_peak:.0%} of the bfloat16 peak, and no padding.": True,
        "Prices are examples: edit configs/prices.yaml.": True,
        f"{', '.join(slow)}: float32, which GPUs multiply at a fraction of that peak.": bool(slow),
        "The probe used the teacher's starting weights; once fine-tuned it may end its answers sooner.": starting,
        "How many rows of train are held out for validation is approximate.": config.task.holdout is not None,
    }
    return [note for note, applies in said.items() if applies]
