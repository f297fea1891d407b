"""Answers label by label, and how far a ranking's confidence is to be believed: sums and counts that add up over shards.

`Counts` needs no rows; what is here is read from predictions. Rows with an error or without a target are in none of it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kd.evaluation.metrics import About, Mean
from kd.rows import MetricRow

BINS = 15
"""Bins of confidence for the calibration error, of equal width, each open below and closed above, as in Guo et al. 2017."""


class Answered(Protocol):
    """What is read of a `Prediction`: no more than these columns."""

    error: Any
    target: str | None
    answer: str | None
    correct: bool | None
    label_set: list[str]
    choice_logprobs: list[float]


COLUMNS = tuple(Answered.__annotations__)


@dataclass(frozen=True)
class Confusion:
    """How often each label was given each answer: `pairs[target, answer]`, the answer None where it could not be read.

    `labels` is the label set of all rows, in alphabetical order; null, without pairs, where rows have none or different
    ones: options that change from row to row are no classes.
    """

    rows: int = 0
    labels: tuple[str, ...] | None = None
    pairs: Mapping[tuple[str, str | None], int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Answered]) -> "Confusion":
        """Of labelled rows."""
        sets = {tuple(sorted(set(row.label_set))) for row in rows}
        labels = sets.pop() if len(sets) == 1 else ()
        return cls(len(rows), labels, Counter((row.target or "", row.answer) for row in rows)) if labels else cls(len(rows))

    def __add__(self, other: "Confusion") -> "Confusion":
        if not (self.rows and other.rows):
            return self if self.rows else other
        if self.labels != other.labels or self.labels is None:
            return Confusion(self.rows + other.rows)
        return Confusion(self.rows + other.rows, self.labels, Counter(self.pairs) + Counter(other.pairs))

    def metrics(self, about: About) -> list[MetricRow]:
        """Macro-F1, and F1, precision and recall of each label.

        A label that is neither the target nor the answer of any row has no F1 and is left out of the mean; an answer that
        could not be read counts against its target's recall and for no label.
        """
        labels = [_Label(label, self.pairs) for label in self.labels or ()]
        found = [label.f1.value for label in labels if label.f1.value is not None]
        macro = about.row("macro_f1", Mean(math.fsum(found), len(found)).value, self.rows)
        return [macro, *(row for label in labels for row in label.metrics(about))]


class _Label:
    """What a confusion says of one label: how often it was right, was the target, was the answer."""

    def __init__(self, label: str, pairs: Mapping[tuple[str, str | None], int]) -> None:
        self.label = label
        self._right = pairs.get((label, label), 0)
        self._gold = sum(n for (target, _), n in pairs.items() if target == label)
        self._said = sum(n for (_, answer), n in pairs.items() if answer == label)

    @property
    def f1(self) -> Mean:
        return Mean(2 * self._right, self._gold + self._said)

    def metrics(self, about: About) -> list[MetricRow]:
        touched = self._gold + self._said - self._right
        return [
            about.row("f1", self.f1.value, touched, of=self.label),
            about.row("precision", Mean(self._right, self._said).value, self._said, of=self.label),
            about.row("recall", Mean(self._right, self._gold).value, self._gold, of=self.label),
        ]


@dataclass(frozen=True)
class Calibration:
    """For each bin of confidence: rows, the sum of their confidences, and how many were right."""

    rows: tuple[int, ...] = (0,) * BINS
    confidence: tuple[float, ...] = (0.0,) * BINS
    correct: tuple[int, ...] = (0,) * BINS

    @classmethod
    def of(cls, rows: Sequence[Answered]) -> "Calibration":
        """Of labelled rows, those that were ranked. A label that is there twice is one answer.

        Whatever they were ranked by: a mean over tokens is the logarithm of no probability, and makes no confidence.
        """
        counts, sure, correct = [0] * BINS, [0.0] * BINS, [0] * BINS
        for row in rows:
            if row.choice_logprobs and row.answer is not None:
                share = confidence(dict(zip(row.label_set, row.choice_logprobs, strict=True)), row.answer)
                place = bin_of(share)
                counts[place] += 1
                sure[place] += share
                correct[place] += bool(row.correct)
        return cls(tuple(counts), tuple(sure), tuple(correct))

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(
            tuple(map(sum, zip(self.rows, other.rows, strict=True))),
            tuple(map(sum, zip(self.confidence, other.confidence, strict=True))),
            tuple(map(sum, zip(self.correct, other.correct, strict=True))),
        )

    def metrics(self, about: About) -> list[MetricRow]:
        """The expected calibration error: the bins' distances between mean confidence and accuracy, weighed by their rows."""
        gap = math.fsum(abs(sure - right) for sure, right in zip(self.confidence, self.correct, strict=True))
        return [about.row("calibration_error", Mean(gap, sum(self.rows)).value, sum(self.rows))]


def confidence(choice_logprobs: Mapping[str, float], answer: str) -> float:
    """The answer's share of a softmax over the choices: the largest, where it is the one of the largest log-probability."""
    top = max(choice_logprobs.values())
    return math.exp(choice_logprobs[answer] - top) / math.fsum(math.exp(logprob - top) for logprob in choice_logprobs.values())


def bin_of(sure: float) -> int:
    """The bin, from 0, of a confidence in [0, 1]; one on an edge is in the lower bin."""
    return min(max(math.ceil(sure * BINS) - 1, 0), BINS - 1)


@dataclass(frozen=True)
class AnswerSums:
    """What is added up over the predictions of one model."""

    confusion: Confusion = Confusion()
    calibration: Calibration = Calibration()

    def __add__(self, other: "AnswerSums") -> "AnswerSums":
        return AnswerSums(self.confusion + other.confusion, self.calibration + other.calibration)

    def metrics(self, about: About) -> list[MetricRow]:
        """Figures of labels, and calibration. A value is null where there are no rows for it, or no labels in common."""
        return [*self.confusion.metrics(about), *self.calibration.metrics(about)]


def answer_sums(rows: Iterable[Answered]) -> AnswerSums:
    """The sums over the labelled ones of these rows."""
    judged = [row for row in rows if row.error is None and row.target is not None]
    return AnswerSums(Confusion.of(judged), Calibration.of(judged))
