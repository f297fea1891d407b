"""Shares of a count, as a config writes them: decimal numbers, which floating-point ones miss by a hair."""

from fractions import Fraction
from math import ceil


def exact(share: float) -> Fraction:
    """The decimal number that a config has: 14/100 of 0.14, where the floating-point number is a hair above it."""
    return Fraction(str(share))


def portion(share: float, count: int) -> int:
    """How many of a count a share of it is, rounded up. 0.14 of 50 is 7, though 0.14 * 50 is a hair above."""
    return ceil(exact(share) * count)
