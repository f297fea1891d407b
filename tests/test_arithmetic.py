"""The value of an equation, exactly, and no other thing than an equation."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.tasks.arithmetic import MAX_DEPTH, value_of


@pytest.mark.parametrize(
    ("equation", "value"),
    [
        ("( 84.0 / 2.0 )", 42),
        ("( 10.0 - ( 6.0 + 3.0 ) )", 1),
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("8 / 4 / 2", 1),
        ("8 - 4 - 2", 2),
        ("-3 * -2", 6),
        ("2 - -2", 4),
        ("+5", 5),
        (".5 + 1.", Fraction(3, 2)),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("1 / 3 * 3", 1),
        ("  7 \n", 7),
        ("007", 7),
    ],
)
def test_an_equation_has_its_exact_value(equation: str, value: int | Fraction) -> None:
    assert value_of(equation) == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "()",
            "(1",
            "1)",
            "1 2",
            "1 +",
            "* 2",
            "2 ** 3",
            "2 // 3",
            "1 / 0",
            "1 / (2 - 2)",
            "1e3",
            "1,000",
            "x",
            "1 = 1",
        ),
        *("٣", "1.2.3", "__import__('os')", "(1).real", "9" * 5000),
    ],
)
def test_anything_else_has_no_value(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        value_of(text)


def test_brackets_and_signs_nest_only_so_deep() -> None:
    assert value_of("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH) == 1
    for deep in ("(" * 100_000 + "1" + ")" * 100_000, "-" * 100_000 + "1"):
        with pytest.raises(ValueError, match="deep"):
            value_of(deep)


@given(
    st.recursive(
        st.integers(0, 99).map(str),
        lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map("({0[0]} {0[1]} {0[2]})".format),
        max_leaves=12,
    )
)
def test_whole_number_equations_are_worth_what_python_says(equation: str) -> None:
    assert value_of(equation) == eval(equation)
