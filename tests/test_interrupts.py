"""A job that is ended from outside says so in one line, with what is kept and how to go on."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mini import write_mini

ROOT = Path(__file__).parents[1]
DEADLINE_S = 120
JOB = """
import os, signal, sys, time
from jobs.cli import Session, main
def waits(session):
    session.console.say("at work")
    while True:
        time.sleep(0.05)
def is_stopped_in_a_library(session):
    from jobs import interrupts
    with interrupts.kept():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        session.console.say("at work")
        while True:
            time.sleep(0.05)
def is_stopped_behind_a_library(session):
    from jobs import interrupts
    with interrupts.kept():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    waits(session)
def speaks(session):
    session.console.say("at work")
    time.sleep(0.5)
    for line in range(3):
        session.console.say("more")
    print("done")
def exits(session):
    session.console.say("at work")
    sys.exit(signal.SIGTERM)
sys.argv = ["jobs/demo.py", sys.argv[2]]
main(globals()[STAGE], "A demonstration.")
"""
KEPT = "finished stages and shards and the last checkpoints are kept, and `python -m jobs.demo` with the same config goes on from there"


def command(tmp_path: Path, stage: str) -> list[str]:
    return [sys.executable, "-c", JOB.replace("STAGE", repr(stage)), stage, str(write_mini(tmp_path))]


def started(tmp_path: Path, stage: str, *before: str) -> "subprocess.Popen[str]":
    """The job, at work."""
    job = subprocess.Popen(
        [*before, *command(tmp_path, stage)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    said = b""
    while not said.endswith(b"at work\n"):
        byte = os.read(job.stdout.fileno(), 1)  # no more, so that `communicate` finds the rest
        assert byte, "the job ended early"
        said += byte
    return job


@pytest.mark.parametrize("stage", ["waits", "is_stopped_in_a_library", "is_stopped_behind_a_library"])
def test_sigterm_ends_a_job_with_one_line(tmp_path: Path, stage: str) -> None:
    job = started(tmp_path, stage)
    job.terminate()
    assert job.communicate(timeout=DEADLINE_S) == (f"\nstopped by SIGTERM: {KEPT}\n", "")
    assert job.returncode == 143
    (log,) = tmp_path.glob("runs/mini/logs/demo-*.log")
    assert f"in {stage}" in log.read_text(), "where it was stands in the log"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_so_do_a_hangup_and_an_interrupt(tmp_path: Path, number: signal.Signals, code: int) -> None:
    job = started(tmp_path, "waits")
    job.send_signal(number)
    assert job.communicate(timeout=DEADLINE_S) == (f"\nstopped by {number.name}: {KEPT}\n", "")
    assert job.returncode == code


def test_an_exit_that_no_signal_asked_for_is_a_defect(tmp_path: Path) -> None:
    job = started(tmp_path, "exits")
    said, _ = job.communicate(timeout=DEADLINE_S)
    assert "This is a defect of the program" in said
    assert job.returncode == signal.SIGTERM
    (log,) = tmp_path.glob("runs/mini/logs/demo-*.log")
    assert "in exits" in log.read_text(), "what is to be reported says what happened"


def test_a_job_whose_reader_is_gone_goes_on_to_its_end(tmp_path: Path) -> None:
    job = started(tmp_path, "speaks")
    assert job.stdout is not None
    job.stdout.close()
    with job:  # closes what is left of it
        assert job.wait(DEADLINE_S) == 0
    (log,) = tmp_path.glob("runs/mini/logs/demo-*.log")
    assert "the output is gone" in log.read_text()
    assert "done" in log.read_text()


def test_a_hangup_that_is_ignored_from_outside_stays_so(tmp_path: Path) -> None:
    job = started(tmp_path, "waits", "nohup")
    job.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert job.poll() is None
    job.terminate()
    assert job.communicate(timeout=DEADLINE_S)[0] == f"\nstopped by SIGTERM: {KEPT}\n"


def test_a_job_whose_terminal_is_gone_ends_in_order(tmp_path: Path) -> None:
    arguments = command(tmp_path, "waits")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execv(arguments[0], arguments)
    seen, deadline = b"", time.monotonic() + DEADLINE_S
    while b"at work" not in seen and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    (log,) = tmp_path.glob("runs/mini/logs/demo-*.log")
    assert "KeyboardInterrupt" in log.read_text()
