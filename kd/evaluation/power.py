"""What a run could have shown: the smallest difference that both tests of significance find with a given probability."""

import numpy as np

LEAST_SEEDS = 3
"""With fewer there is no smallest difference: what two seeds say of their scatter is too small by a factor of ten in every
twelfth run."""
_QUANTILES = 100
"""Of each variance over seeds, over which the chance of being shown is averaged."""


def smallest_detectable(t_error: float, seeds: int, bootstrap_error: float, alpha: float, power: float) -> float | None:
    """The smallest difference that both tests show with this power in another run whose seeds and rows scatter like this one's.

    None with fewer than `LEAST_SEEDS`, and where not even 1, the largest difference, would be.

    What few seeds say of their scatter is itself off by chance, so their variance is not taken as known: the true one is the
    estimate by the ratio of the degrees of freedom, seeds - 1, to a chi-square of as many (its fiducial distribution: Fisher
    1935). What rows add, the rest of the bootstrap's variance, is known. Given both, another run's mean difference is normal,
    and what it estimates of the seeds' variance is, independently of it, the true one by chi-square over its degrees. There a
    difference is shown where the mean is above the higher of two bars: z(1 - alpha/2) times the error by its bootstrap,
    t(1 - alpha/2, seeds - 1) times that by its seeds. The chance of that is a mean over quantiles of both chi-squares. So it
    is a mean over the runs that could have stated the size, too; a run that has estimated its scatter well states more than it
    needs (where only seeds scatter 1.55 times what a noncentral t of the true scatter asks for with 3 seeds, 1.24 times with 5).

    The chance of being shown with the wrong sign is not counted. It is computed from the scatter that a run has, not from its
    difference. Where little but single answers scatter, whose noise the bootstrap takes three times, it is larger than need be.

    Args:
        t_error: the standard error of the mean by the seeds' differences, above zero. bootstrap_error: by the bootstrap.
        alpha: of both tests, two-sided. power: above alpha.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr
    from scipy.stats import chi2, norm, t

    if seeds < LEAST_SEEDS:
        return None
    freedom = seeds - 1
    ratios = np.sqrt(chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, freedom) / freedom)
    by_rows = np.sqrt(max(bootstrap_error**2 - t_error**2, 0.0))  # the seeds' scatter is part of the bootstrap's
    true = t_error / ratios[:, None]
    found = true * ratios
    bars = np.maximum(norm.isf(alpha / 2) * np.hypot(by_rows, found), t.isf(alpha / 2, freedom) * found)

    def shown(size: float) -> float:
        return float(ndtr((size - bars) / np.hypot(by_rows, true)).mean())

    return None if shown(1) < power else float(brentq(lambda size: shown(size) - power, 0, 1))
