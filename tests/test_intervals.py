"""Intervals of comparisons: zero is outside exactly where a difference is shown, and they cover the true one as often as said."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from kd.evaluation.pairing import Paired
from kd.evaluation.significance import (
    SignificanceConfig,
    Verdict,
    holm,
    holm_levels,
    interval_of,
    p_of,
    passes,
    t_interval,
    t_over_seeds,
    verdicts,
)
from kd.reporting.comparison_table import Comparisons, comparison_table
from tests.test_significance import AB, AC, AD, simulated, verdict


def is_outside(found: Verdict) -> bool:
    """Whether zero is outside the interval."""
    assert found.ci_low is not None
    assert found.ci_high is not None
    return found.ci_low > 0 or found.ci_high < 0


# --- the interval and the verdict say the same --------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_zero_is_outside_the_interval_exactly_where_a_difference_is_shown(seeds: int, gain: float) -> None:
    draw = np.random.default_rng([seeds, int(10 * gain)])
    found = [verdict(*simulated(draw, seeds, 300, 0.15, 0.3, gain), draws=399) for _ in range(60)]
    assert [is_outside(each) for each in found] == [each.shown for each in found]
    assert gain != 0.8 or any(each.shown for each in found)


def test_holms_intervals_agree_with_the_corrected_verdicts_and_say_their_level() -> None:
    draw, decided = np.random.default_rng(6), set()
    for _ in range(60):
        pairs = {each: Paired.of(range(5), *simulated(draw, 5, 300, 0.05, 0.2, gain=0.25)) for each in (AB, AC, AD)}
        primary, *others = verdicts(pairs, SignificanceConfig(primary=AB, others=(AC, AD), draws=399))
        assert primary.level == 0.05
        assert [is_outside(each) for each in (primary, *others)] == [each.shown for each in (primary, *others)]
        decided.add((*sorted(each.level or 0.0 for each in others), sum(each.shown for each in others)))
    # Both shown: the second at alpha. One shown: the other fails at alpha. None: both fail at half of it.
    assert decided == {(0.025, 0.05, 2), (0.025, 0.05, 1), (0.025, 0.025, 0)}


def test_a_p_value_is_at_most_its_level_exactly_where_the_corrected_one_is_at_most_alpha() -> None:
    ties = [0.05 / 3, 0.025, 0.05]
    for values in (*permutations(ties), (0.01, 0.02, 0.06), (0.02, 0.02, 0.02), (0.001, 0.03, 0.04), (0.9, 0.9, 0.001)):
        told = [passes(corrected, 0.05) for corrected in holm(values)]
        assert told == [passes(value, level) for value, level in zip(values, holm_levels(values, 0.05), strict=True)]
    assert holm_levels([0.001, 0.03, 0.04], 0.05) == pytest.approx([0.05 / 3, 0.025, 0.025])
    assert holm_levels([0.04, 0.001, 0.02], 0.05) == pytest.approx([0.05, 0.05 / 3, 0.025])
    assert holm_levels([], 0.05) == []


def test_the_level_of_a_corrected_interval_stands_beside_it_in_the_table() -> None:
    draw = np.random.default_rng(1)
    config = SignificanceConfig(primary=AB, others=(AC, AD), draws=399)
    pairs = {each: Paired.of(range(3), *simulated(draw, 3, 100, 0.1, 0.3)) for each in (AB, AC, AD)}
    table = comparison_table(Comparisons(verdicts(pairs, config), config))
    assert [line[2].endswith(" (97.5 %)") for line in table.rows] == [False, True, True]
    assert "coverage 95.0 %, or what stands beside it, at which Holm's correction decided." in table.notes[-1]


# --- the numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_the_t_interval_is_scipys_and_that_of_its_test(seeds: int) -> None:
    pair = Paired.of(range(seeds), *simulated(np.random.default_rng(seeds), seeds, 150, 0.4, 0.3))
    theirs = stats.ttest_1samp(pair.per_seed, 0.0).confidence_interval(0.9)
    assert t_interval(pair.per_seed, pair.rows, 0.1) == pytest.approx(tuple(theirs))
    edge = t_interval(pair.per_seed, pair.rows, t_over_seeds(pair.per_seed, pair.rows))
    assert min(abs(end) for end in edge) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("level", [0.05, 0.025, 0.05 / 3, 0.1])
@pytest.mark.parametrize("beyond", range(12))
def test_the_bootstraps_interval_turns_where_its_p_value_does(beyond: int, level: float) -> None:
    """Also where p is the level to the last digit: 2 x 5 / 200 is 0.05."""
    means = np.array([-1.0] * beyond + [1.0] * (199 - beyond))
    low, _ = interval_of(means, level)
    assert (low > 0) == passes(p_of(means), level) == (2 * (1 + beyond) / 200 <= level + 1e-9)


def test_two_seeds_that_scatter_have_the_t_intervals_ends_within_what_a_difference_can_be() -> None:
    rows = np.tile(np.arange(100), (2, 1))
    found = verdict(rows < [[44], [55]], rows < [[52], [45]])
    assert (found.ci_low, found.ci_high) == (-1.0, 1.0)
    near = verdict(rows < [[50], [52]], rows < [[40], [41]])
    half = stats.t.isf(0.025, 1) * np.std([0.10, 0.11], ddof=1) / np.sqrt(2)
    assert near.ci_high is not None
    assert near.ci_high >= 0.105 + half - 1e-9


# --- how often it covers ------------------------------------------------------------------------------------------------


def true_difference(gain: float, by_seed: float, by_row: float) -> float:
    """What `simulated` has on average over all seeds and rows: its logits are normal about 0.8 with the variances' sum."""
    if not gain:
        return 0.0
    spread = np.sqrt(1.5**2 + by_seed**2 + by_row**2)
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    means = [weights @ expit(0.8 + more + spread * points) / weights.sum() for more in (gain, 0.0)]
    return float(means[0] - means[1])


def covered(runs: int, draws: int, seeds: int, rows: int, by_seed: float, by_row: float, gain: float) -> int:
    """In how many of so many simulated runs the true difference is inside."""
    draw = np.random.default_rng([seeds, rows, int(100 * by_seed), int(100 * by_row), int(100 * gain)])
    true, inside = true_difference(gain, by_seed, by_row), 0
    for _ in range(runs):
        found = verdict(*simulated(draw, seeds, rows, by_seed, by_row, gain), draws)
        inside += (found.ci_low or 0.0) <= true <= (found.ci_high or 0.0)
    return inside


def least(runs: int) -> int:
    """So many or more runs are covered with a probability of 99.9 %, where each is with one of 95 %."""
    return int(stats.binom.ppf(0.001, runs, 0.95))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_where_students_scatter_the_interval_covers_the_true_difference_in_95_percent_of_runs(seeds: int) -> None:
    assert covered(150, 199, seeds, 300, 0.5, 0.0, 0.6) >= least(150)


@pytest.mark.slow
@pytest.mark.parametrize(("by_row", "gain"), [(0.0, 0.6), (0.7, 0.0)])
@pytest.mark.parametrize("by_seed", [0.0, 0.15, 0.4])
@pytest.mark.parametrize("rows", [100, 500, 2000])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_however_students_and_rows_scatter_it_covers_in_93_percent_of_runs_and_more(
    seeds: int, rows: int, by_seed: float, by_row: float, gain: float
) -> None:
    assert covered(500, 199, seeds, rows, by_seed, by_row, gain) >= 0.93 * 500
