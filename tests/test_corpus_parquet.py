"""Of Parquet only the columns that a task reads are converted, and a value that cannot be is one row's error."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kd.corpus import Source, find_splits
from kd.errors import InputError
from kd.examples import as_example
from kd.tasks.columns import Columns

FAR = 2 * 253_402_300_800_000_000
"""Microseconds to the year 18029."""


def source(folder: Path, table: pa.Table, **task: Any) -> tuple[Columns, Source]:
    pq.write_table(table, folder / "x.parquet")
    asked = {"path": str(folder), "files": {"train": "*"}, "prompt": [{"column": "q"}], "target": "a"} | task
    mine = Columns.model_validate(asked)
    return mine, find_splits(mine)["train"]


def no_utf_8(data: bytes) -> pa.Array:
    """A column of strings whose one value is no UTF-8, which Parquet files may hold."""
    raw = pa.array([data], pa.binary())
    return pa.StringArray.from_buffers(1, raw.buffers()[1], raw.buffers()[2])


ODD = {
    "beyond year 9999": pa.array([FAR], pa.timestamp("us")),
    "duration": pa.array([2**62], pa.duration("s")),
    "date": pa.array([2**31 - 1], pa.date32()),
    "zone": pa.array([1], pa.timestamp("us", "Mars/Phobos")),
    "bytes": no_utf_8(b"caf\xe9"),
    "struct": pa.StructArray.from_arrays([pa.array([FAR], pa.timestamp("us"))], ["when"]),
    "list": pa.array([[FAR]], pa.list_(pa.timestamp("us"))),
}


@pytest.mark.parametrize("name", ODD)
def test_a_column_that_the_task_does_not_read_is_not_converted(tmp_path: Path, name: str) -> None:
    task, found = source(tmp_path, pa.table({"q": ["?"], "a": ["x"], "created": ODD[name]}))
    (row,) = [as_example(task, "train", text) for text in found.all_records()]
    assert (row.error, row.target) == (None, "x")
    assert found.columns() == {"q", "a", "created"}


@pytest.mark.parametrize("name", ODD)
def test_a_value_that_cannot_be_converted_is_its_rows_error(tmp_path: Path, name: str) -> None:
    odd = pa.concat_arrays([ODD[name].slice(0, 0), ODD[name], pa.nulls(1, ODD[name].type)])
    task, found = source(tmp_path, pa.table({"q": ["?", "?"], "id": [7, 8], "a": odd}), id="id")
    bad, other = [as_example(task, "test", text) for text in found.all_records()]
    assert bad.error is not None
    assert (bad.uid, bad.error.reason) == ("test/7", "unparsable")
    assert bad.error.detail.startswith("the column a (")
    assert ") holds a value that cannot be read: " in bad.error.detail
    assert (other.uid, other.error, other.target) == ("test/8", None, None)
    assert found.columns() == {"q", "id", "a"}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array([b"caf\xc3\xa9"]), "café"),
        (pa.array(["1.50"]).cast(pa.decimal128(5, 2)), "1.50"),
        (pa.array([19_000], pa.date32()), "2022-01-08"),
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (pa.array(["x"], pa.large_string()), "x"),
        (pa.array(["x"], pa.string_view()), "x"),
    ],
)
def test_other_types_are_read_as_they_print(tmp_path: Path, values: pa.Array, text: str) -> None:
    task, found = source(tmp_path, pa.table({"q": ["?"], "a": values}))
    assert [as_example(task, "train", record).target for record in found.all_records()] == [text]


def test_a_field_of_a_struct_is_read_and_so_is_a_column_with_a_dot_in_its_name(tmp_path: Path) -> None:
    table = pa.table({"q.text": ["flat"], "o": [{"text": ["x", "y"], "when": "now"}], "a": ["x"]})
    task, found = source(tmp_path, table, prompt=[{"column": "q.text"}, {"choices": "o.text"}])
    (row,) = [as_example(task, "train", text) for text in found.all_records()]
    assert (row.error, row.segments[0].text, row.label_set) == (None, "flat", ["x", "y"])


def test_a_column_that_is_there_twice_is_refused_where_it_is_read(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([name]) for name in "qaab"], names=["q", "a", "a", "b"])
    task, found = source(tmp_path, twice)
    with pytest.raises(InputError, match=r"x\.parquet as parquet: it has the column 'a' more than once"):
        list(found.all_records())
    other = Columns.model_validate(task.model_dump() | {"target": "b"})
    assert len(list(find_splits(other)["train"].all_records())) == 1


def test_a_uid_without_an_id_depends_on_what_is_read_in_every_format(tmp_path: Path) -> None:
    task, found = source(tmp_path, pa.table({"q": ["?"], "a": ["x"], "created": ODD["beyond year 9999"]}))
    (tmp_path / "y.jsonl").write_text('{"created": "whenever", "a": "x", "q": "?"}\n')
    (tmp_path / "z.csv").write_text("q,a,created\n?,x,never\n")
    uids = [as_example(task, "train", text).uid for text in find_splits(task)["train"].all_records()]
    assert len(uids) == 3
    assert set(uids) == {as_example(task, "train", next(found.all_records())).uid}
