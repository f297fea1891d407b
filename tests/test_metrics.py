"""Numbers with a closed form."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.evaluation.metrics import (
    About,
    Counts,
    Mean,
    chance,
    chance_metrics,
    is_near_chance,
    over_seeds,
    wilson,
)
from kd.rows import Example, MetricRow, RowError
from kd.shards import count
from tests import tiny
from tests.tiny_reports import prediction


def about(variant: str = "plain", seed: int | None = 0) -> About:
    return About("student", "evaluate", variant, seed, "toy", "test")


def by_name(rows: list[MetricRow]) -> dict[str, MetricRow]:
    return {row.metric: row for row in rows}


def example(label_set: list[str], target: str | None = "a") -> Example:
    return tiny.example(choices=tuple(label_set), target=target)


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
