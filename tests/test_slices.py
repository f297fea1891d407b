"""Which rows a sample is made of: some of each of evenly spaced shards, so that a sorted corpus has all its labels in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.slices import SPREAD_OVER, spread_rows
from kd.manifests import Shard


def shards(*sizes: int) -> list[Shard]:
    return [Shard(f"train-{number}", "train", size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "rows", "taken"),
    [
        ((20, 20, 10), None, {0: 20, 1: 20, 2: 10}),
        ((20, 20, 10), 99, {0: 20, 1: 20, 2: 10}),
        ((20, 20, 10), 10, {0: 3, 1: 4, 2: 3}),
        ((20, 20, 10), 1, {0: 1}),
        ((20, 20, 10), 2, {0: 1, 1: 1}),
        ((20, 0, 10), 4, {0: 2, 2: 2}),
        ((20, 1, 20), 9, {0: 4, 1: 1, 2: 4}),  # what a small shard lacks, larger ones have
        ((20, 20, 1), 41, {0: 20, 1: 20, 2: 1}),
        ((), 5, {}),
    ],
)
def test_a_sample_has_as_many_rows_of_each_shard(sizes: tuple[int, ...], rows: int | None, taken: dict[int, int]) -> None:
    assert spread_rows(shards(*sizes), rows) == [Shard(f"train-{number}", "train", size) for number, size in taken.items()]


def test_a_sample_of_a_corpus_that_is_sorted_by_label_has_every_label() -> None:
    """Three labels, each in a third of a thousand shards: the first 200 rows would all be of the first one."""
    sample = spread_rows(shards(*[1000] * 999), 200)
    assert len(sample) == SPREAD_OVER
    by_label = [
        sum(shard.rows for shard in sample if int(shard.name.removeprefix("train-")) // 333 == third) for third in range(3)
    ]
    assert sum(by_label) == 200
    assert min(by_label) >= 60


def test_a_large_sample_takes_more_shards_where_so_many_do_not_hold_it() -> None:
    sample = spread_rows(shards(*[10] * 100), 777)
    assert sum(shard.rows for shard in sample) == 777
    assert 78 <= len(sample) <= 100


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 900))
def test_a_sample_has_so_many_rows_in_the_order_of_the_shards_and_none_twice(sizes: list[int], rows: int) -> None:
    corpus = shards(*sizes)
    sample = spread_rows(corpus, rows)
    assert sum(shard.rows for shard in sample) == min(rows, sum(sizes))
    places = [int(shard.name.removeprefix("train-")) for shard in sample]
    assert places == sorted(set(places))
    assert all(shard.rows <= corpus[place].rows for place, shard in zip(places, sample, strict=True))
    assert rows >= sum(sizes) or all(shard.rows for shard in sample)
