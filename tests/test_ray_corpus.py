"""A corpus becomes the same shards on any cluster, every record is in one of them, and mistakes end in clear errors."""

import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from kd.errors import InputError, StageError, StoreError
from kd.ray_corpus import prepare
from kd.rows import Example
from kd.store import Manifest, Store
from kd.tasks.base import PrepareConfig, TaskConfig
from kd.tasks.columns import Columns
from kd.tasks.commonsense_qa import CommonsenseQA
from kd.tasks.esnli import ESNLI
from kd.tasks.svamp import Svamp
from tests.test_corpus import WRITERS, write_jsonl

SHARED = Path(os.environ.get("KD_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
SIZES = {"train-0.jsonl": 7, "train-1.jsonl": 1, "train-2.jsonl.gz": 11, "test-0.parquet": 5, "test-1.csv": 4}


def connect(cpus: int) -> None:
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, size in SIZES.items():
        WRITERS["x" + name[name.index(".") :]](folder / name, [record(f"{name}-{number}") for number in range(size)])
    return folder


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """What one CPU made of the corpus. The cluster of the other tests is started after it."""
    store = Store.at(str(tmp_path_factory.mktemp("alone")))
    connect(cpus=1)
    made(mine(corpus), store, rows_per_shard=4)
    ray.shutdown()
    connect(cpus=6)
    yield store
    ray.shutdown()


@pytest.fixture
def cluster(alone: Store) -> None:
    """A local Ray with six CPUs."""


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "q": f"What is {name}?", "a": f"it is {name}", **fields}


def mine(folder: Path, **fields: Any) -> Columns:
    given = {
        "path": str(folder),
        "files": {"train": "train*", "test": "test*"},
        "id": "id",
        "prompt": [{"column": "q"}],
        "target": "a",
    }
    return Columns.model_validate(given | fields)


def only(folder: Path, records: list[dict[str, Any]], **fields: Any) -> Columns:
    """A task whose whole corpus is one file."""
    folder.mkdir()
    write_jsonl(folder / "all.jsonl", records)
    return mine(folder, files={"train": "all.jsonl"}, **fields)


def made(task: TaskConfig, store: Store, rows_per_shard: int = 1000, max_error_frac: float = 0.01) -> Manifest:
    config = PrepareConfig(rows_per_shard=rows_per_shard, max_error_frac=max_error_frac)
    return prepare(task, config, store, lambda done, total: None)


def rows(store: Store, manifest: Manifest, split: str) -> list[Example]:
    return [row for shard in manifest.shards_of(split) for row in store.read_rows(f"examples/{shard.file}", Example)]


def names(store: Store, manifest: Manifest, split: str) -> list[str]:
    return [row.uid.partition("/")[2] for row in rows(store, manifest, split)]


def in_order(*files: str) -> list[str]:
    return [f"{file}-{number}" for file in files for number in range(SIZES[file])]


def test_six_cpus_write_the_bytes_that_one_writes(alone: Store, corpus: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    one, six = alone.manifest("examples"), made(mine(corpus), store, rows_per_shard=4)
    assert one is not None
    assert one.shards == six.shards
    for shard in one.shards:
        assert alone.read(f"examples/{shard.file}") == store.read(f"examples/{shard.file}")


def test_rows_are_in_the_order_of_the_files_in_full_shards(alone: Store) -> None:
    manifest = alone.manifest("examples")
    assert manifest is not None
    assert names(alone, manifest, "train") == in_order("train-0.jsonl", "train-1.jsonl", "train-2.jsonl.gz")
    assert names(alone, manifest, "test") == in_order("test-0.parquet", "test-1.csv")
    assert [shard.rows for shard in manifest.shards_of("train")] == [4, 4, 4, 4, 3]
    assert [shard.rows for shard in manifest.shards_of("test")] == [4, 4, 1]
    assert (manifest.rows, manifest.errors, manifest.row_type) == (28, {}, "Example")
    assert set(alone.names("examples")) == {"manifest.json", *(shard.file for shard in manifest.shards)}


def test_a_file_that_takes_longer_to_read_still_comes_first(cluster: None, tmp_path: Path) -> None:
    files = [f"train-{number}.jsonl" for number in range(4)]
    for name in files:
        write_jsonl(tmp_path / name, [record(f"{name}-{number}") for number in range(3)])
    (tmp_path / files[0]).write_text("\n" * 20_000_000 + (tmp_path / files[0]).read_text())
    store = Store.at(str(tmp_path / "run"))
    manifest = made(mine(tmp_path, files={"train": "train*"}), store, rows_per_shard=5)
    assert names(store, manifest, "train") == [f"{name}-{number}" for name in files for number in range(3)]


def test_progress_ends_at_all_the_rows(cluster: None, corpus: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    prepare(mine(corpus), PrepareConfig(rows_per_shard=10), Store.at(str(tmp_path)), lambda *step: seen.append(step))
    assert [total for _, total in seen] == [28] * len(seen)
    assert [done for done, _ in seen] == [10, 19, 28]


@pytest.mark.parametrize("by", ["position", "uid"])
def test_a_hold_out_is_a_part_of_train_whatever_the_shards(cluster: None, corpus: Path, tmp_path: Path, by: str) -> None:
    task = mine(corpus, holdout={"fraction": 0.25, "by": by})
    stores = [Store.at(str(tmp_path / str(size))) for size in (3, 100)]
    small, large = (made(task, store, size) for store, size in zip(stores, (3, 100), strict=True))
    train, held = names(stores[0], small, "train"), names(stores[0], small, "validation")
    every = in_order("train-0.jsonl", "train-1.jsonl", "train-2.jsonl.gz")
    assert (train, held) == ([name for name in every if name in train], [name for name in every if name in held])
    assert sorted(train + held) == sorted(every)
    assert (train, held) == (names(stores[1], large, "train"), names(stores[1], large, "validation"))
    assert {row.split for row in rows(stores[0], small, "validation")} == {"validation"}
    assert task.holdout is not None
    if by == "position":
        assert held == [name for name, taken in zip(every, task.holdout.positions(19), strict=True) if taken]
        assert len(held) == 5


def test_limits_take_the_first_rows_of_each_split_after_the_hold_out(cluster: None, corpus: Path, tmp_path: Path) -> None:
    whole_task = mine(corpus, holdout={"fraction": 0.25, "by": "position"})
    limited_task = mine(corpus, holdout={"fraction": 0.25, "by": "position"}, limit_rows={"train": 9, "validation": 2})
    stores = Store.at(str(tmp_path / "whole")), Store.at(str(tmp_path / "limited"))
    whole, limited = made(whole_task, stores[0], 4), made(limited_task, stores[1], 4)
    assert names(stores[1], limited, "train") == names(stores[0], whole, "train")[:9]
    assert names(stores[1], limited, "validation") == names(stores[0], whole, "validation")[:2]
    assert names(stores[1], limited, "test") == names(stores[0], whole, "test")


def test_bad_records_stay_in_their_places_and_say_why(cluster: None, tmp_path: Path) -> None:
    task = only(tmp_path / "corpus", [record("a"), record("b", q=" "), record("c", a=None), record("d")])
    with (tmp_path / "corpus" / "all.jsonl").open("a") as file:
        file.write('{"id": "half\n[]\n' + json.dumps(record("z")))
    store = Store.at(str(tmp_path / "run"))
    manifest = made(task, store, rows_per_shard=3, max_error_frac=0.6)
    reasons = [row.error and row.error.reason for row in rows(store, manifest, "train")]
    assert reasons == [None, "empty_text", "missing_field", None, "unparsable", "unparsable", None]
    assert manifest.errors == {"empty_text": 1, "missing_field": 1, "unparsable": 2}
    assert [uid for uid in names(store, manifest, "train") if "#" not in uid] == ["a", "b", "c", "d", "z"]


def test_a_test_split_may_be_unlabelled_and_a_rationale_come_late(cluster: None, tmp_path: Path) -> None:
    late = [record(str(number), **({"why": "so"} if number == 104 else {})) for number in range(105)]
    write_jsonl(tmp_path / "train.jsonl", late)
    write_jsonl(tmp_path / "test.jsonl", [{"id": "x", "q": "Which?"}])
    store = Store.at(str(tmp_path / "run"))
    manifest = made(mine(tmp_path, llm_rationale="why"), store)
    assert (manifest.rows, manifest.errors, manifest.counts) == (106, {}, {"unlabelled": 1})
    assert [row.llm_rationale for row in rows(store, manifest, "train")] == [None] * 104 + ["so"]
    assert [row.target for row in rows(store, manifest, "test")] == [None]


def test_more_bad_records_than_allowed_fail_the_stage_and_a_higher_share_mends_it(cluster: None, tmp_path: Path) -> None:
    task = only(tmp_path / "corpus", [record("a"), record("b", q="")])
    store = Store.at(str(tmp_path / "run"))
    with pytest.raises(StageError, match=r"1 of 2 rows got an error \(empty_text 1\), more than prepare.max_error_frac = 0.01"):
        made(task, store)
    assert store.manifest("examples") is None
    assert made(task, store, max_error_frac=0.5).rows == 2


def test_types_that_change_from_block_to_block_are_no_trouble(cluster: None, tmp_path: Path) -> None:
    kinds: list[Any] = [None, [["word", 3]], [], {"a": {"b": None}}, "text", 1, 2.5, True, [[1, [2]], None]]
    task = only(
        tmp_path / "corpus",
        [record(str(number), mixed=kinds[number % 9], **{f"only{number % 5}": number}) for number in range(40)],
    )
    store = Store.at(str(tmp_path / "run"))
    manifest = made(task, store, rows_per_shard=3)
    assert (manifest.rows, manifest.errors) == (40, {})


def test_without_an_id_equal_records_are_told_apart_wherever_the_shards_are_cut(cluster: None, tmp_path: Path) -> None:
    task = only(tmp_path / "corpus", [record("a"), record("b"), record("a"), record("a"), record("b")], id=None)
    uids = []
    for size in (1, 2, 5):
        store = Store.at(str(tmp_path / str(size)))
        manifest = made(task, store, rows_per_shard=size)
        assert (manifest.rows, manifest.figures["repeated_records"]) == (5, 3)
        uids.append([row.uid for row in rows(store, manifest, "train")])
    assert uids[0] == uids[1] == uids[2]
    assert len(set(uids[0])) == 5
    assert Counter(uid.partition("-")[2] for uid in uids[0]) == {"": 2, "2": 2, "3": 1}


def test_the_same_id_may_be_in_two_splits_but_not_twice_in_one(cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split in ("train", "test"):
        write_jsonl(folder / f"{split}.jsonl", [record(str(number)) for number in range(5)])
    assert made(mine(folder), Store.at(str(tmp_path / "good"))).rows == 10
    write_jsonl(folder / "train-more.jsonl", [record(str(number)) for number in (9, 4, 3, 2, 1)])
    with pytest.raises(InputError, match=r"task\.id: .* 'id' in .*corpus has train/1, train/2, train/3 more than once") as caught:
        made(mine(folder), Store.at(str(tmp_path / "bad")), rows_per_shard=3)
    assert type(caught.value) is InputError


def test_a_second_call_is_a_look_and_another_config_is_refused(cluster: None, corpus: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    manifest = made(mine(corpus), store, rows_per_shard=10)
    assert made(mine(corpus), store, rows_per_shard=10) == manifest
    assert made(mine(corpus), store, rows_per_shard=10, max_error_frac=1) == manifest
    with pytest.raises(StoreError, match=r"as these differ: rows_per_shard\. Use a new run name"):
        made(mine(corpus), store, rows_per_shard=9)
    with pytest.raises(StoreError, match=r"as these differ: name, prompt\. Use"):
        made(mine(corpus, name="other", prompt=[{"column": "a"}]), store, rows_per_shard=10)
    with pytest.raises(StoreError, match=r"as these differ: files, files of train\. Use"):
        made(mine(corpus, files={"train": "train-0*", "test": "test*"}), store, rows_per_shard=10)


def test_a_corpus_may_move(cluster: None, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "run"))
    manifest = made(only(tmp_path / "here", [record("a")]), store)
    there = only(tmp_path / "there", [record("a")])
    assert made(there, store) == manifest
    write_jsonl(tmp_path / "there" / "all.jsonl", [record("other")])
    with pytest.raises(StoreError, match=r"as these differ: files of train\. Use a new run name"):
        made(there, store)


def test_finished_examples_need_their_corpus_and_its_side_file_no_more(cluster: None, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "side.jsonl", [{"id": "a", "why": "because"}])
    task = only(tmp_path / "corpus", [record("a")], llm={"path": str(tmp_path / "side.jsonl"), "rationale": "why"})
    store = Store.at(str(tmp_path / "run"))
    manifest = made(task, store)
    write_jsonl(tmp_path / "side.jsonl", [{"id": "a", "why": "for another reason"}])
    with pytest.raises(StoreError, match=r"as these differ: files of llm\. Use a new run name"):
        made(task, store)
    (tmp_path / "side.jsonl").unlink()
    assert made(task, store) == manifest
    shutil.rmtree(tmp_path / "corpus")
    assert made(task, store) == manifest


def test_an_interrupted_attempt_is_overwritten(cluster: None, corpus: Path, alone: Store, tmp_path: Path) -> None:
    store, done = Store.at(str(tmp_path)), alone.manifest("examples")
    assert done is not None
    store.publish(f"examples/{done.shards[1].file}", b"left over")
    assert made(mine(corpus), store, rows_per_shard=4).shards == done.shards
    assert store.read(f"examples/{done.shards[1].file}") == alone.read(f"examples/{done.shards[1].file}")


@pytest.mark.parametrize("limit", [None, 50_000])
def test_a_file_that_breaks_off_is_named(cluster: None, tmp_path: Path, limit: int | None) -> None:
    lines = "".join(json.dumps(record(str(number))) + "\n" for number in range(20_000))
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-1000])
    task = mine(tmp_path, files={"train": "train*"}, limit_rows={"train": limit})
    with pytest.raises(InputError, match=r"cannot read .*train\.jsonl\.gz as jsonl: Truncated") as caught:
        made(task, Store.at(str(tmp_path / "run")))
    assert type(caught.value) is InputError


def test_a_missing_column_is_told_before_anything_is_written(cluster: None, corpus: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    with pytest.raises(
        InputError, match=r"reads the column answer, which the train records .* they have a, id, q\. Set task\.target"
    ):
        made(mine(corpus, target="answer"), store)
    assert store.names("examples") == []


def test_a_split_without_rows_is_an_error(cluster: None, tmp_path: Path) -> None:
    task = only(tmp_path / "corpus", [record("a")], holdout={"fraction": 0.5, "by": "position"})
    with pytest.raises(InputError, match=r"the train split of .* has no rows: the hold-out left it none"):
        made(task, Store.at(str(tmp_path / "run")))


def test_an_empty_file_among_others_is_fine(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl").write_text("")
    write_jsonl(tmp_path / "train-1.jsonl", [record("a")])
    pq.write_table(pa.table({"id": pa.array([], pa.string())}), tmp_path / "train-2.parquet")
    assert made(mine(tmp_path, files={"train": "train*"}), Store.at(str(tmp_path / "run"))).rows == 1


def test_a_side_file_is_attached_and_counted(cluster: None, corpus: Path, tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "side.jsonl", [{"key": f"train-0.jsonl-{number}", "why": f"because {number}"} for number in range(3, 9)]
    )
    task = mine(corpus, llm={"path": str(tmp_path / "side.jsonl"), "id": "key", "rationale": "why"})
    store = Store.at(str(tmp_path / "run"))
    manifest = made(task, store)
    found = [row.llm_rationale for row in rows(store, manifest, "train")]
    assert found[:8] == [None, None, None, "because 3", "because 4", "because 5", "because 6", None]
    assert (manifest.counts, manifest.figures["llm_side_records"]) == ({"llm_attached": 4, "llm_missing": 24}, 6)
    broken = mine(corpus, llm={"path": str(tmp_path / "side.jsonl"), "rationale": "why"})
    with pytest.raises(InputError, match=r"side\.jsonl: id is missing") as caught:
        made(broken, Store.at(str(tmp_path / "broken")))
    assert type(caught.value) is InputError


TWEETS = {
    "name": "tweets",
    "files": {"train": "train[.-]*", "test": "test[.-]*"},
    "id": "id",
    "prompt": [{"column": "text", "evidence": "human_rationale_spans"}],
    "target": "label",
    "labels": ["negative", "neutral", "positive"],
}


@needs_shared_data
@pytest.mark.parametrize(
    ("task", "sizes", "errors", "evidence", "rationales"),
    [
        (CommonsenseQA(path=str(SHARED / "cqa")), (8766, 975, 1221), {}, 7250, 10962),
        (Svamp(path=str(SHARED / "svamp")), (720, 80, 200), {}, 0, 1000),
        (ESNLI(path=str(SHARED / "esnli")), (8866, 976, 9824), {}, 998, 19666),
        (Columns(path=str(SHARED / "tweet_sentiment_spans"), **TWEETS), (27481, 0, 3534), {"empty_text": 1}, 27480, 0),
    ],
    ids=lambda value: getattr(value, "task", ""),
)
def test_all_of_the_shared_data_is_read(
    cluster: None,
    tmp_path: Path,
    task: TaskConfig,
    sizes: tuple[int, ...],
    errors: dict[str, int],
    evidence: int,
    rationales: int,
) -> None:
    store = Store.at(str(tmp_path))
    manifest = made(task, store)
    splits = {split: rows(store, manifest, split) for split in ("train", "validation", "test")}
    assert tuple(map(len, splits.values())) == sizes
    assert manifest.errors == errors
    every = [row for split in splits.values() for row in split]
    assert len({row.uid for row in every}) == len(every) == manifest.rows
    assert sum(bool(row.evidence) for row in every) == evidence
    assert sum(row.llm_rationale is not None for row in every) == rationales
    assert Counter(row.target is None for row in every) == {False: len(every) - sum(errors.values())} | (
        {True: 1} if errors else {}
    )
