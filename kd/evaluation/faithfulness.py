"""Do the words of a rationale decide the teacher's answer? They are erased from the text, and the teacher is asked again.

Comprehensiveness and sufficiency as in ERASER (DeYoung et al., ACL 2020, equations 1 and 2): how far the probability of the
explained answer falls without the words, and with nothing but the words. Over several fractions of the words their plain
mean is taken, as ERASER's own program does (AOPC). Every number stands beside that of words drawn at random, of those that
the same token scores pick when they are permuted, and of words that stand in question and options alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from kd.audit_rows import Erasure
from kd.batching import MicroBatches
from kd.errors import RowFault
from kd.evaluation.erasing import Eraser, Trial
from kd.evaluation.units import Shuffled, Units
from kd.frozen import Frozen
from kd.models import ModelSource
from kd.rows import Example, RationaleRow, RowError, Segment, as_question

if TYPE_CHECKING:
    from collections import Counter

    from kd.families.base import Answer, Family
    from kd.families.text import Encoded
    from kd.shards import Apply

ROWS_AT_ONCE = 64
"""Rows whose texts are made together; each makes some forty of them."""

Ask = Callable[[Sequence[Example], "Counter[str]"], Sequence[float | RowError]]
"""The model: for each row the probability that it gives the row's target, or why there is none."""


class FaithfulnessConfig(Frozen):
    """How it is measured whether rationales hold the words that decide."""

    rows: PositiveInt = 200
    """How many rows are measured, some of each of evenly spaced shards."""
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.01, 0.05, 0.1, 0.2, 0.5), min_length=1)
    """Shares of the words that may be erased, each occurrence counted, rounded up; ERASER's, unless set."""
    seed: NonNegativeInt = 0
    """Seed of the random order of words, which is drawn anew for each row from this and the row's uid."""
    batch_tokens: PositiveInt = 8192
    """Padded tokens of input and answer that go through the model at once; memory grows with it."""
    max_error_frac: float = Field(default=0.01, ge=0, le=1)
    """The stage fails where more than this share of the rows that reach it without an error gets one."""

    def texts(self, by_importance: bool) -> int:
        """How many texts of a row the teacher is asked about, at most: the same text is asked about once."""
        return 1 + 2 * (2 + (1 + 4 * len(self.fractions)) * by_importance)

    @field_validator("fractions")
    @classmethod
    def _fractions_differ(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(fractions)) < len(fractions):
            raise ValueError(f"expected each share once, got {', '.join(map(str, fractions))}; what is there twice weighs twice")
        return fractions


@dataclass(frozen=True)
class Faithfulness:
    """The stage: rows of one source of rationales in, erasures out. The teacher is loaded in `open`.

    `units`, `merged`, `shuffled` and `roles` are the `Eraser`'s; `by_importance` says whether to measure the importance too, or
    the rationale alone. `device` is "cpu", "cuda" or "spread"; `threads` are torch's.
    """

    config: FaithfulnessConfig
    source: ModelSource
    units: Units
    merged: Units
    shuffled: Shuffled
    roles: tuple[str, ...]
    by_importance: bool
    device: str
    threads: int

    def open(self) -> Apply:
        """Load the teacher and return the function from rows with rationales to erasures."""
        from kd.families.opening import load_family

        teacher = Teacher(load_family(self.source, self.device, self.threads), self.config.batch_tokens)
        words = self.units, self.merged, self.shuffled, self.roles
        eraser = Eraser(*words, self.config.fractions, self.config.seed, self.by_importance)
        return lambda rows, tally: measure(rows, eraser, teacher.ask, tally)


def measure(rows: Sequence[RationaleRow], eraser: Eraser, ask: Ask, tally: Counter[str]) -> list[Erasure | RowError]:
    """What erasing words does to each row, in order, or the reason why that cannot be said.

    Each text is asked about once. A text that the model cannot read because nothing is left of it has no probability:
    the row then says nothing about the order and measure that it belongs to.
    """
    found: list[Erasure | RowError] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        found += _measured(rows[start : start + ROWS_AT_ONCE], eraser, ask, tally)
    return found


def _measured(rows: Sequence[RationaleRow], eraser: Eraser, ask: Ask, tally: Counter[str]) -> list[Erasure | RowError]:
    trials = [eraser.trials(row) for row in rows]
    texts = [
        list(dict.fromkeys([eraser.whole(row), *(trial.texts for trial in own)])) for row, own in zip(rows, trials, strict=True)
    ]
    asked = [
        as_question(row, _with_texts(row, text), row.label_set) for row, own in zip(rows, texts, strict=True) for text in own
    ]
    answers = iter(ask(asked, tally))
    return [
        _erasure(row, own, dict(zip(text, itertools.islice(answers, len(text)), strict=True)), text[0])
        for row, own, text in zip(rows, trials, texts, strict=True)
    ]


def _with_texts(row: RationaleRow, texts: Sequence[str]) -> list[Segment]:
    return [Segment(segment.role, text) for segment, text in zip(row.segments, texts, strict=True)]


def _erasure(
    row: RationaleRow, trials: Sequence[Trial], found: Mapping[tuple[str, ...], float | RowError], whole: tuple[str, ...]
) -> Erasure | RowError:
    probability = found[whole]
    faults = [one for one in found.values() if isinstance(one, RowError) and one.reason != "empty_text"]
    if isinstance(probability, RowError) or faults:
        return probability if isinstance(probability, RowError) else faults[0]
    unreadable = {(trial.measure, trial.order) for trial in trials if isinstance(found[trial.texts], RowError)}
    told = [trial for trial in trials if (trial.measure, trial.order) not in unreadable]
    return Erasure(
        uid=row.uid,
        error=None,
        explained_answer=row.explained_answer or "",
        probability=probability,
        measure=[trial.measure for trial in told],
        order=[trial.order for trial in told],
        frac=[trial.frac for trial in told],
        fall=[probability - answer for trial in told if not isinstance(answer := found[trial.texts], RowError)],
    )


@dataclass(frozen=True)
class _Question:
    """A text ready for the model: the answers to choose from, and the place of the one that is asked about."""

    encoded: Encoded
    answers: list[Answer]
    place: int
    size: tuple[int, int]


class Teacher:
    """A model that says how probable an answer is: among the row's label set where it is one of that, else as a text."""

    def __init__(self, family: Family, batch_tokens: int) -> None:
        self._family = family
        self._batches = MicroBatches(batch_tokens)

    def ask(self, rows: Sequence[Example], tally: Counter[str]) -> list[float | RowError]:
        """The probability of each row's target, from 0 to 1, or why there is none, in order; see `MicroBatches.run`."""
        return self._batches.run(rows, self._questions, self._probabilities, tally)

    def _questions(self, rows: Sequence[Example]) -> list[_Question | RowFault]:
        return self._family.questions(rows, self._question)

    def _question(self, row: Example, encoded: Encoded) -> _Question:
        target = row.target or ""
        # An option that is there twice is one answer: its probability is not halved by standing in two places.
        texts = list(dict.fromkeys(row.label_set)) if target in row.label_set else [target]
        answers = [self._family.encode_answer(text) for text in texts]
        return _Question(encoded, answers, texts.index(target), self._family.size(encoded, answers))

    def _probabilities(self, questions: list[_Question]) -> list[float | RowError]:
        reading = self._family.read([question.encoded for question in questions])
        found = reading.logprobs([question.answers for question in questions])
        return [_probability(logprobs, question.place) for question, logprobs in zip(questions, found, strict=True)]


def _probability(logprobs: Sequence[float], place: int) -> float | RowError:
    if not all(map(math.isfinite, logprobs)):
        return RowError("not_finite", "the log-probability of an answer is not a finite number; try dtype float32")
    if len(logprobs) == 1:
        return math.exp(logprobs[0])
    top = max(logprobs)
    return math.exp(logprobs[place] - top) / math.fsum(math.exp(logprob - top) for logprob in logprobs)
