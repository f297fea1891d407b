"""Patterns find files by name on any file system, and what is there by its very name is no glob."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from kd.corpus import find, find_splits
from kd.errors import InputError
from kd.places import Place
from kd.side import find_side
from kd.tasks.anli import Anli
from kd.tasks.base import SideFile, folder_and_pattern
from kd.tasks.columns import Columns
from tests.s3_server import S3Server

FILES = [
    "my[1]/train.jsonl",
    "my[1]/deep/train.jsonl",
    "my1/train.jsonl",
    "x[1].jsonl",
    "x1.jsonl",
    "my[1]/dev-1.jsonl",
    "a b.jsonl",
]

SHAPE = {"prompt": [{"column": "q"}], "target": "a"}


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A bucket with `FILES`."""
    client = s3.filesystem()
    if client.get_file_info("corpora").type == pafs.FileType.NotFound:
        s3.make_bucket("corpora")
        for name in FILES:
            with client.open_output_stream(f"corpora/{name}") as stream:
                stream.write(b'{"q": "?", "a": "x"}\n')
    return "s3://corpora"


@pytest.fixture(params=["local", "s3"])
def corpora(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with `FILES`, here or in a bucket."""
    if request.param == "s3":
        found: str = request.getfixturevalue("bucket")
        return found
    for name in FILES:
        path = tmp_path / "corpora" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"q": "?", "a": "x"}\n')
    return str(tmp_path / "corpora")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a b.jsonl", "x1.jsonl", "x[1].jsonl"]),
        ("x[1].jsonl", ["x[1].jsonl"]),
        ("x[12].jsonl", ["x1.jsonl"]),
        ("x[[]1].jsonl", ["x[1].jsonl"]),
        ("my[1]/train*", ["my[1]/train.jsonl"]),
        ("my[12]/train*", ["my1/train.jsonl"]),
        ("my*/train.jsonl", ["my1/train.jsonl", "my[1]/train.jsonl"]),
        ("my[1]/train.jsonl", ["my[1]/train.jsonl"]),
        ("**/train.jsonl", ["my1/train.jsonl", "my[1]/deep/train.jsonl", "my[1]/train.jsonl"]),
        ("my[1]/**", ["my[1]/deep/train.jsonl", "my[1]/dev-1.jsonl", "my[1]/train.jsonl"]),
        ("x[1].jsonl/*", []),
        ("nowhere/*", []),
        ("nothing.jsonl", []),
    ],
)
def test_a_part_of_a_pattern_means_what_is_there_by_its_very_name(corpora: str, pattern: str, expected: list[str]) -> None:
    place = Place.at(corpora)
    found = [path for path, said in place.glob(pattern).items() if said is not None]
    assert sorted(path.removeprefix(place.where[1] + "/") for path in found) == expected


def test_a_corpus_may_lie_in_a_folder_with_brackets(corpora: str) -> None:
    task = Columns.model_validate(SHAPE | {"path": f"{corpora}/my[1]", "files": {"train": "train*", "validation": "dev*"}})
    assert {split: [file.name for file in source.files] for split, source in find_splits(task).items()} == {
        "train": ["train.jsonl"],
        "validation": ["dev-1.jsonl"],
    }
    assert Columns.model_validate(task.model_dump()) == task
    preset = Anli.model_validate({"path": f"{corpora}/my[1]", "files": {"test": None}})
    assert sorted(find_splits(preset)) == ["train", "validation"]


@pytest.mark.parametrize("name", ["my[1]/train.jsonl", "x[1].jsonl", "a b.jsonl"])
def test_a_file_may_have_brackets_in_its_path(corpora: str, name: str) -> None:
    task = Columns.model_validate(SHAPE | {"path": f"{corpora}/{name}"})
    (file,) = find_splits(task)["train"].files
    assert file.path.endswith(f"corpora/{name}")
    (side,) = find_side(SideFile(path=f"{corpora}/{name}")).files
    assert side.path == file.path
    assert len(find_side(SideFile(path=f"{corpora}/my[1]")).files) == 2


def test_what_is_in_a_folder_with_brackets_is_named_where_nothing_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my[1]").mkdir()
    (tmp_path / "my[1]" / "dev.jsonl").touch()
    monkeypatch.chdir(tmp_path / "my[1]")
    with pytest.raises(InputError, match=r"'train\*' matches no file in .*my\[1\]; there are: dev\.jsonl"):
        find(".", "train*", "auto", "task.files.train")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/my[1]", ("data/my[1]", None)),
        ("s3://b/my[1]/anli", ("s3://b/my[1]/anli", None)),
        ("data/my[1]/x.jsonl", ("data", "my[1]/x.jsonl")),
        ("data/my[1]/x-*", ("data", "my[1]/x-*")),
        ("data/x[12].csv", ("data", "x[12].csv")),
        ("x.tsv", (".", "x.tsv")),
    ],
)
def test_brackets_make_a_glob_of_what_may_be_a_file(path: str, expected: tuple[str, str | None]) -> None:
    assert folder_and_pattern(path) == expected


def test_where_the_format_is_said_brackets_may_be_a_glob_unless_that_folder_is_there(tmp_path: Path) -> None:
    make: list[Callable[[], Path]] = [lambda: tmp_path, lambda: (tmp_path / "part-[0-9]").mkdir() or tmp_path]  # type: ignore[func-returns-value]
    expected = [(str(tmp_path), "part-[0-9]"), (str(tmp_path / "part-[0-9]"), None)]
    assert [folder_and_pattern(str(folder() / "part-[0-9]"), "jsonl") for folder in make] == expected
