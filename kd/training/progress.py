"""How far a stage's runs are, and what interrupted them: read by the driver, who shows it.

Of every run there is one file that the first worker of its group writes, and one that the roster writes.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    """How far a run is.

    `figures` are the newest: `loss` (what is learned from), `loss_<term>` each, and those of a validation
    (`kd.training.validation.named`). `seconds` is what the run's steps so far took, over all attempts, validations included. A
    run may be over before its last step.
    """

    run: str
    step: int
    steps: int
    figures: Mapping[str, float]
    seconds: float
    is_over: bool

    @property
    def seconds_left(self) -> float | None:
        """What the run takes yet at its own mean rate, if no validation ends it early; None before the first step."""
        return (self.steps - self.step) * self.seconds / self.step if self.step else None


@dataclass(frozen=True)
class Interruption:
    """Why a run's group has died, or has given the run back, and after which `step` the run goes on.

    It is number `number` since the run last had a newer checkpoint; `most` are borne, and the next one ends the run.
    """

    run: str
    why: str
    step: int
    number: int
    most: int

    def __str__(self) -> str:
        why = self.why.partition("\n")[0]
        return f"interrupted ({self.number} of at most {self.most}): {why}; it goes on from step {self.step:,}"


def read_runs(store: Store, stage: str, without: Collection[str] = ()) -> list[Progress]:
    """The last that was written of every run that the stage's workers have begun, but for some, in the order of names."""
    return [Progress(**said) for said in _read(store, stage, _PROGRESS, without)]


def read_interruptions(store: Store, stage: str, without: Collection[str] = ()) -> list[Interruption]:
    """The last interruption of every run that had one in this start of the stage, but for some, in the order of names."""
    return [Interruption(**said) for said in _read(store, stage, _INTERRUPTION, without)]


def _read(store: Store, stage: str, suffix: str, without: Collection[str]) -> list[dict[str, Any]]:
    skipped = {_file_of(run, suffix) for run in without}
    files = [name for name in store.names(_folder(stage)) if name.endswith(suffix) and name not in skipped]
    return [store.read_json(f"{_folder(stage)}/{name}") for name in files]


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
        """What a trainer of this run calls after every step; the run directory is asked for nothing before the first one."""
        events = EventFile(self.queue.store, item.folder, item.run.objective.terms)
        progress = _Seldom(_INTERVAL_S, lambda state: self._publish(item, state, is_over=False))
        drawn = _Seldom(_EVENTS_INTERVAL_S, events.publish)

        def written(state: "State") -> None:
            progress(state)
            drawn(state)

        return written

    def finish(self, item: Claimed, state: "State") -> None:
        """Say that a run is over; its manifest is there."""
        self._publish(item, state, is_over=True)

    def interrupt(self, said: Interruption) -> None:
        """Say why a run is begun again."""
        self._write(_file_of(said.run, _INTERRUPTION), said)

    def _publish(self, item: Claimed, state: "State", is_over: bool) -> None:
        name, steps, figures = item.run.name, self.queue.training.steps, _figures(state, item)
        said = Progress(name, state.step, steps, figures, state.seconds, is_over)
        self._write(_file_of(name, _PROGRESS), said)

    def _write(self, name: str, said: Progress | Interruption) -> None:
        self.queue.store.publish_json(f"{_folder(self.queue.stage)}/{name}", dataclasses.asdict(said))


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


_PROGRESS = ".json"
_INTERRUPTION = ".interrupted"


def _folder(stage: str) -> str:
    return f"logs/{stage}.progress"


def _file_of(run: str, suffix: str) -> str:
    """A run's file; names of variants have no dot."""
    return run.replace("/", ".") + suffix


def _figures(state: "State", item: Claimed) -> dict[str, float]:
    """The newest losses, and the figures of the newest validation."""
    if not state.history:
        return {}
    points = curves(state.history[-1], item.run.objective.terms)
    losses = {"loss": points["loss_total"]} if "loss_total" in points else {}
    losses |= {f"loss_{tag.removeprefix('loss/')}": value for tag, value in points.items() if tag.startswith("loss/")}
    validated: Mapping[str, float] = next((entry for entry in reversed(state.history) if "validation_accuracy" in entry), {})
    return losses | {name: value for name, value in validated.items() if name.startswith("validation_")}
