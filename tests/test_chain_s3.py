"""The whole chain with corpus and run directory in buckets of a real S3 server; started again, it does nothing."""

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray

from jobs import pipeline
from jobs.cli import Session
from jobs.console import Console
from kd.config import Config
from kd.rows import Prediction
from kd.store import Store
from tests.conftest import connect
from tests.mini import mini_config, write_mini
from tests.s3_server import CREDENTIALS, S3Server

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def config(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The miniature run, in buckets that are there and hold its corpus alone."""
    local = tmp_path_factory.mktemp("mini")
    path = write_mini(local)
    for bucket in ("corp", "runs"):
        s3.make_bucket(bucket)
    s3.upload(local / "corpus", "corp/mini")
    return mini_config(path, root="s3://runs/all", task={"type": "planted", "path": "s3://corp/mini"})


@pytest.fixture(scope="module")
def local_ray(s3: S3Server) -> Iterator[None]:
    """A Ray whose workers know the server, which those of the other tests' do not."""
    ray.shutdown()
    connect(cpus=6)
    yield
    ray.shutdown()


def session(config: Config) -> Session:
    return Session(config, Store.at(config.directory), Console(io.StringIO()), ExitStack())


def printed(ran: Session) -> str:
    assert isinstance(ran.console.stream, io.StringIO)
    return ran.console.stream.getvalue()


@pytest.fixture(scope="module")
def done(local_ray: None, config: Config, s3: S3Server) -> tuple[Session, Counter[str]]:
    """The chain, and how many requests of each verb it took."""
    ran = session(config)
    s3.reset()
    pipeline.run(ran)
    return ran, Counter(s3.requests)


def test_every_stage_ends_with_its_result_in_the_bucket(done: tuple[Session, Counter[str]]) -> None:
    ran, requests = done
    stages = ran.store.read_json("report.json")["stages"]
    assert {"prepare", "teach", "attribute", "train label-only/0", "train attribution/0", "evaluate attribution/0"} <= set(stages)
    assert all(stages.values())
    for student in ("teacher", "label-only", "attribution"):
        manifest = ran.store.manifest(f"predictions/{student}/0")
        assert manifest is not None
        rows = ran.store.read_rows(f"predictions/{student}/0/{manifest.shards[0].file}", Prediction)
        assert len(rows) == 20
        assert not any(row.error for row in rows)
    assert requests["PUT"] > 0


def test_started_again_it_writes_its_config_and_its_report_alone(done: tuple[Session, Counter[str]], s3: S3Server) -> None:
    again = session(done[0].config)
    s3.reset()
    pipeline.run(again)
    assert printed(again).count("complete already") == 9
    names = ("config.json", "report.json", "report.md", "report.html")
    assert {path for verb, path in s3.keys if verb not in ("GET", "HEAD")} == {f"/runs/all/mini/{name}" for name in names}


def test_no_credential_is_in_the_run_directory(done: tuple[Session, Counter[str]], s3: S3Server, tmp_path: Path) -> None:
    import pyarrow.fs as pafs

    selector = pafs.FileSelector("runs", recursive=True)
    files = [info.path for info in s3.filesystem().get_file_info(selector) if info.type == pafs.FileType.File]
    assert any(path.endswith("config.json") for path in files)
    for path in files:
        content = s3.filesystem().open_input_file(path).read()
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode() not in content, path
        assert CREDENTIALS["AWS_ACCESS_KEY_ID"].encode() not in content, path
