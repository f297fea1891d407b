"""Is the gain real? Two tests of one difference in accuracy, both of which must say so.

Seeds and rows are crossed: every student of a variant answers the same rows, and the students of one seed saw the same data in
the same order. What differs by chance is the student (another seed) and the test split (other rows).

- Paired t over seeds: is the mean of the seeds' differences further from zero than the seeds' scatter explains? It is
  right for few seeds, but knows nothing of the rows, which all seeds share.
- Hierarchical bootstrap over seeds and rows (the pigeonhole bootstrap of crossed factors: Owen 2007, Ann. Appl. Stat. 1,
  386): seeds and rows are drawn anew, independently, and the difference is taken again. It knows both, but underrates the
  scatter of a handful of seeds; so the draws of seeds are spread by sqrt(S/(S-1)), which makes their variance that of the
  unbiased estimate.

A difference is *shown* where both p-values are at most alpha: the joint p-value is the larger one (intersection-union test).
One primary comparison is declared before the run; the p-values of the others are corrected by Holm (1979).

The interval is that of the joint test turned round: at each end the wider of the t interval and the bootstrap's, at the level
at which the comparison was tested. So it leaves out zero exactly where a difference is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt

import numpy as np
from pydantic import Field, model_validator

from kd.evaluation.metric_names import Metric
from kd.evaluation.metrics import About, Interval
from kd.evaluation.pairing import Floats, Paired
from kd.evaluation.power import LEAST_SEEDS, smallest_detectable
from kd.frozen import Frozen
from kd.portions import exact
from kd.rows import MetricRow

_PATTERNS_AT_ONCE = 1_000_000
_ROUNDING = 1e-12
"""What products of probabilities may be off by: a p-value that is alpha but for this is alpha."""

DIFFERENCE = Metric(
    "accuracy_difference",
    -1,
    1,
    True,
    "rows",
    "accuracy less that of `against`, over the seeds that both have; its interval is at the level at which it was tested",
    "by definition",
)
DETECTABLE = Metric(
    "accuracy_detectable", 0, 1, False, "rows", "smallest such difference that would have been shown", "kd/evaluation/power.py"
)
COMPARED = (DIFFERENCE, DETECTABLE)
"""What is said of a comparison."""


class Comparison(Frozen):
    """Two variants: is the first one better?"""

    variant: str
    """The variant that is hoped to be better."""
    against: str
    """The one that it is compared with."""

    @model_validator(mode="after")
    def _two_of_them(self) -> "Comparison":
        if self.variant == self.against:
            raise ValueError(f"expected two variants, got {self.variant!r} against itself")
        return self


class SignificanceConfig(Frozen):
    """Which differences are tested, and how strictly."""

    primary: Comparison
    """The one comparison that the run is about, declared before it. It alone is not corrected."""
    others: tuple[Comparison, ...] = ()
    """Further comparisons; their p-values are corrected for their number (Holm)."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """A difference is shown where both tests have a p-value of at most this, after correction."""
    power: float = Field(default=0.8, gt=0, lt=1)
    """The probability with which a difference of the reported smallest size would have been shown."""
    draws: int = Field(default=10_000, ge=100)
    """Draws of the bootstrap. The smallest p-value is 2 / (draws + 1): enough of them for it to be shown when corrected."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap; each comparison draws from this and its names."""

    @model_validator(mode="after")
    def _something_can_be_shown(self) -> "SignificanceConfig":
        needed = ceil(2 * self._corrected / exact(self.alpha) - 1)
        if self.draws < needed:
            raise ValueError(
                f"draws: expected at least {needed:,}, with which the least p-value, 2 / (draws + 1), is small enough to show a"
                f" difference at alpha {self.alpha:g} after correction; got {self.draws:,}"
            )
        if self.power <= self.alpha:
            raise ValueError(f"power: expected more than alpha, which is {self.alpha:g}, got {self.power:g}")
        return self

    @property
    def strictest(self) -> float:
        """The p-value that the first of the others must have to be shown: the least of m corrected ones must pass alpha / m."""
        return self.alpha / self._corrected

    @property
    def _corrected(self) -> int:
        """For how many comparisons p-values are corrected, at most."""
        return max(1, len(self.comparisons) - 1)

    @property
    def comparisons(self) -> list[Comparison]:
        """All of them, the primary first, none twice."""
        return list(dict.fromkeys([self.primary, *self.others]))


@dataclass(frozen=True)
class Verdict:
    """What a run says about one comparison. All differences are in accuracy, the variant's less the other's.

    Args:
        alpha: of both tests. difference: mean over seeds and rows. ci_low, ci_high: its interval, of coverage 1 - level or more;
            zero is outside exactly where a difference is shown. level: alpha; where p-values are corrected, the share of
            alpha at which Holm's procedure decided this one (`holm_levels`).
        p_seeds, p_bootstrap: of the two tests, two-sided. p_value: the larger of both, corrected where it is not the primary
            comparison. detectable: the smallest difference, of either sign, that a run like this one shows with the configured
            power (`smallest_detectable`); None where there is no test, with two seeds, and where that is more than a difference
            can be, 1.
        seeds, rows: how many were compared; left_out: rows without a mark in one of the two. why_null: why there is no
            test, or no difference at all; None where there is one.
    """

    comparison: Comparison
    is_primary: bool
    alpha: float
    seeds: int
    rows: int
    left_out: int
    why_null: str | None = None
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    level: float | None = None
    p_seeds: float | None = None
    p_bootstrap: float | None = None
    p_value: float | None = None
    detectable: float | None = None

    @property
    def shown(self) -> bool:
        """Whether both tests have a p-value of at most alpha, after correction."""
        return self.p_value is not None and passes(self.p_value, self.alpha)

    @property
    def in_words(self) -> str:
        """The verdict as a reader should take it."""
        if self.p_value is None:
            return f"not tested: {self.why_null}"
        if not self.shown:
            return "no difference shown"
        return "better" if (self.difference or 0.0) > 0 else "worse"

    @property
    def why_undetectable(self) -> str | None:
        """Why `detectable` is None; None where there is one."""
        if self.detectable is not None:
            return None
        if self.why_null is None and self.seeds < LEAST_SEEDS:
            return "two seeds say too little of how students scatter to promise that any difference would have been shown"
        scatter = f"{self.seeds} seeds and {self.rows:,} rows that scatter so much"
        return self.why_null or f"with {scatter} not even a difference of 100 points would have been shown"

    def metrics(self, task: str, split: str) -> list[MetricRow]:
        """Difference with interval and p-value, and the smallest one that would have been shown; null where not tested."""
        about = About("student", "evaluate", self.comparison.variant, None, task, split)
        interval = None if self.ci_low is None or self.ci_high is None else (self.ci_low, self.ci_high)
        rows = [about.row(DIFFERENCE, self.difference, self.rows, interval), about.row(DETECTABLE, self.detectable, self.rows)]
        p_values = (self.p_value, None)
        return [replace(row, against=self.comparison.against, p_value=p) for row, p in zip(rows, p_values, strict=True)]


def verdicts(found: Mapping[Comparison, Paired], config: SignificanceConfig) -> list[Verdict]:
    """One verdict per comparison of the config, the primary first; null with the reason for those that cannot be tested.

    Args:
        found: for each comparison the sums over all shards; a variant without predictions is in none.
    """
    tested = {each: _tested(found.get(each, Paired((), {})), each, config) for each in config.comparisons}
    others = {each: verdict.p_value for each, (verdict, _) in tested.items() if not verdict.is_primary}
    p_values = {each: p_value for each, p_value in others.items() if p_value is not None}
    pairs = zip(holm(list(p_values.values())), holm_levels(list(p_values.values()), config.alpha), strict=True)
    corrected = dict(zip(p_values, pairs, strict=True))
    return [
        _decided(verdict, scatter, *corrected.get(each, (verdict.p_value, config.alpha)))
        for each, (verdict, scatter) in tested.items()
    ]


def passes(p_value: float, alpha: float) -> bool:
    """Whether a p-value is at most alpha, whichever way their last digit was rounded."""
    return p_value <= alpha + _ROUNDING


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down procedure (1979), in the order given."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        corrected[index] = largest
    return corrected


def holm_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level at which Holm's procedure decides each of these, in the order given.

    It is alpha / m for the least of m p-values, alpha / (m - 1) for the next, and so on up to the first that does not pass; the
    larger ones fail with that one, at its level. So a p-value is at most its level exactly where the corrected one is at most
    alpha, and an interval at that level, wider than one at alpha, agrees with the verdict.
    """
    levels, level, failed = [0.0] * len(p_values), alpha, False
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if not failed:
            level = alpha / (len(p_values) - step)
            failed = not passes(p_values[index], level)
        levels[index] = level
    return levels


# --- the two tests ------------------------------------------------------------------------------------------------------


def standard_error(per_seed: Floats, rows: int) -> float:
    """Of the mean difference over seeds.

    Accuracies are counted in whole rows, so equal differences do not mean that seeds do not scatter: their standard
    deviation is at least what rounding to a row leaves, 1 / (rows sqrt(12)).
    """
    return max(float(per_seed.std(ddof=1)), 1 / (rows * sqrt(12))) / sqrt(len(per_seed))


def t_over_seeds(per_seed: Floats, rows: int) -> float:
    """Two-sided p-value of the paired t test that the seeds' differences scatter around zero (Student 1908)."""
    from scipy.stats import t

    return float(2 * t.sf(abs(float(per_seed.mean())) / standard_error(per_seed, rows), len(per_seed) - 1))


def t_interval(per_seed: Floats, rows: int, level: float) -> Interval:
    """The differences that `t_over_seeds` does not reject at this level."""
    from scipy.stats import t

    mean, half = float(per_seed.mean()), float(t.isf(level / 2, len(per_seed) - 1)) * standard_error(per_seed, rows)
    return mean - half, mean + half


def bootstrap(paired: Paired, draws: int, rng: np.random.Generator) -> Floats:
    """Mean differences of so many drawn sets of seeds and rows. There must be two seeds and a row."""
    seeds, rows = len(paired.seeds), paired.rows
    # In one order, whichever shard came first.
    ordered = sorted(paired.patterns.items())
    patterns = np.array([pattern for pattern, _ in ordered], dtype=np.float64)
    shares = np.array([count for _, count in ordered]) / rows
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
    weights = 1 + sqrt(seeds / (seeds - 1)) * (drawn - 1)
    means = np.empty(draws)
    step = max(1, _PATTERNS_AT_ONCE // len(patterns))
    for start in range(0, draws, step):
        some = slice(start, min(start + step, draws))
        counts = rng.multinomial(rows, shares, size=some.stop - start)
        means[some] = ((counts @ patterns) * weights[some]).sum(axis=1) / (seeds * rows)
    return means


def p_of(means: Floats) -> float:
    """Two-sided p-value of a bootstrap: twice the share of draws on zero or beyond it (Davison and Hinkley 1997)."""
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (1 + beyond) / (len(means) + 1))


def interval_of(means: Floats, level: float) -> Interval:
    """The percentile interval whose ends are on one side of zero exactly where `p_of` is at most the level.

    Its ends are the k-th draws from either side, k the largest with 2k / (draws + 1) of at most the level. There must be draws
    enough for k to be 1.
    """
    place = int((level + _ROUNDING) * (len(means) + 1) / 2)
    ordered = np.sort(means)
    return float(ordered[place - 1]), float(ordered[-place])


# --- one comparison -----------------------------------------------------------------------------------------------------


_Scatter = tuple[Floats, Floats]
"""The difference of each seed, and the bootstrap's mean differences."""


def _tested(paired: Paired, comparison: Comparison, config: SignificanceConfig) -> tuple[Verdict, _Scatter | None]:
    """The verdict, its p-value not corrected and its interval not made yet, and what that is made from."""
    is_primary = comparison == config.primary
    verdict = Verdict(comparison, is_primary, config.alpha, len(paired.seeds), paired.rows, paired.left_out)
    if not paired.seeds:
        return replace(verdict, why_null=f"{comparison.variant} and {comparison.against} have no seed in common"), None
    if not paired.rows:
        reason = f"no row has a mark in both; {paired.left_out:,} have an error or no label"
        return replace(verdict, why_null=reason if paired.left_out else "no row was answered: the split is empty"), None
    per_seed = paired.per_seed
    verdict = replace(verdict, difference=float(per_seed.mean()))
    if len(per_seed) == 1:
        return replace(verdict, why_null="one seed says nothing about how students scatter; train two or more"), None
    rng = np.random.default_rng([config.seed, *f"{comparison.variant}/{comparison.against}".encode()])
    means = bootstrap(paired, config.draws, rng)
    p_seeds, p_bootstrap, t_error = t_over_seeds(per_seed, paired.rows), p_of(means), standard_error(per_seed, paired.rows)
    alpha, error = config.alpha if is_primary else config.strictest, float(means.std(ddof=1))
    detectable = smallest_detectable(t_error, len(per_seed), error, alpha, config.power)
    p_value = max(p_seeds, p_bootstrap)
    tested = replace(verdict, p_seeds=p_seeds, p_bootstrap=p_bootstrap, p_value=p_value, detectable=detectable)
    return tested, (per_seed, means)


def _decided(verdict: Verdict, scatter: _Scatter | None, p_value: float | None, level: float) -> Verdict:
    """The verdict by its corrected p-value, with the interval at the level at which it was decided."""
    if scatter is None:
        return verdict
    per_seed, means = scatter
    (t_low, t_high), (low, high) = t_interval(per_seed, verdict.rows, level), interval_of(means, level)
    ends = max(-1.0, min(t_low, low)), min(1.0, max(t_high, high))
    return replace(verdict, p_value=p_value, level=level, ci_low=ends[0], ci_high=ends[1])
