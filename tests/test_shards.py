"""A stage over shards in a plain loop: the laws, what a crash leaves, and what is done again."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kd.errors import StageError, StoreError
from kd.rows import Example, Features, RowError
from kd.shards import Apply, Claimed, Work, claim, finish, run_shard
from kd.store import Manifest, Shard, Store
from tests.test_rows import example


@dataclass(frozen=True)
class Shout:
    """A stage of the tests: targets in capitals; a target `bad` is a row's own fault."""

    def open(self) -> Apply:
        return lambda rows, _: [_shout(row) for row in rows]


def _shout(row: Example) -> Example | RowError:
    if row.target == "bad":
        return RowError("unknown_label", "bad")
    return dataclasses.replace(row, target=(row.target or "").upper())


def corpus(store: Store, rows_per_shard: int = 2, n: int = 5) -> list[Shard]:
    rows = [example(f"u{i}", target="bad" if i == 3 else f"t{i}", label_set=[]) for i in range(n)]
    shards = []
    for start in range(0, n, rows_per_shard):
        part = rows[start : start + rows_per_shard]
        shards.append(Shard(f"train-{start}", "train", len(part)))
        store.publish_rows(f"examples/{shards[-1].file}", part, Example, {})
    return shards


def work(shards: list[Shard], recipe: object = None, **changes: object) -> Work:
    fields = {
        "title": "shout",
        "recipe": recipe or Shout(),
        "source": "examples",
        "target": "loud",
        "reads": Example,
        "writes": Example,
        "shards": shards,
        "config": {"volume": 11},
        "inputs": {"examples": "abc"},
        "max_error_frac": 0.5,
        "max_error_key": "shout.max_error_frac",
    }
    return Work(**fields | changes)


def loop(store: Store, todo: Work, retry_errors: bool = False) -> Manifest:
    """The chain without any scheduler."""
    claimed = claim(store, todo, retry_errors)
    if isinstance(claimed, Manifest):
        return claimed
    apply = todo.recipe.open()
    for shard in claimed.todo:
        run_shard(store, claimed, shard, apply)
    return finish(store, claimed, 1.0, "cpu")


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


def test_a_row_that_came_with_an_error_passes_by_the_work(store: Store) -> None:
    row = example("x", error=RowError("empty_text", ""), target="t")
    store.publish_rows("examples/train-0.parquet", [row], Example, {})
    loop(store, work([Shard("train-0", "train", 1)], max_error_frac=1.0))
    assert store.read_rows("loud/train-0.parquet", Example) == [row]


def test_a_finished_stage_is_recognised_and_not_done_again(store: Store) -> None:
    shards = corpus(store)
    first = loop(store, work(shards))
    again = claim(store, work(shards))
    assert again == first


def test_only_missing_shards_are_done_and_the_counts_hold_all(store: Store) -> None:
    shards = corpus(store)
    undisturbed = loop(store, work(shards, target="other"))
    claimed = claim(store, work(shards))
    assert isinstance(claimed, Claimed)
    run_shard(store, claimed, shards[1], Shout().open())
    resumed = claim(store, work(shards))
    assert isinstance(resumed, Claimed)
    assert [shard.name for shard in resumed.todo] == ["train-0", "train-4"]
    manifest = loop(store, work(shards))
    assert (manifest.rows, manifest.errors, manifest.counts) == (undisturbed.rows, undisturbed.errors, undisturbed.counts)
    for shard in shards:
        assert store.read(f"loud/{shard.file}") == store.read(f"other/{shard.file}")


def test_another_config_goes_to_another_folder(store: Store) -> None:
    shards = corpus(store)
    loop(store, work(shards))
    other = claim(store, work(shards, config={"volume": 12}))
    assert isinstance(other, Claimed)
    assert other.folder.startswith("loud-")


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
        match=r"1 of 5 rows got an error \(unknown_label 1\), more than shout\.max_error_frac = 0.1; for example u3\. .* raise shout\.max_error_frac",
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
    with pytest.raises(StageError, match=r"1 of 2 rows got an error \(unknown_label 1\), more than"):
        loop(store, work(shards, max_error_frac=0.4))
    manifest = loop(store, work(shards, max_error_frac=0.5))
    assert manifest.errors == {"empty_text": 1, "unknown_label": 2}


def test_a_stage_with_many_errors_names_three_rows(store: Store) -> None:
    rows = [example(f"u{place}", target="bad") for place in range(5)]
    store.publish_rows("examples/train-0.parquet", rows, Example, {})
    with pytest.raises(StageError, match=r"5 of 5 rows got an error .* for example u0, u1, u2\."):
        loop(store, work([Shard("train-0", "train", 5)]))


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_an_attempt_that_was_overtaken_stops_and_what_it_published_stays(store: Store) -> None:
    shards = corpus(store)
    undisturbed = loop(store, work(shards, target="other"))
    older = claim(store, work(shards))
    assert isinstance(older, Claimed)
    run_shard(store, older, shards[0], Shout().open())
    newer = claim(store, work(shards))
    assert isinstance(newer, Claimed)
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
                return [_shout(row) for row in rows]

            return apply

    shards = corpus(store)
    assert loop(store, work(shards, recipe=Telling())).counts["looked_at"] == 5
    assert loop(store, work(shards, recipe=Mended([])), retry_errors=True).counts["looked_at"] == 6


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
