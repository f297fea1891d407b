"""What a person sees of training: one line per run while it goes on, and one that stays when it is over."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ray.exceptions import RayError

from jobs.console import Line, duration
from jobs.pace import Pace
from kd.manifests import Manifest
from kd.training.progress import Finished, Look, Progress, Status
from kd.training.runs import Claimed, Failure, Queue

log = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 1.0
WAIT_AGAIN_S = 180.0
"""So often it is said again that runs wait for workers."""


class TrainingLines:
    """The lines of a queue's runs, below the title of its stage's line. Runs that are not in `todo` are finished: they say so.

    `waiting` says what runs without workers wait for, given how many seconds they have; None where that is not worth a word.
    """

    def __init__(
        self, line: Line, queue: Queue, todo: Sequence[Claimed], waiting: Callable[[float], str | None] = lambda _: None
    ) -> None:
        self.line = line
        self.queue = queue
        self.waiting = waiting
        self._heard = 0
        self._paces: dict[str, Pace] = {}
        self._waits_since_s: float | None = None
        self._wait_told_s: float | None = None
        self._width = max(len(item.run.name) for item in queue.items)
        for item in queue.items:
            if item not in todo and (manifest := queue.store.manifest(item.folder)):
                self._say(item.run.name, f"{_ended(manifest, queue)}  finished before  ({duration(manifest.seconds)})")

    @contextmanager
    def following(self, look: Look) -> Iterator[None]:
        """Inside, show what is known of the runs, for as long as there are workers."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(_LOOK_INTERVAL_S):
                try:
                    self.show(look(self._heard))
                except RayError as error:  # what becomes of the cluster's head, the stage itself says
                    log.warning("cannot look at the runs: %s", error)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()
            self._tell(look(self._heard))

    def show(self, status: Status) -> None:
        """Say what became of runs and what they wait for, and rewrite the lines of those that have workers."""
        self._tell(status)
        console, progress = self.line.console, status.progress
        self._tell_of_waiting(status.waits, console.clock())
        texts = [f"{self.line.title:<12} {self._text(each)}" for each in progress]
        if texts and self.line.is_due(console.clock()):
            console.update("\n".join(texts))

    def _tell(self, status: Status) -> None:
        """Say once of every run how it ended, or why it is begun again and from where."""
        for news in status.news:
            if isinstance(news, Finished):
                manifest = news.manifest
                self._say(news.run, f"{_ended(manifest, self.queue)}  ({duration(manifest.seconds)})")
            elif isinstance(news, Failure):
                self._say(news.run, f"failed at step {news.step:,}: {_first_line(news.error)}")
            else:
                self._say(news.run, str(news))
        self._heard += len(status.news)

    def _tell_of_waiting(self, waits: bool, now_s: float) -> None:
        """Say at once what is missing, and again after a while."""
        if not waits:
            self._waits_since_s = self._wait_told_s = None
            return
        if self._waits_since_s is None:
            self._waits_since_s = now_s
        if self._wait_told_s is not None and now_s - self._wait_told_s < WAIT_AGAIN_S:
            return
        if text := self.waiting(now_s - self._waits_since_s):
            self._wait_told_s = now_s
            self.line.console.say(f"{self.line.title:<12} {text}")

    def _say(self, run: str, text: str) -> None:
        self.line.console.say(f"{self.line.title:<12} {run:<{self._width}}  {text}")

    def _text(self, progress: Progress) -> str:
        """How far a run is; what is wanted most stands first, as a narrow terminal cuts the end."""
        share = 100 * progress.step // progress.steps
        parts = [f"{progress.run:<{self._width}}", f"step {progress.step:,}/{progress.steps:,}  {share} %"]
        rate = self._rate(progress)
        if rate is not None:
            parts += [f"{rate:,.1f} steps/s  ETA {duration((progress.steps - progress.step) / rate)}"]
        return "  ".join([*parts, *_figures(progress)])

    def _rate(self, progress: Progress) -> float | None:
        """Steps per second; None where too little of the run has been seen since it was begun, or begun again."""
        pace = self._paces.get(progress.run)
        if pace is None or progress.step < pace.done:
            pace = self._paces[progress.run] = Pace()
        pace.add(progress.seconds, progress.step)
        return pace.per_second()


def _figures(progress: Progress) -> Iterator[str]:
    """The loss, the validation's figures, and the terms of the loss where there are several, as far as they are known."""
    figures = progress.figures
    terms = [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in figures.items() if name.startswith("loss_")]
    if "loss" in figures:
        yield f"loss {figures['loss']:.3f}"
    if "validation_accuracy" in figures:
        yield f"validation {validated(figures)}"
    if len(terms) > 1 or (terms and "loss" not in figures):
        yield f"loss of {', '.join(terms)}"


def _outcome(manifest: Manifest) -> str:
    figures = manifest.figures
    if figures["validation_accuracy"] is None:
        return "not validated"
    best = f"best on validation {validated(figures)}, at step {figures['best_step']:,}"
    last = f"; {validated(figures, 'last_')} at the last, {figures['last_step']:,}"
    return best if figures["last_step"] == figures["best_step"] else best + last


def validated(figures: Mapping[str, float | str | None], which: str = "") -> str:
    """A validation's accuracy, and beside it how many answers could be read and how many were cut at the length limit."""
    accuracy, *rates = (figures.get(f"{which}validation_{name}") for name in ("accuracy", "parse_rate", "truncation_rate"))
    known = [f"{rate:.1%} {name}" for rate, name in zip(rates, ("parsed", "cut"), strict=True) if rate is not None]
    return f"{accuracy:.1%}" + (f" ({', '.join(known)})" if known else "")


def _ended(manifest: Manifest, queue: Queue) -> str:
    """How a run ended, and where, if that was before its last step."""
    last = manifest.figures["last_step"]
    early = isinstance(last, int | float) and last < queue.training.steps
    return _outcome(manifest) + (f"  ended at step {last:,} of {queue.training.steps:,}" if early else "")


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
