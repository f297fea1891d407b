"""Do rationales agree with what people marked? Each measure beside its chance level.

Source: ERASER (DeYoung et al. 2020, arXiv 1911.03429, section 4.1, and the authors' code). What is ours:

- The unit is the word that a rationale may hold (`kd/evaluation/units.py`); evidence on other words is counted neither for nor
  against. With stop words kept and duplicates not merged the units are all words, as in ERASER.
- A unit is evidence where a person marked any of its characters; which marks count (two of three annotators, say) is the
  task's to decide, when it reads the corpus.
- Every measure is a mean over rows. ERASER takes the IOU F1 from the means of precision and recall instead.
- Rows whose evidence is on every unit are left out: whatever is chosen is right there.
- All occurrences of a unit that is evidence count as marked, as all those of a unit that is chosen do: a rationale of the marked
  words and no others is right, merged or not.
- Chance is the expectation over as many units drawn evenly from the same ones, or over an even ranking. A ranking is measured
  over units that are not merged: the scores of a word that occurs twice are summed, which makes a random importance uneven.
- The control of an attribution is itself, its token scores permuted (the source `shuffled` of `kd/rationales.py`): it takes as
  many units. Chance does not know that an attribution takes long words and repeated ones more often whatever it says.
- Rows whose importance is the same on every unit rank nothing and are left out of the area. Where some are equal, the area is
  scikit-learn's, a straight line over all of them at once, and not the mean over their orders.

Rows without evidence are left out and counted. A rationale that holds nothing scores zero.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby

from kd.evaluation.overlap import any_by_chance
from kd.evaluation.sums import Findings, Measure, Sums, Why, add_up
from kd.evaluation.units import Shuffled, Unit, Units, as_many, is_evidence, is_held
from kd.rows import RationaleRow

IOU_AT_LEAST = 0.5
"""A run of chosen words matches a run of evidence where they share half of their union (ERASER)."""

_ERASER = "ERASER, DeYoung et al. 2020, section 4.1"
HARD = (
    Measure("evidence_hit_rate", 0, 1, True, "rows", "share of rows whose rationale has a word of the human evidence", "ours"),
    Measure("evidence_hit_chance", 0, 1, True, "rows", "the same for as many random words", "hypergeometric"),
    Measure("token_f1", 0, 1, True, "rows", "F1 of the rationale's words against human evidence", _ERASER),
    Measure("token_f1_chance", 0, 1, True, "rows", "the same for as many random words", "2(kg/n)/(k+g): hypergeometric mean"),
    Measure("iou_f1", 0, 1, True, "rows", "F1 of the rationale's runs of words, matched at IOU 0.5 or more", _ERASER),
    Measure("iou_f1_chance", 0, 1, True, "rows", "the same for as many random words", "mean over draws seeded by the row's uid"),
)
"""Measures of which words were chosen: for every source of rationales."""
SOFT = (
    Measure("auprc", 0, 1, True, "rows", "area under precision and recall of words ranked by importance, by trapezoids", _ERASER),
    Measure("auprc_chance", 0, 1, True, "rows", "the same for a random ranking", "see expected_auprc"),
)
"""Measures of importance: it is the attribution's, whatever the source, so they belong to the attribution alone."""
SHUFFLED = tuple(
    Measure(f"{name}_shuffled", 0, 1, True, "rows", "the same for the attribution's token scores permuted", "ours")
    for name in ("evidence_hit", "token_f1", "iou_f1", "auprc")
)
"""The control of the above, of the attribution alone."""

Run = tuple[int, int, int]
"""Consecutive words: segment, first, and one past the last, counted among the units' occurrences in that segment."""


def hard_plausibility(rows: Iterable[RationaleRow], units: Units, draws: int = 20) -> Sums:
    """Sums for `HARD`: the rationales of one source against the evidence.

    Args:
        rows: of one source. units: the words that a rationale may hold. draws: random choices per row for the chance level
            of `iou_f1`, which has no closed form; over many rows their noise is small against that of the rows.
    """
    return add_up(rows, HARD, lambda row: _against_evidence(row, units, lambda found, gold: _hard(row, found, gold, draws)))


def soft_plausibility(rows: Iterable[RationaleRow], units: Units) -> Sums:
    """Sums for `SOFT`: the attribution's importance against the evidence.

    Args:
        rows: of one source. units: the words that a rationale may hold, not merged, or chance is not what it says.
    """
    return add_up(rows, SOFT, lambda row: _against_evidence(row, units, _soft))


def shuffled_plausibility(rows: Sequence[RationaleRow], units: Units, unmerged: Units, shuffled: Shuffled) -> Sums:
    """Sums for `SHUFFLED`: what the attribution's token scores reach when they are permuted.

    Args:
        rows: of the attribution. units, unmerged: the words that a rationale may hold, as they are and not merged.
        shuffled: the importance that the permuted scores give to a row's words.
    """

    def hard(row: RationaleRow, found: Sequence[Unit], gold: Sequence[bool]) -> Findings:
        taken = {tuple(unit.occurrences) for unit in as_many(row, units, shuffled(row))}
        hits = _hits(row, found, gold, [tuple(unit.occurrences) in taken for unit in found])
        return dict(zip((measure.name for measure in SHUFFLED), hits, strict=False))

    def soft(row: RationaleRow, gold: Sequence[bool]) -> Findings:
        weights = [unit.weight for unit in unmerged(row, shuffled(row))]
        return Why.CONSTANT if len(set(weights)) < 2 else {"auprc_shuffled": auprc(weights, gold)}

    of_choice = add_up(rows, SHUFFLED[:3], lambda row: _against_evidence(row, units, partial(hard, row)))
    return of_choice + add_up(rows, SHUFFLED[3:], lambda row: _against_evidence(row, unmerged, lambda _, gold: soft(row, gold)))


def _against_evidence(row: RationaleRow, units: Units, compare: Callable[[Sequence[Unit], Sequence[bool]], Findings]) -> Findings:
    if not row.evidence:
        return Why.NO_EVIDENCE
    found = units(row, row.importance)
    gold = [any(is_evidence(row, index) for index in unit.occurrences) for unit in found]
    if not any(gold):
        return Why.EVIDENCE_OUTSIDE
    return Why.EVIDENCE_EVERYWHERE if all(gold) else compare(found, gold)


def _soft(found: Sequence[Unit], gold: Sequence[bool]) -> Findings:
    weights = [unit.weight for unit in found]
    if len(set(weights)) < 2:
        return Why.CONSTANT
    return {"auprc": auprc(weights, gold), "auprc_chance": expected_auprc(len(gold), sum(gold))}


def _hard(row: RationaleRow, found: Sequence[Unit], gold: Sequence[bool], draws: int) -> Findings:
    held = [is_held(row, unit) for unit in found]
    hit, token, iou = _hits(row, found, gold, held)
    draw, places = random.Random(row.uid), range(len(found))
    drawn = [set(draw.sample(places, sum(held))) for _ in range(draws)]
    by_chance = [_hits(row, found, gold, [place in taken for place in places])[2] for taken in drawn]
    return {
        "evidence_hit_rate": hit,
        "evidence_hit_chance": any_by_chance(len(gold), sum(gold), sum(held)),
        "token_f1": token,
        "token_f1_chance": f1(sum(held) * sum(gold) / len(gold), sum(held), sum(gold)),
        "iou_f1": iou,
        "iou_f1_chance": math.fsum(by_chance) / draws,
    }


def _hits(row: RationaleRow, found: Sequence[Unit], gold: Sequence[bool], held: Sequence[bool]) -> tuple[float, float, float]:
    """Hit, token F1 and IOU F1 of the units that are held."""
    places = sorted(index for unit in found for index in unit.occurrences)

    def runs(taken: Sequence[bool]) -> list[Run]:
        marked = {index for unit, is_in in zip(found, taken, strict=True) if is_in for index in unit.occurrences}
        return _runs(row, places, marked)

    hits = sum(map(min, held, gold))
    return float(hits > 0), f1(hits, sum(held), sum(gold)), iou_f1(runs(held), runs(gold))


def _runs(row: RationaleRow, places: Sequence[int], marked: set[int]) -> list[Run]:
    """The maximal runs of marked words. `places` are the words that count, in reading order."""
    runs = []
    for segment, inside in groupby(places, key=lambda index: row.word_segment[index]):
        position = 0
        for is_marked, group in groupby(inside, key=marked.__contains__):
            length = len(list(group))
            runs += [(segment, position, position + length)] * is_marked
            position += length
    return runs


# --- the numbers --------------------------------------------------------------------------------------------------------


def f1(hits: float, chosen: int, right: int) -> float:
    """Harmonic mean of precision hits/chosen and recall hits/right. Nought where there is nothing to find or nothing chosen.

    It is linear in `hits`, so expected hits give the expected F1.
    """
    return 2 * hits / (chosen + right) if chosen and right else 0.0


def iou_f1(chosen: Sequence[Run], right: Sequence[Run]) -> float:
    """F1 over runs: a chosen run hits where its IOU with a right one is at least `IOU_AT_LEAST`."""
    hits = sum(any(_iou(run, other) >= IOU_AT_LEAST for other in right) for run in chosen)
    return f1(hits, len(chosen), len(right))


def _iou(a: Run, b: Run) -> float:
    shared = max(0, min(a[2], b[2]) - max(a[1], b[1])) if a[0] == b[0] else 0
    return shared / (a[2] - a[1] + b[2] - b[1] - shared)


def auprc(scores: Sequence[float], gold: Sequence[bool]) -> float:
    """Area under the curve of precision over recall, by trapezoids from (recall 0, precision 1); equal scores are one step.

    Raises:
        ValueError: nothing is gold, so there is no recall.
    """
    if not any(gold):
        raise ValueError("auprc: expected at least one gold entry, got none; leave such rows out")
    ranked = sorted(zip(scores, gold, strict=True), key=lambda pair: -pair[0])
    area, hits, seen = 0.0, 0, 0
    recall, precision = 0.0, 1.0
    for _, step in groupby(ranked, key=lambda pair: pair[0]):
        marks = [is_gold for _, is_gold in step]
        hits, seen = hits + sum(marks), seen + len(marks)
        area += (hits / sum(gold) - recall) * (hits / seen + precision) / 2
        recall, precision = hits / sum(gold), hits / seen
    return area


def expected_auprc(n: int, gold: int) -> float:
    """`auprc` of a random ranking of `n` words without ties, `gold` of them right: its exact mean.

    The step at rank i counts where that word is right, which has probability g/n, and is the mean of two precisions. The one
    after it is that of average precision, whose mean is (H + (g-1)/(n-1) (n - H))/n with H the n-th harmonic number
    (Bestgen 2015); the one before it is (g-1)/(n-1) on average, and 1 at the first rank, which gives g/n over all ranks.
    """
    harmonic = math.fsum(1 / rank for rank in range(1, n + 1))
    after = (harmonic + (gold - 1) / max(n - 1, 1) * (n - harmonic)) / n
    return (after + gold / n) / 2
