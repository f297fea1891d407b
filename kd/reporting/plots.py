"""Accuracy per model as a dot plot: one dot per seed, a bar at the mean, a dashed line at chance.

Only its geometry; the template draws it. Across, positions are percent of the width, so that the text keeps its size on
a phone; down, they are pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kd.reporting.tables import Score, percent
from kd.rows import MetricRow

BAND_PX = 46
"""Height of one model: its name, below it its dots."""


@dataclass(frozen=True)
class Dot:
    """One seed; or a tick of the axis, where the title is its label."""

    x: float
    title: str


@dataclass(frozen=True)
class Band:
    """One model."""

    label: str
    y: int
    mean: Dot
    dots: Sequence[Dot]
    is_teacher: bool


@dataclass(frozen=True)
class DotPlot:
    """The whole plot, `height` pixels high."""

    bands: Sequence[Band]
    ticks: Sequence[Dot]
    chance: Dot | None
    height: int


def dot_plot(scores: Sequence[Score], chance: float | None) -> DotPlot | None:
    """The plot of every model that has an accuracy; None where there is none."""
    shown = [score for score in scores if score.mean is not None]
    values = [row.value for score in shown for row in score.seeds if row.value is not None]
    if not values:
        return None
    low, high = _range([*values, *([] if chance is None else [chance])])

    def at(value: float) -> float:
        return round(3 + 94 * (value - low) / (high - low), 2)

    return DotPlot(
        bands=[
            Band(
                label=score.variant,
                y=BAND_PX * index,
                mean=Dot(at(score.mean or 0.0), f"{score.variant}: mean {percent(score.mean)}%"),
                dots=[Dot(at(row.value or 0.0), _title(row)) for row in score.seeds],
                is_teacher=score.subject == "teacher",
            )
            for index, score in enumerate(shown)
        ],
        ticks=[Dot(at(value), f"{100 * value:.0f}") for value in _ticks(low, high)],
        chance=None if chance is None else Dot(at(chance), f"chance {percent(chance)}%"),
        height=BAND_PX * len(shown),
    )


def _title(row: MetricRow) -> str:
    interval = "" if row.ci_low is None else f" (95% interval over rows {percent(row.ci_low)} to {percent(row.ci_high)})"
    return f"{row.variant}, seed {row.seed}: {percent(row.value)}%{interval}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Whole tenths around the values, with some room."""
    low = max(0.0, math.floor(10 * min(values) - 0.3) / 10)
    high = min(1.0, math.ceil(10 * max(values) + 0.3) / 10)
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """Tenths, or fifths where there are many."""
    first, last = round(10 * low), round(10 * high)
    step = 2 if last - first > 6 else 1
    return [tenth / 10 for tenth in range(first, last + 1, step)]
