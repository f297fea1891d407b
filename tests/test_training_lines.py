"""What a person sees of training: a line per run, rewritten while it goes on, kept when it is over."""

import io
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jobs import training_lines
from jobs.console import Console, duration
from jobs.training_lines import TrainingLines, validated
from kd.errors import StoreError
from kd.store import Store
from kd.training.loop import State
from kd.training.progress import ProgressFile
from kd.training.roster import End, Roster
from kd.training.runs import FAILURE, Failure, Queue
from kd.training.session import begin, train_here
from kd.training.validation import Score, named
from kd.training.watchdog import Beat
from tests.test_console import Terminal
from tests.tiny_runs import SHORT, tiny_queue


def halfway(queue: Queue, number: int, step: int, seconds: float, accuracy: float | None) -> None:
    """What a worker writes of a run in which nothing was trained."""
    item = queue.items[number]
    losses = {term.name: 1.0 + place for place, term in enumerate(item.run.objective.terms)}
    scored = {} if accuracy is None else named(Score(accuracy, 1.0, parse_rate=0.9, truncation_rate=0.05))
    entry = {"step": step, "loss": losses, "gradient_norm": 1.0, "learning_rate": 0.1, "tokens": 1, "padding_frac": 0.0} | scored
    timing = {"step": step, "unix_s": 0.0, "seconds": 1.0, "waited_s": 0.0}
    ProgressFile(queue).of(item)(State(step=step, seconds=seconds, history=[entry], timings=[timing]))


def test_every_run_under_way_has_a_line_with_what_it_learns_and_how_long_it_takes_yet(tmp_path: Path) -> None:
    queue, screen = tiny_queue(tmp_path, SHORT.model_copy(update={"steps": 400})), Terminal()
    lines = TrainingLines(Console(screen, lambda: 0.0).stage("train", "steps"), queue)
    assert screen.getvalue() == ""
    halfway(queue, 0, 100, 50.0, 0.612)
    halfway(queue, 1, 0, 0.0, None)
    lines.show()
    assert screen.getvalue() == (
        "\r\x1b[K"
        "train        label/0  step 0/400  0 %  loss 1.000\n"
        "train        words/0  step 100/400  25 %  2.0 steps/s  ETA 2:30  loss 1.500  validation 61.2% (90.0% parsed, 5.0% cut)"
        "  loss of label 1.000, rationale 2.000"
    )
    assert lines.line.moved


def test_a_run_of_a_version_that_did_not_count_what_could_be_read_has_its_accuracy_alone() -> None:
    figures = {"validation_accuracy": 0.5, "best_step": 2, "last_step": 2, "last_validation_accuracy": 0.5}
    assert validated(figures) == "50.0%"


def test_a_state_goes_on_with_every_figure_of_its_scores() -> None:
    state = State(step=2, best=Score(0.5, 1.0, parse_rate=0.75, truncation_rate=0.25))
    assert State.from_json(state.to_json()) == state


def test_a_run_that_is_over_leaves_one_line_with_its_best_step(tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"eval_every_steps": 3})
    queue, log, now = tiny_queue(tmp_path, config), io.StringIO(), [0.0]
    lines = TrainingLines(Console(log, lambda: now[0]).stage("train", "steps"), queue)
    train_here(replace(queue, items=queue.items[:1]))
    halfway(queue, 1, 3, 1.5, None)
    for second in (20.0, 21.0):
        now[0] = second
        lines.show()
    manifest = queue.store.manifest(queue.items[0].folder)
    assert manifest is not None
    step, figures = manifest.figures["best_step"], manifest.figures
    scored = "{validation_accuracy:.1%} ({validation_parse_rate:.1%} parsed, {validation_truncation_rate:.1%} cut)".format(
        **figures
    )
    assert log.getvalue().splitlines() == [
        f"train        words/0  best on validation {scored}, at step {step}  ({duration(manifest.seconds)})",
        "train        label/0  step 3/6  50 %  2.0 steps/s  ETA 0:02  loss 1.000",
    ]
    train_here(queue)
    with lines.following():
        pass
    assert len(log.getvalue().splitlines()) == 3, "what is over is said once, also where nobody looked in between"
    again = io.StringIO()
    TrainingLines(Console(again, lambda: 0.0).stage("train", "steps"), queue)
    assert [line.split("  ")[-2] for line in again.getvalue().splitlines()] == ["finished before"] * 2


def test_a_run_that_ended_early_says_so(tmp_path: Path) -> None:
    queue, log = tiny_queue(tmp_path, SHORT), io.StringIO()
    lines = TrainingLines(Console(log, lambda: 0.0).stage("train", "steps"), queue)
    train_here(replace(queue, items=queue.items[:1]))
    longer = replace(queue, training=SHORT.model_copy(update={"steps": 4000}))
    ProgressFile(longer).finish(queue.items[0], State(step=6, seconds=1.0))
    lines.show()
    assert "  ended at step 6 of 4,000  (" in log.getvalue()


def test_a_run_that_failed_leaves_its_line_and_says_why(tmp_path: Path) -> None:
    queue, log = tiny_queue(tmp_path, SHORT.model_copy(update={"steps": 400})), io.StringIO()
    stale, unseen = queue.items
    queue.store.publish_json(
        f"{stale.folder}/{FAILURE}", asdict(Failure("words/0", "of a start before", 9, 1, "2020-01-01T00:00:00"))
    )
    lines = TrainingLines(Console(log, lambda: 0.0).stage("train", "steps"), queue)
    halfway(queue, 0, 100, 50.0, None)
    lines.show()
    assert "failed" not in log.getvalue()
    roster = Roster(queue, 1)
    for error in ("the loss is nan\nand more", "its tokenizer is lost"):
        roster.take(0)
        roster.beat(0, Beat(0, "words/0", "step", 120))
        roster.ended(0, End(error))
    lines.show()
    lines.show()
    assert log.getvalue().splitlines() == ["train        words/0  failed at step 120: the loss is nan"]
    with lines.following():
        pass
    assert log.getvalue().splitlines()[1:] == ["train        label/0  failed at step 0: its tokenizer is lost"]
    assert unseen.run.name == "label/0"


def test_a_run_that_is_interrupted_says_each_time_why_and_from_where_it_goes_on(tmp_path: Path) -> None:
    queue, log = tiny_queue(tmp_path, SHORT.model_copy(update={"steps": 4000, "max_failures": 2})), io.StringIO()
    lines = TrainingLines(Console(log, lambda: 0.0).stage("train", "steps"), queue)
    roster = Roster(queue, 1)
    roster.take(0)
    for error in ("a node was taken away\nand more", "503"):
        roster.ended(0, End(error, again=True))
        lines.show()
        lines.show()
    assert log.getvalue().splitlines() == [
        "train        words/0  interrupted (1 of at most 2): a node was taken away; it goes on from step 0",
        "train        words/0  interrupted (2 of at most 2): 503; it goes on from step 0",
    ]
    roster.ended(0, End("503 again", again=True))
    with lines.following():
        pass
    assert log.getvalue().splitlines()[2:] == ["train        words/0  failed at step 0: 503 again"]


def test_what_an_earlier_start_wrote_is_no_movement_of_this_one(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT.model_copy(update={"steps": 400}))
    halfway(queue, 0, 100, 50.0, None)
    lines = TrainingLines(Console(io.StringIO(), lambda: 0.0).stage("train", "steps"), queue)
    assert begin(queue) == list(queue.items)
    with lines.following():
        lines.show()
    assert not lines.line.moved


class Away(Store):
    """A run directory that is out of reach now and then."""

    def names(self, folder: str) -> list[str]:
        looks.append(folder)
        if len(looks) == 2:
            raise StoreError("cannot list: 503")
        return super().names(folder)


looks: list[str] = []


def test_a_look_that_the_run_directory_refuses_is_not_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training_lines, "_LOOK_INTERVAL_S", 0.01)
    queue, screen = tiny_queue(tmp_path, SHORT.model_copy(update={"steps": 400})), Terminal()
    lines = TrainingLines(Console(screen).stage("train", "steps"), replace(queue, store=Away(queue.store.root)))
    with lines.following():
        deadline = time.monotonic() + 30
        while "503" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        halfway(queue, 0, 100, 50.0, None)
        while "step 100/400" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "503" in caplog.text
    assert "step 100/400" in screen.getvalue()


def test_running_lines_are_erased_together_and_no_wider_than_the_terminal(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    screen = Terminal()
    console = Console(screen)
    monkeypatch.setattr(console, "_width", lambda: 5)
    console.update("one two\nthree")
    console.update("four")
    console.say("done, and whole")
    assert screen.getvalue() == "\r\x1b[Kone t\nthree" + "\r\x1b[1A\x1b[J" + "four" + "\r\x1b[K" + "done, and whole\n"
