"""Every start of a job leaves a log, also in a bucket, also where it is killed; messages name where it is found."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.job_log import job_log
from kd.errors import StoreError
from kd.refusals import allowed
from kd.store import Store
from tests.mini import write_mini
from tests.s3_server import S3Server

ROOT = Path(__file__).parents[1]
DEADLINE_S = 120
NAME = r"logs/demo-\d{8}T\d{6}Z-[0-9a-f]{6}\.log"


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Store:
    s3.make_bucket("runs")
    return Store.at(f"s3://runs/{tmp_path.name}")


def logs(store: Store) -> list[str]:
    return [f"logs/{name}" for name in store.names("logs")]


def wait_for(store: Store, text: str) -> str:
    """The name of the log in the store, once it has this text."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for name in logs(store):
            if text in store.read(name).decode():
                return name
        time.sleep(0.05)
    raise TimeoutError(f"no log with {text!r} in {store.root} within {DEADLINE_S} s")


def test_each_start_has_a_log_of_its_own(tmp_path: Path, bucket: Store) -> None:
    for store in (Store.at(str(tmp_path)), bucket):
        for text in ("first", "second"):
            with job_log(store, "demo") as log:
                log.file.parent.mkdir(exist_ok=True)
                log.file.write_text(text)
                assert re.fullmatch(NAME, log.name)
                assert log.place == store.path(log.name)
        assert sorted(store.read(name) for name in logs(store)) == [b"first", b"second"]
        store.delete_folder("logs")


def test_a_log_is_in_the_bucket_while_the_job_runs_and_goes_there_only_where_it_has_grown(bucket: Store, s3: S3Server) -> None:
    with job_log(bucket, "demo", upload_s=0.05) as log:
        log.file.write_text("one")
        assert wait_for(bucket, "one") == log.name
        s3.reset()
        time.sleep(0.5)
        assert s3.requests == {}
        with log.file.open("a") as stream:
            stream.write("two")
        wait_for(bucket, "onetwo")
        s3.reset()
    assert s3.requests == {}, "what is there already is not uploaded at the end"
    assert not log.file.exists()


KILLED = """
import sys, time
from jobs.console import console_with_log
from jobs.job_log import job_log
from kd.store import Store
with job_log(Store.at(sys.argv[1]), "demo", upload_s=0.05) as log, console_with_log(log.file):
    print("before the kill", flush=True)
    time.sleep(600)
"""


def test_a_job_that_is_killed_leaves_its_log(bucket: Store) -> None:
    job = subprocess.Popen([sys.executable, "-c", KILLED, bucket.root], cwd=ROOT)
    try:
        wait_for(bucket, "before the kill")
    finally:
        job.kill()
        job.wait()
    assert [bucket.read(name) for name in logs(bucket)] == [b"before the kill\n"]


def test_a_log_that_the_store_refuses_is_kept_here_and_is_a_warning(s3: S3Server, capfd: pytest.CaptureFixture[str]) -> None:
    with job_log(Store.at("s3://nowhere/one"), "demo", upload_s=0.05) as log:
        log.file.write_text("text")
        time.sleep(0.5)
    assert log.file.read_text() == "text"
    *tries, last = capfd.readouterr().err.splitlines()
    assert last.startswith(
        f"WARNING: the log is {log.file}, as it could not be uploaded: cannot write s3://nowhere/one/logs/demo-"
    )
    assert not tries or all(line.startswith("cannot write s3://nowhere/one/logs/demo-") for line in tries)


def test_a_store_that_has_just_refused_something_is_not_asked_again(bucket: Store, s3: S3Server) -> None:
    with job_log(bucket, "demo") as log:
        log.file.write_text("text")
        s3.reset()
        with pytest.raises(StoreError) as refused, allowed("write", bucket.path("a")):
            raise OSError("no answer")
        assert log.settle(refused.value) == str(log.file)
    assert s3.requests == {}
    assert log.file.read_text() == "text"


FAILS = """
import sys
from jobs.cli import main
from kd.errors import StageError
def fails(session):
    print("for the log")
    raise StageError("too many errored rows")
def reads(session):
    session.store.read("nothing")
stage = globals()[sys.argv[1]]
sys.argv = ["jobs/demo.py", *sys.argv[2:]]
main(stage, "A demonstration.")
"""


def failed(stage: str, config: Path, *arguments: str) -> str:
    """What a failing job says on its two outputs."""
    command = [sys.executable, "-c", FAILS, stage, str(config), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_failed_job_names_its_log_in_the_bucket(bucket: Store, tmp_path: Path) -> None:
    said = failed("fails", write_mini(tmp_path), f"--root={bucket.root}")
    store = Store.at(bucket.path("mini"))
    (name,) = logs(store)
    where = store.path(name)
    assert said == f"log          {where}\n\nerror: too many errored rows\n\nThe log is {where}\n"
    assert b"for the log" in store.read(name)


def test_a_store_that_is_the_trouble_is_one_error_and_the_log_is_here(s3: S3Server, tmp_path: Path) -> None:
    said = failed("reads", write_mini(tmp_path), "--root=s3://nowhere")
    assert said.count("error: ") == 1
    where = re.search(r"\nThe log is (/.*\.log)\n$", said)
    assert where is not None
    assert "Traceback" in Path(where[1]).read_text()


def test_help_says_where_logs_are() -> None:
    command = [sys.executable, "-m", "jobs.report", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    assert "ROOT/NAME/logs/report-TIME-TOKEN.log" in done.stdout
