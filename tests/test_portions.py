"""Shares of a count are those of the decimal number in the config."""

from decimal import ROUND_CEILING, Decimal

import pytest

from kd.errors import StageError
from kd.portions import portion
from kd.rationales import Fraction
from kd.shards import check_errors


def test_a_share_is_rounded_up() -> None:
    assert [portion(0.01, 4), portion(0.5, 4), portion(0.5, 5), portion(1.0, 5), portion(0.1, 30)] == [1, 2, 3, 5, 3]


def test_what_is_a_whole_number_in_decimals_is_not_rounded_up() -> None:
    """0.14 * 50 is 7.000000000000001."""
    assert Fraction(frac=0.14).count([1.0] * 50) == portion(0.14, 50) == 7


def test_every_percentage_of_every_count_is_that_of_decimal_arithmetic() -> None:
    for percent in range(1, 101):
        for count in range(200):
            whole = (Decimal(percent) / 100 * count).to_integral_value(ROUND_CEILING)
            assert portion(percent / 100, count) == Fraction(frac=percent / 100).count([1.0] * count) == whole


def test_as_many_errors_as_the_share_allows_are_no_more_than_it() -> None:
    """0.29 * 100 is 28.999999999999996."""
    counted = {"stage": "attribute", "rows": 100, "counts": {}}
    check_errors(counted | {"errors": {"too_long": 29}}, 0.29, "max_error_frac", "there", iter(()))
    with pytest.raises(StageError, match="30 of 100 rows got an error"):
        check_errors(counted | {"errors": {"too_long": 30}}, 0.29, "max_error_frac", "there", iter(()))
