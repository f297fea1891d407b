"""How far a stage's runs are: written by the first worker of every group, read by the driver."""

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
    """How far a queue is, or one group of it: the run it is in, `runs_done` of `runs` before it, the newest figures, the
    first worker's process. Of several groups together, the names of their runs and the sum of their steps.
    """

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
    """The last progress that the stage's groups wrote, added up; None before the stage began."""
    if not store.exists(_file(stage)):
        return None
    start = store.read_json(_file(stage))
    groups = [_file(stage, group) for group in range(start.pop("groups"))]
    parts = [Progress(**store.read_json(group)) for group in groups if store.exists(group)]
    return _added(Progress(**start), parts)


def _added(start: Progress, parts: Sequence[Progress]) -> Progress:
    """What was done before this start, and what every group has done in it. Figures are those of a lone group."""
    if not parts:
        return start
    return dataclasses.replace(
        start,
        run=" ".join(part.run for part in parts),
        runs_done=start.runs_done + sum(part.runs_done for part in parts),
        step=sum(part.step for part in parts),
        figures=parts[0].figures if len(parts) == 1 else {},
        pid=parts[0].pid,
    )


class ProgressFile:
    """Writes the progress of a group to where the driver reads it, at most once a second."""

    def __init__(self, queue: Queue, group: int = 0) -> None:
        self.queue = queue
        self.group = group
        self._written_s = 0.0

    def start(self, groups: int) -> None:
        """Say that nothing has been trained yet, whatever an earlier start of the stage had written."""
        for group in range(groups):
            self.queue.store.delete(_file(self.queue.stage, group))
        done = len(self.queue.items) - len(self.queue.todo())
        self._publish(_file(self.queue.stage), self._progress("", done, 0, []) | {"groups": groups})

    def of(self, item: Claimed, ended: int) -> Callable[["State"], None]:
        """What a trainer of this run calls after every step; its group has `ended` so many before it in this start."""

        def written(state: "State") -> None:
            now = time.monotonic()
            if now - self._written_s >= _INTERVAL_S or state.done:
                self._written_s = now
                values = self._progress(item.run.name, ended, state.step, state.history)
                self._publish(_file(self.queue.stage, self.group), values)

        return written

    def _progress(self, run: str, ended: int, step: int, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        steps, runs = self.queue.training.steps, len(self.queue.items)
        return dataclasses.asdict(Progress(run, ended, runs, step, steps, _figures(history), os.getpid()))

    def _publish(self, relative: str, values: Mapping[str, Any]) -> None:
        self.queue.store.publish_json(relative, values)


def _file(stage: str, group: int | None = None) -> str:
    """The file of the stage's start, or that of one of its groups."""
    return f"logs/{stage}.progress.json" if group is None else f"logs/{stage}.progress.{group}.json"


def _figures(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The newest loss of each term, and the newest validation accuracy."""
    if not history:
        return {}
    losses = {f"loss_{name}": loss for name, loss in history[-1]["loss"].items() if loss is not None}
    accuracies = [entry["validation_accuracy"] for entry in reversed(history) if "validation_accuracy" in entry]
    return losses | ({"validation_accuracy": accuracies[0]} if accuracies else {})
