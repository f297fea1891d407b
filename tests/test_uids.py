"""Repeated uids are found in buckets, wherever the shards were cut, and equal records are told apart."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from kd.attempts import begin_attempt
from kd.errors import StageError
from kd.manifests import Shard
from kd.rows import Example
from kd.shards import count
from kd.store import Store
from kd.tasks.base import content_uid
from kd.uids import find_repeats, rename

A, B = (content_uid({"text": text}, "train") for text in "ab")


def shard(store: Store, name: str, uids: Sequence[str]) -> Shard:
    blank = {"error": None, "task": "t", "split": "train", "segments": [], "target": None, "label_set": []}
    rows = [Example(uid=uid, evidence=[], llm_rationale=None, llm_label=None, **blank) for uid in uids]
    store.publish_rows(f"examples/{name}.parquet", rows, Example, count(rows))
    return Shard(name, "train", len(rows))


def uids(store: Store, shards: Sequence[Shard]) -> list[str]:
    return [uid for one in shards for uid in store.read_column(f"examples/{one.file}", "uid")]


def apart(store: Store, shards: Sequence[Shard], buckets: int) -> list[str]:
    found = [find_repeats(store, "examples", shards, bucket, buckets) for bucket in range(buckets)]
    attempt, renames = begin_attempt(store, "examples"), [renames for _, renames in found]
    changed = {name for repeats, _ in found for name in repeats.shards}
    made = [rename(store, "examples", attempt, one, *renames)[0] if one.name in changed else one for one in shards]
    return uids(store, made)


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize("cuts", [[5], [2, 3], [1, 1, 1, 1, 1]])
def test_equal_records_get_a_number_in_the_order_of_the_shards(tmp_path: Path, buckets: int, cuts: list[int]) -> None:
    store, rows = Store.at(str(tmp_path)), [A, B, A, "train/7", A]
    starts = [sum(cuts[:index]) for index in range(len(cuts))]
    shards = [shard(store, f"s{start}", rows[start : start + size]) for start, size in zip(starts, cuts, strict=True)]
    assert apart(store, shards, buckets) == [A, B, f"{A}-2", "train/7", f"{A}-3"]


def test_an_id_that_occurs_twice_is_reported_up_to_three(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    shards = [shard(store, "one", [f"train/{n}" for n in range(6)]), shard(store, "two", [f"train/{n}" for n in range(4)])]
    repeats, _ = find_repeats(store, "examples", shards, 0, 1)
    assert repeats.ids == ["train/0", "train/1", "train/2"]


def test_unique_uids_are_left_alone(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    shards = [shard(store, "one", [A, B]), shard(store, "two", ["train/1", "test/1"])]
    repeats, renames = find_repeats(store, "examples", shards, 0, 1)
    assert (repeats.ids, repeats.shards, renames) == ([], [], {})


def test_a_renamed_shard_keeps_its_notes_and_other_rows_and_says_that_it_was_renamed(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    one, attempt = shard(store, "one", [A, "train/1"]), begin_attempt(store, "examples")
    made = store.read("examples/one.parquet")
    renamed, number = rename(store, "examples", attempt, one, {"one": {0: "train/new"}, "other": {1: "x"}})
    assert (number, renamed.split, renamed.rows) == (1, one.split, one.rows)
    assert uids(store, [renamed]) == ["train/new", "train/1"]
    assert store.read_notes(f"examples/{renamed.file}") == store.read_notes("examples/one.parquet") | {"renamed": 1}
    assert store.read("examples/one.parquet") == made


def test_the_name_of_a_renamed_shard_says_what_is_in_it(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    one, attempt = shard(store, "one", [A, B]), begin_attempt(store, "examples")
    renamed, _ = rename(store, "examples", attempt, one, {"one": {0: "x"}})
    before = Path(store.path(f"examples/{renamed.file}")).stat().st_mtime_ns
    assert rename(store, "examples", attempt, one, {"one": {0: "x"}}) == (renamed, 1)
    assert Path(store.path(f"examples/{renamed.file}")).stat().st_mtime_ns == before
    others = [rename(store, "examples", attempt, one, {"one": {0: "y"}})[0]]
    others += [rename(store, "examples", attempt, shard(store, "one", [A, A]), {"one": {0: "x"}})[0]]
    assert len({each.name for each in (one, renamed, *others)}) == 4


def test_an_attempt_that_was_overtaken_renames_nothing(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    one, attempt = shard(store, "one", [A, B]), begin_attempt(store, "examples")
    begin_attempt(store, "examples")
    before = store.names("examples")
    with pytest.raises(StageError, match="prepare: another job has started this stage in .*examples and goes on with it"):
        rename(store, "examples", attempt, one, {"one": {0: "x"}})
    assert store.names("examples") == before
