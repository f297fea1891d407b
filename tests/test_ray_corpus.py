"""A corpus becomes the same shards on any cluster, and every record is in one of them."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from kd.errors import InputError
from kd.ray_corpus import prepare
from kd.store import Store
from kd.tasks.base import PrepareConfig, TaskConfig
from kd.tasks.columns import Columns
from kd.tasks.commonsense_qa import CommonsenseQA
from kd.tasks.esnli import ESNLI
from kd.tasks.svamp import Svamp
from tests.conftest import connect
from tests.test_corpus import write_jsonl
from tests.tiny_corpus import in_order, made, mine, names, only, record, rows, write_files

SHARED = Path(os.environ.get("KD_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What one CPU made of the corpus."""
    store = Store.at(str(tmp_path_factory.mktemp("alone")))
    ray.shutdown()
    connect(cpus=1)
    made(mine(corpus), store, rows_per_shard=4)
    ray.shutdown()
    return store


@pytest.fixture(scope="module")
def cluster(alone: Store) -> None:
    connect(cpus=6)


def test_six_cpus_write_the_bytes_that_one_writes(cluster: None, alone: Store, corpus: Path, tmp_path: Path) -> None:
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
    assert set(alone.names("examples")) == {
        "attempt.json",
        "manifest.json",
        "sources.json",
        *(shard.file for shard in manifest.shards),
    }


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


def test_a_test_split_may_be_unlabelled_and_a_rationale_come_late(cluster: None, tmp_path: Path) -> None:
    late = [record(str(number), **({"why": "so"} if number == 104 else {})) for number in range(105)]
    write_jsonl(tmp_path / "train.jsonl", late)
    write_jsonl(tmp_path / "test.jsonl", [{"id": "x", "q": "Which?"}])
    store = Store.at(str(tmp_path / "run"))
    manifest = made(mine(tmp_path, llm_rationale="why"), store)
    assert (manifest.rows, manifest.errors, manifest.counts) == (106, {}, {"unlabelled": 1})
    assert [row.llm_rationale for row in rows(store, manifest, "train")] == [None] * 104 + ["so"]
    assert [row.target for row in rows(store, manifest, "test")] == [None]


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


def test_an_interrupted_attempt_is_overwritten(cluster: None, corpus: Path, alone: Store, tmp_path: Path) -> None:
    store, done = Store.at(str(tmp_path)), alone.manifest("examples")
    assert done is not None
    store.publish(f"examples/{done.shards[1].file}", b"left over")
    assert made(mine(corpus), store, rows_per_shard=4).shards == done.shards
    assert store.read(f"examples/{done.shards[1].file}") == alone.read(f"examples/{done.shards[1].file}")


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
