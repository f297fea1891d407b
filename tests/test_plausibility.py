"""Rationales against human evidence: numbers worked out by hand, and scikit-learn's on random input."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import auc, f1_score, precision_recall_curve

from kd.evaluation.plausibility import (
    HARD,
    SOFT,
    auprc,
    expected_auprc,
    f1,
    hard_plausibility,
    iou_f1,
    soft_plausibility,
)
from kd.evaluation.sums import Measure, Sums, Why
from kd.rationales import PoolConfig, RandomSource, RationalesConfig, Rationalise, TopK
from kd.rows import Attribution, RationaleRow, RowError, Segment, Span
from tests.test_rationales import attributed
from tests.tiny_measures import by_name, rationale_row, single_words, units_of, values

TEXT = ("text", "red green blue white black grey")


def hard(*rows: RationaleRow, draws: int = 20) -> dict[str, float | None]:
    return values(hard_plausibility(rows, single_words, draws).results(HARD))


def test_two_of_three_chosen_words_among_four_marked_ones() -> None:
    found = hard(rationale_row(TEXT, chosen=("red", "green", "grey"), evidence=[(0, "green blue white black")]))
    assert found["token_f1"] == pytest.approx(2 * 1 / (3 + 4))
    # By chance 3 * 4 / 6 = 2 words hit.
    assert found["token_f1_chance"] == pytest.approx(2 * 2 / (3 + 4))


def test_a_run_hits_from_half_of_the_union_on() -> None:
    # "green blue" in "green blue white black": 2 of 4. "grey" hits nothing.
    exactly = rationale_row(TEXT, chosen=("green", "blue", "grey"), evidence=[(0, "green blue white black")])
    assert hard(exactly)["iou_f1"] == pytest.approx(2 * 1 / (2 + 1))
    # "red green" and "green blue white": 1 of 4.
    less = rationale_row(TEXT, chosen=("red", "green"), evidence=[(0, "green blue white")])
    assert hard(less)["iou_f1"] == 0
    assert iou_f1([(0, 2, 5)], [(1, 2, 5)]) == 0, "the same places of another segment"


def test_runs_end_with_their_segment_and_skip_what_no_rationale_may_hold() -> None:
    pair = (("premise", "men run"), ("prompt", " </s> "), ("hypothesis", "boys sleep"))
    apart = rationale_row(*pair, chosen=("run", "boys"), evidence=[(0, "run"), (2, "boys")])
    assert hard(apart)["iou_f1"] == 1
    comma = rationale_row(("text", "red, green blue"), chosen=("red", "green"), evidence=[(0, "red, green")])
    assert hard(comma)["iou_f1"] == 1


def test_the_chance_of_iou_is_the_mean_over_all_choices_of_as_many_words() -> None:
    names = TEXT[1].split()
    every = [
        hard(rationale_row(TEXT, chosen=chosen, evidence=[(0, "green blue white")]), draws=1)["iou_f1"] or 0.0
        for chosen in itertools.combinations(names, 2)
    ]
    drawn = hard(rationale_row(TEXT, chosen=("red", "grey"), evidence=[(0, "green blue white")]), draws=20_000)
    assert drawn["iou_f1_chance"] == pytest.approx(sum(every) / len(every), abs=0.01)


def test_a_rationale_that_holds_nothing_scores_zero_and_so_does_its_chance() -> None:
    assert set(hard(rationale_row(TEXT, evidence=[(0, "green")])).values()) == {0.0}


def test_a_word_of_which_a_part_is_marked_is_evidence_and_a_word_counted_once_is_one_unit() -> None:
    merged = RationalesConfig(roles=("text",))
    row = rationale_row(("text", "Bank or bank near banks and water"), chosen=("Bank", "bank"), evidence=[(0, "ank near")])
    found = hard_plausibility([row], lambda row, importance: units_of(merged, row, importance)).results(HARD)
    # The units are bank, near, banks and water; "ank" marks the first and "near" the second.
    assert values(found)["token_f1"] == pytest.approx(2 * 1 / (1 + 2))


@pytest.mark.parametrize("merged", [True, False])
def test_a_rationale_of_the_marked_words_and_no_others_is_right_whether_duplicates_are_merged_or_not(merged: bool) -> None:
    config = RationalesConfig(roles=("text",), merge_duplicates=merged)
    row = rationale_row(("text", "gold ring or old gold dust"), chosen=("gold", "ring"), evidence=[(0, "gold ring")])
    if not merged:
        row.evidence.append(Span(0, 17, 21))  # the second gold
    found = hard_plausibility([row], config.units).results(HARD)
    assert values(found)["iou_f1"] == 1
    assert values(found)["token_f1"] == 1


def test_a_rationale_hits_if_one_of_its_words_touches_the_evidence() -> None:
    row = ("text", "red gold blue")
    rows = [rationale_row(row, chosen=chosen, evidence=[(0, "gold")]) for chosen in (("gold", "blue"), ("red", "blue"), ())]
    found = by_name(hard_plausibility(rows, single_words).results(HARD))
    assert (found["evidence_hit_rate"].value, found["evidence_hit_rate"].n) == (pytest.approx(1 / 3), 3)
    assert found["evidence_hit_chance"].value == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_a_repeated_word_is_one_candidate_that_hits_with_any_occurrence() -> None:
    row = rationale_row(("text", "gold red gold"), chosen=("gold",), evidence=[(0, "red gold")])
    row.evidence[:] = [Span(0, 9, 13)]
    found = values(hard_plausibility([row], RationalesConfig(roles=("text",)).units).results(HARD))
    assert (found["evidence_hit_rate"], found["evidence_hit_chance"]) == (1, 0.5)


def test_rows_without_anything_to_agree_with_are_left_out_and_counted() -> None:
    rows = [
        rationale_row(TEXT, uid="none"),
        rationale_row(TEXT, uid="all", evidence=[(0, TEXT[1])]),
        rationale_row(("text", "red."), uid="dot", evidence=[(0, ".")]),
        rationale_row(TEXT, uid="bad", evidence=[(0, "red")], error=RowError("too_long", "")),
    ]
    expected = {Why.NO_EVIDENCE: 1, Why.EVIDENCE_EVERYWHERE: 1, Why.EVIDENCE_OUTSIDE: 1, Why.ERRORED: 1}
    for result in hard_plausibility(rows, single_words).results(HARD) + soft_plausibility(rows, single_words).results(SOFT):
        assert (result.value, result.n, result.left_out) == (None, 0, expected)
        assert result.why_null is not None


def test_importance_that_is_the_same_everywhere_ranks_nothing_and_is_left_out() -> None:
    flat = rationale_row(TEXT, importance=[0.5] * 6, evidence=[(0, "green blue")])
    for result in soft_plausibility([flat], single_words).results(SOFT):
        assert (result.value, result.left_out) == (None, {Why.CONSTANT: 1})
    # Where some are equal it is scikit-learn's: one step from recall 0 at precision 1 over the first three words.
    tied = rationale_row(TEXT, importance=[1, 1, 1, 0, 0, 0], evidence=[(0, "green blue")])
    found = values(soft_plausibility([tied], single_words).results(SOFT))
    assert found["auprc"] == pytest.approx((1 + 2 / 3) / 2)


def test_shards_give_what_the_whole_gives() -> None:
    rows = [
        rationale_row(TEXT, uid=str(number), importance=[number, 2, 3, 1, 0, 5], chosen=("red", "grey"), evidence=[(0, word)])
        for number, word in enumerate(("red", "white black", "green blue"))
    ]
    for measure, entries in ((hard_plausibility, HARD), (soft_plausibility, SOFT)):
        parts = sum((measure([row], single_words) for row in rows), Sums())
        assert values(parts.results(entries)) == pytest.approx(values(measure(rows, single_words).results(entries)))


def test_importance_that_ranks_the_evidence_first_has_the_whole_area() -> None:
    row = rationale_row(TEXT, importance=[0.1, 0.9, 0.8, 0, 0, 0.2], evidence=[(0, "green blue")])
    found = by_name(soft_plausibility([row], single_words).results(SOFT))
    assert found["auprc"].value == 1
    assert found["auprc_chance"].value == pytest.approx(expected_auprc(6, 2))
    # Ranked second and third: recall 0 at precision 0, then 1/2 and 1 at 1/2 and 2/3, by trapezoids.
    assert auprc([3, 2, 1, 0], [False, True, True, False]) == pytest.approx(0.5 * (0 + 0.5) / 2 + 0.5 * (0.5 + 2 / 3) / 2)


@pytest.mark.parametrize(("n", "gold"), [(1, 1), (4, 1), (5, 2), (6, 5), (6, 6)])
def test_the_area_by_chance_is_the_mean_over_all_rankings(n: int, gold: int) -> None:
    marks = [[index in chosen for index in range(n)] for chosen in itertools.combinations(range(n), gold)]
    areas = [auprc(range(n, 0, -1), mark) for mark in marks]
    assert expected_auprc(n, gold) == pytest.approx(sum(areas) / len(areas), abs=1e-12)


def test_f1_and_area_are_those_of_scikit_learn_on_random_input() -> None:
    draw = np.random.default_rng(7)
    for _ in range(300):
        n = int(draw.integers(2, 40))
        gold = draw.random(n) < draw.random()
        gold[draw.integers(n)] = True
        chosen = draw.random(n) < draw.random()
        scores = draw.normal(size=n).round(int(draw.integers(0, 3)))
        ours = f1(int((gold & chosen).sum()), int(chosen.sum()), int(gold.sum()))
        assert ours == pytest.approx(f1_score(gold, chosen, zero_division=0), abs=1e-9)
        precision, recall, _ = precision_recall_curve(gold, scores)
        assert auprc(scores.tolist(), gold.tolist()) == pytest.approx(auc(recall, precision), abs=1e-9)


def test_expected_f1_is_the_mean_over_all_choices() -> None:
    words = [f"w{index}" for index in range(7)]
    gold = set(words[:3])
    every = [f1(len(gold & set(chosen)), 4, 3) for chosen in itertools.combinations(words, 4)]
    assert f1(4 * 3 / 7, 4, 3) == pytest.approx(sum(every) / len(every))


def assert_chance(sums: Sums, entries: Sequence[Measure], *names: str) -> None:
    found = by_name(sums.results(entries))
    for name in names:
        low, high = found[name].ci_low, found[name].ci_high
        assert low is not None
        assert high is not None
        assert low < (found[f"{name}_chance"].value or 0.0) < high


def test_random_rationales_score_their_chance() -> None:
    draw, names = random.Random(3), TEXT[1].split()
    rows = [
        rationale_row(TEXT, uid=str(number), chosen=draw.sample(names, 2), evidence=[(0, "green blue white")])
        for number in range(1500)
    ]
    assert_chance(hard_plausibility(rows, single_words), HARD, "token_f1", "iou_f1")


@pytest.mark.parametrize("merged", [True, False])
def test_words_that_occur_twice_change_no_chance_level(merged: bool) -> None:
    config = RationalesConfig(roles=("text",), selection=TopK(k=2), merge_duplicates=merged)
    segments = [Segment("text", "gold ring and gold dust on gold sand near grey rock")]
    draw, made = random.Random(4), list[Attribution]()
    for number in range(1500):
        row = attributed(segments, [draw.random() for _ in range(11)], uid=str(number))
        row.evidence.append(Span(0, 0, 9))
        made.append(row)
    rows = [row for row in Rationalise(config, RandomSource()).open()(made, Counter()) if isinstance(row, RationaleRow)]
    assert_chance(hard_plausibility(rows, config.units), HARD, "token_f1", "iou_f1")
    unmerged = config.model_copy(update={"merge_duplicates": False})
    assert_chance(soft_plausibility(rows, unmerged.units), SOFT, "auprc")
    # Merged and summed, the word that occurs three times is ranked first far more often than by chance: so rankings are not.
    together = config.model_copy(update={"merge_duplicates": True, "pool": PoolConfig(occurrences="sum")})
    summed = by_name(soft_plausibility(rows, together.units).results(SOFT))
    assert (summed["auprc"].ci_low or 0) > (summed["auprc_chance"].value or 1)
