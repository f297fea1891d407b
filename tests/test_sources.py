"""The files of a corpus are listed once: one that moves is the same, one that changes is named."""

import os
import shutil
from pathlib import Path

import pytest

from kd import sources
from kd.errors import StoreError
from kd.sources import check_unchanged, find_sources, freeze
from kd.store import Store
from kd.tasks.svamp import Svamp
from tests.test_corpus import write_jsonl

NAMES = ("train-0.jsonl", "train-1.jsonl", "test.jsonl")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in NAMES:
        write_jsonl(folder / name, [{"id": name, "label": "no"}])
    write_jsonl(tmp_path / "side.jsonl", [{"id": "a", "why": "x"}])
    return folder


def task(folder: Path) -> Svamp:
    return Svamp.model_validate({"path": str(folder), "llm": {"path": str(folder.parent / "side.jsonl"), "rationale": "why"}})


@pytest.fixture
def store(corpus: Path, tmp_path: Path) -> Store:
    """A run directory with the list of the corpus."""
    made = Store.at(str(tmp_path / "run"))
    freeze(made, "examples", find_sources(task(corpus)))
    return made


def compare(store: Store, folder: Path) -> None:
    check_unchanged(store, "examples", find_sources(task(folder)))


def edit(path: Path, before: str, after: str) -> None:
    """Put other words into a file, some time after it was made."""
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    later(path)


def later(path: Path) -> None:
    now = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(now, now))


def test_the_list_has_name_size_time_and_digest_of_every_file(store: Store, corpus: Path) -> None:
    listed = store.read_json("examples/sources.json")
    assert {name: list(source["files"]) for name, source in listed.items()} == {
        "train": ["train-0.jsonl", "train-1.jsonl"],
        "test": ["test.jsonl"],
        "llm": ["side.jsonl"],
    }
    assert listed["train"]["folder"] == str(corpus)
    marks = listed["train"]["files"]["train-0.jsonl"]
    assert marks["size_bytes"] == (corpus / "train-0.jsonl").stat().st_size
    assert marks["modified"].endswith("+00:00")
    assert len(marks["sha256"]) == 64


def test_a_corpus_that_stays_or_moves_or_is_written_again_is_the_same(store: Store, corpus: Path, tmp_path: Path) -> None:
    compare(store, corpus)
    shutil.copytree(corpus, tmp_path / "copied", copy_function=shutil.copyfile)
    later(tmp_path / "copied" / "test.jsonl")
    compare(store, tmp_path / "copied")
    later(corpus / "train-1.jsonl")
    compare(store, corpus)
    before = store.read("examples/sources.json")
    freeze(store, "examples", find_sources(task(tmp_path / "copied")))
    assert store.read("examples/sources.json") == before


def test_a_label_edited_in_place_is_seen_though_the_size_is_the_same(store: Store, corpus: Path, tmp_path: Path) -> None:
    edit(corpus / "train-1.jsonl", '"no"', '"ja"')
    message = (
        r"corpus/train-1\.jsonl, a file of train, is not what .*/examples was begun with: it was last changed at 20.*, with the"
        r" same size but another content\. Put it back as it was, or use a new run name"
    )
    with pytest.raises(StoreError, match=message):
        compare(store, corpus)
    with pytest.raises(StoreError, match=message):
        freeze(store, "examples", find_sources(task(corpus)))
    edit(corpus / "train-1.jsonl", '"ja"', '"no"')
    compare(store, corpus)
    edit(tmp_path / "side.jsonl", '"x"', '"y"')
    with pytest.raises(StoreError, match=r"side\.jsonl, a file of llm, is not what"):
        compare(store, corpus)


def test_of_a_large_corpus_the_time_decides_unless_it_was_copied(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "HASHED_BYTES", 10)
    store = Store.at(str(tmp_path / "run"))
    freeze(store, "examples", find_sources(task(corpus)))
    compare(store, corpus)
    later(corpus / "train-0.jsonl")
    with pytest.raises(StoreError, match=r"changed since, at 20.*\. If its content is what it was, copy the corpus to another"):
        compare(store, corpus)
    shutil.copytree(corpus, tmp_path / "copied")
    compare(store, tmp_path / "copied")


def test_a_file_system_without_times_is_compared_by_size(store: Store, corpus: Path) -> None:
    listed = store.read_json("examples/sources.json")
    for source in listed.values():
        for marks in source["files"].values():
            marks |= {"modified": None, "sha256": None}
    store.publish_json("examples/sources.json", listed)
    later(corpus / "train-0.jsonl")
    compare(store, corpus)


@pytest.mark.parametrize("moved", [False, True])
def test_another_size_and_files_that_come_and_go_are_named(store: Store, corpus: Path, tmp_path: Path, moved: bool) -> None:
    folder = shutil.copytree(corpus, tmp_path / "moved") if moved else corpus
    size = (folder / "test.jsonl").stat().st_size
    edit(folder / "test.jsonl", '"no"', '"none"')
    with pytest.raises(StoreError, match=rf"test\.jsonl, a file of test, .*: it had {size} bytes and has {size + 2}\. Put"):
        compare(store, folder)
    (folder / "train-1.jsonl").rename(folder / "train-2.jsonl")
    with pytest.raises(StoreError, match=r"train-1\.jsonl, a file of train, is not .*: it is no longer there"):
        compare(store, folder)
    shutil.copy(folder / "train-2.jsonl", folder / "train-1.jsonl")
    with pytest.raises(StoreError, match=r"train-2\.jsonl, a file of train, is not .*: it was not there"):
        compare(store, folder)


def test_without_a_list_nothing_is_compared(corpus: Path, tmp_path: Path) -> None:
    compare(Store.at(str(tmp_path / "run")), corpus)
