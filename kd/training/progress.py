"""How far a stage's runs are and what becomes of them: workers report it, the roster keeps it, the driver asks for it.

Nothing of it is written to the run directory but the curves of a run.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kd.errors import StoreError
from kd.manifests import Manifest
from kd.training.events import EventFile, curves
from kd.training.runs import Claimed, Failure, Queue

if TYPE_CHECKING:
    from kd.training.loop import State

log = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_EVENTS_INTERVAL_S = 10.0
_TIMES_ITS_COST = 100
"""Nothing is done more often than takes this share of the time: a store may be far away, and the other ranks wait."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    `figures` are the newest: `loss` (what is learned from), `loss_<term>` each, and those of a validation
    (`kd.training.validation.named`). `seconds` is what the run's steps so far took, over all attempts, validations included.
    """

    run: str
    step: int
    steps: int
    figures: Mapping[str, float]
    seconds: float


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


@dataclass(frozen=True)
class Finished:
    """A run has its model. The `manifest` is that of its folder, without its shards."""

    run: str
    manifest: Manifest


News = Interruption | Failure | Finished
"""What becomes of a run."""


@dataclass(frozen=True)
class Status:
    """What the roster knows: the `news` since it was last asked, in order, and the `progress` of the runs that have workers.

    `waits`: a run that was begun, or all that are left, have no workers at the moment.
    """

    news: Sequence[News] = ()
    progress: Sequence[Progress] = ()
    waits: bool = False


Look = Callable[[int], Status]
"""Asks the roster; called with how many news were heard before."""


def reporting(queue: Queue, item: Claimed, report: Callable[[Progress], object]) -> Callable[["State"], None]:
    """What a trainer of this run calls after every step: at most once a second its progress is reported.

    Its curves are written every ten seconds; who trains it writes them once more at the end.
    """
    events = EventFile(queue.store, item.folder, item.run.objective.terms)
    reported = _Seldom(_INTERVAL_S, lambda state: report(_progress(queue, item, state)), first_s=0.0)
    drawn = _Seldom(_EVENTS_INTERVAL_S, events.publish, first_s=_EVENTS_INTERVAL_S)

    def after_a_step(state: "State") -> None:
        reported(state)
        drawn(state)

    return after_a_step


class _Seldom:
    """Does something with a state after `first_s`, and again after an interval, which is longer for what takes long.

    It ends no run: only one rank would know why.
    """

    def __init__(self, interval_s: float, do: Callable[["State"], object], first_s: float) -> None:
        self.interval_s = interval_s
        self.do = do
        self._next_s = time.monotonic() + first_s

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


def _progress(queue: Queue, item: Claimed, state: "State") -> Progress:
    return Progress(item.run.name, state.step, queue.training.steps, _figures(state, item), state.seconds)


def _figures(state: "State", item: Claimed) -> dict[str, float]:
    """The newest losses, and the figures of the newest validation."""
    if not state.history:
        return {}
    points = curves(state.history[-1], item.run.objective.terms)
    losses = {"loss": points["loss_total"]} if "loss_total" in points else {}
    losses |= {f"loss_{tag.removeprefix('loss/')}": value for tag, value in points.items() if tag.startswith("loss/")}
    validated: Mapping[str, float] = next((entry for entry in reversed(state.history) if "validation_accuracy" in entry), {})
    return losses | {name: value for name, value in validated.items() if name.startswith("validation_")}
