"""Micro-batches: the budget counts padding, nothing is lost, ties keep their order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.batching import cut, padded_waste_frac

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), max_size=60)


def test_rows_of_like_length_share_a_batch_longest_first() -> None:
    lengths = [(4, 1), (9, 1), (5, 1), (8, 2)]
    assert cut(lengths, budget_tokens=20) == [[1], [3, 2], [0]]
    assert cut(lengths, budget_tokens=22) == [[1, 3], [2, 0]]


def test_the_budget_counts_the_longest_input_and_the_longest_answer_of_a_batch() -> None:
    assert cut([(6, 1), (5, 4)], budget_tokens=20) == [[0, 1]]
    assert cut([(6, 1), (5, 4)], budget_tokens=19) == [[0], [1]]


def test_rows_of_equal_length_keep_their_order() -> None:
    assert cut([(3, 1)] * 5, budget_tokens=8) == [[0, 1], [2, 3], [4]]


def test_a_row_over_the_budget_is_alone() -> None:
    assert cut([(2, 1), (50, 1), (2, 1)], budget_tokens=10) == [[1], [0, 2]]


def test_no_rows_make_no_batches() -> None:
    assert cut([], budget_tokens=10) == []


@given(LENGTHS, st.integers(1, 200))
def test_every_row_is_in_one_batch_and_every_batch_is_within_the_budget(lengths: list[tuple[int, int]], budget: int) -> None:
    batches = cut(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * (max(lengths[i][0] for i in batch) + max(lengths[i][1] for i in batch))
        assert padded <= budget or len(batch) == 1


def test_waste_is_the_padded_share() -> None:
    lengths = [(10, 2), (4, 2), (4, 1)]
    assert padded_waste_frac(lengths, [[0], [1, 2]]) == pytest.approx(1 / 24)
    assert padded_waste_frac(lengths, [[0, 1, 2]]) == pytest.approx(1 - 23 / 36)
    assert padded_waste_frac(lengths, [[0], [1], [2]]) == 0
    assert padded_waste_frac([], []) == 0
