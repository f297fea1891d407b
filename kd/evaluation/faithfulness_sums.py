"""What erasures add up to: means over rows of comprehensiveness and sufficiency, and how far they are above controls."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kd.audit_rows import Erasure
from kd.evaluation.metric_names import METRICS
from kd.evaluation.metrics import About
from kd.evaluation.sums import Finding, Tally, Why, within
from kd.rows import MetricRow

CONTROLS = (
    ("importance", "random"),
    ("importance", "shuffled"),
    ("importance", "lexical"),
    ("rationale", "rationale_random"),
    ("rationale", "rationale_shuffled"),
)
"""Orders of words, each with the one that it must beat."""

_FALLS_MORE = {"comprehensiveness": 1, "sufficiency": -1}
"""1 where the better words make the probability fall more, -1 where they make it fall less."""

Key = tuple[str, str | None]
"""A metric, and the order of words that it is about, with `@` and the fraction where it is about one."""


def _always() -> dict[Key, Tally]:
    """What is reported whether there are rows for it or not."""
    keys: list[Key] = [("answer_probability", None)]
    for measure in _FALLS_MORE:
        keys += [(measure, order) for order in dict.fromkeys(order for pair in CONTROLS for order in pair)]
        keys += [(f"{measure}_gain", control) for _, control in CONTROLS]
    return dict.fromkeys(keys, Tally())


@dataclass(frozen=True)
class FaithfulnessSums:
    """What is added up over the erasures of one source of rationales."""

    tallies: Mapping[Key, Tally] = field(default_factory=_always)

    def __add__(self, other: "FaithfulnessSums") -> "FaithfulnessSums":
        keys = dict.fromkeys([*self.tallies, *other.tallies])
        nothing = Tally()
        return FaithfulnessSums({key: self.tallies.get(key, nothing) + other.tallies.get(key, nothing) for key in keys})

    def metrics(self, about: About) -> list[MetricRow]:
        """Means over rows, each with its interval over rows; `n` counts the rows that could be measured."""
        return [
            about.row(metric, found.mean, found.count, within(METRICS[metric], found.interval), of=of)
            for (metric, of), found in self.tallies.items()
        ]

    def nulls(self) -> dict[str, str]:
        """Why a metric has no value, by its name."""
        return {_named(key): found.why_null for key, found in self.tallies.items() if found.why_null}

    def left_out(self) -> dict[str, Mapping[Why, int]]:
        """How many rows say nothing about a metric, by its name and by reason; a metric of which all do is not in it."""
        return {_named(key): found.left_out for key, found in self.tallies.items() if found.left_out}


def faithfulness_sums(rows: Iterable[Erasure], ranked: bool = True) -> FaithfulnessSums:
    """The sums over these rows; one with an error says nothing. `ranked`: whether the source ranks words, so that more than its
    rationale was erased."""
    found: dict[Key, list[Finding]] = {key: [] for key in _always()}
    for row in rows:
        for key, finding in _findings(row, ranked).items():
            found.setdefault(key, []).append(finding)
    return FaithfulnessSums({key: Tally.of(findings) for key, findings in found.items()})


def _named(key: Key) -> str:
    metric, of = key
    return f"{metric}:{of}" if of else metric


def _findings(row: Erasure, ranked: bool) -> dict[Key, Finding]:
    """What one row says about all that is reported always, and about the fractions that it has."""
    if row.error is not None:
        return dict.fromkeys(_always(), Why.ERRORED)
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for measure, order, frac, fall in zip(row.measure, row.order, row.frac, row.fall, strict=True):
        points.setdefault((measure, order), []).append((frac, fall))
    figures: dict[Key, Finding] = {("answer_probability", None): row.probability}
    for measure, sign in _FALLS_MORE.items():
        for pair in CONTROLS:
            own, control = (_fall(row, order, points.get((measure, order), []), ranked) for order in pair)
            figures |= {(measure, pair[0]): own, (measure, pair[1]): control}
            figures[f"{measure}_gain", pair[1]] = _gain(sign, own, control)
    for (measure, order), own_points in points.items():
        if not order.startswith("rationale"):  # whose share differs from row to row
            figures |= {(measure, f"{order}@{frac:g}"): fall for frac, fall in own_points}
    return figures


def _fall(row: Erasure, order: str, points: list[tuple[float, float]], ranked: bool) -> Finding:
    """The mean fall over fractions, or why there is none: no text was made for the order, or one that cannot be read."""
    if points:
        return statistics.fmean(fall for _, fall in points)
    if not row.order:
        return Why.NO_CANDIDATES
    if not ranked and order not in ("rationale", "rationale_random"):
        return Why.UNRANKED
    return Why.NO_ECHO if order == "lexical" and "lexical" not in row.order and "random" in row.order else Why.UNREADABLE


def _gain(sign: int, own: Finding, control: Finding) -> Finding:
    if isinstance(own, Why):
        return own
    return control if isinstance(control, Why) else sign * (own - control)
