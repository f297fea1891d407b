"""What a person sees, in a terminal and in a log."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.console import Console, console_with_log, duration
from kd.errors import StoreError

ROOT = Path(__file__).parents[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_tells_share_rate_and_time_left() -> None:
    clock = iter([0.0, 5.0, 10.0, 20.0, 30.0])
    screen = Terminal()
    line = Console(screen, lambda: next(clock)).stage("attribute")
    line(0, 400)
    line(100, 400)
    assert screen.getvalue().endswith("attribute    100/400 rows  25 %")
    line(300, 400)
    assert screen.getvalue().endswith("attribute    300/400 rows  75 %  20.0 rows/s  ETA 0:05")
    line.close("400 rows")
    assert screen.getvalue().endswith("\r\x1b[Kattribute    400 rows  (0:30)\n")


def test_a_total_that_is_not_known_leaves_out_what_needs_it() -> None:
    clock = iter([0.0, 5.0, 10.0, 20.0])
    screen = Terminal()
    line = Console(screen, lambda: next(clock)).stage("prepare")
    for done in (0, 1000, 3000):
        line(done, None)
    assert screen.getvalue().split("\r\x1b[K")[1:] == [
        "prepare      0 rows",
        "prepare      1,000 rows",
        "prepare      3,000 rows  200.0 rows/s",
    ]


def test_in_a_log_lines_are_whole_and_few() -> None:
    now = [0.0]
    log = io.StringIO()
    line = Console(log, lambda: now[0]).stage("train", "steps")
    for second in range(61):
        now[0] = float(second)
        line(second, 100)
    lines = log.getvalue().splitlines()
    assert lines == [
        "train        15/100 steps  15 %  1.0 steps/s  ETA 1:25",
        "train        30/100 steps  30 %  1.0 steps/s  ETA 1:10",
        "train        45/100 steps  45 %  1.0 steps/s  ETA 0:55",
        "train        60/100 steps  60 %  1.0 steps/s  ETA 0:40",
    ]


def test_what_frameworks_print_goes_to_the_log(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from jobs.console import console_with_log
with console_with_log(Path({str(tmp_path / "a" / "job.log")!r})) as console:
    print("noise on stdout")
    os.write(2, b"noise from a library\\n")
    console.say("for a person")
print("after")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "for a person\nafter\n"
    assert done.stderr == ""
    assert set((tmp_path / "a" / "job.log").read_text().split("\n")) == {"noise on stdout", "noise from a library", ""}


def test_the_output_is_given_back_after_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), console_with_log(tmp_path / "job.log"):
        raise KeyError("x")
    os.write(1, b"back\n")
    assert capfd.readouterr().out == "back\n"


def test_a_log_that_cannot_be_written_says_so_and_leaves_the_output_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StoreError, match=r"cannot write the log /proc/nowhere/job\.log: .*; set root to a folder"):
        console_with_log(Path("/proc/nowhere/job.log")).__enter__()
    os.write(1, b"still here\n")
    assert capfd.readouterr().out == "still here\n"


@pytest.mark.parametrize(
    ("size", "shown"), [((80, 24), "one and\ntwo"), ((4, 24), "one\ntwo"), ((80, 2), "one and"), ((0, 0), "one and\ntwo")]
)
def test_running_lines_are_no_more_than_a_terminal_can_show(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], shown: str
) -> None:
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size(size))
    screen = Terminal()
    monkeypatch.setattr(screen, "fileno", lambda: 1)
    Console(screen).update("one and\ntwo")
    assert screen.getvalue().removeprefix("\r\x1b[K") == shown
