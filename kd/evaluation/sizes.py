"""How long rationales are, and how far scores miss the sum that their method claims: said of every row, with evidence or not."""

import math
from collections.abc import Iterable

from kd.evaluation.sums import Measure, Sums, Why, add_up
from kd.evaluation.units import Units, is_held
from kd.rows import RationaleRow

_COUNTED = "by definition"
SIZE = (
    Measure(
        "rationale_words", 0, math.inf, False, "rows", "number of the row's candidate words that are in its rationale", _COUNTED
    ),
    Measure("empty_rationale_rate", 0, 1, False, "rows", "share of rows whose rationale is empty", _COUNTED),
)
"""Measures of a rationale's length: for every source."""
GAP = (
    Measure(
        "completeness_gap_nats",
        0,
        math.inf,
        False,
        "rows",
        "distance of scores from the sum that their method claims",
        "Sundararajan et al. 2017",
    ),
)
"""The measure of scores: they are the attribution's, whatever the source, so it belongs to the attribution alone."""


def sizes(rows: Iterable[RationaleRow], units: Units) -> Sums:
    """Sums for `SIZE`. `units` are the words that a rationale may hold."""

    def of_row(row: RationaleRow) -> dict[str, float]:
        held = sum(is_held(row, unit) for unit in units(row, row.importance))
        return {"rationale_words": float(held), "empty_rationale_rate": float(not row.rationale_text)}

    return add_up(rows, SIZE, of_row)


def gaps(rows: Iterable[RationaleRow]) -> Sums:
    """Sums for `GAP`. A method that claims no sum has no gap."""
    return add_up(
        rows,
        GAP,
        lambda row: Why.NO_SUM_CLAIMED if row.completeness_gap is None else {"completeness_gap_nats": abs(row.completeness_gap)},
    )
