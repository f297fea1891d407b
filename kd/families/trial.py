"""What the stages ask of a model, tried on two short texts when it is opened.

A model learns from ids and is explained by the embeddings that stand for them. Both must be the same model, and what it says
of a row must not depend on the other rows of the batch: else numbers are wrong without a word.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from kd.errors import ConfigError, RowFault, UserError
from kd.families.base import Answer, Family, Reading
from kd.families.text import Encoded
from kd.models import Loaded
from kd.rows import Segment

TEXTS = ("A bank?", "The bank of the river is open.")
"""The second is the longer one, so that the first is padded beside it."""

CHOICES = [Segment("prompt", " ("), Segment("choice", "yes"), Segment("prompt", ") ("), Segment("choice", "no")]
"""What stands behind a text for a model that scores the choices of a row."""

TOLERANCE_NATS = {torch.float32: (2e-4, 2e-5), torch.bfloat16: (0.5, 0.03)}
"""How much two log-probabilities of an answer may differ that ought to be equal: so much, and such a share of the number itself.
bfloat16 has 8 bits: a logit between 16 and 32 is rounded to an eighth, and an answer's number is a sum of several."""

GENERATED_TOKENS = 2

FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What the code of a model raises where it is not made for what is asked of it. (NotImplementedError is a RuntimeError.)"""

_NO_FAILURES = (UserError, torch.OutOfMemoryError, torch.AcceleratorError)


def try_out(family: Family) -> None:
    """Read, rank, answer and explain two rows, and measure the scale of the embeddings: the model is then ready for work.

    That is six passes over one or two rows of a few tokens and a backward, and two more where embeddings are scaled.

    Raises:
        ConfigError: the model cannot do one of these, or what it says is not finite, or what it says from ids is not what it
            says from embeddings, or what it says of a row depends on the row beside it.
    """
    short = dataclasses.replace(family, max_generated_tokens=min(GENERATED_TOKENS, family.max_generated_tokens))
    rows = [_encoded(family, text) for text in TEXTS]
    answers = [family.trial_answer(row) for row in rows]
    with refusing(family.loaded, "reading a row"):
        from_ids, alone = _from_ids(short, rows, answers), _from_ids(short, rows[:1], answers[:1])
        reading, from_embeddings = _read(short, rows, answers, from_ids)
    _check_finite(family.loaded, [*alone, *from_ids, *from_embeddings])
    _check_equal(family, alone, from_ids[:1], "a row alone and of the same row beside a longer one")
    _check_equal(family, from_ids, from_embeddings, "rows that are given as ids and of the same rows given as embeddings")
    with refusing(family.loaded, "writing an answer"):
        reading.generate()
    with refusing(family.loaded, "explaining an answer"):
        _explain(reading, answers)


def _encoded(family: Family, text: str) -> Encoded:
    try:
        return family.encode([Segment("text", text), *(CHOICES if family.needs_choices else [])])
    except RowFault as fault:
        raise ConfigError(
            f"{family.name} cannot read {text!r}: {fault.detail}; check its tokenizer and max_input_tokens"
        ) from fault


def _from_ids(family: Family, rows: Sequence[Encoded], answers: Sequence[Answer]) -> list[float]:
    """Each row's answer, as the model that learns ranks it."""
    with torch.no_grad():
        found: list[float] = family.logprobs_from_ids(rows, answers).tolist()
    return found


def _read(
    family: Family, rows: Sequence[Encoded], answers: Sequence[Answer], expected: list[float]
) -> tuple[Reading, list[float]]:
    """The rows read from embeddings, and how each one's answer ranks; with the scale for which that is as expected, else with 1.

    Models that scale embeddings in the forward of ids alone do it by the root of the embeddings' size (Vaswani et al. 2017,
    section 3.4). Whether a model does is seen from its results alone.
    """
    loaded, size = family.loaded, family.embed(family.batch([[family.pad]])[0]).shape[-1]
    for scale in (1.0, math.sqrt(size), 1.0):
        loaded.embedding_scale = scale
        reading = family.read(rows, differentiable=True)
        found = [own for (own,) in reading.logprobs([[answer] for answer in answers])]
        if _excess(expected, found, family.model.dtype)[0] <= 1:
            break
    return reading, found


def _explain(reading: Reading, answers: Sequence[Answer]) -> None:
    what = reading.explained(answers)
    embeds = what.embeds.requires_grad_()
    (gradient,) = torch.autograd.grad(what.forward(embeds, what.rows).sum(), [embeds])
    if not gradient.isfinite().all():
        raise ArithmeticError("the gradient at the input is not finite")


def _check_finite(loaded: Loaded, found: Sequence[float]) -> None:
    """A checkpoint that was saved after its training had diverged is no matter of the architecture."""
    wrong = [own for own in found if not math.isfinite(own)]
    if not wrong:
        return
    broken = [name for name, weight in loaded.model.named_parameters() if not weight.isfinite().all()]
    where = f": {len(broken)} of its weights have values that are not finite, first {broken[0]}" if broken else ""
    raise ConfigError(
        f"{_named(loaded)}: the log-probability of an answer is {wrong[0]}; expected a finite number{where}."
        " Take a checkpoint from before its training diverged, or a dtype of wider range"
    )


def _excess(one: Sequence[float], other: Sequence[float], dtype: torch.dtype) -> tuple[float, float, float]:
    """The largest difference in units of what it may be, itself, and what it may be; infinite where a number is not finite."""
    least, share = TOLERANCE_NATS[dtype]
    gaps = [(abs(a - b), least + share * abs(a)) for a, b in zip(one, other, strict=True)]
    return max((gap / most if math.isfinite(gap) else math.inf, gap, most) for gap, most in gaps)


def _check_equal(family: Family, one: Sequence[float], other: Sequence[float], what: str) -> None:
    dtype = family.model.dtype
    excess, gap, most = _excess(one, other, dtype)
    if excess > 1:
        raise ConfigError(
            f"{_named(family.loaded)}: the log-probabilities of {what} differ by {gap:.2g} nats; expected at most {most:.2g} in"
            f" {str(dtype).removeprefix('torch.')}. Take another architecture; docs/architectures.md has those that work"
        )


@contextmanager
def refusing(loaded: Loaded, what: str) -> Iterator[None]:
    """What the model's code raises inside is the reason why the model is refused."""
    try:
        yield
    except _NO_FAILURES:
        raise
    except FAILURES as error:
        raise ConfigError(
            f"{_named(loaded)}: {what} fails with {type(error).__name__}: {error!s:.300}. Take another architecture;"
            " docs/architectures.md has those that work"
        ) from error


def _named(loaded: Loaded) -> str:
    return f"{loaded.name} ({loaded.model.config.model_type})"
