"""A worker that gets stuck is ended, after it has said where.

A thread of its own looks at the time, so it also fires while the training thread is inside a C call such as a collective.
For a call that never gives up the interpreter, `faulthandler` ends the process a little later, without a word.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Protocol

LINGER_S = 3.0
"""So long a stuck worker stays after it has said so: the others, whose time is up at about the same moment, speak too."""
_EXIT_CODE = 70
_STDERR = 2
_OURS = str(Path(__file__).parents[1])
_WAITING = ("torch/distributed/", "ray/train/")


class Watch(Protocol):
    """Hears what a worker begins: a phase (`step`, `validate`, ...), the step that it is at, and how many passes through the
    model that step has behind it.
    """

    def __call__(self, phase: str, step: int, passes: int = 0) -> None: ...


def unwatched(phase: str, step: int, passes: int = 0) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Beat:
    """What a worker is doing. `hung_s` is how long it had been at it when its time was up; `waits`: for the other workers.

    `waits` is seen of a collective that returns when it is done, as on a CPU. One of a GPU returns at once, and who waits for it
    does so wherever a number is read; but then it has more `passes` of the step behind it, or is at a later step.
    """

    rank: int
    run: str
    phase: str
    step: int
    passes: int = 0
    hung_s: float | None = None
    waits: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """How far it is; workers have equally many passes in a step."""
        return self.step, self.passes


class Watchdog:
    """Ends this process when one phase lasts longer than `timeout_s`. Called as a `Watch` by the thread that made it.

    `tell` hears of every phase that lasts a moment, and last of all that the time is up; it is called on another thread.
    """

    def __init__(self, timeout_s: float, rank: int, tell: Callable[[Beat], None]) -> None:
        self.timeout_s = timeout_s
        self.rank = rank
        self.tell = tell
        self.run = ""
        self._watched = threading.get_ident()
        self._doing = (Beat(rank, "", "start", 0), time.monotonic())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __call__(self, phase: str, step: int, passes: int = 0) -> None:
        """A pass is a part of its step, whose time goes on."""
        since_s = self._doing[1] if passes else time.monotonic()
        self._doing = (Beat(self.rank, self.run, phase, step, passes), since_s)

    def __enter__(self) -> "Watchdog":
        self("start", 0)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        """Look again and again: while this thread can, `faulthandler` is put off."""
        told: Beat | None = None
        every_s = min(1.0, self.timeout_s / 4)
        while not self._over.wait(every_s):
            faulthandler.dump_traceback_later(self.timeout_s + 3 * LINGER_S, exit=True, file=_STDERR)
            beat, since_s = self._doing
            hung_s = time.monotonic() - since_s
            if hung_s > self.timeout_s:
                self._end(beat, hung_s)
            if beat != told:
                told = beat
                self.tell(beat)

    def _end(self, beat: Beat, hung_s: float) -> None:
        waits = is_waiting(sys._current_frames().get(self._watched))
        self.tell(replace(beat, hung_s=hung_s, waits=waits))
        faulthandler.dump_traceback(file=_STDERR)
        time.sleep(LINGER_S)
        os._exit(_EXIT_CODE)


def is_waiting(frame: FrameType | None) -> bool:
    """Whether a thread of this project is inside a call that waits for other workers: a collective, a report to Ray Train."""
    while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
        if any(part in frame.f_code.co_filename for part in _WAITING):
            return True
        frame = frame.f_back
    return False


def hang(stage: str, beats: Sequence[Beat], world: int) -> str | None:
    """What to say of a group of so many workers that were last heard so; None where no worker's time was up.

    Stuck are those whose time was up and who wait for nobody, of them the least far. One that never gives up the interpreter, or
    was killed, is silent: stuck are those where all others wait, or were heard farther on. Where nobody is silent and all wait,
    it is for a collective that some never entered: stuck are the least far. Who was late and is not stuck has waited.
    """
    late = [beat for beat in beats if beat.hung_s is not None]
    if not late:
        return None
    busy, heard = [beat for beat in late if not beat.waits], {beat.rank: beat for beat in beats}
    first = min(beat.place for beat in busy or late)
    silent = set(range(world)) - {beat.rank for beat in late}
    behind = {rank for rank in silent if not busy or rank not in heard or heard[rank].place < first}
    if behind:
        stuck = {rank: f"rank {rank} of {stage} is silent, {_last(heard.get(rank))}" for rank in behind}
    else:
        least = [beat for beat in busy or late if beat.place == first]
        stuck = {beat.rank: f"rank {beat.rank} of {stage} hung in {_where(beat)} for {beat.hung_s:.0f} s" for beat in least}
    waited = sorted(beat.rank for beat in late if beat.rank not in stuck)
    told = "; ".join(stuck[rank] for rank in sorted(stuck))
    return f"{told}; ranks that waited: {', '.join(map(str, waited)) or 'none'}. If it is merely slow, raise step_timeout_s"


def _last(beat: Beat | None) -> str:
    return f"last heard in {_where(beat)}" if beat else "and was not heard in this run"


def _where(beat: Beat) -> str:
    return f"{beat.phase} of {beat.run} at step {beat.step}" + (f" after {beat.passes} of its passes" if beat.passes else "")
