"""A run directory on every kind of store: nothing half-written is ever seen, and a folder belongs to one config."""

import hashlib
import io
import json
import pickle
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kd.errors import StoreError
from kd.fingerprints import Fingerprint
from kd.manifests import Manifest, Shard, digest
from kd.rows import Example
from kd.store import Store
from tests.s3_server import S3Server
from tests.test_rows import example


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """For what only plain files can do."""
    return Store.at(str(tmp_path / "run"))


def test_a_relative_root_is_made_absolute_and_a_uri_is_kept() -> None:
    assert Store.at("runs/x").root == str(Path("runs/x").absolute())
    assert Store.at("s3://bucket/x/").path("a") == "s3://bucket/x/a"


def test_a_root_that_no_file_system_knows_is_a_clear_error() -> None:
    with pytest.raises(StoreError, match="expected a local path, s3:// or gs://"):
        Store.at("nosuch://x").exists("a")


def test_a_published_file_is_read_back_and_leaves_no_temporary_file(store: Store) -> None:
    store.publish("a/b.txt", b"one")
    store.publish("a/b.txt", b"two")
    assert store.read("a/b.txt") == b"two"
    assert store.names("a") == ["b.txt"]
    assert store.names("nothing") == []
    assert store.exists("a/b.txt")
    assert not store.exists("a")


def test_a_failed_write_leaves_the_old_file(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    local.publish("a.txt", b"old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StoreError, match=r"cannot write .*/a\.txt: disk full; check the path, .* and the free space"):
        local.publish("a.txt", b"new")
    assert local.read("a.txt") == b"old"
    assert local.names("") == ["a.txt"]


def test_what_the_file_system_refuses_names_the_path_and_the_next_step(local: Store) -> None:
    local.publish("file", b"not a folder, and not Parquet")
    for act in (
        lambda: local.publish("file/below", b""),
        lambda: local.names("file"),
        lambda: local.read(""),
        lambda: Store.at("/proc/nowhere").publish("a", b""),
    ):
        with pytest.raises(StoreError, match=r"cannot (write|list|read) /.*; check the path, the credentials"):
            act()


class Forbidding(BaseHTTPRequestHandler):
    """An object store that lets nobody in."""

    def answer(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = answer

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def test_a_bucket_that_may_not_be_used_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        bucket = Store.at(f"s3://bucket/run?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{server.server_port}")
        for act in (lambda: bucket.exists("a"), lambda: bucket.names("a"), lambda: bucket.publish("a", b"")):
            with pytest.raises(
                StoreError, match=r"cannot (look for|list|write) s3://bucket/.*ACCESS_DENIED.*; check the path, the"
            ):
                act()
        server.shutdown()


def test_reading_what_is_not_there_names_the_file(store: Store) -> None:
    for read in (lambda: store.read_rows("missing.parquet", Example), lambda: store.read_notes("missing.parquet")):
        with pytest.raises(StoreError, match=r"missing\.parquet( at http://\S+)? is not there; run the stage"):
            read()


def test_rows_and_their_notes_survive(store: Store) -> None:
    sample = [example("a"), example("b")]
    store.publish_rows("examples/s.parquet", sample, Example, {"rows": 2})
    assert store.read_rows("examples/s.parquet", Example) == sample
    assert store.read_notes("examples/s.parquet") == {"rows": 2}


def test_a_file_of_another_contract_is_refused(store: Store) -> None:
    store.publish_rows("s.parquet", [example()], Example, {})
    from kd.rows import Features

    with pytest.raises(StoreError, match=r"s\.parquet is not what this version writes.*new run name"):
        store.read_rows("s.parquet", Features)


def test_a_manifest_means_complete_and_comes_back_as_it_was(store: Store) -> None:
    assert store.manifest("examples") is None
    shards = [Shard("train-1", "train", 2), Shard("test-1", "test", 1)]
    written = store.publish_manifest(
        "examples", Manifest(stage="prepare", digest="d", config={"k": 5}, inputs={}, shards=shards, rows=3)
    )
    read = store.manifest("examples")
    assert read == written
    assert read is not None
    assert read.shards_of("test") == [shards[1]]
    assert read.versions["torch"].startswith("2.")
    assert read.finished_unix_s > 1.7e9


def test_a_long_list_of_shards_lies_in_parts_beside_the_manifest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd.store.SHARDS_PER_PART", 2)
    shards = [Shard(f"train-{number}", "train", 3) for number in range(5)]
    written = store.publish_manifest("stage", Manifest(stage="s", digest="d", config={}, inputs={}, shards=shards, rows=15))
    assert store.names("stage") == ["manifest-00000.json", "manifest-00001.json", "manifest-00002.json", "manifest.json"]
    assert store.read_json("stage/manifest.json")["shards"] == []
    assert store.manifest("stage") == written
    assert written.shards == shards


def test_a_manifest_of_another_version_is_refused(store: Store) -> None:
    store.publish("x/manifest.json", json.dumps({"stage": "x", "colour": "red"}).encode())
    with pytest.raises(StoreError, match="written by another version"):
        store.manifest("x")


def test_a_damaged_manifest_and_a_foreign_file_are_named(store: Store) -> None:
    store.publish("stage/manifest.json", b'{"stage": "s", ')
    with pytest.raises(StoreError, match=r"stage/manifest.json is not whole JSON: .*; delete it and run the stage again"):
        store.manifest("stage")
    foreign = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), foreign)
    store.publish("foreign.parquet", foreign.getvalue())
    with pytest.raises(StoreError, match=r"foreign.parquet has no notes in its footer"):
        store.read_notes("foreign.parquet")


def test_a_folder_belongs_to_the_first_digest_and_another_gets_its_own(store: Store) -> None:
    assert store.folder_for("attributions/saliency", "aaaaaaaaaa") == "attributions/saliency"
    assert store.folder_for("attributions/saliency", "bbbbbbbbbb") == "attributions/saliency-bbbbbbbb"
    assert store.folder_for("attributions/saliency", "aaaaaaaaaa") == "attributions/saliency"
    assert store.folder_for("attributions/saliency", "bbbbbbbbbb") == "attributions/saliency-bbbbbbbb"


def test_a_store_travels_to_a_worker(store: Store) -> None:
    store.publish("a.txt", b"x")
    assert pickle.loads(pickle.dumps(store)).read("a.txt") == b"x"


def test_a_folder_is_published_file_by_file_and_comes_back_as_plain_files(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "sub" / "w.bin").write_bytes(b"1")
    store.upload(tmp_path / "model", "teacher/model")
    assert store.read("teacher/model/sub/w.bin") == b"1"
    local = store.local_folder("teacher/model", tmp_path / "cache")
    assert (local / "sub" / "w.bin").read_bytes() == b"1"
    assert store.local_folder("teacher/model", tmp_path / "cache") == local
    assert not store.is_local or local == Path(store.path("teacher/model"))


@pytest.mark.parametrize("small_bytes", [2**20, -1], ids=["whole", "piece by piece"])
def test_a_file_that_cannot_be_read_is_not_published(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_bytes: int
) -> None:
    monkeypatch.setattr("kd.copies.SMALL_BYTES", small_bytes)
    for unreadable in (tmp_path / "missing.bin", Path("/proc/self/mem")):  # the first byte of the latter is no one's
        with pytest.raises(StoreError, match="cannot write"):
            store.publish_file(unreadable, "a/w.bin")
        assert not store.exists("a/w.bin")
        assert store.names("a") == []


def test_a_folder_in_a_bucket_is_fetched_once_as_plain_files(s3: S3Server, tmp_path: Path) -> None:
    s3.make_bucket("runs")
    bucket, cache = Store.at("s3://runs/one"), tmp_path / "cache"
    bucket.publish("model/w.bin", b"1")
    local = bucket.local_folder("model", cache)
    assert (local / "w.bin").read_bytes() == b"1"
    assert [path.name for path in cache.iterdir()] == [local.name]
    s3.reset()
    assert bucket.local_folder("model", cache) == local
    assert not s3.requests


def test_a_file_is_published_and_fetched_piece_by_piece_with_its_digest(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd.fingerprints._PIECE_BYTES", 7)
    content = bytes(range(100))
    (tmp_path / "w.bin").write_bytes(content)
    published = store.publish_file(tmp_path / "w.bin", "a/w.bin")
    assert published == Fingerprint(100, hashlib.sha256(content).hexdigest())
    assert store.fetch_file("a/w.bin", tmp_path / "deep" / "back.bin") == published
    assert (tmp_path / "deep" / "back.bin").read_bytes() == content
    assert store.names("a") == ["w.bin"]
    with pytest.raises(StoreError, match=r"a/lost\.bin( at http://\S+)? is not there"):
        store.fetch_file("a/lost.bin", tmp_path / "lost.bin")


def test_folders_are_listed_and_deleted_with_what_they_hold(store: Store) -> None:
    store.publish("a/b/c.txt", b"x")
    store.publish("a/d.txt", b"x")
    assert store.folders("a") == ["b"]
    assert store.folders("nothing") == []
    store.delete_folder("a/b")
    store.delete_folder("a/b")
    assert store.folders("a") == []
    assert store.names("a") == ["d.txt"]


def test_the_digest_depends_on_content_not_on_key_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest("ab", "c") != digest("a", "bc")


def test_the_files_of_a_folder_have_their_sizes(store: Store) -> None:
    store.publish("models/a", b"123")
    store.publish("models/b", b"")
    store.publish("models/inner/c", b"1")
    assert store.sizes("models") == {"a": 3, "b": 0}
    assert store.sizes("nowhere") == {}
