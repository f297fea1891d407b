"""The chain as a submitted job on a running cluster, and how jobs end when something is wrong."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from kd.store import Store
from tests.mini import write_mini

ROOT = Path(__file__).parents[1]
START_S = 60
DEADLINE_S = 240


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def head(temp: Path) -> Iterator[str]:
    """A Ray head of its own: ports, folder and process group; the address of its dashboard comes back."""
    gcs, dashboard, client, agent, metrics = free_ports(5)
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=6", f"--temp-dir={temp}"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", "--object-store-memory=100000000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        _wait_for(f"{address}/api/version", process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head ended by itself"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"no answer from {url} in {START_S} s")


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    temp = Path(tempfile.mkdtemp(prefix="kd", dir="/tmp"))  # short: unix sockets live below it
    try:
        with head(temp) as address:
            yield address
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def submit(address: str, *job: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--", *job]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)


def test_a_submitted_pipeline_runs_to_its_report(dashboard: str, tmp_path: Path) -> None:
    config = write_mini(tmp_path)
    done = submit(dashboard, sys.executable, "-m", "jobs.pipeline", str(config), "--training.variants.0.name=x")
    assert done.returncode == 1
    assert "unknown key" in done.stdout
    done = submit(dashboard, sys.executable, "-m", "jobs.pipeline", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert "label-only" in done.stdout
    store = Store.at(str(tmp_path / "runs" / "mini"))
    assert store.exists("report.html")
    assert store.manifest("predictions/attribution/0")


WAITS = """
import sys, time
import ray
from jobs.cli import main
def waits(session):
    session.connect()
    session.console.say("at work")
    ray.get(ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote())
sys.argv = ["jobs/demo.py", sys.argv[1]]
main(waits, "A demonstration.")
"""


def submitted(client: JobSubmissionClient, command: str, deadline: float) -> str:
    """The job's name, once the cluster, which may just have started, takes jobs."""
    while True:
        try:
            return str(client.submit_job(entrypoint=command, runtime_env={"working_dir": str(ROOT)}))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def stopped(dashboard: str, command: list[str], when: str) -> str:
    """What a submitted job says in all, when it is stopped as soon as it has said something."""
    client, deadline = JobSubmissionClient(dashboard), time.monotonic() + DEADLINE_S
    name = submitted(client, shlex.join(command), deadline)
    while when not in client.get_job_logs(name):
        assert time.monotonic() < deadline, client.get_job_logs(name)
        assert not client.get_job_status(name).is_terminal(), client.get_job_logs(name)
        time.sleep(0.5)
    client.stop_job(name)
    while not client.get_job_status(name).is_terminal():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert client.get_job_status(name) == "STOPPED"
    return str(client.get_job_logs(name))


def test_a_submitted_job_that_is_stopped_says_so_in_one_line(dashboard: str, tmp_path: Path) -> None:
    said = stopped(dashboard, [sys.executable, "-c", WAITS, str(write_mini(tmp_path))], "\nat work")
    assert said.rstrip().splitlines()[-1].startswith("stopped by SIGTERM: finished stages and shards and the last checkpoints")
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("when", ["\nteach input  ", "\nattribute    ", "\nfeatures     ", "\ntrain        "])
def test_a_pipeline_may_be_stopped_at_any_stage_and_goes_on(dashboard: str, tmp_path: Path, when: str) -> None:
    """Stopped as the stage before the next one has just ended, so in the midst of that."""
    pipeline = [sys.executable, "-m", "jobs.pipeline", str(write_mini(tmp_path))]
    said = stopped(dashboard, pipeline, when)
    assert said.count("stopped by SIGTERM: ") == 1
    assert "Traceback" not in said
    assert "defect" not in said
    done = submit(dashboard, *pipeline)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prepare      complete already: " in done.stdout


def job(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"jobs.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("prepare", "--task.path=nowhere", "there is no folder"),
        ("attribute", "--name=other", "run the stage 'prepare' first"),
    ],
)
def test_a_users_mistake_ends_with_what_to_do_next_and_no_traceback(
    tmp_path: Path, name: str, override: str, message: str
) -> None:
    done = job(name, str(write_mini(tmp_path)), override)
    assert done.returncode == 1
    assert message in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    (log,) = tmp_path.glob(f"runs/*/logs/{name}-*.log")
    assert "Traceback" in log.read_text()
