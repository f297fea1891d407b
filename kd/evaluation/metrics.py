"""What is measured, and how: sums and counts per shard, added up, divided once at the end.

Nothing here holds more than one shard's rows. `Counts` needs no rows at all: it is read from what manifests count.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kd.evaluation.metric_names import METRICS, Metric
from kd.rows import Example, MetricRow

COVERAGE = 0.95
"""Of the intervals over rows."""
Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class About:
    """What a number is about: whose, from which stage, variant, seed, task and split."""

    subject: str
    stage: str
    variant: str
    seed: int | None
    task: str
    split: str

    def row(
        self, metric: str | Metric, value: float | None, n: int, interval: Interval | None = None, of: str | None = None
    ) -> MetricRow:
        """A number as a row of the report; `of` says what part of the rows it is about. A metric may be one of `METRICS`."""
        low, high = interval or (None, None)
        known = METRICS[metric] if isinstance(metric, str) else metric
        return MetricRow(
            subject=self.subject,
            stage=self.stage,
            variant=self.variant,
            seed=self.seed,
            task=self.task,
            split=self.split,
            metric=known.name if of is None else f"{known.name}:{of}",
            value=value,
            ci_low=low,
            ci_high=high,
            n=n,
            against=None,
            p_value=None,
            higher_is_better=known.higher_is_better,
        )


@dataclass(frozen=True)
class Mean:
    """A sum and its count."""

    total: float = 0.0
    count: int = 0

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


# --- answers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """How a model's answers came out. Rows with an error are in none of these."""

    ok: int = 0
    unparsed: int = 0
    truncated: int = 0
    unlabelled: int = 0
    correct: int = 0

    @classmethod
    def of(cls, tallies: Mapping[str, int]) -> "Counts":
        """From what a shard or a manifest of predictions counted (`Prediction.tally`)."""
        return cls(
            ok=tallies.get("ok", 0),
            unparsed=tallies.get("unparsed", 0),
            truncated=tallies.get("answer_truncated", 0),
            unlabelled=tallies.get("unlabelled", 0),
            correct=tallies.get("correct", 0),
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.ok + other.ok,
            self.unparsed + other.unparsed,
            self.truncated + other.truncated,
            self.unlabelled + other.unlabelled,
            self.correct + other.correct,
        )

    @property
    def answered(self) -> int:
        return self.ok + self.unparsed + self.truncated

    @property
    def labelled(self) -> int:
        return self.answered - self.unlabelled

    def metrics(self, about: About) -> list[MetricRow]:
        """Accuracy with its 95 % Wilson interval, parse rate and truncation rate. A value is null where there are no rows."""
        interval = wilson(self.correct, self.labelled) if self.labelled else None
        return [
            about.row("accuracy", Mean(self.correct, self.labelled).value, self.labelled, interval),
            about.row("parse_rate", Mean(self.ok, self.answered).value, self.answered),
            about.row("truncation_rate", Mean(self.truncated, self.answered).value, self.answered),
        ]


def wilson(successes: int, trials: int, looks: int = 1) -> Interval:
    """The 95 % score interval of a share (Wilson 1927): holds for small counts and near 0 and 1.

    It is the interval over rows of one model, each drawn by itself; it says nothing about another seed. `looks`: of how many
    models on the same rows this is the one that was chosen; the interval is as wide as to hold for all of them.
    """
    z = Z_95 if looks == 1 else statistics.NormalDist().inv_cdf(1 - (1 - COVERAGE) / 2 / looks)
    share, z2 = successes / trials, z**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def over_seeds(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """For each variant its mean accuracy over seeds with the spread, lowest and highest, and the mean parse and truncation rate.
    Their `seed` is null.

    The spread is null with a single seed: one number has none.
    """
    groups: dict[tuple[About, str], list[MetricRow]] = {}
    for row in rows:
        if row.metric in ("accuracy", "parse_rate", "truncation_rate") and row.seed is not None and row.value is not None:
            about = About(row.subject, row.stage, row.variant, None, row.task, row.split)
            groups.setdefault((about, row.metric), []).append(row)
    return [summary for (about, metric), seeds in groups.items() for summary in _summaries(about, metric, seeds)]


def _summaries(about: About, metric: str, seeds: Sequence[MetricRow]) -> list[MetricRow]:
    values = [row.value for row in seeds if row.value is not None]
    mean = about.row(metric, statistics.fmean(values), sum(row.n for row in seeds))
    if metric != "accuracy":
        return [mean]
    return [
        mean,
        about.row("accuracy_spread", statistics.stdev(values) if len(values) > 1 else None, len(values)),
        about.row("accuracy_min", min(values), len(values)),
        about.row("accuracy_max", max(values), len(values)),
    ]


def chance(rows: Iterable[Example]) -> Mean:
    """Guessing evenly among each row's label set: the mean of `chance_of`. Rows with an error, or without it, are left out."""
    levels = [chance_of(row) for row in rows if row.error is None]
    known = [level for level in levels if level is not None]
    return Mean(math.fsum(known), len(known))


def chance_of(row: Example) -> float | None:
    """The share of a row's label set that is the label, which may be there more than once, as may any option.

    None without label set or label.
    """
    return row.label_set.count(row.target) / len(row.label_set) if row.label_set and row.target is not None else None


def chance_metrics(level: Mean, about: About) -> list[MetricRow]:
    """The chance level as a row of the report."""
    return [about.row("accuracy_chance", level.value, level.count)]


def is_near_chance(accuracy: MetricRow, level: float | None) -> bool:
    """Whether a model has learnt too little for its explanations to mean anything.

    True where the interval reaches down to chance, or the accuracy is not a tenth of the way from chance to perfect. By
    guessing nobody writes the right free text: without a `level` chance is zero.
    """
    if accuracy.value is None:
        return False
    chance_level = level or 0.0
    low = accuracy.value if accuracy.ci_low is None else accuracy.ci_low
    return low <= chance_level or accuracy.value < chance_level + 0.1 * (1 - chance_level)
