"""Which row comes when is a pure function of (seed, epoch, row number)."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.training.order import Order

SHARDS = st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(sum)
SIZES = {
    "shard_rows": SHARDS,
    "batch_rows": st.integers(1, 12),
    "window_shards": st.integers(1, 8),
    "seed": st.integers(0, 2**40),
}


def stream(order: Order, batches: int) -> list[int]:
    return np.concatenate([order.rows_of_batch(batch) for batch in range(batches)]).tolist()


def epochs(order: Order, count: int) -> list[list[int]]:
    rows = stream(order, -(-order.rows * count // order.batch_rows))
    return [rows[epoch * order.rows : (epoch + 1) * order.rows] for epoch in range(count)]


@given(**SIZES)
def test_every_row_comes_exactly_once_per_epoch(shard_rows: list[int], batch_rows: int, window_shards: int, seed: int) -> None:
    order = Order(shard_rows, batch_rows, window_shards, seed)
    for epoch in epochs(order, 3):
        assert sorted(epoch) == list(range(sum(shard_rows)))


@given(**SIZES, batch=st.integers(0, 30))
def test_a_batch_is_the_same_whatever_was_asked_before(
    shard_rows: list[int], batch_rows: int, window_shards: int, seed: int, batch: int
) -> None:
    used, fresh = Order(shard_rows, batch_rows, window_shards, seed), Order(shard_rows, batch_rows, window_shards, seed)
    stream(used, 5)
    assert used.rows_of_batch(batch).tolist() == fresh.rows_of_batch(batch).tolist()
    assert len(fresh.rows_of_batch(batch)) == batch_rows


@given(**SIZES, other=st.integers(1, 12))
def test_the_batch_size_cuts_one_sequence(
    shard_rows: list[int], batch_rows: int, window_shards: int, seed: int, other: int
) -> None:
    one, two = Order(shard_rows, batch_rows, window_shards, seed), Order(shard_rows, other, window_shards, seed)
    both = min(12 * batch_rows, 12 * other)
    assert stream(one, 12)[:both] == stream(two, 12)[:both]


def test_a_window_holds_the_rows_of_its_shards_only() -> None:
    shard_of = np.repeat(range(6), 10)
    rows = epochs(Order([10] * 6, 7, 2, seed=3), 1)[0]
    for start in (0, 20, 40):
        assert len(set(shard_of[rows[start : start + 20]])) == 2


def test_windows_are_shuffled_and_so_are_the_shards_of_every_epoch() -> None:
    first, second = epochs(Order([50] * 4, 10, 2, seed=0), 2)
    assert first != second
    assert {row // 50 for row in first[:100]} != {row // 50 for row in second[:100]}
    assert first[:100] != sorted(first[:100])


def test_seeds_differ() -> None:
    assert epochs(Order([100], 10, 1, seed=0), 1) != epochs(Order([100], 10, 1, seed=1), 1)


def test_the_order_is_pinned() -> None:
    # Checkpoints and comparisons between variants hang on it: if this changes, say so in CHANGELOG.md.
    assert epochs(Order([3, 4, 3], 5, 2, seed=7), 1) == [[2, 7, 8, 1, 0, 9, 5, 6, 3, 4]]


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Order([0, 0], 4, 1, seed=0)


def test_memory_holds_one_window_of_a_large_corpus() -> None:
    order = Order([10_000] * 10_000, 64, 2, seed=0)
    tracemalloc.start()
    rows = order.rows_of_batch(10**6)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(rows.tolist())) == 64
    assert peak_bytes < 4_000_000  # 10^8 row numbers would be 800 MB
