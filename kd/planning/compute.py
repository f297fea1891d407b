"""Floating-point operations of each stage for a sampled row, by the arithmetic of `kd.cost` and without padding."""

import statistics
from collections.abc import Sequence

from kd.attribution.engine import AttributionConfig
from kd.cost import Shape, answered_row, explained_row, learned_row, written_row
from kd.evaluation.answers import EvaluationConfig
from kd.planning.lengths import Length
from kd.rows import Features
from kd.training.config import LoopConfig


def attributed(shape: Shape, config: AttributionConfig, row: Length) -> float:
    """One row explained, its answers included where they are wanted or decide what is explained.

    The teacher's own answer is taken to be as long as the row's longest.
    """
    inputs, own = row.size[0], config.explained == "predicted" or row.target is None
    explained = explained_row(shape, inputs, row.longest if own or row.target is None else row.target)
    passes = config.method.passes(row.words)
    flops = passes.forward * explained.forward + passes.backward * explained.backward
    if config.answers or own:
        flops += sum(written_row(shape, inputs, answer) for answer in [row.longest, *row.answers])
    return flops


def answered(shape: Shape, config: EvaluationConfig, row: Length) -> float:
    """One row answered: by an answer as long as the row's longest, or by ranking all its answers."""
    inputs = row.size[0]
    if config.answer == "generate":
        return answered_row(shape, inputs, row.longest)
    return answered_row(shape, inputs, 1) + sum(written_row(shape, inputs, answer) for answer in row.answers)


def asked_again(shape: Shape, texts: int, row: Length) -> float:
    """One row asked about so many times, as long as it is whole: every answer is weighed against one reading of the text."""
    inputs = row.size[0]
    written = sum(written_row(shape, inputs, answer) for answer in row.answers or [row.longest])
    return texts * (answered_row(shape, inputs, 1) + written)


def learned(shape: Shape, rows: Sequence[Features]) -> float:
    """One row in one step of training: all its sequences, on average."""
    return statistics.fmean(
        sum(learned_row(shape, len(ids), len(targets)) for ids, targets in zip(row.input_ids, row.target_ids, strict=True))
        for row in rows
    )


def trained(shape: Shape, loop: LoopConfig, rows: Sequence[Features], eval_rows: int) -> float:
    """A whole run: every update, and the validation rows answered after some of them."""
    flops = loop.steps * loop.batch_rows * learned(shape, rows)
    validations = loop.validations_by(loop.steps)
    answers = [answered_row(shape, len(row.input_ids[0]), len(row.target_ids[0])) for row in rows if row.input_ids]
    return flops + validations * min(eval_rows, loop.eval_rows) * (statistics.fmean(answers) if answers else 0.0)
