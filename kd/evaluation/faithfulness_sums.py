"""What erasures add up to: means over rows of comprehensiveness and sufficiency, and how far they are above controls."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kd.audit_rows import Erasure
from kd.evaluation.metrics import Z_95, About
from kd.rows import MetricRow

CONTROLS = (("importance", "random"), ("importance", "lexical"), ("rationale", "rationale_random"))
"""Orders of words, each with the one that it must beat."""

_FALLS_MORE = {"comprehensiveness": 1, "sufficiency": -1}
"""1 where the better words make the probability fall more, -1 where they make it fall less."""


@dataclass(frozen=True)
class Moments:
    """A sum, the sum of the squares, and their count."""

    total: float = 0.0
    squares: float = 0.0
    count: int = 0

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.total + other.total, self.squares + other.squares, self.count + other.count)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean by the normal approximation; null for fewer than two rows."""
        if self.count < 2:
            return None
        mean = self.total / self.count
        variance = max(0.0, self.squares - self.count * mean**2) / (self.count - 1)
        half = Z_95 * math.sqrt(variance / self.count)
        return mean - half, mean + half


Key = tuple[str, str | None]
"""A metric, and the order of words that it is about, with `@` and the fraction where it is about one."""


def _always() -> dict[Key, Moments]:
    """What is reported whether there are rows for it or not."""
    keys: list[Key] = [("answer_probability", None)]
    for measure in _FALLS_MORE:
        keys += [(measure, order) for order in dict.fromkeys(order for pair in CONTROLS for order in pair)]
        keys += [(f"{measure}_gain", control) for _, control in CONTROLS]
    return dict.fromkeys(keys, Moments())


@dataclass(frozen=True)
class FaithfulnessSums:
    """What is added up over the erasures of one source of rationales."""

    moments: Mapping[Key, Moments] = field(default_factory=_always)

    def __add__(self, other: "FaithfulnessSums") -> "FaithfulnessSums":
        keys = dict.fromkeys([*self.moments, *other.moments])
        nothing = Moments()
        return FaithfulnessSums({key: self.moments.get(key, nothing) + other.moments.get(key, nothing) for key in keys})

    def metrics(self, about: About) -> list[MetricRow]:
        """Means over rows, each with its interval over rows; `n` counts the rows that could be measured."""
        return [about.row(metric, found.mean, found.count, found.interval, of=of) for (metric, of), found in self.moments.items()]


def faithfulness_sums(rows: Iterable[Erasure]) -> FaithfulnessSums:
    """The sums over the rows without an error."""
    return sum((_sums_of(row) for row in rows if row.error is None), FaithfulnessSums())


def _sums_of(row: Erasure) -> FaithfulnessSums:
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for measure, order, frac, fall in zip(row.measure, row.order, row.frac, row.fall, strict=True):
        points.setdefault((measure, order), []).append((frac, fall))
    figures: dict[Key, float] = {("answer_probability", None): row.probability}
    figures |= {key: statistics.fmean(fall for _, fall in own) for key, own in points.items()}
    for measure, sign in _FALLS_MORE.items():
        for own, control in CONTROLS:
            if {(measure, own), (measure, control)} <= figures.keys():
                figures[f"{measure}_gain", control] = sign * (figures[measure, own] - figures[measure, control])
    for (measure, order), own_points in points.items():
        if not order.startswith("rationale"):  # whose share differs from row to row
            figures |= {(measure, f"{order}@{frac:g}"): fall for frac, fall in own_points}
    return FaithfulnessSums({key: Moments(value, value**2, 1) for key, value in figures.items()})
