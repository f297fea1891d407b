"""Which budget of tokens to suggest for the micro-batches of attribution: the fastest measured, else one by the rows' lengths."""

from collections.abc import Mapping, Sequence

from kd.batching import cut, padding_frac
from kd.planning.plan import ROWS_TOGETHER, BatchPlan

GAIN = 1.1
"""Another budget than the configured one must be so many times as fast: less is within what measuring again changes."""
LARGEST_TOKENS = 16_384
"""The largest budget that is suggested from lengths alone. So many tokens occupy any device; more cost memory."""
PADDING_FRAC = 0.05
"""More padding than this speaks for a smaller budget."""


def suggested_batches(sizes: Sequence[tuple[int, int]], configured: int, rows_per_s: Mapping[int, float]) -> BatchPlan:
    """The micro-batches to suggest for the rows of a shard.

    Args:
        sizes: input and answer tokens of each row.
        rows_per_s: what a probe measured with some budgets, the configured one among them; empty where it did not.
    """
    budget = fastest(configured, rows_per_s) if rows_per_s else by_lengths(sizes, configured)
    found = cut(sizes, budget)
    return BatchPlan(configured, budget, padding_frac(sizes, found), len(sizes) / len(found), rows_per_s)


def fastest(configured: int, rows_per_s: Mapping[int, float]) -> int:
    """The budget with which most rows are explained; the configured one where that is hardly faster."""
    best = max(rows_per_s, key=lambda budget: rows_per_s[budget])
    return best if rows_per_s[best] >= GAIN * rows_per_s[configured] else configured


def by_lengths(sizes: Sequence[tuple[int, int]], configured: int) -> int:
    """The configured budget, doubled while batches have too few rows, or halved where that saves padding and leaves enough."""
    budget, enough = configured, min(ROWS_TOGETHER, len(sizes))
    while _rows(sizes, budget) < enough and 2 * budget <= LARGEST_TOKENS:
        budget *= 2
    smaller = [budget]
    while _rows(sizes, smaller[-1] // 2) >= ROWS_TOGETHER:
        smaller.append(smaller[-1] // 2)
    padding = {tokens: padding_frac(sizes, cut(sizes, tokens)) for tokens in smaller}
    return next(
        (tokens for tokens in smaller if padding[tokens] <= PADDING_FRAC), min(smaller, key=lambda tokens: padding[tokens])
    )


def _rows(sizes: Sequence[tuple[int, int]], budget: int) -> float:
    """Rows of a micro-batch, on average."""
    return len(sizes) / len(cut(sizes, budget))
