"""What a block of records becomes, without any scheduler: rows with their errors, one shard, places that prove order."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kd.attempts import begin_attempt
from kd.corpus import Source, SourceFile
from kd.errors import InputError, StageError, StoreError
from kd.examples import Place, Stream, Written, as_example, check_complete, uid_of
from kd.manifests import Shard
from kd.places import Place as Folder
from kd.rows import Example
from kd.side import attach, find_side, side_table
from kd.store import Store
from kd.tasks.base import SideFile, TaskConfig, is_content_uid
from kd.tasks.svamp import SAMPLE, Svamp
from kd.uids import find_repeats, rename
from tests.test_corpus import write_jsonl

FILES = tuple(SourceFile(f"/c/{name}", name, 1, "jsonl") for name in ("train-0.jsonl", "train-1.jsonl"))
SOURCE = Source(Folder("/c"), FILES)


def record(number: int) -> str:
    return json.dumps({**SAMPLE[0], "id": number})


def stream(folder: Path, task: TaskConfig, split: str = "train", rows_per_shard: int = 2) -> Stream:
    return Stream(task, SOURCE, "train", split, Store.at(str(folder)), "examples", rows_per_shard, [6, 4])


def written(first: Place, last: Place, rows: int, files: dict[int, int]) -> Written:
    return Written(Shard(f"{first}", "train", rows), first, last, files, {})


def test_a_record_that_is_no_object_is_a_row_that_says_so() -> None:
    row = as_example(Svamp(), "train", '{"half": ')
    assert row.error is not None
    assert row.error.reason == "unparsable"
    assert "'{\"half\": '" in row.error.detail
    assert row.uid == uid_of(Svamp(), "train", '{"half": ')
    assert is_content_uid(row.uid)


def test_a_block_becomes_one_shard_of_the_split_and_comes_back_as_counts(tmp_path: Path) -> None:
    making = stream(tmp_path, Svamp(), split="validation")
    done = making.write([(0, 4), (0, 5), (1, 0)], [record(4), "no object", record(6)])
    rows = making.store.read_rows(f"examples/{done.shard.file}", Example)
    assert [row.uid for row in (rows[0], rows[2])] == ["train/4", "train/6"]
    assert {row.split for row in rows} == {"validation"}
    assert (done.first, done.last, dict(done.files)) == ((0, 4), (1, 0), {0: 2, 1: 1})
    assert done.counts == {"rows": 3, "error.unparsable": 1} == making.store.read_notes(f"examples/{done.shard.file}")
    assert done.shard.rows == 3


def test_the_name_of_a_shard_is_made_of_the_plan_its_records_and_where_they_begin(tmp_path: Path) -> None:
    making = stream(tmp_path, Svamp())
    assert (
        dataclasses.replace(making, plan="b").write([(0, 0)], [record(1)]).shard.name
        != making.write([(0, 0)], [record(1)]).shard.name
    )
    name = making.write([(0, 0)], [record(1)]).shard.name
    assert name == making.write([(0, 0)], [record(1)]).shard.name
    assert name != making.write([(0, 0)], [record(2)]).shard.name
    assert name != making.write([(0, 1)], [record(1)]).shard.name
    assert name.startswith("train-")
    assert len(name) == len("train-") + 12


def touched(making: Stream, done: Written) -> int:
    return Path(making.store.path(f"examples/{done.shard.file}")).stat().st_mtime_ns


def test_a_shard_that_is_there_is_made_again_only_for_its_errors(tmp_path: Path) -> None:
    making = stream(tmp_path, Svamp())
    good, bad = [record(1), record(2)], [record(3), "no object"]
    done = [making.write([(0, 0), (0, 1)], good), making.write([(0, 2), (0, 3)], bad)]
    before = [touched(making, each) for each in done]
    assert [making.write([(0, 0), (0, 1)], good), making.write([(0, 2), (0, 3)], bad)] == done
    assert [touched(making, each) for each in done] == before
    again = dataclasses.replace(making, retry_errors=True)
    assert [again.write([(0, 0), (0, 1)], good), again.write([(0, 2), (0, 3)], bad)] == done
    assert touched(making, done[0]) == before[0]
    assert touched(making, done[1]) > before[1]


def test_a_shard_that_is_not_whole_is_made_again_and_one_that_may_not_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making = stream(tmp_path, Svamp())
    done = making.write([(0, 0)], [record(1)])
    path = f"examples/{done.shard.file}"
    whole = making.store.read(path)
    making.store.publish(path, whole[:-9])
    assert making.write([(0, 0)], [record(1)]) == done
    assert making.store.read(path) == whole

    def refused(_: str) -> dict[str, Any]:
        raise StoreError("cannot read it") from PermissionError("permission denied")

    monkeypatch.setitem(making.store.__dict__, "read_notes", refused)
    with pytest.raises(StoreError, match="cannot read it"):
        making.write([(0, 0)], [record(1)])


def block(making: Stream, file: int) -> Written:
    """A shard of two records, the second of which every such shard has."""
    return making.write([(file, 0), (file, 1)], [record(file), record(7)])


def unique(making: Stream, shards: Sequence[Shard]) -> list[Shard]:
    """The shards with repeats renamed apart."""
    assert making.attempt is not None
    _, renames = find_repeats(making.store, "examples", shards, 0, 1)
    return [
        rename(making.store, "examples", making.attempt, shard, renames)[0] if shard.name in renames else shard
        for shard in shards
    ]


def test_of_two_attempts_the_older_is_overtaken_and_every_uid_is_there_once(tmp_path: Path) -> None:
    alone = stream(tmp_path, Svamp(id=None))
    older = dataclasses.replace(alone, attempt=begin_attempt(alone.store, "examples"))
    first = block(older, 0)
    newer = dataclasses.replace(alone, attempt=begin_attempt(alone.store, "examples"))
    with pytest.raises(StageError, match="prepare: another job has started this stage in .*examples and goes on with it"):
        block(older, 1)
    assert block(older, 0) == block(newer, 0) == first
    made = [first.shard, block(newer, 1).shard]
    renamed = unique(newer, made)
    with pytest.raises(StageError, match="another job has started this stage"):
        unique(older, [*made, block(newer, 2).shard])
    for late in (0, 1):  # a task of an attempt that is long gone
        alone.store.publish(f"examples/{made[late].file}", b"")
        block(alone, late)
    uids = [row.uid for shard in renamed for row in alone.store.read_rows(f"examples/{shard.file}", Example)]
    assert len(set(uids)) == len(uids) == 4
    assert sum(uid.endswith("-2") for uid in uids) == 1


@pytest.mark.parametrize("by", ["position", "uid"])
def test_the_hold_out_parts_train_in_two(tmp_path: Path, by: str) -> None:
    task = Svamp.model_validate({"holdout": {"fraction": 0.3, "by": by}})
    places = [(0, row) for row in range(6)] + [(1, row) for row in range(4)]
    texts = [record(number) for number in range(10)]
    kept, held = (stream(tmp_path, task, split).keeps(places, texts) for split in ("train", "validation"))
    assert [one != other for one, other in zip(kept, held, strict=True)] == [True] * 10
    if by == "position":
        assert task.holdout is not None
        assert held == task.holdout.positions(10).tolist()
        assert sum(held) == 3
    backwards = stream(tmp_path, task, "validation").keeps(places[::-1], texts[::-1])
    assert backwards[::-1] == held


def test_without_a_hold_out_every_record_is_kept(tmp_path: Path) -> None:
    assert stream(tmp_path, Svamp(holdout=None)).keeps([(0, 0), (0, 1)], ["x", "y"]) == [True, True]


@pytest.mark.parametrize(
    "parts",
    [
        [written((0, 0), (0, 1), 2, {}), written((0, 3), (0, 3), 1, {}), written((0, 4), (1, 0), 2, {})],
        [written((0, 0), (0, 2), 2, {}), written((0, 1), (0, 3), 2, {})],
    ],
    ids=["a short shard before the last", "places that overlap"],
)
def test_shards_out_of_order_are_an_error(tmp_path: Path, parts: Sequence[Written]) -> None:
    with pytest.raises(StageError, match="expected shards of 2 rows in the order of the files"):
        stream(tmp_path, Svamp()).check(parts)


def test_shards_in_order_are_fine_and_none_is_an_error_of_train_alone(tmp_path: Path) -> None:
    stream(tmp_path, Svamp()).check(
        [written((0, 0), (0, 4), 2, {}), written((0, 5), (1, 0), 2, {}), written((1, 3), (1, 3), 1, {})]
    )
    with pytest.raises(InputError, match=r"the train split of data/svamp has no rows"):
        stream(tmp_path, Svamp()).check([])
    stream(tmp_path, Svamp(), split="validation").check([])


def test_a_record_that_went_into_no_shard_is_an_error() -> None:
    check_complete(SOURCE, [6, 4], [written((0, 0), (0, 5), 6, {0: 6}), written((1, 0), (1, 3), 4, {1: 4})])
    with pytest.raises(StageError, match=r"/c/train-1\.jsonl has 4 records, but 3 came into shards"):
        check_complete(SOURCE, [6, 4], [written((0, 0), (1, 2), 9, {0: 6, 1: 3})])


def side(folder: Path, records: list[dict[str, Any]]) -> SideFile:
    write_jsonl(folder / "side.jsonl", records)
    return SideFile(path=str(folder / "side.jsonl"), id="key", rationale="why", label="said")


def test_a_side_file_replaces_rationales_by_id_and_counts_what_has_none(tmp_path: Path) -> None:
    config = side(tmp_path, [{"key": 1, "why": "since one", "said": "1"}, {"key": "9", "why": None}])
    rows = [as_example(Svamp(), "train", text) for text in (record(1), record(2), "no object")]
    changed, counts = attach(rows, side_table(config, find_side(config)))
    assert [(row.llm_rationale, row.llm_label) for row in changed] == [("since one", "1"), (None, None), (None, None)]
    assert counts == {"llm_attached": 1, "llm_missing": 2}
    assert [row.uid for row in changed] == [row.uid for row in rows]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"key": 1, "why": "a"}, {"key": "1", "why": "b"}], "id '1' occurs twice"),
        ([{"id": 1, "why": "a"}], "key is missing .* name the column in task.llm"),
        ([{"key": 1, "why": 3}], "why: expected text"),
    ],
)
def test_a_side_file_that_cannot_be_joined_is_refused(tmp_path: Path, records: list[dict[str, Any]], message: str) -> None:
    config = side(tmp_path, records)
    with pytest.raises(InputError, match=message):
        side_table(config, find_side(config))


def test_a_shard_is_written_with_the_side_files_rationales(tmp_path: Path) -> None:
    config = side(tmp_path, [{"key": 1, "why": "since one", "said": "1"}])
    making = stream(tmp_path, Svamp(llm=config))
    done = making.write([(0, 0), (0, 1)], [record(1), record(2)])
    rows = making.store.read_rows(f"examples/{done.shard.file}", Example)
    assert [row.llm_rationale for row in rows] == ["since one", None]
    assert done.counts == {"rows": 2, "llm_attached": 1, "llm_missing": 1}


def test_a_shard_is_another_one_when_the_side_file_says_something_else(tmp_path: Path) -> None:
    names = set()
    for why in ("since one", "since two", "since one"):
        making = stream(tmp_path, Svamp(llm=side(tmp_path, [{"key": 1, "why": why}])))
        done = making.write([(0, 0)], [record(1)])
        (row,) = making.store.read_rows(f"examples/{done.shard.file}", Example)
        assert row.llm_rationale == why
        names.add(done.shard.name)
    assert len(names) == 2
