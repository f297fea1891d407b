"""What a rank learns in a step, and the thread that makes it ready while the step before computes."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kd.training.loop import State
from kd.training.order import Order
from tests.tiny_runs import SHORT, tiny_queue, trainer


def ignore(state: State) -> None:
    """No progress file."""


def test_tokens_and_padding_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    with trainer(tiny_queue(tmp_path, SHORT)) as fresh:
        table, rows = fresh.lessons.table, fresh.lessons.order.rows_of_batch(0)
        alone = table.batch(rows).share(0, 1, 90, 2)
        shared = [table.batch(rows).share(rank, 2, 90, 2) for rank in (0, 1)]
    sequences = [ids for part in alone.micro_batches for ids in (*part.input_ids, *part.target_ids)]
    assert alone.tokens == sum(map(len, sequences))
    computed = [len(part.term) * (max(map(len, part.input_ids)) + max(map(len, part.target_ids))) for part in alone.micro_batches]
    assert alone.padding_tokens == sum(computed) - alone.tokens
    assert sum(alone.target_tokens) == sum(len(ids) for part in alone.micro_batches for ids in part.target_ids)
    assert {share.tokens for share in shared} == {alone.tokens}
    assert {tuple(share.target_tokens) for share in shared} == {tuple(alone.target_tokens)}
    assert shared[0].padding_tokens == shared[1].padding_tokens


def test_the_thread_that_prepares_batches_ends_with_the_run_and_with_its_failure(tmp_path: Path) -> None:
    before = threading.active_count()
    with trainer(tiny_queue(tmp_path, SHORT)) as fresh:
        state = fresh.train(ignore, lambda: None)
        assert 0 < state.waited_s < state.seconds
        assert threading.active_count() == before

        def fail(state: State) -> None:
            raise OSError("no space left")

        fresh.state.step, fresh.state.done = 2, False
        with pytest.raises(OSError, match="no space left"):
            fresh.train(fail, lambda: None)
        assert threading.active_count() == before


def test_a_batch_that_cannot_be_prepared_fails_in_its_own_step(tmp_path: Path) -> None:
    with trainer(tiny_queue(tmp_path, SHORT)) as fresh:
        fresh.lessons = replace(fresh.lessons, order=Order([8, 8, 800], 8, 8, seed=0))
        with pytest.raises(IndexError):
            fresh.train(ignore, lambda: None)
