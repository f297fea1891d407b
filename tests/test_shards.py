"""A stage over shards in a plain loop: the laws, and files that are not what they should be."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kd.errors import StageError, StoreError
from kd.manifests import Shard
from kd.rows import Example, Features, RowError
from kd.shards import Apply, Claimed, Work, claim, finish, run_shard
from kd.store import Store
from tests.test_rows import example
from tests.tiny_shards import corpus, loop, work


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(str(tmp_path))


def test_every_row_that_enters_leaves_as_a_result_or_with_its_error(store: Store) -> None:
    shards = corpus(store)
    manifest = loop(store, work(shards))
    rows = [row for shard in shards for row in store.read_rows(f"loud/{shard.file}", Example)]
    assert [row.uid for row in rows] == ["u0", "u1", "u2", "u3", "u4"]
    assert [row.target for row in rows] == ["T0", "T1", "T2", "bad", "T4"]
    assert [row.error.reason if row.error else None for row in rows] == [None, None, None, "unknown_label", None]
    assert (manifest.rows, manifest.errors) == (5, {"unknown_label": 1})


def test_a_manifest_names_every_device_that_did_rows_of_it(store: Store) -> None:
    todo = work(corpus(store))
    for devices in ([], ["H200", "L4"]):  # a second start finds the first one's shards, and does those that are missing
        claimed = claim(store, todo)
        assert isinstance(claimed, Claimed)
        for shard, device in zip(claimed.todo, devices or ["A100"], strict=False):
            run_shard(store, claimed, shard, todo.recipe.open(), device)
    assert store.read_notes(f"loud/{todo.shards[0].file}") == {"rows": 2, "device.A100": 2}
    manifest = finish(store, claimed, 1.0, "cuda")
    assert manifest.device == "A100, H200, L4"
    assert manifest.counts == {}


def test_where_no_shard_tells_its_device_the_manifest_has_what_was_asked_for(store: Store) -> None:
    claimed = claim(store, work([]))
    assert isinstance(claimed, Claimed)
    assert finish(store, claimed, 0.0, "cuda").device == "cuda"


def test_a_row_that_came_with_an_error_passes_by_the_work(store: Store) -> None:
    row = example("x", error=RowError("empty_text", ""), target="t")
    store.publish_rows("examples/train-0.parquet", [row], Example, {})
    loop(store, work([Shard("train-0", "train", 1)], max_error_frac=1.0))
    assert store.read_rows("loud/train-0.parquet", Example) == [row]


def test_no_manifest_is_written_while_a_shard_is_missing(store: Store) -> None:
    claimed = claim(store, work(corpus(store)))
    assert isinstance(claimed, Claimed)
    with pytest.raises(StageError, match="3 of 3 shards are missing, train-0.parquet first; run it again"):
        finish(store, claimed, 1.0, "cpu")
    assert store.manifest(claimed.folder) is None


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda rows, _: rows[:-1], "2 rows went in and 1 came out"),
        (lambda rows, _: rows[::-1], "reordered"),
        (lambda rows, _: [rows[0], rows[0]], "missing"),
    ],
)
def test_a_stage_that_loses_doubles_or_moves_rows_is_stopped(store: Store, broken: Apply, message: str) -> None:
    @dataclass(frozen=True)
    class Broken:
        def open(self) -> Apply:
            return broken

    with pytest.raises(StageError, match=message):
        loop(store, work(corpus(store), recipe=Broken()))
    assert store.manifest("loud") is None


def test_too_many_errors_fail_the_stage_with_counts_and_keep_the_rows(store: Store) -> None:
    shards = corpus(store)
    with pytest.raises(
        StageError,
        match=r"1 of 5 rows got an error \(unknown_label 1\), more than shout\.max_error_frac = 0.1; for example\n"
        r"  u3: unknown_label, .+\nThe rows are in .* raise shout\.max_error_frac",
    ):
        loop(store, work(shards, max_error_frac=0.1))
    assert store.manifest("loud") is None
    assert loop(store, work(shards, max_error_frac=0.2)).rows == 5


def test_errors_of_an_earlier_stage_are_told_and_not_held_against_a_later_one(store: Store) -> None:
    shards = corpus(store)
    loop(store, work(shards))
    later = loop(store, work(shards, title="repeat", source="loud", target="louder", max_error_frac=0.0))
    assert (later.errors, later.counts) == ({"unknown_label": 1}, {"inherited_unknown_label": 1})


def test_the_share_of_new_errors_is_one_of_the_rows_that_came_without(store: Store) -> None:
    came = [RowError("empty_text", ""), RowError("unknown_label", ""), None, None]
    rows = [example(f"u{place}", error=error, target="bad" if place == 2 else "t") for place, error in enumerate(came)]
    store.publish_rows("examples/train-0.parquet", rows, Example, {})
    shards = [Shard("train-0", "train", 4)]
    with pytest.raises(
        StageError, match=r"1 of 2 rows got an error \(unknown_label 1\), more than .* for example\n  u2: unknown_label, "
    ):
        loop(store, work(shards, max_error_frac=0.4))
    manifest = loop(store, work(shards, max_error_frac=0.5))
    assert manifest.errors == {"empty_text": 1, "unknown_label": 2}


def test_a_stage_with_many_errors_names_three_rows_with_their_reasons(store: Store) -> None:
    rows = [example(f"u{place}", target="bad") for place in range(5)]
    store.publish_rows("examples/train-0.parquet", rows, Example, {})
    with pytest.raises(
        StageError, match=r"example\n  u0: unknown_label, bad\n  u1: unknown_label, bad\n  u2: unknown_label, bad\nThe"
    ):
        loop(store, work([Shard("train-0", "train", 5)]))


def test_the_digest_changes_with_what_matters_only() -> None:
    base = work([Shard("a", "train", 1)])
    changed: list[Callable[[], Work]] = [
        lambda: dataclasses.replace(base, config={"volume": 12}),
        lambda: dataclasses.replace(base, inputs={"examples": "abd"}),
        lambda: dataclasses.replace(base, shards=[Shard("a", "train", 2)]),
        lambda: dataclasses.replace(base, title="whisper"),
    ]
    assert base.digest not in [make().digest for make in changed]
    assert base.digest == dataclasses.replace(base, max_error_frac=0.0, target="elsewhere").digest


# --- files that are not what they should be ---------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [lambda data: data[: len(data) // 2], lambda data: b"no parquet at all", lambda data: b""])
def test_a_file_that_is_not_a_whole_parquet_file_is_named_and_nothing_is_touched(
    store: Store, broken: Callable[[bytes], bytes]
) -> None:
    shards = corpus(store)
    store.publish(f"examples/{shards[1].file}", broken(store.read(f"examples/{shards[1].file}")))
    with pytest.raises(StoreError, match=r"examples/train-2.parquet is not a whole Parquet file"):
        loop(store, work(shards))
    assert [name for name in store.names("loud") if name.endswith(".parquet")] == ["train-0.parquet"]


def test_a_shard_of_another_version_is_named(store: Store) -> None:
    shards = corpus(store)
    store.publish_rows(f"examples/{shards[0].file}", [], Features, {})
    with pytest.raises(StoreError, match=r"examples/train-0.parquet is not what this version writes"):
        loop(store, work(shards))


def test_a_shorter_plan_takes_the_first_rows(store: Store) -> None:
    corpus(store)
    manifest = loop(store, work([Shard("train-0", "train", 1)]))
    assert [row.uid for row in store.read_rows("loud/train-0.parquet", Example)] == ["u0"]
    assert manifest.rows == 1


def test_a_shard_that_shrank_is_refused(store: Store) -> None:
    corpus(store)
    with pytest.raises(StageError, match="expected 9 rows, got 2"):
        loop(store, work([Shard("train-0", "train", 9)]))
