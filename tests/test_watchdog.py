"""A stuck process ends and says where, whatever it is stuck in."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kd.training.watchdog import Beat, hang
from tests.tiny_runs import SHORT, tiny_queue, trainer

ROOT = Path(__file__).parents[1]
STUCK = """
import sys, time, ctypes
from kd.training.watchdog import Watchdog
with Watchdog(0.4, 3, lambda beat: print(beat, flush=True)) as watch:
    watch.run = "words/0"
    watch("validate", 12)
    {stuck}
"""


def run(stuck: str) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    command = [sys.executable, "-c", STUCK.format(stuck=stuck)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return done, time.monotonic() - started


def test_a_stuck_process_says_where_it_is_and_ends() -> None:
    done, _ = run("time.sleep(60)")
    assert done.returncode == 70
    last = done.stdout.splitlines()[-1]
    assert last.startswith("Beat(rank=3, run='words/0', phase='validate', step=12, passes=0, hung_s=0.")
    assert last.endswith("waits=False)")
    assert "time.sleep" in done.stderr or "<string>" in done.stderr


def test_one_that_never_gives_up_the_interpreter_ends_too() -> None:
    # PyDLL keeps the interpreter's lock, so no other Python thread runs; first the watchdog must have looked once.
    done, _ = run("time.sleep(0.3); ctypes.PyDLL(None).sleep(90)")
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_phases_that_change_in_time_end_nothing() -> None:
    done, seconds = run("[(watch('step', n), time.sleep(0.2)) for n in range(8)]")
    assert done.returncode == 0
    assert seconds < 60
    assert "hung_s=None" in done.stdout
    assert "hung_s=0" not in done.stdout


def test_a_pass_is_part_of_its_step_whose_time_goes_on() -> None:
    done, _ = run("[(watch('step', 3, n), time.sleep(0.2)) for n in range(90)]")
    assert done.returncode == 70
    last = done.stdout.splitlines()[-1]
    assert last.startswith("Beat(rank=3, run='words/0', phase='step', step=3, passes=")
    assert "hung_s=0." in last


def test_one_that_waits_in_a_collective_is_told_from_the_one_that_it_waits_for(tmp_path: Path) -> None:
    code = """
import datetime, sys, threading, time
from torch import distributed
import torch
from kd.training.watchdog import Watchdog
rank = int(sys.argv[1])
distributed.init_process_group("gloo", "file://" + sys.argv[2], rank=rank, world_size=2)
with Watchdog(1.0, rank, lambda beat: print(beat, flush=True)) as watch:
    watch("step", 3)
    if rank == 1:
        time.sleep(60)
    distributed.all_reduce(torch.ones(1))
"""
    command = [sys.executable, "-c", code]
    both = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].splitlines()[-1] for process in both]
    assert [line.endswith("waits=True)") for line in said] == [True, False]
    assert [process.returncode for process in both] == [70, 70]


def test_the_loop_says_each_step_and_how_many_of_its_passes_are_done(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []

    def watch(phase: str, step: int, passes: int = 0) -> None:
        said.append((phase, step, passes))

    with trainer(tiny_queue(tmp_path, SHORT.model_copy(update={"steps": 3, "micro_batch_tokens": 64}))) as fresh:
        counts = [len(fresh._share(step).micro_batches) for step in range(3)]
        fresh.train(lambda state: None, lambda: None, watch)
    assert min(counts) > 1
    assert [each for each in said if each[0] == "step"] == [
        ("step", step, passes) for step, count in enumerate(counts, start=1) for passes in range(count + 1)
    ]


def heard(rank: int, phase: str, step: int, passes: int = 0) -> Beat:
    return Beat(rank, "a/0", phase, step, passes)


def late(rank: int, phase: str, step: int, passes: int = 0, waits: bool = False) -> Beat:
    return replace(heard(rank, phase, step, passes), hung_s=9.0, waits=waits)


@pytest.mark.parametrize(
    ("beats", "said"),
    [
        ([heard(0, "step", 4), heard(1, "step", 4)], None),
        (
            [late(0, "step", 4, waits=True), heard(1, "step", 4)],
            "rank 1 of train is silent, last heard in step of a/0 at step 4; ranks that waited: 0",
        ),
        (
            [late(0, "open", 0, waits=True)],
            "rank 1 of train is silent, and was not heard in this run; ranks that waited: 0",
        ),
        (
            [late(0, "step", 4), heard(1, "step", 4)],
            "rank 0 of train hung in step of a/0 at step 4 for 9 s; ranks that waited: none",
        ),
        (
            [late(0, "step", 4, waits=True), late(1, "step", 3, waits=True)],
            "rank 1 of train hung in step of a/0 at step 3 for 9 s; ranks that waited: 0",
        ),
        (
            [late(0, "step", 5), late(1, "step", 4)],
            "rank 1 of train hung in step of a/0 at step 4 for 9 s; ranks that waited: 0",
        ),
        (
            [late(0, "open", 0), late(1, "open", 0)],
            "rank 0 of train hung in open of a/0 at step 0 for 9 s; rank 1 of train hung in open of a/0 at step 0 for 9 s; ranks",
        ),
        (
            [late(0, "step", 4, 3), late(1, "step", 4, 1)],
            "rank 1 of train hung in step of a/0 at step 4 after 1 of its passes for 9 s; ranks that waited: 0",
        ),
        (
            [late(0, "step", 5, 1), late(1, "step", 4, 3)],
            "rank 1 of train hung in step of a/0 at step 4 after 3 of its passes for 9 s; ranks that waited: 0",
        ),
        (
            [late(0, "step", 4, 3), heard(1, "step", 4, 2)],
            "rank 1 of train is silent, last heard in step of a/0 at step 4 after 2 of its passes; ranks that waited: 0",
        ),
        (
            [late(0, "step", 4, 2), heard(1, "step", 4, 3)],
            "rank 0 of train hung in step of a/0 at step 4 after 2 of its passes for 9 s; ranks that waited: none",
        ),
    ],
)
def test_stuck_are_the_late_who_wait_for_nobody_else_the_silent_else_the_least_far(beats: list[Beat], said: str | None) -> None:
    told = hang("train", beats, world=2)
    assert told is None if said is None else str(told).startswith(said)
