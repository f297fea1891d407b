"""What a run could have shown: the smallest difference that both tests of significance find with a given probability."""

import numpy as np

_QUANTILES = 2000
"""Of the seeds' variance, over which the chance of being shown is averaged."""


def smallest_detectable(t_error: float, seeds: int, bootstrap_error: float, alpha: float, power: float) -> float | None:
    """The smallest true difference that both tests would show with this power; None where not even 1, the largest, would be.

    Let the mean difference be normal with the bootstrap's standard error, and the variance over seeds, independently of it, that
    of a normal sample: chi-square with seeds - 1 degrees of freedom. A difference is shown where the mean is above the higher of
    two bars, z(1 - alpha/2) times the former error and t(1 - alpha/2, seeds - 1) times the latter as it happens to come out, so
    the chance of that is a mean over quantiles of chi-square. (The larger of two sizes, one for each test as in Bloom 1995,
    Evaluation Review 19, 547, would not do: both must pass, and all seeds share the rows, so that the mean scatters more than
    seeds do.)

    The chance of being shown with the wrong sign is not counted. It is computed from the scatter that a run has, not from its
    difference. Where little but single answers scatter, whose noise the bootstrap takes three times, it is larger than need be.

    Args:
        t_error: the standard error of the mean by the seeds' differences, above nought. bootstrap_error: by the bootstrap.
        alpha: of both tests, two-sided. power: above alpha.
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm, t

    freedom, error = seeds - 1, max(bootstrap_error, t_error)  # the seeds' scatter is part of the bootstrap's
    spread = chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, freedom) / freedom
    bars = np.maximum(norm.isf(alpha / 2) * error, t.isf(alpha / 2, freedom) * t_error * np.sqrt(spread))

    def shown(size: float) -> float:
        return float(norm.sf((bars - size) / error).mean())

    return None if shown(1) < power else float(brentq(lambda size: shown(size) - power, 0, 1))
