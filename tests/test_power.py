"""The smallest difference that a run would have shown: closed forms, and the same by drawing what the two tests look at."""

import numpy as np
import pytest
from scipy import stats

from kd.evaluation.power import smallest_detectable


@pytest.mark.parametrize("seeds", [2, 3, 5, 30])
@pytest.mark.parametrize(("by_seed", "by_row"), [(0.0, 0.01), (0.01, 0.0), (0.01, 0.01), (0.01, 0.05)])
def test_a_difference_of_the_detectable_size_passes_both_tests_with_that_power(seeds: int, by_seed: float, by_row: float) -> None:
    """By drawing the means and the seeds' variances: `by_seed` is the standard error over seeds, `by_row` that of the rows."""
    draw, error = np.random.default_rng(seeds), np.hypot(by_seed, by_row)
    size = smallest_detectable(by_seed, seeds, error, 0.05, 0.8)
    assert size is not None
    means = draw.normal(size, error, 200_000)
    t_errors = by_seed * np.sqrt(draw.chisquare(seeds - 1, 200_000) / (seeds - 1))
    found = (means > stats.norm.isf(0.025) * error) & (means > stats.t.isf(0.025, seeds - 1) * t_errors)
    assert found.mean() == pytest.approx(0.8, abs=0.005)


def test_the_detectable_size_is_the_bootstraps_where_seeds_do_not_scatter_and_more_where_both_tests_must_pass() -> None:
    # Cohen's tables: 80 % power at 5 %, two-sided, takes 2.80 standard errors where the scatter is known.
    assert smallest_detectable(0.0, 5, 0.01, 0.05, 0.8) == pytest.approx(0.0280, abs=5e-5)
    assert smallest_detectable(0.01, 10_000, 0.01, 0.05, 0.8) == pytest.approx(0.0280, abs=1e-4)
    both = smallest_detectable(0.01, 5, 0.01, 0.05, 0.8)
    assert both is not None
    # t alone, of 4 degrees of freedom, takes 3.78 of them (a noncentral t).
    assert stats.nct.isf(0.8, 4, both / 0.01) > stats.t.isf(0.025, 4)


def test_no_difference_is_larger_than_100_points_and_what_would_have_to_be_is_none() -> None:
    assert smallest_detectable(0.0915, 2, 0.0915, 0.05, 0.8) is None
    assert smallest_detectable(0.05, 2, 0.05, 0.05, 0.8) is not None
