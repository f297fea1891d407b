"""What every stage that needs a model asks of its devices, for as many rows as the run has."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from kd.batching import cut
from kd.evaluation.answers import EvaluationConfig
from kd.evaluation.faithfulness import FaithfulnessConfig
from kd.families.base import Family
from kd.planning.compute import (
    NO_PASS,
    Pass,
    answered,
    answered_pass,
    asked_again,
    asked_again_pass,
    attributed,
    attributed_pass,
    learned_pass,
    micro_batches,
    trained,
    validations,
)
from kd.planning.lengths import Length, Lengths
from kd.planning.output import weight_bytes, weight_count
from kd.planning.plan import SplitPlan, StagePlan
from kd.planning.sampled import Sampled, read
from kd.rationales import AttributionSource
from kd.rows import Features
from kd.training.config import LoopConfig

TRAINING_BYTES = 16
"""Of a weight in training: itself, its gradient, AdamW's two states and, in bfloat16, the copy in float32."""
UPDATE_BYTES = 32
"""Of a weight that AdamW's step reads or writes: gradient, weight and two states read, all but the gradient written, in
float32; and the gradient cleared."""


def stage_plans(sampled: Sampled, splits: Mapping[str, SplitPlan]) -> dict[str, StagePlan]:
    """In the order in which they run."""
    config = sampled.config
    stages = {}
    if config.teach is not None:
        stages["teach"] = _learning(sampled, sampled.reader, config.teach, [sampled.taught], runs=1)
    if sampled.teacher is not None:
        stages["attribute"] = _attribution(sampled, splits)
    if sampled.teacher is not None and config.audit.faithfulness is not None:
        stages["audit"] = _auditing(sampled, config.audit.faithfulness)
    seeds = len(config.training.seeds)
    stages["train"] = _learning(sampled, sampled.student_family, config.training, list(sampled.learned.values()), runs=seeds)
    stages["evaluate"] = _evaluation(sampled)
    if sampled.teacher is not None and config.evaluation.agreement_rows:
        stages["agreement"] = _agreement(sampled)
    return stages


def _attribution(sampled: Sampled, splits: Mapping[str, SplitPlan]) -> StagePlan:
    config, shape = sampled.config.attribution, sampled.shape(sampled.reader)
    flops = sum(split.explained * split.attribution_gflop_per_row * 1e9 for split in splits.values())
    each = partial(attributed_pass, shape, config)
    passes = [_passes(sampled.lengths[name], config.batch_tokens, each) * rows for name, rows in sampled.explained.items()]
    rows = sum(sampled.explained.values())
    return _asking(sampled, sampled.reader, rows, flops, sum(passes, NO_PASS), sampled.config.cluster.max_actors)


def _auditing(sampled: Sampled, faithfulness: FaithfulnessConfig) -> StagePlan:
    """The teacher asked again about a sample of each source's rows, without the words of their rationales."""
    split, sources = sampled.config.audit.split, sampled.config.rationales.sources
    rows = min(sampled.explained[split], faithfulness.rows)
    texts = sum(faithfulness.texts(isinstance(source, AttributionSource)) for source in sources)
    shape, lengths = sampled.shape(sampled.reader), sampled.lengths[split]
    flops = statistics.fmean(asked_again(shape, texts, row) for row in lengths.of_rows)
    passes = _passes(lengths, faithfulness.batch_tokens, partial(asked_again_pass, shape, texts))
    opened = min(len(sources), sampled.config.cluster.max_actors)
    return _asking(sampled, sampled.reader, rows * len(sources), rows * flops, passes * rows, opened)


def _learning(sampled: Sampled, family: Family, loop: LoopConfig, learned: Sequence[Sequence[Features]], runs: int) -> StagePlan:
    """Each of these ways to learn, so many runs of it."""
    shape, validation = sampled.shape(family), sampled.validation_rows
    flops = runs * sum(trained(shape, loop, rows, validation) for rows in learned)
    longest = max(len(ids) for rows in learned for row in rows for ids in row.input_ids)
    parts = loop.steps * loop.num_workers * sum(micro_batches(loop, rows) for rows in learned)
    passes = learned_pass(shape, loop, longest) * (runs * parts)
    checks = validations(loop, validation) * min(validation, loop.eval_rows) * runs * len(learned)
    asked = partial(answered_pass, shape, EvaluationConfig())
    passes += _passes(read(family, sampled.samples["train"]), loop.eval_batch_tokens, asked) * checks
    updates, weights = loop.steps * runs * len(learned), weight_count(family)
    workers = loop.num_workers * min(loop.parallel_runs or 1, runs * len(learned))
    return StagePlan(
        rows=updates * loop.batch_rows,
        flops=flops + passes.flops,
        memory_gib=_gib(family, TRAINING_BYTES),
        devices=workers,
        kernels=passes.kernels,
        updates=updates * loop.num_workers,
        moved_bytes=updates * weights * UPDATE_BYTES * (1 if loop.zero_stage else loop.num_workers),
        exchanged_bytes=updates * weights * _exchanged_bytes(loop),
        processes=workers,
        loaded_bytes=runs * len(learned) * loop.num_workers * _gib(family) * 2**30,
    )


def _exchanged_bytes(loop: LoopConfig) -> float:
    """Of each weight in one step, over all workers: gradients summed in a ring, and at ZeRO-3 weights gathered for each pass.

    Rajbhandari et al. 2020 (ZeRO), section 7: 2 numbers per weight and worker, 3 at stage 3.
    """
    others = loop.num_workers - 1
    return (3.0 if loop.zero_stage == 3 else 2.0) * others * (4 if loop.precision == "float32" else 2)


def _evaluation(sampled: Sampled) -> StagePlan:
    """The teacher, if there is one, and every student answer the evaluated split."""
    config = sampled.config.evaluation
    sample = sampled.samples[config.split]
    rows = min(sample.rows, config.limit_rows or sample.rows)
    models = [(sampled.student_family, sampled.students)]
    models += [(sampled.teacher_family, 1)] if sampled.teacher_family else []
    flops, passes = 0.0, NO_PASS
    for family, count in models:
        shape, lengths = sampled.shape(family), read(family, sample)
        flops += count * rows * statistics.fmean(answered(shape, config, row) for row in lengths.of_rows)
        passes += _passes(lengths, config.batch_tokens, partial(answered_pass, shape, config)) * (count * rows)
    opened = sum(count for _, count in models)
    largest = max((family for family, _ in models), key=_gib)
    return _asking(sampled, largest, rows * opened, flops, passes, opened)


def _agreement(sampled: Sampled) -> StagePlan:
    """Every student is explained on rows that its teacher was explained on. The answer to explain is given.

    Of a row without a label that is the teacher's own answer, taken to be as long as the row's longest.
    """
    config, family = sampled.config, sampled.student_family
    split = config.evaluation.split if sampled.explained.get(config.evaluation.split) else "train"
    rows = min(sampled.explained[split], config.evaluation.agreement_rows) * sampled.students
    method = config.attribution.model_copy(update={"explained": "gold", "answers": False})
    shape, lengths = sampled.shape(family), read(family, sampled.samples[split])
    given = [replace(row, target=row.longest) if row.target is None else row for row in lengths.of_rows]
    flops = rows * statistics.fmean(attributed(shape, method, row) for row in given)
    passes = _passes(replace(lengths, of_rows=given), method.batch_tokens, partial(attributed_pass, shape, method)) * rows
    return _asking(sampled, family, rows, flops, passes, sampled.students)


def _asking(sampled: Sampled, family: Family, rows: int, flops: float, passes: Pass, opened: int) -> StagePlan:
    """A stage of actors that ask a model, which is opened so many times."""
    cluster = sampled.config.cluster
    return StagePlan(
        rows=rows,
        flops=flops + passes.flops,
        memory_gib=_gib(family),
        devices=math.ceil(cluster.max_actors * cluster.gpus_per_actor),
        kernels=passes.kernels,
        processes=min(cluster.max_actors, opened),
        loaded_bytes=opened * _gib(family) * 2**30,
    )


def _passes(lengths: Lengths, budget_tokens: int, of_batch: Callable[[Length], Pass]) -> Pass:
    """What a row's share of its micro-batch costs beside the row, on average over the sample."""
    sizes = [row.size for row in lengths.of_rows]
    batches = len(cut(sizes, budget_tokens))
    return sum(map(of_batch, lengths.of_rows), NO_PASS) * (batches / len(sizes) ** 2)


def _gib(family: Family, bytes_per_weight: int | None = None) -> float:
    """A model's weights, or what training keeps of each."""
    return weight_bytes(family, bytes_per_weight) / 2**30
