"""A run as it is opened: its features, which many runs and ranks of a node share."""

from dataclasses import replace
from pathlib import Path

from kd.training.saved import CHECKPOINT_MANIFEST, CHECKPOINTS, newest_step
from kd.training.session import begin, fetch_features, open_run, train_here
from tests.tiny_runs import SHORT, tiny_queue


def test_features_are_converted_once_for_all_runs_that_learn_from_them(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path / "run", SHORT, seeds=(0, 1))
    cache = tmp_path / "cache"
    for item in queue.items:
        fetch_features(queue, item.run, cache)
    before = sorted(cache.rglob("*.arrow"))
    assert len(before) == 2, "two variants, though there are four runs"
    for number, item in enumerate(queue.items):
        scratch = tmp_path / str(number)
        shared = open_run(queue, item.run, scratch, rank=0, world=1, features=cache).lessons.table
        own = open_run(queue, item.run, tmp_path / f"{number}own", rank=0, world=1).lessons.table
        assert not list(scratch.rglob("*.arrow"))
        assert shared.batch([3, 0]).table.to_pylist() == own.batch([3, 0]).table.to_pylist()
    assert sorted(cache.rglob("*.arrow")) == before


def test_a_start_of_a_queue_leaves_of_earlier_ones_what_is_to_be_gone_on_with(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT)
    train_here(replace(queue, items=queue.items[:1]))
    for item in queue.items:
        queue.store.publish(f"{item.folder}/{CHECKPOINTS}/00000003-a/{CHECKPOINT_MANIFEST}", b"{}")
    assert begin(queue) == [queue.items[1]]
    assert [newest_step(queue.store, item.folder) for item in queue.items] == [0, 3]
