"""The shape that all measures over rows share.

A measure is a function from one row to its *findings*: for each metric a number, or the reason (`Why`) why this row says
nothing about it. `add_up` collects the findings of a shard in `Sums`, which are small, add up over shards, workers and runs,
and are divided once, in `results`: the mean over the rows that say something, its 95 % interval over rows, how many rows that
were, and how many said nothing, by reason. Where no row says anything the value is null, and `why_null` says why: a measure
is never NaN, and never an empty mean that looks like a zero.

To add a measure: its `Measure` entries, the function from a row to its findings, and a test with numbers worked out by hand.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from kd.evaluation.metric_names import Metric
from kd.evaluation.metrics import COVERAGE, Interval, wilson
from kd.rows import Row

_ROUNDING = 1e-13
"""What a difference of sums may be off by, as a share of them."""


class Why(StrEnum):
    """Why a row says nothing about a metric: the end of the sentence "the row ..."."""

    ERRORED = "has an error"
    NO_EVIDENCE = "has no human evidence"
    EVIDENCE_OUTSIDE = "has its evidence on no word that a rationale may hold"
    EVIDENCE_EVERYWHERE = "has its evidence on every word that a rationale may hold"
    NO_LABEL = "has no label"
    NO_ANSWER = "has no answer of the model"
    NO_OPTIONS = "has no options"
    OPTIONS_LEFT_OUT = "is measured without its options"
    ANSWER_NOT_IN_INPUT = "has an answer of which no word is in the input"
    ANSWER_SAYS_NOTHING = "has an answer of which no word is one that a rationale may hold"
    UNRANKED = "has a rationale whose words are not ranked"
    NO_TEXT = "has no chain of thought"
    TOO_FEW_WORDS = "has no more words than are taken"
    NO_IMPORTANCE = "has no word of importance above zero"
    CONSTANT = "has the same importance on every word"
    NO_SUM_CLAIMED = "has scores of a method that claims no sum"
    NOT_FINITE = "has an importance that is not a finite number"
    NO_CANDIDATES = "has no word that may be erased"
    NO_ECHO = "has no word that stands in several of its texts"
    UNREADABLE = "has nothing left to read where words are erased"


@dataclass(frozen=True)
class Measure(Metric):
    """A metric of rows, whose value is a mean over those that say something."""


Finding = float | Why
Findings = Mapping[str, Finding] | Why
"""What one row says: a number or a reason for each metric, or one reason for all of them."""

R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Tally:
    """One metric's sum over `count` rows, the sum of squares, and how many rows say nothing, by reason."""

    total: float = 0.0
    squares: float = 0.0
    count: int = 0
    left_out: Mapping[Why, int] = field(default_factory=dict)

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> "Tally":
        """Of one metric's findings in several rows."""
        values = [finding for finding in findings if not isinstance(finding, Why)]
        reasons = Counter(finding for finding in findings if isinstance(finding, Why))
        return cls(math.fsum(values), math.fsum(value * value for value in values), len(values), dict(reasons))

    def __add__(self, other: "Tally") -> "Tally":
        left_out = dict(Counter(self.left_out) + Counter(other.left_out))
        return Tally(self.total + other.total, self.squares + other.squares, self.count + other.count, left_out)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    @property
    def standard_error(self) -> float | None:
        """Of the mean, over rows; None with fewer than two."""
        if self.count < 2:
            return None
        spread = self.squares - self.total * self.total / self.count
        is_rounding = spread <= _ROUNDING * self.squares
        return 0.0 if is_rounding else math.sqrt(spread / (self.count - 1) / self.count)

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean, Student's t: of few rows the scatter is hardly known.

        None with fewer than two rows, and where all say the same: they do not tell how far others are from that.
        """
        from scipy.special import stdtrit

        if self.mean is None or not self.standard_error:
            return None
        half = float(stdtrit(self.count - 1, (1 + COVERAGE) / 2)) * self.standard_error
        return self.mean - half, self.mean + half

    @property
    def why_null(self) -> str | None:
        """Why there is no mean; None where there is one."""
        return None if self.count else in_words(self.left_out)


def in_words(left_out: Mapping[Why, int]) -> str:
    """Why none of the rows says anything: their number by reason, the most frequent one first."""
    reasons = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    said = [f"{rows:,} of {sum(left_out.values()):,} rows: the row {why}" for why, rows in reasons]
    return "; ".join(said) or "there is no row"


@dataclass(frozen=True)
class Result:
    """A measure's value over `n` rows with its 95 % interval (t; Wilson's for a share of rows); null with the reason where
    there is nothing to measure.

    The interval is over rows of one model, each drawn by itself; it says nothing about another seed. `left_out` counts the other
    rows by reason.
    """

    measure: Measure
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    left_out: Mapping[Why, int]
    why_null: str | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval; None where there is none."""
        return None if self.ci_low is None or self.ci_high is None else (self.ci_low, self.ci_high)


@dataclass(frozen=True)
class Sums:
    """For each metric its tally."""

    tallies: Mapping[str, Tally] = field(default_factory=dict)

    def __add__(self, other: "Sums") -> "Sums":
        names = dict.fromkeys([*self.tallies, *other.tallies])
        return Sums({name: self.tallies.get(name, Tally()) + other.tallies.get(name, Tally()) for name in names})

    def results(self, measures: Iterable[Measure]) -> list[Result]:
        """One result per measure, in their order, also for those that no row has met."""
        return [_result(measure, self.tallies.get(measure.name, Tally())) for measure in measures]


def add_up(rows: Iterable[R], measures: Sequence[Measure], of_row: Callable[[R], Findings]) -> Sums:
    """The sums over a shard's rows. A row with an error is left out of every metric.

    Args:
        rows: of one shard, or of several; measures: all that `of_row` finds; of_row: what one row says.
    """
    found: dict[str, list[Finding]] = {measure.name: [] for measure in measures}
    for row in rows:
        findings = Why.ERRORED if row.error is not None else of_row(row)
        for name, collected in found.items():
            collected.append(findings if isinstance(findings, Why) else findings[name])
    return Sums({name: Tally.of(collected) for name, collected in found.items()})


def _result(measure: Measure, tally: Tally) -> Result:
    low, high = _interval(measure, tally) or (None, None)
    return Result(measure, tally.mean, low, high, tally.count, tally.left_out, tally.why_null)


def _interval(measure: Measure, tally: Tally) -> Interval | None:
    # Only where every finding of a measure in 0..1 is 0 or 1 do they sum up to the same as their squares: a share of rows.
    if (measure.low, measure.high) == (0, 1) and tally.total == tally.squares and tally.count > 1:
        return wilson(round(tally.total), tally.count)
    return within(measure, tally.interval)


def within(metric: Metric, interval: Interval | None) -> Interval | None:
    """The part of an interval that the metric can take."""
    return None if interval is None else (max(metric.low, interval[0]), min(metric.high, interval[1]))
