"""Micro-batches: the budget counts padding, nothing is lost, ties keep their order, what does not fit is halved."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd.batching import MicroBatches, _windows, cut, padding_frac
from kd.errors import RowFault
from kd.rows import Example, RowError, Segment
from tests import tiny

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), max_size=60)


def test_rows_of_like_size_share_a_batch_and_the_largest_batch_comes_first() -> None:
    assert cut([(4, 1), (9, 1), (5, 1), (8, 1)], budget_tokens=20) == [[1, 3], [0, 2]]


def test_a_group_is_divided_where_it_saves_most_by_input_or_by_answer() -> None:
    assert cut([(9, 1), (9, 8), (8, 1), (8, 8)], budget_tokens=40) == [[1, 3], [0, 2]]
    assert cut([(30, 2), (4, 1), (30, 1), (4, 2)], budget_tokens=64) == [[0, 2], [1, 3]]


def test_the_budget_counts_the_longest_input_and_the_longest_answer_of_a_batch() -> None:
    assert cut([(6, 1), (5, 4)], budget_tokens=20) == [[0, 1]]
    assert cut([(6, 1), (5, 4)], budget_tokens=19) == [[1], [0]]


def test_rows_of_equal_size_keep_their_order() -> None:
    assert sorted(cut([(3, 1)] * 5, budget_tokens=8)) in ([[0, 1], [2, 3], [4]], [[0], [1, 2], [3, 4]], [[0, 1], [2], [3, 4]])


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
    assert padding_frac(lengths, [[0], [1, 2]]) == pytest.approx(1 / 24)
    assert padding_frac(lengths, [[0, 1, 2]]) == pytest.approx(1 - 23 / 36)
    assert padding_frac(lengths, [[0], [1], [2]]) == 0
    assert padding_frac([], []) == 0


# --- through a model --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A row whose text is as many letters as it has tokens."""

    row: Example

    @property
    def size(self) -> tuple[int, int]:
        return len(self.row.segments[0].text), 1


def rows_of(*tokens: int) -> list[Example]:
    return [tiny.example(uid=str(place), segments=[Segment("text", "x" * n)]) for place, n in enumerate(tokens)]


def prepare(rows: Sequence[Example]) -> list[Item | RowFault]:
    return [Item(row) if row.segments[0].text else RowFault("empty_text", "nothing") for row in rows]


class Model:
    """Takes at most so many padded tokens at once; more is out of memory, as torch says it."""

    def __init__(self, memory_tokens: int, error: Exception | None = None) -> None:
        self.memory_tokens, self.error = memory_tokens, error or torch.OutOfMemoryError("CUDA out of memory")
        self.batches: list[list[int]] = []

    def __call__(self, items: list[Item]) -> list[str]:
        self.batches.append([item.size[0] for item in items])
        if len(items) * max(sum(item.size) for item in items) > self.memory_tokens:
            raise self.error
        return [f"row {item.row.uid}" for item in items]


def test_results_come_in_the_order_of_the_rows_and_faults_stay_in_their_place() -> None:
    model, tally = Model(1000), Counter[str]()
    found = MicroBatches(12).run(rows_of(2, 5, 0, 3), prepare, model, tally)
    assert found == ["row 0", "row 1", RowError("empty_text", "nothing"), "row 3"]
    assert model.batches == [[3, 2], [5]]
    assert tally == {"tokens": 6 + 4 + 3, "padding_tokens": 1}


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    ),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: f"{type(error).__name__}: {error!s:.50}")
def test_a_batch_that_does_not_fit_is_halved_and_the_budget_found_is_kept(error: Exception) -> None:
    model, batches = Model(20, error), MicroBatches(80)
    assert batches.run(rows_of(*[9] * 8), prepare, model, Counter()) == [f"row {place}" for place in range(8)]
    assert [len(batch) for batch in model.batches] == [8, 4, 2, 2, 2, 2]
    assert batches.budget_tokens == 20
    batches.run(rows_of(*[9] * 4), prepare, model, Counter())
    assert [len(batch) for batch in model.batches[6:]] == [2, 2]


def test_a_row_that_does_not_fit_alone_is_an_error_and_the_others_go_on() -> None:
    model = Model(20)
    found = MicroBatches(40).run(rows_of(4, 30, 9), prepare, model, Counter())
    assert found == [
        "row 0",
        RowError("out_of_memory", "30 input and 1 answer tokens do not fit into memory, even alone"),
        "row 2",
    ]


class Filling:
    """Fills the budget with versions of its rows, as methods do that look at many; more than fits is out of memory."""

    def __init__(self, batches: MicroBatches, memory_tokens: int) -> None:
        self.batches, self.memory_tokens = batches, memory_tokens
        self.asked: list[int] = []

    def __call__(self, items: list[Item]) -> list[str]:
        width = max(sum(item.size) for item in items)
        self.asked.append(max(len(items), self.batches.budget_tokens // width))
        if self.asked[-1] * width > self.memory_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [f"row {item.row.uid}" for item in items]


@pytest.mark.parametrize(
    ("rows", "memory_tokens", "versions", "budget"),
    [
        (1, 300, [80, 40, 20, 10, 5, 2], 250),
        (5, 4000, [80, 40], 4000),
        (5, 500, [80, 40, 20, 10, 5], 500),
        (5, 250, [80, 40, 20, 10, 5, 2, 2, 2], 250),
        (1, 99, [80, 40, 20, 10, 5, 2, 1, 1], 100),
    ],
)
def test_a_budget_over_the_tokens_of_a_batch_is_halved_before_the_batch_is(
    rows: int, memory_tokens: int, versions: list[int], budget: int
) -> None:
    batches = MicroBatches(8000)
    model = Filling(batches, memory_tokens)
    found = batches.run(rows_of(*[99] * rows), prepare, model, Counter())
    assert [isinstance(one, RowError) for one in found] == [memory_tokens < 100] * rows
    assert (model.asked, batches.budget_tokens) == (versions, budget)


def test_another_error_of_the_model_is_not_taken_for_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        MicroBatches(10).run(rows_of(30), prepare, Model(1, RuntimeError("shapes do not match")), Counter())


def test_an_error_while_tokenising_that_is_no_row_s_fault_reaches_the_caller() -> None:
    def fail(rows: Sequence[Example]) -> list[Item]:
        raise KeyError(rows[0].uid)

    with pytest.raises(KeyError):
        MicroBatches(10).run(rows_of(3), fail, Model(100), Counter())


def test_the_next_window_is_tokenised_while_the_model_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd.batching.FIRST_ROWS", 1)
    second_window = threading.Event()

    def prepare_and_tell(rows: Sequence[Example]) -> list[Item | RowFault]:
        if rows[0].uid == "1":
            second_window.set()
        return prepare(rows)

    def work(items: list[Item]) -> list[bool]:
        return [second_window.wait(5)] * len(items)

    assert MicroBatches(10).run(rows_of(5, 4, 3), prepare_and_tell, work, Counter()) == [True, True, True]


@pytest.mark.parametrize(("rows", "windows"), [(0, [0]), (1, [1]), (512, [512]), (513, [256, 257]), (9000, [256, 8192, 552])])
def test_rows_are_tokenised_in_windows_and_the_first_is_small(rows: int, windows: list[int]) -> None:
    tokenised: list[list[int]] = []

    def prepare_and_note(window: Sequence[Example]) -> list[Item | RowFault]:
        tokenised.append([len(row.segments[0].text) for row in window])
        return prepare(window)

    found = MicroBatches(10**8).run(rows_of(*range(1, rows + 1)), prepare_and_note, Model(10**9), Counter())
    assert len(found) == rows
    assert list(map(len, tokenised)) == windows
    assert all(window == sorted(window, reverse=True) for window in tokenised)


def test_the_rows_of_the_first_window_are_the_ones_most_alike() -> None:
    lengths = [*range(0, 600, 2), *[700] * 200, *range(1000, 1600, 2)]
    first, others = _windows(lengths)
    assert [lengths[place] for place in first] == [700] * 200 + list(range(598, 486, -2))
    assert sorted(first + others) == list(range(800))
