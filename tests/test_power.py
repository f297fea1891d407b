"""The smallest difference that a run shows with a given power: closed forms, and the promise kept by run after run."""

import numpy as np
import pytest
from scipy import stats

from kd.evaluation.pairing import Marks
from kd.evaluation.power import smallest_detectable
from tests.test_significance import verdict


@pytest.mark.parametrize("seeds", [3, 5, 10, 30])
@pytest.mark.parametrize(("by_seed", "by_row"), [(0.01, 0.0), (0.01, 0.01), (0.01, 0.03), (0.001, 0.03)])
def test_the_stated_size_is_shown_with_that_power_in_the_mean_over_runs_that_could_have_stated_it(
    seeds: int, by_seed: float, by_row: float
) -> None:
    """By drawing what the tests look at: each run states a size by its own scatter, and another run of that size is tested."""
    draw = np.random.default_rng(seeds)
    stating = by_seed * np.sqrt(draw.chisquare(seeds - 1, 200) / (seeds - 1))
    stated = [smallest_detectable(error, seeds, float(np.hypot(error, by_row)), 0.05, 0.8) for error in stating]
    sizes = np.array([size or 0.0 for size in stated])[:, None]
    errors = by_seed * np.sqrt(draw.chisquare(seeds - 1, (200, 2000)) / (seeds - 1))
    means = draw.normal(sizes, np.hypot(by_seed, by_row), (200, 2000))
    bars = np.maximum(stats.norm.isf(0.025) * np.hypot(errors, by_row), stats.t.isf(0.025, seeds - 1) * errors)
    found = (means > bars).mean(axis=1)
    assert None not in stated
    # What differs between the runs that state a size is their luck; its mean is known to a few standard errors.
    assert 0.79 - 3 * found.std() / np.sqrt(200) <= found.mean() <= 0.9


def test_the_detectable_size_is_that_of_a_known_scatter_where_rows_or_many_seeds_tell_it() -> None:
    # Cohen's tables: 80 % power at 5 %, two-sided, takes 2.80 standard errors where the scatter is known.
    assert smallest_detectable(1e-6, 5, 0.01, 0.05, 0.8) == pytest.approx(0.0280, abs=5e-5)
    assert smallest_detectable(0.01, 10_000, 0.01, 0.05, 0.8) == pytest.approx(0.0280, abs=1e-4)


@pytest.mark.parametrize(("seeds", "times"), [(3, 8.77), (5, 4.68), (10, 3.46)])
def test_where_only_seeds_scatter_it_is_the_mean_power_of_a_noncentral_t(seeds: int, times: float) -> None:
    freedom = seeds - 1
    ratios = np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, freedom) / freedom)
    power = stats.nct.sf(stats.t.isf(0.025, freedom), freedom, times * ratios).mean()
    assert power == pytest.approx(0.8, abs=0.003)
    assert smallest_detectable(0.001, seeds, 0.001, 0.05, 0.8) == pytest.approx(times * 0.001, rel=0.01)


def test_no_difference_is_larger_than_100_points_and_what_would_have_to_be_is_none() -> None:
    assert smallest_detectable(0.12, 3, 0.12, 0.05, 0.8) is None
    assert smallest_detectable(0.11, 3, 0.11, 0.05, 0.8) is not None


def test_two_seeds_promise_nothing() -> None:
    assert smallest_detectable(0.001, 2, 0.01, 0.05, 0.8) is None


# --- run after run ------------------------------------------------------------------------------------------------------


def drawn(
    draw: np.random.Generator, seeds: int, rows: int, scatter: tuple[float, float, bool], gain: float
) -> tuple[Marks, Marks]:
    """Two variants whose accuracies lie about 0.5 and differ by `gain` on average.

    `scatter` is the standard deviation of an accuracy over seeds, that of a row's difference, and whether each answer is drawn by
    itself or all students of both variants share how hard a row is.
    """
    by_seed, by_row, alone = scatter
    hard, marks = draw.random(rows), []
    for more in (gain / 2, -gain / 2):
        shares = 0.5 + more + draw.normal(0, by_seed, (seeds, 1)) + draw.uniform(-1, 1, rows) * np.sqrt(3) * by_row
        marks.append((draw.random((seeds, rows)) if alone else hard) < shares)
    return marks[0], marks[1]


def kept(runs: int, seeds: int, rows: int, scatter: tuple[float, float, bool]) -> tuple[int, int]:
    """How many of so many runs state a size, and how many other runs of the sizes that they state show it."""
    draw, stated, shown = np.random.default_rng([seeds, rows, *(int(1000 * each) for each in scatter)]), 0, 0
    for _ in range(runs):
        size = verdict(*drawn(draw, seeds, rows, scatter, 0.0), draws=399).detectable
        if size is not None:
            stated += 1
            shown += verdict(*drawn(draw, seeds, rows, scatter, size), draws=399).shown
    return stated, shown


def test_runs_of_the_stated_size_show_it_as_often_as_promised() -> None:
    stated, shown = kept(150, 3, 400, (0.015, 0.05, True))
    assert stated == 150
    assert stats.binom.ppf(0.001, stated, 0.8) <= shown < stated


@pytest.mark.slow
@pytest.mark.parametrize("scatter", [(0.0, 0.0, True), (0.015, 0.05, True), (0.02, 0.1, False), (0.03, 0.0, False)])
@pytest.mark.parametrize("rows", [200, 1000])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_however_students_and_rows_scatter_the_promise_is_kept(seeds: int, rows: int, scatter: tuple[float, float, bool]) -> None:
    stated, shown = kept(500, seeds, rows, scatter)
    assert stated >= 495
    assert stats.binom.ppf(0.001, stated, 0.8) <= shown <= 0.95 * stated
