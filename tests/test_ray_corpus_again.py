"""A corpus once more: what another attempt, errors to be tried again and a corpus that changed meanwhile lead to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kd.errors import StageError, StoreError
from kd.manifests import Manifest
from kd.ray_corpus import prepare
from kd.rows import Example, RowError, as_errored
from kd.shards import count
from kd.store import Store
from kd.tasks.base import PrepareConfig
from kd.tasks.columns import Columns
from tests.test_corpus import write_jsonl
from tests.tiny_corpus import made, names, only, record, rows


def repeated(folder: Path) -> Columns:
    """Sixteen records without ids, of which every one is there twice."""
    return only(folder, [record(str(number % 8)) for number in range(16)], id=None)


@dataclass
class Interrupted:
    """A progress that does something else when the first shard is written."""

    act: Callable[[], object]
    done: bool = False

    def __call__(self, done: int, total: int | None) -> None:
        if not self.done:
            self.done = True
            self.act()


def test_of_two_attempts_at_once_the_older_says_so_and_every_uid_is_there_once(cluster: None, tmp_path: Path) -> None:
    task, store, alone = repeated(tmp_path / "corpus"), Store.at(str(tmp_path / "run")), Store.at(str(tmp_path / "alone"))
    newer = Interrupted(lambda: made(task, store, rows_per_shard=3))
    with pytest.raises(StageError, match="prepare: another job has started this stage in .*examples and goes on with it"):
        prepare(task, PrepareConfig(rows_per_shard=3), store, newer)
    manifest, undisturbed = store.manifest("examples"), made(task, alone, rows_per_shard=3)
    assert manifest is not None
    uids = [row.uid for row in rows(store, manifest, "train")]
    assert len(uids) == len(set(uids)) == 16
    assert (manifest.shards, manifest.digest) == (undisturbed.shards, undisturbed.digest)
    assert manifest.figures["repeated_records"] == 8


def content(store: Store, manifest: Manifest) -> dict[str, int]:
    return {shard.name: Path(store.path(f"examples/{shard.file}")).stat().st_mtime_ns for shard in manifest.shards}


def test_an_interrupted_attempt_is_gone_on_with_where_shards_were_renamed(cluster: None, tmp_path: Path) -> None:
    task, store = repeated(tmp_path / "corpus"), Store.at(str(tmp_path / "run"))
    first = made(task, store, rows_per_shard=3)
    before = content(store, first)
    Path(store.path("examples/manifest.json")).unlink()
    again = made(task, store, rows_per_shard=3)
    assert (again.shards, again.digest, again.counts) == (first.shards, first.digest, first.counts)
    assert content(store, again) == before


def test_errors_are_tried_again_in_their_shards_alone(cluster: None, tmp_path: Path) -> None:
    task = only(tmp_path / "corpus", [record(name, **({"q": " "} if name == "c" else {})) for name in "abcdef"])
    store = Store.at(str(tmp_path / "run"))
    with pytest.raises(StageError, match=r"1 of 6 rows got an error \(empty_text 1\)"):
        made(task, store, rows_per_shard=2)
    first = made(task, store, rows_per_shard=2, max_error_frac=0.5)
    before = content(store, first)
    same = made(task, store, rows_per_shard=2, max_error_frac=0.5, retry_errors=True)
    assert (same.shards, same.errors, same.digest) == (first.shards, {"empty_text": 1}, first.digest)
    after = content(store, same)
    assert [after[shard.name] == before[shard.name] for shard in first.shards] == [True, False, True]
    bad = first.shards[1]
    notes = store.read_notes(f"examples/{bad.file}")
    assert notes == {"rows": 2, "error.empty_text": 1}


def test_a_parser_that_was_mended_makes_other_examples_of_the_same_corpus(cluster: None, tmp_path: Path) -> None:
    """A shard as a faulty parser left it stands for one: every row of it has an error."""
    task, store = only(tmp_path / "corpus", [record(name) for name in "abcdef"]), Store.at(str(tmp_path / "run"))
    mended = made(task, store, rows_per_shard=2)
    faulty = mended.shards[1]
    _spoil(store, faulty.file)
    Path(store.path("examples/manifest.json")).unlink()
    spoilt = made(task, store, rows_per_shard=2, max_error_frac=0.5)
    assert spoilt.errors == {"empty_text": 2}
    assert made(task, store, rows_per_shard=2, max_error_frac=0.5) == spoilt
    again = made(task, store, rows_per_shard=2, retry_errors=True)
    assert (again.errors, again.shards, again.digest) == ({}, mended.shards, mended.digest)
    assert again.digest != spoilt.digest, "what is made from these rows must be made again"
    assert names(store, again, "train") == list("abcdef")
    assert made(task, store, rows_per_shard=2, retry_errors=True) == again


def _spoil(store: Store, file: str) -> None:
    bad = [as_errored(row, Example, RowError("empty_text", "")) for row in store.read_rows(f"examples/{file}", Example)]
    store.publish_rows(f"examples/{file}", bad, Example, count(bad))


def test_a_corpus_that_changes_while_it_is_prepared_is_an_error(cluster: None, tmp_path: Path) -> None:
    task, store = only(tmp_path / "corpus", [record(name) for name in "abcdef"]), Store.at(str(tmp_path / "run"))
    other = [record(name) for name in "abcdeg"]
    edited = Interrupted(lambda: write_jsonl(tmp_path / "corpus" / "all.jsonl", other))
    changed = r"all\.jsonl, a file of train, is not what .*examples was begun with: .* same size but another content"
    with pytest.raises(StoreError, match=changed):
        prepare(task, PrepareConfig(rows_per_shard=2), store, edited)
    assert store.manifest("examples") is None
    with pytest.raises(StoreError, match=changed):
        made(task, store, rows_per_shard=2)
    write_jsonl(tmp_path / "corpus" / "all.jsonl", [record(name) for name in "abcdef"])
    assert names(store, made(task, store, rows_per_shard=2), "train") == list("abcdef")


def test_while_errors_are_tried_again_the_corpus_is_not_complete(cluster: None, tmp_path: Path) -> None:
    task = only(tmp_path / "corpus", [record("a"), record("b", q=" ")])
    store, seen = Store.at(str(tmp_path / "run")), []
    first = made(task, store, max_error_frac=0.5)
    looked = Interrupted(lambda: seen.append(store.manifest("examples")))
    again = prepare(task, PrepareConfig(max_error_frac=0.5), store, looked, retry_errors=True)
    assert (seen, again.digest) == ([None], first.digest)
