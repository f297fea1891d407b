"""A stage over shards, once more: what is not done again, what a crash or another attempt leaves, and errors tried again."""

import dataclasses
import resource
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from kd.errors import StageError, StoreError
from kd.loading import device_name
from kd.manifests import Shard
from kd.rows import Example, RowError
from kd.shards import Apply, Claimed, claim, finish, run_shard
from kd.store import Store
from tests.test_rows import example
from tests.tiny_shards import Shout, corpus, loop, shouted, work


def test_a_finished_stage_is_recognised_and_not_done_again(store: Store) -> None:
    shards = corpus(store)
    first = loop(store, work(shards))
    again = claim(store, work(shards))
    assert again == first


def test_another_config_goes_to_another_folder(store: Store) -> None:
    shards = corpus(store)
    loop(store, work(shards))
    other = claim(store, work(shards, config={"volume": 12}))
    assert isinstance(other, Claimed)
    assert other.folder.startswith("loud-")


def two_attempts(store: Store, shards: list[Shard], published: Shard) -> tuple[Claimed, Claimed]:
    """An attempt that got as far as one shard, and the attempt after it."""
    older = claim(store, work(shards))
    assert isinstance(older, Claimed)
    run_shard(store, older, published, Shout().open(), device_name("cpu"))
    newer = claim(store, work(shards))
    assert isinstance(newer, Claimed)
    return older, newer


def test_only_missing_shards_are_done_and_the_counts_hold_all(store: Store) -> None:
    shards = corpus(store)
    undisturbed = loop(store, work(shards, target="other"))
    _, resumed = two_attempts(store, shards, shards[1])
    assert [shard.name for shard in resumed.todo] == ["train-0", "train-4"]
    manifest = loop(store, work(shards))
    assert (manifest.rows, manifest.errors, manifest.counts) == (undisturbed.rows, undisturbed.errors, undisturbed.counts)
    for shard in shards:
        assert store.read(f"loud/{shard.file}") == store.read(f"other/{shard.file}")


def test_an_attempt_that_was_overtaken_stops_and_what_it_published_stays(store: Store) -> None:
    shards = corpus(store)
    undisturbed = loop(store, work(shards, target="other"))
    older, newer = two_attempts(store, shards, shards[0])
    with pytest.raises(StageError, match="another job has started this stage"):
        run_shard(store, older, shards[1], Shout().open())
    with pytest.raises(StageError, match="another job has started this stage"):
        finish(store, older, 1.0, "cpu")
    assert [shard.name for shard in newer.todo] == ["train-2", "train-4"]
    manifest = loop(store, work(shards))
    assert (manifest.rows, manifest.errors, manifest.digest) == (undisturbed.rows, undisturbed.errors, undisturbed.digest)


# --- errors once more -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mended:
    """The stage after its fault was mended; it keeps a list of what it was asked."""

    asked: list[str]

    def open(self) -> Apply:
        def apply(rows: list[Example], tally: Counter[str]) -> list[Example]:
            self.asked.extend(row.uid for row in rows)
            tally["looked_at"] += len(rows)
            return [dataclasses.replace(row, target=(row.target or "").upper()) for row in rows]

        return apply


def test_errors_are_tried_once_more_in_their_shards_alone(store: Store) -> None:
    shards = corpus(store)
    first = loop(store, work(shards))
    untouched = store.read(f"loud/{shards[0].file}")
    asked: list[str] = []
    again = loop(store, work(shards, recipe=Mended(asked)), retry_errors=True)
    assert asked == ["u3"]
    assert (again.rows, again.errors, again.counts) == (5, {}, {"looked_at": 1})
    rows = [row for shard in shards for row in store.read_rows(f"loud/{shard.file}", Example)]
    assert [row.target for row in rows] == ["T0", "T1", "T2", "BAD", "T4"]
    assert store.read(f"loud/{shards[0].file}") == untouched
    assert again.digest != first.digest, "what is made from these rows must be made again"
    assert claim(store, work(shards), retry_errors=True) == again


def test_errors_that_stay_change_nothing(store: Store) -> None:
    shards = corpus(store)
    first = loop(store, work(shards))
    again = loop(store, work(shards), retry_errors=True)
    assert (again.errors, again.digest) == (first.errors, first.digest)


def test_a_row_that_came_with_an_error_is_not_tried_again(store: Store) -> None:
    rows = [example("x", error=RowError("empty_text", ""), target="t"), example("y", target="bad")]
    store.publish_rows("examples/train-0.parquet", rows, Example, {})
    shards, asked = [Shard("train-0", "train", 2)], []
    loop(store, work(shards, max_error_frac=1.0))
    again = loop(store, work(shards, recipe=Mended(asked), max_error_frac=1.0), retry_errors=True)
    assert asked == ["y"]
    assert (again.errors, again.counts) == ({"empty_text": 1}, {"inherited_empty_text": 1, "looked_at": 1})
    assert claim(store, work(shards), retry_errors=True) == again


def test_what_a_work_told_of_its_good_rows_is_still_counted_when_errors_are_done_again(store: Store) -> None:
    @dataclass(frozen=True)
    class Telling(Shout):
        def open(self) -> Apply:
            def apply(rows: list[Example], tally: Counter[str]) -> list[Example | RowError]:
                tally["looked_at"] += len(rows)
                return [shouted(row) for row in rows]

            return apply

    shards = corpus(store)
    assert loop(store, work(shards, recipe=Telling())).counts["looked_at"] == 5
    assert loop(store, work(shards, recipe=Mended([])), retry_errors=True).counts["looked_at"] == 6


def test_a_stage_whose_errors_are_tried_again_is_unfinished_until_all_of_them_were(store: Store) -> None:
    shards = corpus(store)
    first = loop(store, work(shards))
    claimed = claim(store, work(shards, recipe=Mended([])), retry_errors=True)
    assert isinstance(claimed, Claimed)
    assert store.manifest("loud") is None, "killed here, it must not look finished"
    run_shard(store, claimed, claimed.todo[0], Mended([]).open())
    resumed = loop(store, work(shards))
    assert (resumed.errors, resumed.rows_per_s) == ({}, None)
    assert resumed.digest != first.digest


def test_a_disk_that_fills_is_named_and_what_is_published_stays(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    shards = corpus(store)
    claimed = claim(store, work(shards))
    assert isinstance(claimed, Claimed)
    run_shard(store, claimed, shards[0], Shout().open())
    before = store.read(f"loud/{shards[0].file}")
    ignored, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1000, limits[1])
    )  # no file may grow past that: the system refuses, as a full disk does
    try:
        with pytest.raises(StoreError, match=r"cannot write .*loud/train-2\.parquet: .*; check the path, .* and the free space"):
            run_shard(store, claimed, shards[1], Shout().open())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [name for name in store.names("loud") if "parquet" in name] == [shards[0].file], "nothing half-written is left"
    assert store.read(f"loud/{shards[0].file}") == before
    assert loop(store, work(shards)).rows == 5
