"""What a person sees of a job: one line per stage, and at the end a table. Everything else goes to a log file.

Frameworks print to file descriptors 1 and 2, so these are redirected for the length of a job; the console keeps the
real output for itself.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

from jobs.pace import Pace
from kd.errors import StoreError

QUIET_SECONDS = 15.0
"""In a log, a running stage repeats its line no more often than this."""


@dataclass
class Line:
    """The progress of one stage: rows (or steps) done and, once they are known, the rate and the time that is left."""

    console: "Console"
    title: str
    unit: str
    started_s: float
    shown_s: float
    pace: Pace = field(default_factory=Pace)
    moved: bool = False
    """Whether anything was done since the start."""

    def __call__(self, done: int, total: int | None) -> None:
        """Show how far the stage is. The first call says what was done before this start."""
        now = self.console.clock()
        self.moved = self.pace.add(now, done) or self.moved
        if done != total and self.is_due(now):
            self.console.update(self._text(done, total))

    def is_due(self, now_s: float) -> bool:
        """Whether it is time to show something; if so, the next time is later."""
        due = now_s - self.shown_s >= (0.2 if self.console.is_terminal else QUIET_SECONDS)
        self.shown_s = now_s if due else self.shown_s
        return due

    def say(self, text: str) -> None:
        """A line about the stage that stays."""
        self.console.say(f"{self.title:<12} {text}")

    def close(self, outcome: str) -> None:
        """The stage is over: its line stays, with how it ended."""
        self.say(f"{outcome}  ({duration(self.console.clock() - self.started_s)})")

    def _text(self, done: int, total: int | None) -> str:
        rate = self.pace.per_second()
        parts = [f"{self.title:<12} {done:,}{'' if total is None else f'/{total:,}'} {self.unit}"]
        if total is not None:
            parts.append(f"{100 * done // total if total else 100} %")
        if rate is not None:
            parts.append(f"{rate:,.1f} {self.unit}/s")
        if rate is not None and total is not None:
            parts.append(f"ETA {duration((total - done) / rate)}")
        return "  ".join(parts)


class Console:
    """Writes to the terminal or to the job's log; in a terminal running lines are rewritten in place.

    An output that is gone (a closed terminal, the end of `| head`) ends no job: from then on the console is silent.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.clock = clock
        self.is_terminal = stream.isatty()
        self.running = 0
        self._is_gone = False
        self._one_at_a_time = threading.RLock()

    def say(self, text: str) -> None:
        """A line, or several, that stay."""
        with self._one_at_a_time:
            self._write((self._erase() if self.running else "") + text + "\n")
            self.running = 0

    def update(self, text: str) -> None:
        """A line, or several, that the next ones replace (in a log: lines). A terminal shows as much of each as it is wide."""
        if not self.is_terminal:
            self.say(text)
            return
        with self._one_at_a_time:
            columns, lines = self._size()
            shown = "\n".join(line[:columns] for line in text.split("\n")[:lines])
            self._write(self._erase() + shown)
            self.running = shown.count("\n") + 1

    def _erase(self) -> str:
        """Go to the start of the running lines and clear them."""
        up = self.running - 1
        return f"\r\x1b[{up}A\x1b[J" if up > 0 else "\r\x1b[K"

    def _size(self) -> tuple[int | None, int | None]:
        """How many columns a line and how many lines an update may have; None where the stream does not say.

        A line that is broken, or scrolled away, cannot be rewritten.
        """
        try:
            size = os.get_terminal_size(self.stream.fileno())
        except OSError:
            return None, None
        return (size.columns - 1 if size.columns > 1 else None), (size.lines - 1 if size.lines > 1 else None)

    def stage(self, title: str, unit: str = "rows") -> Line:
        """Start the line of a stage."""
        now = self.clock()
        return Line(self, title, unit, now, float("-inf") if self.is_terminal else now)

    def _write(self, text: str) -> None:
        if self._is_gone:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            self._is_gone = True
            logging.getLogger(__name__).warning("the output is gone, and the job goes on: %s", error)


@contextmanager
def console_with_log(log: Path) -> Iterator[Console]:
    """A console on the real output, while everything that is printed otherwise is appended to `log`.

    Raises:
        StoreError: the log cannot be written.
    """
    sink = _opened(log)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with sink, _real_output() as stream:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield Console(stream)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, descriptor)
                os.close(saved)


@contextmanager
def _real_output() -> Iterator[TextIO]:
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    try:
        yield stream
    finally:
        with suppress(OSError):  # a terminal that is gone, which the last line has met already
            stream.close()


def _opened(log: Path) -> BinaryIO:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab")
    except OSError as error:
        raise StoreError(f"cannot write the log {log}: {error}; set root to a folder that can be written") from error


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
