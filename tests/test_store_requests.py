"""What each method of a store asks of an object store: everything is built of these, and a request is what a run waits and pays for."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd import copies
from kd.manifests import Manifest
from kd.rows import Example
from kd.store import Store
from tests.s3_server import S3Server
from tests.test_rows import example

MANIFEST = Manifest(stage="attribute", digest="d", config={}, inputs={}, rows=1)


@pytest.fixture
def run(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A run directory with a shard, a model of two files and a finished stage; this machine has no copy of any of them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    s3.make_bucket("runs")
    store = Store.at(f"s3://runs/{tmp_path.name}")
    store.publish_rows("examples/train-0.parquet", [example()], Example, {"rows": 1})
    store.publish("model/config.json", b"{}")
    store.publish("model/weights/w.bin", b"1")
    store.publish_manifest(store.folder_for("attributions", "d"), MANIFEST)
    for copy in (tmp_path / f"kd-copies-{os.getuid()}").iterdir():
        copy.unlink()
    return store


Act = Callable[[Store], Any]
FETCHED, KNOWN = {"HEAD": 1, "GET": 1}, {"HEAD": 1}
"""What a file costs that this machine has no copy of, and one that it has."""
READS: dict[str, Act] = {
    "bytes": lambda store: store.read("model/config.json"),
    "json": lambda store: store.json_if_there("model/config.json"),
    "rows": lambda store: store.read_rows("examples/train-0.parquet", Example),
    "a column": lambda store: store.read_column("examples/train-0.parquet", "uid"),
    "notes": lambda store: store.read_notes("examples/train-0.parquet"),
    "a manifest": lambda store: store.manifest("attributions"),
}
OTHERS: dict[str, tuple[Act, dict[str, int]]] = {
    "publish": (lambda store: store.publish("a", b"x"), {"PUT": 1}),
    "publish rows": (lambda store: store.publish_rows("b.parquet", [example()], Example, {}), {"PUT": 1}),
    "publish a large file": (lambda store: store.publish("large", bytes(11 * 2**20)), {"POST": 2, "PUT": 2}),
    "something is there": (lambda store: store.exists("model/config.json"), {"HEAD": 1}),
    "something is not there": (lambda store: store.exists("model/none"), {"HEAD": 1}),
    "json that is not there": (lambda store: store.json_if_there("model/none"), {"HEAD": 1}),
    "no manifest": (lambda store: store.manifest("rationales"), {"HEAD": 1}),
    "names": (lambda store: store.names("model"), {"GET": 1}),
    "folders": (lambda store: store.folders("model"), {"GET": 1}),
    "a folder is found": (lambda store: store.find_folder("attributions", "d"), {"HEAD": 1, "GET": 1}),
    "a folder is claimed": (lambda store: store.folder_for("audit", "d"), {"HEAD": 1, "PUT": 1}),
    "a twin is claimed": (lambda store: store.folder_for("attributions", "e"), {"HEAD": 2, "GET": 1, "PUT": 1}),
}


def requests(s3: S3Server, store: Store, act: Act) -> dict[str, int]:
    s3.reset()
    act(store)
    return dict(s3.requests)


@pytest.mark.parametrize("what", READS)
def test_a_file_is_fetched_once_by_all_processes_of_a_machine(s3: S3Server, run: Store, what: str) -> None:
    assert requests(s3, run, READS[what]) == FETCHED
    assert requests(s3, Store.at(run.root), READS[what]) == KNOWN


@pytest.mark.parametrize("what", OTHERS)
def test_every_other_method_costs_so_many_requests(s3: S3Server, run: Store, what: str) -> None:
    act, expected = OTHERS[what]
    assert requests(s3, run, act) == expected


def test_what_this_machine_has_written_is_not_fetched(s3: S3Server, run: Store) -> None:
    run.publish("new", b"content")
    assert requests(s3, run, lambda store: store.read("new")) == KNOWN


def test_a_copy_is_used_only_where_it_is_what_the_store_has(s3: S3Server, run: Store) -> None:
    run.publish("changed", b"before")
    with s3.filesystem().open_output_stream(f"runs/{Path(run.root.partition('?')[0]).name}/changed") as stream:
        stream.write(b"behind")
    assert run.read("changed") == b"behind"
    assert run.read("changed") == b"behind"


def test_a_harmed_copy_is_fetched_again(s3: S3Server, run: Store, tmp_path: Path) -> None:
    run.publish("harmed", b"content")
    for copy in tmp_path.glob("kd-copies-*/*"):
        copy.write_bytes(b"c0ntent")
    assert requests(s3, run, lambda store: store.read("harmed")) == FETCHED
    assert run.read("harmed") == b"content"


def test_a_model_costs_a_listing_and_its_files(s3: S3Server, run: Store, tmp_path: Path) -> None:
    assert requests(s3, run, lambda store: store.local_folder("model", tmp_path / "one")) == {"GET": 1 + 2, "HEAD": 2}
    assert requests(s3, run, lambda store: store.local_folder("model", tmp_path / "two")) == {"GET": 1, "HEAD": 2}
    (local,) = (tmp_path / "two").iterdir()
    assert (local / "weights" / "w.bin").read_bytes() == b"1"


def test_a_store_with_a_memory_asks_once_for_what_is_complete_and_always_for_what_is_not(s3: S3Server, run: Store) -> None:
    expected, store = run.manifest("attributions"), run.remembering()
    assert requests(s3, store, lambda store: store.manifest(store.find_folder("attributions", "d") or "")) == {
        "HEAD": 2,
        "GET": 1,
    }
    assert requests(s3, store, lambda store: store.manifest(store.find_folder("attributions", "d") or "")) == {}
    assert store.manifest("attributions") == expected
    assert store.manifest("rationales") is None
    run.publish_manifest("rationales", MANIFEST)
    assert store.manifest("rationales") is not None, "another process has written it meanwhile"
    store.delete_manifest("rationales")
    assert store.manifest("rationales") is None


def test_nothing_is_copied_to_where_others_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"kd-copies-{os.getuid()}"
    folder.mkdir(mode=0o755)
    copies.keep("s3://runs/a", b"text")
    assert list(folder.iterdir()) == []
    folder.chmod(0o700)
    copies.keep("s3://runs/a", b"text")
    assert len(list(folder.iterdir())) == 1


def test_an_actor_reads_a_shard_once_and_keeps_no_more_than_it_may(s3: S3Server, run: Store) -> None:
    size = run.sizes("examples")["train-0.parquet"]
    run.publish_rows("examples/train-1.parquet", [example()], Example, {"rows": 1})
    actor = run.remembering(shards_bytes=size + 1)
    expected = run.read_rows("examples/train-0.parquet", Example)
    for path, cost in (("train-0", 1), ("train-0", 0), ("train-1", 1), ("train-0", 1)):
        s3.reset()
        assert actor.read_rows(f"examples/{path}.parquet", Example) == expected
        assert s3.requests.total() == cost, path
    actor.publish_rows("examples/train-0.parquet", [], Example, {})
    assert actor.read_rows("examples/train-0.parquet", Example) == []


def test_the_copies_of_a_machine_are_kept_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(copies, "MOST_BYTES", 30)
    monkeypatch.setattr(copies, "_LOOK_EVERY_BYTES", 10)
    for number in range(20):
        copies.keep(f"s3://runs/{number}", b"ten bytes!")
    kept = [path.stat().st_size for path in tmp_path.glob("kd-copies-*/*")]
    assert sum(kept) <= 30 + 10
