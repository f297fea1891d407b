"""How far a stage's runs are: written by the first worker, read by the driver."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kd.errors import StoreError
from kd.store import Store
from kd.training.runs import Claimed, Queue

if TYPE_CHECKING:
    from kd.training.loop import State

_INTERVAL_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a queue is: the run it is in, `runs_done` of `runs` before it, the newest figures, the worker's process."""

    run: str
    runs_done: int
    runs: int
    step: int
    steps: int
    figures: Mapping[str, float]
    pid: int

    @property
    def steps_done(self) -> int:
        """Steps done of the whole queue."""
        return self.runs_done * self.steps + self.step

    @property
    def steps_in_all(self) -> int:
        """Steps of the whole queue."""
        return self.runs * self.steps


def read_progress(store: Store, stage: str) -> Progress | None:
    """The last progress that the stage's workers wrote; None before the first."""
    relative = _file(stage)
    return Progress(**store.read_json(relative)) if store.exists(relative) else None


class ProgressFile:
    """Writes the progress of a queue to where the driver reads it, at most once a second."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._written_s = 0.0

    def start(self) -> None:
        """Say that nothing has been trained yet, whatever an earlier start of the stage had written."""
        self._publish("", len(self.queue.items) - len(self.queue.todo()), 0, [])

    def of(self, item: Claimed) -> Callable[["State"], None]:
        """What a trainer of this run calls after every step. It ends no run: only one rank would know why it ended."""
        before = self.queue.items.index(item)

        def written(state: "State") -> None:
            now = time.monotonic()
            if now - self._written_s >= _INTERVAL_S or state.step == self.queue.training.steps:
                self._written_s = now
                try:
                    self._publish(item.run.name, before, state.step, state.history)
                except StoreError as error:
                    log.warning("%s", error)

        return written

    def _publish(self, run: str, before: int, step: int, history: Sequence[Mapping[str, Any]]) -> None:
        steps, runs = self.queue.training.steps, len(self.queue.items)
        progress = Progress(run, before, runs, step, steps, _figures(history), os.getpid())
        self.queue.store.publish_json(_file(self.queue.stage), dataclasses.asdict(progress))


def _file(stage: str) -> str:
    return f"logs/{stage}.progress.json"


def _figures(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The newest loss of each term, and the newest validation accuracy."""
    if not history:
        return {}
    losses = {f"loss_{name}": loss for name, loss in history[-1]["loss"].items() if loss is not None}
    accuracies = [entry["validation_accuracy"] for entry in reversed(history) if "validation_accuracy" in entry]
    return losses | ({"validation_accuracy": accuracies[0]} if accuracies else {})
