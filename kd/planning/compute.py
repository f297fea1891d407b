"""What each stage asks of a device for a sampled row, by the arithmetic of `kd.cost` and without padding.

Beside a row's floating-point operations, which add up over rows, stands what a micro-batch costs however few rows are in it:
the operations that it starts on the device one after the other, and the floating-point operations that its rows share.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kd.attribution.engine import AttributionConfig
from kd.cost import Shape, answered_row, explained_row, learned_row, written_row
from kd.evaluation.answers import EvaluationConfig
from kd.planning.lengths import Length
from kd.rows import Features
from kd.training.config import LoopConfig


@dataclass(frozen=True)
class Pass:
    """What a micro-batch costs beside its rows: kernels started, and floating-point operations that its rows share."""

    kernels: float
    flops: float

    def __add__(self, other: "Pass") -> "Pass":
        return Pass(self.kernels + other.kernels, self.flops + other.flops)

    def __mul__(self, times: float) -> "Pass":
        return Pass(self.kernels * times, self.flops * times)


NO_PASS = Pass(0.0, 0.0)


def read_pass(shape: Shape, tokens: int) -> Pass:
    """A batch's inputs read, the longest of so many tokens."""
    return Pass(shape.read_kernels, shape.shared_flops(tokens))


def write_pass(shape: Shape, times: float) -> Pass:
    """So many passes over what is fed in behind the inputs."""
    return Pass(shape.write_kernels, 0.0) * times


def attributed_pass(shape: Shape, config: AttributionConfig, row: Length) -> Pass:
    """A micro-batch of rows like this one explained: a backward pass starts twice the kernels of a forward one."""
    passes, own = config.method.passes(row.words), config.explained == "predicted" or row.target is None
    explained = (read_pass(shape, row.size[0]) + write_pass(shape, 1)) * (passes.forward + 2 * passes.backward)
    answers = row.longest + len(row.answers) if config.answers or own else 0
    return explained + write_pass(shape, answers)


def answered_pass(shape: Shape, config: EvaluationConfig, row: Length) -> Pass:
    """A micro-batch of rows like this one answered."""
    writes = row.longest if config.answer == "generate" else len(row.answers)
    return read_pass(shape, row.size[0]) + write_pass(shape, writes)


def asked_again_pass(shape: Shape, texts: int, row: Length) -> Pass:
    """A micro-batch of rows like this one asked about so many times."""
    return (read_pass(shape, row.size[0]) + write_pass(shape, max(1, len(row.answers)))) * texts


def learned_pass(shape: Shape, loop: LoopConfig, tokens: int) -> Pass:
    """A micro-batch of a training step: forward and backward, and forward once more where layers are computed again."""
    return Pass(shape.whole_kernels, shape.shared_flops(tokens)) * (4 if loop.gradient_checkpointing else 3)


def micro_batches(loop: LoopConfig, rows: Sequence[Features]) -> int:
    """Of one step and worker, with rows like these."""
    tokens = statistics.fmean(sum(map(len, row.input_ids)) + sum(map(len, row.target_ids)) for row in rows)
    return max(1, math.ceil(tokens * loop.batch_rows / loop.num_workers / loop.micro_batch_tokens))


def validations(loop: LoopConfig, eval_rows: int) -> int:
    """How many of a whole run: one every so many steps, and one after the last; none without rows."""
    return loop.validations_by(loop.steps) if min(eval_rows, loop.eval_rows) else 0


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
    answers = [answered_row(shape, len(row.input_ids[0]), len(row.target_ids[0])) for row in rows if row.input_ids]
    return flops + validations(loop, eval_rows) * min(eval_rows, loop.eval_rows) * (statistics.fmean(answers) if answers else 0.0)
