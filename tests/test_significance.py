"""Significance: closed forms, scipy's numbers, and what it says where there is no effect and where there is one."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats

from kd.evaluation.pairing import Marked, Marks, Paired, paired_marks
from kd.evaluation.significance import (
    Comparison,
    SignificanceConfig,
    Verdict,
    bootstrap,
    holm,
    p_of,
    standard_error,
    t_over_seeds,
    verdicts,
)
from kd.rows import Prediction, RowError
from tests.tiny_reports import prediction

AB = Comparison(variant="ours", against="plain")
AC = Comparison(variant="ours", against="random")
AD = Comparison(variant="ours", against="llm")


def simulated(
    draw: np.random.Generator, seeds: int, rows: int, by_seed: float, by_row: float, gain: float = 0.0
) -> tuple[Marks, Marks]:
    """Two variants' marks. Rows are as easy for both, up to `by_row`; students scatter by `by_seed`; all in logits."""
    easy = draw.normal(0.8, 1.5, rows)
    marks = []
    for more in (gain, 0.0):
        logits = easy + draw.normal(0, by_row, rows) + draw.normal(more, by_seed, (seeds, 1))
        marks.append(draw.random((seeds, rows)) < 1 / (1 + np.exp(-logits)))
    return marks[0], marks[1]


def verdict(variant: Marks, against: Marks, draws: int = 2000, seed: int = 0) -> Verdict:
    config = SignificanceConfig(primary=AB, draws=draws, seed=seed)
    return verdicts({AB: Paired.of(range(len(variant)), variant, against)}, config)[0]


def shown_frac(runs: int, draws: int, *how: float, gain: float = 0.0) -> float:
    """In which share of simulated runs a difference is shown. `how`: seeds, rows, scatter by seed and by row."""
    draw = np.random.default_rng([int(100 * part) for part in how])
    seeds, rows, by_seed, by_row = how
    return sum(verdict(*simulated(draw, int(seeds), int(rows), by_seed, by_row, gain), draws).shown for _ in range(runs)) / runs


# --- where there is no effect -------------------------------------------------------------------------------------------


def test_without_an_effect_a_difference_is_shown_in_at_most_5_percent_of_1000_runs() -> None:
    assert shown_frac(1000, 400, 3, 300, 0.15, 0.5) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("by_row", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("by_seed", [0.0, 0.15, 0.3])
@pytest.mark.parametrize(("seeds", "rows"), [(2, 100), (2, 500), (5, 100), (5, 500)])
def test_however_students_and_rows_scatter_it_is_at_most_5_percent(seeds: int, rows: int, by_seed: float, by_row: float) -> None:
    assert shown_frac(1000, 400, seeds, rows, by_seed, by_row) <= 0.05


LARGER = [(2, 100, 0.5), (2, 500, 0.5), (5, 100, 0.5), (5, 500, 0.5)]
LARGER += [(8, rows, by_seed) for rows in (100, 500) for by_seed in (0.0, 0.15, 0.3, 0.5)]


@pytest.mark.slow
@pytest.mark.parametrize("by_row", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("seeds", "rows", "by_seed"), LARGER)
def test_with_more_seeds_or_more_scatter_of_students_it_is_no_more_than_5_percent_allow_in_1000_runs(
    seeds: int, rows: int, by_seed: float, by_row: float
) -> None:
    """Of 1,000 runs that each say "shown" with a probability of 5 %, so many or fewer do so with a probability of 99 %."""
    assert shown_frac(1000, 400, seeds, rows, by_seed, by_row) <= stats.binom.ppf(0.99, 1000, 0.05) / 1000


def test_t_over_seeds_alone_would_say_more_as_all_seeds_share_the_rows() -> None:
    draw = np.random.default_rng(11)
    pairs = [Paired.of(range(8), *simulated(draw, 8, 200, 0.0, 1.0)) for _ in range(500)]
    assert sum(t_over_seeds(pair.per_seed, pair.rows) <= 0.05 for pair in pairs) / 500 > 0.1


# --- where there is one -------------------------------------------------------------------------------------------------


def test_a_strong_effect_is_shown() -> None:
    assert shown_frac(100, 400, 3, 500, 0.1, 0.5, gain=1.2) >= 0.9


def test_always_right_against_always_wrong_is_better_and_the_other_way_round_worse() -> None:
    right = np.ones((3, 50), dtype=bool)
    better, worse = verdict(right, ~right), verdict(~right, right)
    assert (better.difference, better.shown, better.in_words) == (1.0, True, "better")
    assert (worse.difference, worse.shown, worse.in_words) == (-1.0, True, "worse")
    same = verdict(right, right)
    assert (same.difference, same.p_value, same.in_words) == (0.0, 1.0, "no difference shown")


def test_one_row_more_in_every_seed_shows_nothing() -> None:
    marks = np.zeros((4, 40), dtype=bool)
    more = marks.copy()
    more[:, 0] = True
    found = verdict(more, marks)
    assert found.p_seeds is not None
    assert found.p_seeds < 0.01
    assert not found.shown


# --- what cannot be tested ----------------------------------------------------------------------------------------------


def test_with_one_seed_the_difference_comes_out_and_the_rest_is_null_with_the_reason() -> None:
    found = verdict(np.array([[True, True, False, True]]), np.array([[True, False, False, False]]))
    assert (found.difference, found.seeds, found.rows, found.shown) == (0.5, 1, 4, False)
    assert (found.ci_low, found.ci_high, found.p_seeds, found.p_bootstrap, found.p_value, found.detectable) == (None,) * 6
    assert found.in_words == "not tested: one seed says nothing about how students scatter; train two or more"


def test_no_row_no_common_seed_and_a_variant_that_failed_are_null_with_the_reason() -> None:
    empty = np.zeros((3, 0), dtype=bool)
    config = SignificanceConfig(primary=AB, others=(AC, AD))
    found = verdicts({AB: Paired.of(range(3), empty, empty, left_out=7), AC: Paired((), {})}, config)
    assert [each.why_null for each in found] == [
        "no row has a mark in both; 7 have an error or no label",
        "ours and random have no seed in common",
        "ours and llm have no seed in common",
    ]
    assert all((each.difference, each.p_value, each.shown) == (None, None, False) for each in found)


# --- pairing ------------------------------------------------------------------------------------------------------------


def test_predictions_are_paired_by_uid_and_rows_without_a_mark_are_left_out() -> None:
    marks = {"a": True, "b": False, "c": True, "d": True}
    ours = {
        seed: [
            *(prediction(uid, correct) for uid, correct in marks.items()),
            prediction("e", None),
            prediction("f", None, RowError("too_long", "")),
        ]
        for seed in (0, 1, 7)
    }
    plain = {
        0: [prediction(uid, False) for uid in "fedcba"],
        1: [prediction(uid, uid == "a") for uid in "abcdef"],
        9: [],
    }
    found = paired_marks(marked(ours), marked(plain))
    assert (found.seeds, found.rows, found.left_out) == ((0, 1), 4, 2)
    assert found.patterns == {(1, 0): 1, (0, 0): 1, (1, 1): 2}
    assert found.per_seed.tolist() == [0.75, 0.5]
    with pytest.raises(ValueError, match="f is in one of them only"):
        paired_marks(marked(ours), marked({0: plain[0][1:]}))
    assert paired_marks({0: {}}, {0: {}}).rows == paired_marks({}, {0: {}}).rows == 0


def marked(found: Mapping[int, Sequence[Prediction]]) -> dict[int, Marked]:
    return {seed: {row.uid: row.correct for row in rows} for seed, rows in found.items()}


def test_shards_add_up_and_shards_of_other_seeds_do_not() -> None:
    variant, against = simulated(np.random.default_rng(3), 3, 60, 0.3, 0.5)
    whole = Paired.of(range(3), variant, against)
    parts = [
        Paired.of(range(3), variant[:, cut], against[:, cut], left_out=1) for cut in (slice(0, 25), slice(25, 25), slice(25, 60))
    ]
    total = parts[0] + parts[1] + parts[2]
    assert (total.patterns, total.left_out) == (whole.patterns, 3)
    assert whole.per_seed == pytest.approx(variant.mean(axis=1) - against.mean(axis=1))
    with pytest.raises(ValueError, match="have the same seeds"):
        _ = whole + Paired.of((0, 1), variant[:2], against[:2])
    with pytest.raises(ValueError, match="3 seeds x rows"):
        Paired.of(range(3), variant, against[:, 1:])


def test_a_verdict_depends_on_counts_and_names_alone() -> None:
    variant, against = simulated(np.random.default_rng(4), 3, 80, 0.3, 0.5)
    order = np.random.default_rng(5).permutation(80)
    config = SignificanceConfig(primary=AB, others=(AC,), draws=500)
    there = {key: Paired.of(range(3), variant, against) for key in (AB, AC)}
    again = {key: Paired.of(range(3), variant[:, order], against[:, order]) for key in (AC, AB)}
    assert verdicts(there, config) == verdicts(again, config)


# --- the numbers --------------------------------------------------------------------------------------------------------


def test_t_over_seeds_is_scipys_paired_t() -> None:
    draw = np.random.default_rng(8)
    for seeds in (2, 3, 8):
        variant, against = simulated(draw, seeds, 150, 0.4, 0.3)
        pair = Paired.of(range(seeds), variant, against)
        reference = stats.ttest_rel(variant.mean(axis=1), against.mean(axis=1)).pvalue
        assert t_over_seeds(pair.per_seed, pair.rows) == pytest.approx(reference, abs=1e-9)


def test_the_bootstrap_is_that_of_drawing_seeds_and_rows_one_by_one() -> None:
    variant, against = simulated(np.random.default_rng(9), 3, 40, 0.8, 0.8)
    differences = variant.astype(float) - against.astype(float)
    draw, plain = np.random.default_rng(10), []
    for _ in range(20_000):
        seeds, rows = draw.integers(3, size=3), draw.integers(40, size=40)
        by_seed = differences[:, rows].mean(axis=1)
        weights = 1 + np.sqrt(3 / 2) * (np.bincount(seeds, minlength=3) - 1)
        plain.append(float(weights @ by_seed) / 3)
    ours = bootstrap(Paired.of(range(3), variant, against), 20_000, np.random.default_rng(12))
    assert ours.mean() == pytest.approx(differences.mean(), abs=0.002)
    assert ours.std() == pytest.approx(np.std(plain), rel=0.03)
    assert np.quantile(ours, [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(plain, [0.025, 0.5, 0.975]), abs=0.01)


def test_more_patterns_than_fit_at_once_are_drawn_in_parts() -> None:
    marks = np.array(list(itertools.product([False, True], repeat=9))).T
    found = bootstrap(Paired.of(range(9), marks, ~marks), 2100, np.random.default_rng(0))
    assert len(found) == 2100
    assert np.isfinite(found).all()
    assert abs(found.mean()) < 0.02


def test_a_p_value_of_draws_is_never_zero() -> None:
    assert p_of(np.full(999, 0.5)) == 2 / 1000
    assert p_of(np.array([-1.0, 1.0, 1.0, 1.0])) == pytest.approx(2 * 2 / 5)
    assert p_of(np.zeros(9)) == 1.0


def test_equal_differences_of_seeds_scatter_by_no_less_than_rounding_to_a_row() -> None:
    assert standard_error(np.array([0.1, 0.1, 0.1, 0.1]), 10) == pytest.approx(1 / (10 * np.sqrt(12)) / 2)
    assert standard_error(np.array([0.0, 0.2]), 10) == pytest.approx(0.1)


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_primary_is_not_corrected_and_the_others_are_for_their_number() -> None:
    draw = np.random.default_rng(21)
    pairs = {each: Paired.of(range(4), *simulated(draw, 4, 300, 0.1, 0.3, gain=0.4)) for each in (AB, AC, AD)}
    found = verdicts(pairs, SignificanceConfig(primary=AB, others=(AC, AD), draws=500))
    raw = [max(each.p_seeds or 0.0, each.p_bootstrap or 0.0) for each in found]
    assert [each.comparison for each in found] == [AB, AC, AD]
    assert [each.is_primary for each in found] == [True, False, False]
    assert [each.p_value for each in found] == pytest.approx([raw[0], *holm(raw[1:])])
    alone = verdicts(pairs, SignificanceConfig(primary=AC, draws=500))[0]
    assert (found[1].detectable or 0.0) > (alone.detectable or 0.0), "one of two must pass half of alpha"


def test_seeds_that_scatter_so_much_that_100_points_would_not_be_shown_have_no_smallest_difference() -> None:
    rows = np.tile(np.arange(100), (3, 1))
    found = verdict(rows < [[32], [55], [66]], rows < [[65], [45], [42]])
    assert (found.difference, found.detectable, found.why_null) == (pytest.approx(1 / 300), None, None)
    assert found.why_undetectable == (
        "with 3 seeds and 100 rows that scatter so much not even a difference of 100 points would have been shown"
    )


def test_two_seeds_are_tested_but_have_no_smallest_difference() -> None:
    right = np.ones((2, 50), dtype=bool)
    found = verdict(right, ~right)
    assert (found.shown, found.detectable) == (True, None)
    assert found.why_undetectable == (
        "two seeds say too little of how students scatter to promise that any difference would have been shown"
    )


@pytest.mark.parametrize(
    ("others", "draws", "needed"),
    [
        (0, 100, None),
        (2, 100, None),
        (3, 118, 119),
        (3, 119, None),
        (3, 120, None),
        (7, 278, 279),
        (7, 279, None),
        (20, 500, 799),
    ],
)
def test_draws_that_could_show_nothing_are_refused(others: int, draws: int, needed: int | None) -> None:
    more = [Comparison(variant="ours", against=f"control {number}") for number in range(others)]
    if needed is None:
        assert SignificanceConfig(primary=AB, others=tuple(more), draws=draws).strictest >= 2 / (draws + 1)
        return
    with pytest.raises(ValueError, match=rf"draws: expected at least {needed}, .* got {draws}"):
        SignificanceConfig(primary=AB, others=tuple(more), draws=draws)


def test_a_power_that_chance_alone_has_is_refused() -> None:
    with pytest.raises(ValueError, match="power: expected more than alpha, which is 0.05, got 0.04"):
        SignificanceConfig(primary=AB, power=0.04)


def test_the_draws_that_are_needed_are_counted_exactly() -> None:
    """2 x 11 / 0.022 is 1000, but as floating-point numbers a hair more."""
    more = tuple(Comparison(variant="ours", against=f"control {number}") for number in range(11))
    assert SignificanceConfig(primary=AB, others=more, alpha=0.022, draws=999).draws == 999
