"""Does the student look where the teacher looked? Both importances over the words of the same row.

A word is the unit that both share, since their tokenizers differ. Signed or not, both are weighed in the same way
(`kd/evaluation/units.py`). An importance that is the same everywhere ranks nothing, and such a row is left out; so is one with no
more words than are taken, where any choice agrees.

Hand in units that are not merged: the scores of a word that occurs twice are summed on both sides, so that even two random
importances agree on it (on e-SNLI a rank correlation of 0.13 by chance instead of 0).
"""

import math
from collections.abc import Sequence

import numpy as np

from kd.evaluation.sums import Findings, Measure, Sums, Why, add_up
from kd.evaluation.units import Unit, Units, heaviest
from kd.rows import RationaleRow

Ranks = np.ndarray[tuple[int], np.dtype[np.float64]]

AGREEMENT = (
    Measure("topk_overlap", 0, 1, True, "rows", "share of the k heaviest words that student and teacher have in common", "ours"),
    Measure("topk_overlap_chance", 0, 1, True, "rows", "the same for as many random words", "hypergeometric mean"),
    Measure("spearman", -1, 1, True, "rows", "rank correlation of both importances over words; by chance 0", "Spearman 1904"),
    Measure("kendall", -1, 1, True, "rows", "tau-b of both importances over words; by chance 0", "Kendall 1945"),
)
"""Measures of agreement, each a mean over rows."""


def agreement(rows: Sequence[RationaleRow], students: Sequence[Sequence[float]], units: Units, k: int) -> Sums:
    """Sums for `AGREEMENT`.

    Args:
        rows: with the teacher's importance. students: for each row the student's importance of the same words; of a row
            with an error it is not read. units: the words that a rationale may hold. k: how many words are taken at most.

    Raises:
        ValueError: rows and students, or a row's words and its student's, differ in number.
    """
    pairs = {row.uid: importance for row, importance in zip(rows, students, strict=True)}
    return add_up(rows, AGREEMENT, lambda row: _of_row(row, pairs[row.uid], units, k))


def _of_row(row: RationaleRow, student: Sequence[float], units: Units, k: int) -> Findings:
    if len(student) != len(row.importance):
        raise ValueError(
            f"row {row.uid}: expected {len(row.importance)} importances of the student, one per word, got {len(student)}"
        )
    if not all(map(math.isfinite, [*row.importance, *student])):
        return Why.NOT_FINITE
    ours, theirs = units(row, student), units(row, row.importance)
    if len(ours) <= k:
        return Why.TOO_FEW_WORDS
    return {**_top(ours, theirs, k), **_correlated(ours, theirs)}


def _top(ours: Sequence[Unit], theirs: Sequence[Unit], k: int) -> dict[str, float | Why]:
    mine, other = ({tuple(unit.occurrences) for unit in heaviest(side, k)} for side in (ours, theirs))
    if not mine or not other:
        return dict.fromkeys(("topk_overlap", "topk_overlap_chance"), Why.NO_IMPORTANCE)
    larger = max(len(mine), len(other))
    return {
        "topk_overlap": len(mine & other) / larger,
        "topk_overlap_chance": len(mine) * len(other) / len(ours) / larger,
    }


def _correlated(ours: Sequence[Unit], theirs: Sequence[Unit]) -> dict[str, float | Why]:
    mine, other = ([unit.weight for unit in side] for side in (ours, theirs))
    if len(set(mine)) < 2 or len(set(other)) < 2:
        return dict.fromkeys(("spearman", "kendall"), Why.CONSTANT)
    return {"spearman": spearman(mine, other), "kendall": kendall(mine, other)}


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of the ranks, ties sharing their mean rank, in [-1, 1].

    Raises:
        ValueError: one of them is the same everywhere, so it has no ranks.
    """
    return _cosine(*(ranks - ranks.mean() for ranks in (_ranks(_ranked(a)), _ranks(_ranked(b)))))


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b, in [-1, 1]: pairs in the same order less pairs in the other one, over the pairs that are not tied.

    Raises:
        ValueError: one of them is the same everywhere, so it has no order.
    """
    return _cosine(*(np.sign(values[:, None] - values[None, :]).ravel() for values in (_ranked(a), _ranked(b))))


def _ranked(values: Sequence[float]) -> Ranks:
    found = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or (found == found[0]).all():
        raise ValueError(f"expected two or more values that are not all equal, got {len(values)}; leave such rows out")
    return found


def _ranks(values: Ranks) -> Ranks:
    """Ranks from 1, ties sharing their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    means: Ranks = (last - (counts - 1) / 2)[place]
    return means


def _cosine(a: Ranks, b: Ranks) -> float:
    value = float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))
    return min(1.0, max(-1.0, value))
