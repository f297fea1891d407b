"""Files of any format on any file system become the same stream of records, and an unreadable one is named."""

import csv
import gzip
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from kd.corpus import decoded, find, find_splits, why_unreadable
from kd.errors import InputError
from kd.examples import as_example
from kd.places import Place
from kd.tasks.columns import Columns
from kd.tasks.svamp import Svamp

Records = Sequence[dict[str, Any]]

RECORDS: Records = [
    {"id": "a", "text": "one line\nand another", "note": None},
    {"id": "b", "text": 'quotes " and , commas', "note": "x"},
    {"id": "c", "text": "é 😀 \u2028 not a line break", "note": "y"},
]


def write_jsonl(path: Path, records: Records) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_gzip(path: Path, records: Records) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))


def write_parquet(path: Path, records: Records) -> None:
    pq.write_table(pa.Table.from_pylist(list(records)), path, row_group_size=2)


def write_csv(path: Path, records: Records) -> None:
    quoted = [",".join('"' + (record[name] or "").replace('"', '""') + '"' for name in record) for record in records]
    path.write_text("\r\n".join([",".join(records[0]), *quoted]) + "\r\n", encoding="utf-8-sig", newline="")


WRITERS: dict[str, Callable[[Path, Records], None]] = {
    "x.jsonl": write_jsonl,
    "x.json": write_jsonl,
    "x.jsonl.gz": write_gzip,
    "x.parquet": write_parquet,
    "x.csv": write_csv,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, RECORDS)
    source = find(str(tmp_path), "*", "auto", "task.files.train")
    assert [decoded(text) for text in source.all_records()] == RECORDS
    assert source.count(0) == 3
    assert source.columns() == {"id", "text", "note"}


def test_values_that_json_does_not_know_come_as_text(tmp_path: Path) -> None:
    days = pa.array([19_000], pa.date32())
    pq.write_table(pa.table({"day": days, "nested": [[{"a": 1, "b": b"x"}]]}), tmp_path / "x.parquet")
    (text,) = find(str(tmp_path), "*", "auto", "task.files.train").all_records()
    assert decoded(text) == {"day": "2022-01-08", "nested": [{"a": 1, "b": "x"}]}


def test_bytes_are_utf_8_and_a_row_whose_text_is_not_says_so(tmp_path: Path) -> None:
    names = ("body", "sub_question", "equation")
    table = {name: pa.array([b"1 + 2 caf\xc3\xa9", b"1 + 2 caf\xe9"], pa.binary()) for name in names[:2]}
    pq.write_table(pa.table(table | {"equation": [b"1 + 2"] * 2, "image": [b"\xff\xd8"] * 2}), tmp_path / "x.parquet")
    records = list(find(str(tmp_path), "*", "auto", "task.files.train").all_records())
    good, bad = (as_example(Svamp(id=None), "train", text) for text in records)
    assert (good.error, good.segments[0].text, good.target) == (None, "1 + 2 café", "1 + 2")
    assert bad.error is not None
    assert bad.error.reason == "unparsable"


def test_a_broken_line_is_a_record_that_cannot_be_decoded_and_its_neighbours_are_kept(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n\n{"a": \n[1, 2]\r\n{"a": 2}')
    records = list(find(str(tmp_path), "*", "auto", "task.files.train").all_records())
    assert [decoded(text) for text in records] == [{"a": 1}, None, None, {"a": 2}]
    assert why_unreadable(records[1]) == ("expected an object with fields, got '{\"a\": '", '{"a": ')


def test_a_line_of_another_length_than_the_header_is_a_record_that_cannot_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"a,b\n1,2\n3\n4,5,6\n7,\xff\n")
    records = list(find(str(tmp_path), "*", "auto", "task.files.train").all_records())
    assert [decoded(text) for text in records] == [{"a": "1", "b": "2"}, None, None, {"a": "7", "b": "\udcff"}]
    assert why_unreadable(records[1]) == ("line 3: 1 cells, where the header has 2", "3")


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
def test_a_text_in_another_encoding_is_told_by_its_byte_and_how_to_convert_it(tmp_path: Path, name: str) -> None:
    lines = {"x.jsonl": '{"q": "café", "a": "x"}\n', "x.csv": "q,a\ncafé,x\n"}
    if name == "x.parquet":
        pq.write_table(pa.table({"q": ["café".encode("latin-1")], "a": ["x"]}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(lines[name].encode("latin-1"))
    (text,) = find(str(tmp_path), "*", "auto", "task.files.train").all_records()
    task = Columns.model_validate({"path": "x.csv", "prompt": [{"column": "q"}], "target": "a"})
    error = as_example(task, "train", text).error
    assert error is not None
    assert error.detail.endswith(
        "the byte 0xe9 is no UTF-8; if it is Latin-1, convert the file: iconv -f LATIN1 -t UTF-8 FILE > NEW"
    )
    other = Columns.model_validate({"path": "x.csv", "prompt": [{"column": "a"}]})
    assert as_example(other, "train", text).error is None


def test_nan_is_no_value_in_any_format(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"q": "a", "a": NaN}\n')
    (tmp_path / "2.csv").write_text("q,a\na,nan\na,NaN\na,\n")
    for name, values in (("3", pa.array([float("nan")])), ("4", pa.array([float("nan")], pa.float16()))):
        pq.write_table(pa.table({"q": ["a"], "a": values}), tmp_path / f"{name}.parquet")
    task = Columns.model_validate({"path": str(tmp_path), "files": {"train": "*"}, "prompt": [{"column": "q"}], "target": "a"})
    records = list(find_splits(task)["train"].all_records())
    errors = [as_example(task, "train", text).error for text in records]
    assert [error and (error.reason, error.detail) for error in errors] == [("missing_field", "a is missing")] * 6
    assert [as_example(task, "test", text).target for text in records] == [None] * 6
    assert len({as_example(task, "test", text).uid for text in records}) == 1


def test_a_first_line_of_another_length_than_the_header_is_no_reason_to_refuse_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"a,b\n3\n1,2\n")
    assert find(str(tmp_path), "*", "auto", "task.files.train").columns() == {"a", "b"}
    (tmp_path / "x.csv").write_bytes(b"a,b\n3\n")
    with pytest.raises(InputError, match="CSV with lines as long as its header; it begins with"):
        find(str(tmp_path), "*", "auto", "task.files.train").columns()


def test_a_cell_may_be_longer_than_the_library_allows_whose_limit_stays(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (tmp_path / "x.csv").write_text(f"a,b\n1,{'x' * (before + 1)}\n")
    (text,) = find(str(tmp_path), "*", "auto", "task.files.train").all_records()
    assert len(json.loads(text)["b"]) == before + 1
    assert csv.field_size_limit() == before


def test_json_lines_may_have_more_columns_after_the_first_records_and_other_formats_not(tmp_path: Path) -> None:
    records = [{"a": "x", "late": None if number < 100 else "y"} for number in range(101)]
    late = [{key: value for key, value in record.items() if value} for record in records]
    for name, written, more in (("x.jsonl", late, True), ("y.jsonl", late[:100], False), ("z.csv", records, False)):
        WRITERS[f"x{name[1:]}"](tmp_path / name, written)
        source = find(str(tmp_path), name, "auto", "task.files.train")
        assert source.columns() == ({"a"} if "jsonl" in name else {"a", "late"})
        assert source.may_have_more_columns() == more


def test_deep_nesting_is_no_crash() -> None:
    assert decoded("[" * 100_000 + "]" * 100_000) is None


def test_files_come_in_the_order_of_their_names_and_alternatives_are_parted_by_a_bar(tmp_path: Path) -> None:
    for name in ("train-2.jsonl", "train-1.jsonl", "train_highlights.jsonl", "validation.jsonl", "deep/train-0.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / name, RECORDS)
    names = lambda pattern: [file.name for file in find(str(tmp_path), pattern, "auto", "task.files.train").files]  # noqa: E731
    assert names("train[.-]*") == ["train-1.jsonl", "train-2.jsonl"]
    assert names("dev[.-]*|validation[.-]*") == ["validation.jsonl"]
    assert names("**/train-*") == ["deep/train-0.jsonl", "train-1.jsonl", "train-2.jsonl"]


def test_the_fingerprint_knows_names_and_sizes_but_not_the_folder(tmp_path: Path) -> None:
    for folder, text in (("a", "{}\n"), ("b", "{}\n"), ("c", "{} \n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text(text)
    one, same, other = (find(str(tmp_path / folder), "*", "auto", "task.files.train").fingerprint for folder in "abc")
    assert one == same != other


def test_a_source_travels_to_a_worker(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", RECORDS)
    source = find(str(tmp_path), "*", "auto", "task.files.train")
    assert source.columns()
    assert list(pickle.loads(pickle.dumps(source)).all_records()) == list(source.all_records())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl.gz", b"no gzip", r"cannot read .*x\.jsonl\.gz as jsonl"),
        ("x.parquet", b"no parquet", r"cannot read .*x\.parquet as parquet"),
        (
            "x.csv",
            b'a\n1\n"2\n3\n',
            r"cannot read .*x\.csv as csv: line 3: a quote is not closed.* where the next row begins; mend",
        ),
        ("x.csv", b'a,"b\n1,2\n', r"cannot read .*x\.csv as csv: line 1: a quote is not closed"),
        ("x.csv", b"a\tb\n1\t2\n", r"its header is 'a\\tb' without a comma; set delimiter to tab"),
        ("x.csv", b"a;b\n1;2\n", r"its header is 'a;b' without a comma; set delimiter to ';'"),
        ("x.csv", b"a,caf\xe9\n1,2\n", r"line 1: the byte 0xe9 is no UTF-8; .* iconv -f LATIN1"),
        ("x.csv", "a,b\n1,2\n".encode("utf-16"), r"it begins like UTF-16, expected UTF-8: convert the file: iconv -f UTF-16"),
        ("x.jsonl", '{"a": 1}\n'.encode("utf-16-le"), r"x\.jsonl as jsonl: it begins like UTF-16, expected UTF-8"),
        ("x.csv", gzip.compress(b"a,b\n1,2\n"), r"x\.csv as csv: it is compressed by gzip, expected .* a name that ends in \.gz"),
        ("x.csv", b'a,b\n"1"2,3\n', r"lines as long as its header; it begins with '\"1\"2,3'"),
        ("x.tsv", b"a\tb\n1\t2\n", r"x\.tsv: CSV has commas between its cells, this has tabs .*; set task\.delimiter to tab"),
        ("x.csv", b"a,b,a\n1,2,3\n", r"cannot read .*x\.csv as csv: its header has 'a' more than once; mend it"),
        ("x.jsonl", b"", r"expected one JSON object per line, .*; it is empty"),
        ("x.json", b'[\n  {"a": 1}\n]\n', r"expected one JSON object per line, .*; it begins with '\['"),
        ("x.txt", b"hello", r"the suffix does not tell the format; expected \.parquet, .* or set task\.format"),
    ],
)
def test_an_unreadable_file_is_named_with_the_reason(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        find(str(tmp_path), "*", "auto", "task.files.train").columns()


def test_an_unreadable_file_cannot_be_counted_either(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 100_000)[:900])
    source = find(str(tmp_path), "*", "auto", "task.files.train")
    for index in (0, 1):
        with pytest.raises(InputError, match=["as parquet", "Truncated"][index]):
            source.count(index)


def test_the_format_may_be_said(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.txt", RECORDS)
    assert find(str(tmp_path), "*", "jsonl", "task.files.train").count(0) == 3


def test_a_missing_folder_and_a_pattern_without_a_match_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; set task\.path"):
        find_splits(Svamp(path=str(tmp_path / "nowhere")))
    write_jsonl(tmp_path / "dev.jsonl", RECORDS)
    with pytest.raises(InputError, match=r"task\.files\.train: 'train\[\.-\]\*' matches no file in .*; there are: dev\.jsonl"):
        find_splits(Svamp(path=str(tmp_path)))
    with pytest.raises(InputError, match=r"set task\.llm\.path"):
        find(str(tmp_path / "nowhere"), "x", "auto", "task.llm.path")
    with pytest.raises(InputError, match=r"cannot open ftp://host/x: expected a local path, s3://, gs:// or hf://"):
        find("ftp://host/x", "*", "auto", "task.files.train")


def test_a_file_belongs_to_one_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", RECORDS)
    with pytest.raises(InputError, match=r"train\.jsonl matches task\.files\.train and task\.files\.test"):
        find_splits(Svamp.model_validate({"path": str(tmp_path), "files": {"test": "*.jsonl"}}))


def test_a_local_path_is_made_absolute_for_workers_in_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "train.jsonl", RECORDS)
    monkeypatch.chdir(tmp_path)
    assert find(".", "*", "auto", "task.files.train").place == Place(str(tmp_path))


@pytest.mark.parametrize("given", ["tab", "\t", "\\t"])
def test_tab_separated_values_are_one_key_away(tmp_path: Path, given: str) -> None:
    (tmp_path / "x.tsv").write_text("q\ta\none, two\tx\n")
    task = {"path": str(tmp_path / "x.tsv"), "delimiter": given, "prompt": [{"column": "q"}], "target": "a"}
    (text,) = find_splits(Columns.model_validate(task))["train"].all_records()
    assert decoded(text) == {"q": "one, two", "a": "x"}
    for wrong in ("", "ab", '"', "\n"):
        with pytest.raises(ValidationError, match="delimiter"):
            Columns.model_validate(task | {"delimiter": wrong})
