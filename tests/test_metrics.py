"""Numbers with a closed form."""

import dataclasses
import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.evaluation.metrics import (
    About,
    Counts,
    Mean,
    RationaleSums,
    chance,
    chance_metrics,
    chance_of_a_hit,
    is_near_chance,
    over_seeds,
    rationale_sums,
    wilson,
)
from kd.rows import Example, MetricRow, RationaleRow, RowError, Span
from kd.shards import count
from tests import tiny
from tests.tiny_measures import rationale_row
from tests.tiny_reports import prediction


def about(variant: str = "plain", seed: int | None = 0) -> About:
    return About("student", "evaluate", variant, seed, "toy", "test")


def by_name(rows: list[MetricRow]) -> dict[str, MetricRow]:
    return {row.metric: row for row in rows}


def example(label_set: list[str], target: str | None = "a") -> Example:
    return tiny.example(choices=tuple(label_set), target=target)


def rationale(text: str, hard: str, evidence: list[Span], error: RowError | None = None) -> RationaleRow:
    """A row of one segment; `hard` has an x under each word of the rationale."""
    mask = [mark == "x" for mark in hard]
    row = rationale_row(("question", text), error=error)
    text_of_words = " ".join("w" for mark in mask if mark)
    return dataclasses.replace(row, evidence=evidence, rationale=mask, rationale_text=text_of_words)


def every_word(row: RationaleRow) -> list[tuple[int, ...]]:
    return [(index,) for index in range(len(row.rationale))]


# --- answers ------------------------------------------------------------------------------------------------------------


def test_unparsed_and_truncated_count_against_accuracy_and_are_told_apart_from_wrong() -> None:
    rows = [prediction(f"a{i}", True) for i in range(5)] + [prediction(f"b{i}", False) for i in range(2)]
    rows += [prediction(f"c{i}", False, status="unparsed") for i in range(2)] + [prediction("d0", False, status="truncated")]
    found = by_name(Counts.of(count(rows)).metrics(about()))
    assert (found["accuracy"].value, found["accuracy"].n) == (0.5, 10)
    assert found["parse_rate"].value == 0.7
    assert found["truncation_rate"].value == 0.1


def test_unlabelled_rows_are_answered_but_not_judged() -> None:
    rows = [prediction("a", True), prediction("b", None), prediction("c", None, status="unparsed")]
    found = by_name(Counts.of(count(rows)).metrics(about()))
    assert (found["accuracy"].value, found["accuracy"].n) == (1.0, 1)
    assert (found["parse_rate"].value, found["parse_rate"].n) == (2 / 3, 3)


def test_rows_with_an_error_are_in_no_count() -> None:
    rows = [prediction("a", True), prediction("b", None, RowError("too_long", "600 tokens"), status="")]
    assert Counts.of(count(rows)) == Counts(ok=1, correct=1)


def test_without_labels_there_is_no_accuracy_and_no_interval() -> None:
    accuracy = by_name(Counts(ok=3, unlabelled=3).metrics(about()))["accuracy"]
    assert (accuracy.value, accuracy.ci_low, accuracy.ci_high, accuracy.n) == (None, None, None, 0)


@given(st.lists(st.tuples(st.sampled_from(["ok", "unparsed", "truncated"]), st.sampled_from([True, False, None])), max_size=30))
def test_counts_of_shards_add_up_to_the_counts_of_all_rows(answers: list[tuple[str, bool | None]]) -> None:
    rows = [prediction(str(i), correct, status=status) for i, (status, correct) in enumerate(answers)]
    half = len(rows) // 2
    assert Counts.of(count(rows[:half])) + Counts.of(count(rows[half:])) == Counts.of(count(rows))
    assert Counts.of(Counter(count(rows[:half])) + Counter(count(rows[half:]))) == Counts.of(count(rows))


def test_the_wilson_interval_is_where_the_score_test_just_rejects() -> None:
    for successes, trials in ((7, 20), (1, 8), (450, 1000)):
        share = successes / trials
        for bound in wilson(successes, trials):
            assert abs(share - bound) / math.sqrt(bound * (1 - bound) / trials) == pytest.approx(1.959963984540054)


def test_the_wilson_interval_stays_inside_zero_and_one() -> None:
    assert wilson(0, 10)[0] == 0.0
    assert 1.0 - 1e-12 < wilson(10, 10)[1] <= 1.0
    assert wilson(0, 10)[1] == pytest.approx(1.959963984540054**2 / (10 + 1.959963984540054**2))


def test_the_spread_over_seeds_is_the_sample_standard_deviation() -> None:
    rows = [row for seed, right in ((1, 4), (2, 6), (3, 8)) for row in Counts(ok=10, correct=right).metrics(about(seed=seed))]
    found = by_name(over_seeds(rows))
    assert (found["accuracy"].value, found["accuracy"].seed, found["accuracy"].n) == (pytest.approx(0.6), None, 30)
    assert (found["accuracy_spread"].value, found["accuracy_spread"].n) == (pytest.approx(0.2), 3)
    assert (found["accuracy_min"].value, found["accuracy_max"].value) == (0.4, 0.8)


def test_one_seed_has_no_spread() -> None:
    assert by_name(over_seeds(Counts(ok=10, correct=4).metrics(about())))["accuracy_spread"].value is None


def test_variants_are_summarised_apart_and_those_without_accuracy_not_at_all() -> None:
    rows = Counts(ok=10, correct=4).metrics(about("a")) + Counts(ok=10, correct=6).metrics(about("b"))
    rows += Counts(ok=10, unlabelled=10).metrics(about("c"))
    means = [(row.variant, row.value) for row in over_seeds(rows) if row.metric == "accuracy"]
    assert means == [("a", 0.4), ("b", 0.6)]


# --- chance -------------------------------------------------------------------------------------------------------------


def test_chance_is_the_mean_of_one_over_the_number_of_choices() -> None:
    level = chance([example(["a", "b"]), example(["a", "b", "c", "d"]), example([]), example(["a", "b"], target=None)])
    assert level.value == pytest.approx((1 / 2 + 1 / 4) / 2)
    (row,) = chance_metrics(level, about("chance", None))
    assert (row.metric, row.n) == ("accuracy_chance", 2)


def test_an_option_that_is_there_twice_is_guessed_twice_as_often() -> None:
    assert chance([example(["a", "b", "a", "c"])]).value == 1 / 2
    assert chance([example(["a", "b", "b", "c"])]).value == 1 / 4


def test_free_text_has_no_chance_level() -> None:
    assert chance([example([])]).value is None


def test_means_add_before_they_divide() -> None:
    assert (Mean(1.0, 1) + Mean(0.0, 3)).value == 0.25


@pytest.mark.parametrize(
    "right,rows,level,near",
    [
        (250, 1000, 0.25, True),  # at chance
        (320, 1000, 0.25, True),  # surely above chance, but not a tenth of the way up (0.325)
        (400, 1000, 0.25, False),
        (4, 10, 0.25, True),  # far above, but of so few rows that the interval reaches down to chance
        (10, 10, None, False),  # free text has no chance level: guessing gets nothing right
        (0, 200, None, True),
        (15, 200, None, True),
    ],
)
def test_near_chance_means_not_clearly_or_not_far_above_it(right: int, rows: int, level: float | None, near: bool) -> None:
    accuracy = Counts(ok=rows, correct=right).metrics(about())[0]
    assert is_near_chance(accuracy, level) is near


# --- rationales ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates,touching,drawn", [(6, 2, 3), (5, 0, 2), (5, 5, 1), (4, 1, 4), (5, 3, 0), (0, 0, 0)])
def test_the_chance_of_a_hit_is_that_of_all_possible_draws(candidates: int, touching: int, drawn: int) -> None:
    draws = list(itertools.combinations(range(candidates), drawn))
    hits = sum(any(word < touching for word in draw) for draw in draws)
    assert chance_of_a_hit(candidates, touching, drawn) == pytest.approx(hits / len(draws))


def test_a_rationale_hits_if_one_of_its_words_touches_the_evidence() -> None:
    gold = [Span(0, 4, 8)]  # "gold", and not the words around it
    rows = [
        rationale("red gold blue", ".xx", gold),
        rationale("red gold blue", "x.x", gold),
        rationale("red gold blue", "...", gold),
    ]
    found = by_name(rationale_sums(rows, every_word).metrics(about("attribution", None)))
    assert (found["evidence_hit_rate"].value, found["evidence_hit_rate"].n) == (1 / 3, 3)
    assert found["evidence_hit_chance"].value == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["rationale_words"].value == pytest.approx(4 / 3)
    assert found["empty_rationale_rate"].value == pytest.approx(1 / 3)


def test_rows_without_evidence_are_left_out_of_the_hit_rate_and_counted() -> None:
    rows = [rationale("red gold", "x.", [Span(0, 0, 2)]), rationale("red gold", "x.", [])]
    sums = rationale_sums(rows, every_word)
    assert (sums.rows, sums.with_evidence, sums.hits, sums.chance_hits) == (2, 1, 1, 0.5)


def test_evidence_outside_the_candidates_cannot_be_hit_by_chance_either() -> None:
    row = rationale("red gold blue", "x..", [Span(0, 9, 13)])
    sums = rationale_sums([row], lambda row: [(0,), (1,)])
    assert (sums.with_evidence, sums.hits, sums.chance_hits) == (1, 0, 0.0)


def test_a_repeated_word_is_one_candidate_that_hits_with_any_occurrence() -> None:
    row = rationale("gold red gold", "x.x", [Span(0, 9, 13)])
    sums = rationale_sums([row], lambda row: [(0, 2), (1,)])
    assert (sums.hits, sums.chance_hits, sums.words) == (1, 0.5, 1)


def test_sums_of_shards_add_up_and_rows_with_an_error_are_left_out() -> None:
    good = rationale("red gold", "x.", [Span(0, 0, 2)])
    bad = rationale("red gold", "x.", [Span(0, 0, 2)], RowError("not_finite", "nan"))
    assert rationale_sums([good, bad], every_word) + rationale_sums([good], every_word) == rationale_sums([good] * 2, every_word)


def test_no_row_with_evidence_means_no_hit_rate() -> None:
    found = by_name(RationaleSums(rows=4, words=8).metrics(about("attribution", None)))
    assert found["evidence_hit_rate"].value is None
    assert found["rationale_words"].value == 2.0


def test_the_completeness_gap_is_the_mean_distance_whatever_its_sign() -> None:
    plain = rationale("red gold", "x.", [])
    rows = [plain, dataclasses.replace(plain, completeness_gap=-0.5), dataclasses.replace(plain, completeness_gap=0.1)]
    found = by_name(rationale_sums(rows, every_word).metrics(about("attribution", None)))["completeness_gap_nats"]
    assert (found.value, found.n) == (pytest.approx(0.3), 2)
    without = by_name(rationale_sums([plain], every_word).metrics(about("attribution", None)))["completeness_gap_nats"]
    assert (without.value, without.n) == (None, 0)
