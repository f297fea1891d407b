"""Object stores and the hub as they answer on a socket: a corpus on each, and services that refuse, are silent or not there."""

import gzip
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import Request, urlopen

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import yaml

from kd.corpus import Source, decoded, find, is_there
from kd.errors import InputError, StoreError
from kd.filesystems import _check_answers
from kd.places import Place
from kd.store import Store
from tests.hub_server import serving_hub
from tests.mini import MINI, write_mini
from tests.s3_server import ALONE, CREDENTIALS, S3Server

RECORDS = [{"text": f"text {number}", "label": str(number % 2)} for number in range(5)]
ROOT = Path(__file__).parents[1]


def parquet(records: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), buffer)
    return buffer.getvalue()


FILES: Mapping[str, bytes] = {
    "data/train.jsonl": "".join(json.dumps(record) + "\n" for record in RECORDS).encode(),
    "data/validation.jsonl.gz": gzip.compress("".join(json.dumps(record) + "\n" for record in RECORDS).encode()),
    "data/test-00000-of-00001.parquet": parquet(RECORDS),
    "data/other.csv": ("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in RECORDS)).encode(),
}


@pytest.fixture(params=["s3", "gs", "hf"])
def corpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder with the files above."""
    if request.param == "hf":
        with serving_hub("me/mine", FILES) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            yield "hf://datasets/me/mine/data"
        return
    if request.param == "s3":
        request.getfixturevalue("s3").make_bucket("runs")
    else:
        request.getfixturevalue("gs")
    store = Store.at(f"{request.param}://runs/corpus")
    for name, content in FILES.items():
        store.publish(name, content)
    yield f"{request.param}://runs/corpus/data"


@pytest.mark.parametrize("pattern", ["train*", "validation*", "test[.-]*", "other*"])
def test_a_corpus_is_read_wherever_it_is_and_workers_need_no_endpoint_of_their_own(
    corpus: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find(corpus, pattern, "auto", "task.files.train")
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "STORAGE_EMULATOR_HOST", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    there: Source = pickle.loads(pickle.dumps(source))
    assert [decoded(text) for text in there.all_records()] == RECORDS
    assert there.count(0) == len(RECORDS)
    assert f"data/{there.files[0].name}" in FILES
    assert there.size_bytes == len(FILES[f"data/{there.files[0].name}"])


def test_what_is_not_there_is_named_with_its_service(corpus: str) -> None:
    assert is_there(corpus)
    assert not is_there(f"{corpus}/nowhere")
    with pytest.raises(InputError, match=r"there is no folder \w+://\S+/data/nowhere at http://127\.0\.0\.1:\d+; set task\.path"):
        find(f"{corpus}/nowhere", "*", "auto", "task.files.train")
    with pytest.raises(
        InputError, match=r"'x\*' matches no file in \w+://\S+/data at http://127\.0\.0\.1:\d+; there are: other\.csv"
    ):
        find(corpus, "x*", "auto", "task.files.train")


def test_a_store_travels_to_a_worker_with_another_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.make_bucket("runs")
    by_environment = Store.at("s3://runs/travels")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    by_query = Store.at(f"s3://runs/travels{s3.query}")
    pickle.loads(pickle.dumps(by_environment)).publish("a/b.txt", b"x")
    assert pickle.loads(pickle.dumps(by_query)).read("a/b.txt") == b"x"
    for store in (by_environment, by_query):
        assert not any(secret.encode() in pickle.dumps(store) for secret in CREDENTIALS.values())
        filesystem, path = store.for_libraries("a")
        carried = pickle.dumps(filesystem)
        assert not any(secret.encode() in carried for secret in CREDENTIALS.values())
        assert pickle.loads(carried).get_file_info(f"{path}/b.txt").size == 1


Ask = Callable[[Store], object]
ASKS: list[Ask] = [
    lambda store: store.exists("a"),
    lambda store: store.names("a"),
    lambda store: store.read("a"),
    lambda store: store.publish("a", b"x"),
]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that nobody gave, and nothing of this machine's."""
    for name, value in (ALONE | CREDENTIALS).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a service that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def at(endpoint: str, bucket: str = "runs") -> str:
    return f"s3://{bucket}/one?endpoint_override={endpoint}&scheme=http"


@pytest.mark.parametrize("ask", [*ASKS[:3], pytest.param(ASKS[3], marks=pytest.mark.slow)])
def test_a_silent_service_is_named_with_the_key(alone: None, silent: str, monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    monkeypatch.setattr("kd.filesystems.READ_S", 1.0)
    monkeypatch.setattr("kd.filesystems.ATTEMPTS", 1)
    with pytest.raises(StoreError, match=rf"s3://runs/one/a at http://{silent}: .*[Tt]ime.?out.*; check the path") as met:
        ask(Store.at(at(silent)))
    assert not any(secret in str(met.value) for secret in CREDENTIALS.values())


@pytest.mark.parametrize("ask", ASKS[:1])
def test_a_service_that_is_not_there_is_named_with_the_key(alone: None, closed: str, ask: Ask) -> None:
    with pytest.raises(StoreError, match=rf"s3://runs/one/a at http://{closed}: .*[Cc]onnect.*; check the path"):
        ask(Store.at(at(closed)))
    with pytest.raises(InputError, match=rf"cannot list s3://runs/one at http://{closed}: .*[Cc]onnect.*; check the path"):
        Place.at(at(closed)).exists()


def test_a_bucket_that_is_not_there_is_named(s3: S3Server) -> None:
    with pytest.raises(StoreError, match=rf"cannot write s3://nobucket/one/a at http://{s3.endpoint}: .*bucket"):
        Store.at("s3://nobucket/one").publish("a", b"x")


def test_a_bucket_that_is_not_there_is_told_before_any_work(s3: S3Server, gs: str) -> None:
    s3.make_bucket("runs")
    for scheme in ("s3", "gs"):
        Store.at(f"{scheme}://runs/one").check_bucket()
        with pytest.raises(
            StoreError, match=rf"there is no bucket for {scheme}://nobucket/one at http://\S+; make it, or set root"
        ):
            Store.at(f"{scheme}://nobucket/one").check_bucket()


@pytest.fixture
def checking(s3: S3Server) -> Iterator[S3Server]:
    """The server, which believes nobody."""
    s3.make_bucket("runs")
    for count in (b"0", b"inf"):
        plain = {"Content-Type": "text/plain"}
        urlopen(Request(f"http://{s3.endpoint}/moto-api/reset-auth", count, plain, method="POST")).close()
        if count == b"0":
            yield s3


@pytest.mark.parametrize("ask", ASKS)
def test_wrong_credentials_are_a_clear_error_that_does_not_repeat_them(checking: S3Server, ask: Ask) -> None:
    with pytest.raises(StoreError, match=rf"s3://runs/one/a at http://{checking.endpoint}: .*(DENIED|Access|Key)") as met:
        ask(Store.at("s3://runs/one"))
    assert not any(secret in str(met.value) for secret in CREDENTIALS.values())


@pytest.mark.parametrize("endpoint", [pytest.param("silent", marks=pytest.mark.slow), "closed"])
def test_a_hub_that_does_not_answer_is_a_clear_error(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    address = request.getfixturevalue(endpoint)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
    with pytest.raises(InputError, match=rf"cannot list hf://datasets/me/{endpoint} at http://{address}: .*; check the path"):
        find(f"hf://datasets/me/{endpoint}", "*", "auto", "task.files.train")


@pytest.mark.parametrize("endpoint", ["silent", "closed"])
def test_a_google_bucket_that_does_not_answer_is_a_clear_error_soon(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """Before the service's own client is asked, which waits 120 s."""
    monkeypatch.setattr("kd.filesystems.READ_S", 0.3)
    url = f"http://{request.getfixturevalue(endpoint)}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    for ask in ASKS:
        with pytest.raises(
            StoreError, match=rf"cannot open gs://runs/one at {url}: no answer from {url}: (timed out|.*refused); check"
        ):
            ask(Store.at("gs://runs/one"))
    with pytest.raises(InputError, match=rf"cannot open gs://runs/one at {url}: no answer from {url}: "):
        find("gs://runs/one", "*", "auto", "task.files.train")


class Elsewhere(BaseHTTPRequestHandler):
    """Says of everything that it is on port 9, where nobody is."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


def test_a_service_that_answers_with_a_redirect_is_there() -> None:
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        _check_answers(f"http://127.0.0.1:{server.server_port}")
        thread.join()


def test_a_service_of_s3_is_asked_with_both_time_outs(alone: None, closed: str) -> None:
    filesystem, _ = Store.at(at(closed)).for_libraries("a")
    assert isinstance(filesystem, pafs.S3FileSystem)
    assert "connect_timeout" in str(filesystem.__reduce__())


def job(config: dict[str, object], folder: Path) -> tuple[float, str]:
    """What `jobs.prepare` says of this config, and after how many seconds; it fails."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = kept | ALONE | CREDENTIALS | {"PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    command = [sys.executable, "-m", "jobs.prepare", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode != 0
    return time.monotonic() - started, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("service", "bucket", "within_s"),
    [("silent", "runs", 30), ("closed", "runs", 15), ("s3", "nobucket", 15), ("checking", "runs", 15)],
)
def test_a_job_ends_soon_with_one_error(
    request: pytest.FixtureRequest, tmp_path: Path, service: str, bucket: str, within_s: float
) -> None:
    found = request.getfixturevalue(service)
    endpoint = found.endpoint if isinstance(found, S3Server) else found
    write_mini(tmp_path)
    config = MINI | {"root": f"s3://{bucket}/x?endpoint_override={endpoint}&scheme=http", "task": {"type": "planted"}}
    idle_s, _ = job(
        config | {"root": str(tmp_path / "runs"), "task": {"type": "planted", "path": str(tmp_path / "none")}}, tmp_path
    )
    took_s, said = job(config | {"task": {"type": "planted", "path": str(tmp_path / "corpus")}}, tmp_path)
    assert said.count("error:") == 1, said
    assert f"s3://{bucket}/x/mini" in said
    assert f"at http://{endpoint}" in said
    assert "Traceback" not in said
    assert took_s - idle_s < within_s
