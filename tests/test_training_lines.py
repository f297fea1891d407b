"""What a person sees of training: a line per run, rewritten while it goes on, kept when it is over."""

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import training_lines
from jobs.console import Console, duration
from jobs.training_lines import TrainingLines, validated
from kd.training.loop import State
from kd.training.progress import Finished, Look, Progress, Status
from kd.training.roster import End, Roster
from kd.training.runs import Queue
from kd.training.session import train_here
from kd.training.validation import Score
from kd.training.watchdog import Beat
from tests.test_console import Terminal
from tests.tiny_runs import SHORT, tiny_queue

LONG = SHORT.model_copy(update={"steps": 4000, "max_failures": 2})
NOTHING = Status()


def halfway(run: str, step: int, seconds: float, **figures: float) -> Status:
    """One run has workers."""
    return Status(progress=[Progress(run, step, 400, figures, seconds)])


def watched(queue: Queue, clock: list[float] | None = None) -> tuple[TrainingLines, io.StringIO]:
    """The lines of a queue in a log, and that log; `clock` holds the time."""
    log, now = io.StringIO(), clock or [0.0]
    return TrainingLines(Console(log, lambda: now[0]).stage("train", "steps"), queue, queue.todo()), log


def look_at(roster: Roster) -> Look:
    return roster.status


def test_every_run_under_way_has_a_line_with_what_it_learns_and_how_long_it_takes_yet(tmp_path: Path) -> None:
    queue, screen = tiny_queue(tmp_path, SHORT.model_copy(update={"steps": 400})), Terminal()
    now = [0.0]
    lines = TrainingLines(Console(screen, lambda: now[0]).stage("train", "steps"), queue, queue.todo())
    assert screen.getvalue() == ""
    figures = {"loss": 1.5, "loss_label": 1.0, "loss_rationale": 2.0}
    figures |= {"validation_accuracy": 0.612, "validation_parse_rate": 0.9, "validation_truncation_rate": 0.05}
    label = Progress("label/0", 0, 400, {"loss": 1.0, "loss_label": 1.0}, 0.0)
    for now[0], step in ((1.0, 60), (21.0, 80), (41.0, 100)):
        lines.show(Status(progress=[Progress("words/0", step, 400, figures, 30.0 + now[0]), label]))
    assert screen.getvalue().rpartition("\x1b[J")[2] == (
        "train        words/0  step 100/400  25 %  1.0 steps/s  ETA 5:00  loss 1.500  validation 61.2% (90.0% parsed, 5.0% cut)"
        "  loss of label 1.000, rationale 2.000\n"
        "train        label/0  step 0/400  0 %  loss 1.000"
    )


def test_a_run_that_is_begun_again_has_no_speed_until_enough_of_it_was_seen(tmp_path: Path) -> None:
    queue, screen = tiny_queue(tmp_path, SHORT.model_copy(update={"steps": 400})), Terminal()
    now = [0.0]
    lines = TrainingLines(Console(screen, lambda: now[0]).stage("train", "steps"), queue, queue.todo())

    def said_at(step: int, seconds: float) -> bool:
        now[0] += 10.0
        lines.show(halfway("words/0", step, seconds))
        return "steps/s" in screen.getvalue().rpartition("\r")[2]

    assert [said_at(*at) for at in ((1, 30.0), (2, 31.0), (20, 51.0))] == [False, False, True]
    assert [said_at(*at) for at in ((10, 60.0), (12, 62.0), (20, 70.0))] == [False, False, True], "begun again from a checkpoint"


def test_a_run_of_a_version_that_did_not_count_what_could_be_read_has_its_accuracy_alone() -> None:
    figures = {"validation_accuracy": 0.5, "best_step": 2, "last_step": 2, "last_validation_accuracy": 0.5}
    assert validated(figures) == "50.0%"


def test_a_state_goes_on_with_every_figure_of_its_scores() -> None:
    state = State(step=2, best=Score(0.5, 1.0, parse_rate=0.75, truncation_rate=0.25))
    assert State.from_json(state.to_json()) == state


def test_a_run_that_is_over_leaves_one_line_with_its_best_step(tmp_path: Path) -> None:
    queue, now = tiny_queue(tmp_path, SHORT.model_copy(update={"eval_every_steps": 3})), [0.0]
    lines, log = watched(queue, now)
    train_here(replace(queue, items=queue.items[:1]))
    manifest = queue.store.manifest(queue.items[0].folder)
    assert manifest is not None
    now[0] = 20.0
    lines.show(replace(halfway("label/0", 100, 1.5, loss=1.0), news=[Finished("words/0", manifest)]))
    step, figures = manifest.figures["best_step"], manifest.figures
    scored = "{validation_accuracy:.1%} ({validation_parse_rate:.1%} parsed, {validation_truncation_rate:.1%} cut)".format(
        **figures
    )
    assert log.getvalue().splitlines() == [
        f"train        words/0  best on validation {scored}, at step {step}  ({duration(manifest.seconds)})",
        "train        label/0  step 100/400  25 %  loss 1.000",
    ]
    again = io.StringIO()
    TrainingLines(Console(again, lambda: 0.0).stage("train", "steps"), queue, queue.todo())
    assert [line.split("  ")[-2] for line in again.getvalue().splitlines()] == ["finished before"]


def test_what_became_of_runs_while_nobody_looked_is_said_in_the_end(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, LONG)
    roster, (lines, log) = Roster(queue, 1), watched(queue)
    with lines.following(look_at(roster)):
        for error in ("the loss is nan", "its tokenizer is lost"):
            roster.take(0)
            roster.ended(0, End(error))
    assert [line.split("  ")[-1] for line in log.getvalue().splitlines()] == [
        "failed at step 0: the loss is nan",
        "failed at step 0: its tokenizer is lost",
    ]


def test_a_run_that_ended_early_says_so(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT)
    train_here(replace(queue, items=queue.items[:1]))
    manifest = queue.store.manifest(queue.items[0].folder)
    assert manifest is not None
    lines, log = watched(replace(queue, training=LONG, items=queue.items[1:]))
    lines.show(Status(news=[Finished("words/0", manifest)]))
    assert "  ended at step 6 of 4,000  (" in log.getvalue()


def test_a_run_that_failed_leaves_its_line_and_says_why(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, LONG)
    roster, (lines, log) = Roster(queue, 1), watched(queue)
    roster.take(0)
    roster.beat(0, Beat(0, "words/0", "step", 120))
    roster.ended(0, End("the loss is nan\nand more"))
    heard = 0
    for _ in range(2):
        status = roster.status(heard)
        lines.show(status)
        heard += len(status.news)
    assert log.getvalue().splitlines() == ["train        words/0  failed at step 120: the loss is nan"]


def test_a_run_that_is_interrupted_says_each_time_why_and_from_where_it_goes_on(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, LONG)
    roster, (lines, log) = Roster(queue, 1), watched(queue)
    for error in ("the node of rank 0 was lost\nand more", "503"):
        roster.take(0)
        roster.ended(0, End(error, again=True))
    lines.show(roster.status(0))
    assert log.getvalue().splitlines() == [
        "train        words/0  interrupted (1 of at most 2): the node of rank 0 was lost; it goes on from step 0",
        "train        words/0  interrupted (2 of at most 2): 503; it goes on from step 0",
    ]


def test_runs_that_wait_for_workers_say_what_is_missing_at_once_and_every_few_minutes_and_no_stale_progress(
    tmp_path: Path,
) -> None:
    queue, log, now = tiny_queue(tmp_path, LONG), io.StringIO(), [0.0]
    asked: list[float] = []

    def missing(waited_s: float) -> str | None:
        asked.append(waited_s)
        return "waits for 2 CPUs on nodes with market=on-demand, of which the cluster has 0"

    roster = Roster(queue, 1)
    lines = TrainingLines(Console(log, lambda: now[0]).stage("train", "steps"), queue, queue.items, missing)

    def show(at_s: float) -> list[str]:
        now[0], before = at_s, len(log.getvalue())
        lines.show(roster.status(lines._heard))
        return log.getvalue()[before:].splitlines()

    roster.take(0)
    roster.report(0, Progress("words/0", 100, 4000, {"loss": 1.0}, 50.0))
    assert show(20.0) == ["train        words/0  step 100/4,000  2 %  loss 1.000"]
    roster.gone(0, End("the node of rank 0 was lost", again=True))
    waits = "train        waits for 2 CPUs on nodes with market=on-demand, of which the cluster has 0"
    assert show(40.0) == [
        "train        words/0  interrupted (1 of at most 2): the node of rank 0 was lost; it goes on from step 0",
        waits,
    ]
    assert [show(at_s) for at_s in (60.0, 219.0)] == [[], []]
    assert show(221.0) == [waits]
    roster.take(0)
    assert show(240.0) == [], "it has workers again, which have said nothing yet"
    roster.gone(0, End("lost again", again=True))
    assert waits in show(250.0)
    assert asked == [0.0, 181.0, 0.0]


def test_lines_are_shown_while_workers_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_lines, "_LOOK_INTERVAL_S", 0.01)
    queue, screen = tiny_queue(tmp_path, LONG), Terminal()
    lines, roster = TrainingLines(Console(screen).stage("train", "steps"), queue, queue.todo()), Roster(queue, 1)
    with lines.following(look_at(roster)):
        roster.take(0)
        roster.report(0, Progress("words/0", 100, 4000, {}, 50.0))
        deadline = time.monotonic() + 60
        while "step 100/4,000" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "step 100/4,000" in screen.getvalue()


def test_a_look_that_is_not_answered_changes_nothing(tmp_path: Path) -> None:
    lines, log = watched(tiny_queue(tmp_path, LONG))
    lines.show(NOTHING)
    assert log.getvalue() == ""


def test_running_lines_are_erased_together_and_no_wider_than_the_terminal(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    screen = Terminal()
    console = Console(screen)
    monkeypatch.setattr(console, "_size", lambda: (5, None))
    console.update("one two\nthree")
    console.update("four")
    console.say("done, and whole")
    assert screen.getvalue() == "\r\x1b[Kone t\nthree" + "\r\x1b[1A\x1b[J" + "four" + "\r\x1b[K" + "done, and whole\n"
