"""What is refused of a corpus: bad records and files, ids twice, and another corpus or config for finished examples."""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kd.errors import InputError, StageError, StoreError
from kd.store import Store
from tests.test_corpus import write_jsonl
from tests.tiny_corpus import made, mine, names, only, record, rows, write_files


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("corpus"))


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


def test_more_bad_records_than_allowed_fail_the_stage_and_a_higher_share_mends_it(cluster: None, tmp_path: Path) -> None:
    task = only(tmp_path / "corpus", [record("a"), record("b", q="")])
    store = Store.at(str(tmp_path / "run"))
    with pytest.raises(StageError, match=r"1 of 2 rows got an error \(empty_text 1\), more than prepare.max_error_frac = 0.01"):
        made(task, store)
    assert store.manifest("examples") is None
    assert made(task, store, max_error_frac=0.5).rows == 2


def test_odd_files_cost_their_rows_and_the_message_has_three_of_them_with_reason_and_place(cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train-1.csv").write_text('id,q,a\n1,"a ""good"" one",x\n2,"he said "no" twice",x\n3,z,x\n')
    dates = pa.array([2 * 253_402_300_800_000_000, 0], pa.timestamp("us"))
    table = pa.table({"id": ["4", "5"], "q": ["?", "?"], "a": dates, "created": dates})
    pq.write_table(table, folder / "train-2.parquet")
    (folder / "train-3.jsonl").write_text(json.dumps(record("6")) + "\n" + '{"id": "7", "q": "?", "a": NaN}\n')
    task, store = mine(folder, files={"train": "train*"}), Store.at(str(tmp_path / "run"))
    with pytest.raises(StageError) as caught:
        made(task, store)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("prepare: 3 of 7 rows got an error (")
    assert [line.partition(": ")[2] for line in lines[1:4]] == [
        "unparsable, line 3: a quote is not closed, or is not doubled within quotes (',' expected after '\"')"
        " (train-1.csv, record 2)",
        "unparsable, the column a (timestamp[us]) holds a value that cannot be read: date value out of range"
        " (train-2.parquet, record 1)",
        "missing_field, a is missing (train-3.jsonl, record 2)",
    ]
    manifest = made(task, store, max_error_frac=0.5)
    assert [row.uid for row in rows(store, manifest, "train") if row.error][1:] == ["train/4", "train/7"]
    assert [row.uid for row in rows(store, manifest, "train") if not row.error] == [f"train/{n}" for n in "1356"]


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


@pytest.mark.parametrize("name", ["test.jsonl", "test.jsonl.gz", "test.csv", "test.parquet"])
def test_a_test_split_may_have_no_record(cluster: None, tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / "train.jsonl", [record("a"), record("b")])
    nothing = {"test.jsonl": b"\n", "test.jsonl.gz": gzip.compress(b""), "test.csv": b"id,q,a\n"}
    (tmp_path / name).write_bytes(nothing.get(name, b""))
    if name == "test.parquet":
        pq.write_table(pa.table({key: pa.array([], pa.string()) for key in ("id", "q", "a")}), tmp_path / name)
    manifest = made(mine(tmp_path), Store.at(str(tmp_path / "run")))
    assert (manifest.rows, manifest.shards_of("test")) == (2, [])


def test_a_train_split_without_a_record_is_an_error_and_so_is_a_pattern_without_a_file(cluster: None, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").touch()
    store = Store.at(str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"train\.jsonl: expected one JSON object per line, .*; it is empty"):
        made(mine(tmp_path), store)
    write_jsonl(tmp_path / "train.jsonl", [record("a")])
    with pytest.raises(InputError, match=r"task\.files\.test: 'eval\*' matches no file"):
        made(mine(tmp_path, files={"train": "train*", "test": "eval*"}), store)


def test_a_hold_out_that_leaves_train_no_row_is_an_error(cluster: None, tmp_path: Path) -> None:
    task = only(tmp_path / "corpus", [record("a")], holdout={"fraction": 0.5, "by": "position"})
    with pytest.raises(InputError, match=r"the train split of .* has no rows: the hold-out left it none"):
        made(task, Store.at(str(tmp_path / "run")))


# --- finished examples ------------------------------------------------------------------------------------------------


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
    with pytest.raises(StoreError, match=r"there/all\.jsonl, a file of train, is not .*: it had .* bytes and has .*new run name"):
        made(there, store)


def test_finished_examples_need_their_corpus_and_its_side_file_no_more(cluster: None, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "side.jsonl", [{"id": "a", "why": "because"}])
    task = only(tmp_path / "corpus", [record("a")], llm={"path": str(tmp_path / "side.jsonl"), "rationale": "why"})
    store = Store.at(str(tmp_path / "run"))
    manifest = made(task, store)
    write_jsonl(tmp_path / "side.jsonl", [{"id": "a", "why": "for another reason"}])
    with pytest.raises(StoreError, match=r"side\.jsonl, a file of llm, is not .*: it had .* bytes and has .*new run name"):
        made(task, store)
    (tmp_path / "side.jsonl").unlink()
    assert made(task, store) == manifest
    shutil.rmtree(tmp_path / "corpus")
    assert made(task, store) == manifest
