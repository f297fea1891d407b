"""How far a stage's runs are: written by the first worker of each group, read by the driver. One file per run."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kd.errors import StoreError
from kd.store import Store
from kd.training.events import EventFile, curves
from kd.training.runs import Claimed, Queue

if TYPE_CHECKING:
    from kd.training.loop import State

log = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_EVENTS_INTERVAL_S = 10.0
_TIMES_ITS_COST = 100
"""Nothing is written more often than takes this share of the time: a store may be far away, and the other ranks wait."""


@dataclass(frozen=True)
class Progress:
    """How far a run is, with `runs_done` of the queue's `runs` finished before it, and the process of the worker that says so.

    `figures` are the newest: `loss` (what is learned from), `loss_<term>` each, `validation_accuracy`. `seconds` is what the
    run's steps so far took, over all attempts, validations included. A run may be over before its last step.
    """

    run: str
    runs_done: int
    runs: int
    step: int
    steps: int
    figures: Mapping[str, float]
    pid: int
    seconds: float
    is_over: bool
    unix_s: float

    @property
    def steps_done(self) -> int:
        """Steps done of the whole queue."""
        return self.runs_done * self.steps + self.step

    @property
    def steps_in_all(self) -> int:
        """Steps of the whole queue."""
        return self.runs * self.steps

    @property
    def seconds_left(self) -> float | None:
        """What the run takes yet at its own mean rate, if no validation ends it early; None before the first step."""
        return (self.steps - self.step) * self.seconds / self.step if self.step else None


def read_progress(store: Store, stage: str) -> Progress | None:
    """What was written last of any run of the stage; None before the first."""
    return max(read_runs(store, stage), key=lambda progress: progress.unix_s, default=None)


def read_runs(store: Store, stage: str, without: Collection[str] = ()) -> list[Progress]:
    """The last that was written of every run that the stage's workers have begun, but for some, in the order of names."""
    skipped = {_file_of(run) for run in without}
    files = [name for name in store.names(_folder(stage)) if name.endswith(_SUFFIX) and name not in skipped]
    return [Progress(**store.read_json(f"{_folder(stage)}/{name}")) for name in files]


class ProgressFile:
    """Writes the progress of a queue's runs to where the driver reads it, at most once a second, and their curves."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def start(self) -> None:
        """Forget what an earlier start of the stage had written."""
        folder = _folder(self.queue.stage)
        for name in self.queue.store.names(folder):
            self.queue.store.delete(f"{folder}/{name}")

    def of(self, item: Claimed) -> Callable[["State"], None]:
        """What a trainer of this run calls after every step."""
        before = len(self.queue.items) - len(self.queue.todo())
        events = EventFile(self.queue.store, item.folder, item.run.objective.terms)
        progress = _Seldom(_INTERVAL_S, lambda state: self._publish(item, before, state, is_over=False))
        drawn = _Seldom(_EVENTS_INTERVAL_S, events.publish)

        def written(state: "State") -> None:
            progress(state)
            drawn(state)

        return written

    def finish(self, item: Claimed, state: "State") -> None:
        """Say that a run is over; its manifest is there."""
        self._publish(item, len(self.queue.items) - len(self.queue.todo()) - 1, state, is_over=True)

    def _publish(self, item: Claimed, before: int, state: "State", is_over: bool) -> None:
        name, steps, runs = item.run.name, self.queue.training.steps, len(self.queue.items)
        figures, now_s = _figures(state, item), time.time()
        said = Progress(name, before, runs, state.step, steps, figures, os.getpid(), state.seconds, is_over, now_s)
        self.queue.store.publish_json(f"{_folder(self.queue.stage)}/{_file_of(name)}", dataclasses.asdict(said))


class _Seldom:
    """Writes something of a state at once, and again after an interval, which is longer for what takes long.

    It ends no run: only one rank would know why.
    """

    def __init__(self, interval_s: float, do: Callable[["State"], None]) -> None:
        self.interval_s = interval_s
        self.do = do
        self._next_s = 0.0

    def __call__(self, state: "State") -> None:
        began_s = time.monotonic()
        if began_s < self._next_s:
            return
        try:
            self.do(state)
        except StoreError as error:
            log.warning("%s", error)
        ended_s = time.monotonic()
        self._next_s = began_s + max(self.interval_s, _TIMES_ITS_COST * (ended_s - began_s))


_SUFFIX = ".json"


def _folder(stage: str) -> str:
    return f"logs/{stage}.progress"


def _file_of(run: str) -> str:
    """A run's file; names of variants have no dot."""
    return run.replace("/", ".") + _SUFFIX


def _figures(state: "State", item: Claimed) -> dict[str, float]:
    """The newest losses, and the newest validation accuracy."""
    if not state.history:
        return {}
    points = curves(state.history[-1], item.run.objective.terms)
    losses = {"loss": points["loss_total"]} if "loss_total" in points else {}
    losses |= {f"loss_{tag.removeprefix('loss/')}": value for tag, value in points.items() if tag.startswith("loss/")}
    accuracies = [entry["validation_accuracy"] for entry in reversed(state.history) if "validation_accuracy" in entry]
    return losses | ({"validation_accuracy": accuracies[0]} if accuracies else {})
