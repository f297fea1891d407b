"""What a person sees of training: one line per run while it goes on, and one that stays when it is over."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from jobs.console import Line, duration
from kd.manifests import Manifest
from kd.refusals import tolerated
from kd.training.progress import Interruption, Progress, read_interruptions, read_runs
from kd.training.runs import FAILURE, Claimed, Failure, Queue

_LOOK_INTERVAL_S = 1.0


class TrainingLines:
    """The lines of a queue's runs, below the title of its stage's line. Runs that were finished before say so at once."""

    def __init__(self, line: Line, queue: Queue) -> None:
        self.line = line
        self.queue = queue
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._over: set[str] = set()
        self._told: set[Interruption] = set()
        self._width = max(len(item.run.name) for item in queue.items)
        for item in queue.items:
            self._settle(item, "  finished before")

    @contextmanager
    def following(self) -> Iterator[None]:
        """Inside, show what the workers write of their progress, for as long as they work.

        What an earlier start has written is gone by then. A look that the run directory refuses is left out.
        """
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(_LOOK_INTERVAL_S):
                with tolerated():
                    self.show()

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()
            with tolerated():
                for item in self.queue.items:
                    self._settle(item, "")
                    self._settle_failed(item)

    def show(self) -> None:
        """Look once: settle the runs that are over, say which were interrupted, rewrite the lines of the others."""
        found = {progress.run: progress for progress in read_runs(self.queue.store, self.queue.stage, self._over)}
        for item in self.queue.items:
            if item.run.name in found and found[item.run.name].is_over:
                self._settle(item, _early(found.pop(item.run.name)))
            elif item.run.name in found and self._settle_failed(item):
                found.pop(item.run.name)
        self._tell_interruptions()
        self.line.moved = self.line.moved or any(progress.step for progress in found.values())
        console = self.line.console
        if found and self.line.is_due(console.clock()):
            console.update("\n".join(f"{self.line.title:<12} {self._text(progress)}" for progress in found.values()))

    def _settle(self, item: Claimed, note: str) -> None:
        """Say how a run ended, once; nothing where it has not."""
        if item.run.name in self._over or (manifest := self.queue.store.manifest(item.folder)) is None:
            return
        self._over.add(item.run.name)
        self.line.moved = True
        name = f"{item.run.name:<{self._width}}"
        self.line.console.say(f"{self.line.title:<12} {name}  {_outcome(manifest)}{note}  ({duration(manifest.seconds)})")

    def _settle_failed(self, item: Claimed) -> bool:
        """Say that a run has failed, once and where it has; what an earlier start said of it does not count."""
        where = f"{item.folder}/{FAILURE}"
        if item.run.name in self._over or not self.queue.store.exists(where):
            return False
        failure = Failure(**self.queue.store.read_json(where))
        if failure.time < self._since:
            return False
        self._over.add(item.run.name)
        name, why = f"{item.run.name:<{self._width}}", failure.error.partition("\n")[0]
        self.line.console.say(f"{self.line.title:<12} {name}  failed at step {failure.step:,}: {why}")
        return True

    def _tell_interruptions(self) -> None:
        """Say once of every one why a run is begun again, and from where."""
        for said in read_interruptions(self.queue.store, self.queue.stage, self._over):
            if said not in self._told:
                self._told.add(said)
                self.line.console.say(f"{self.line.title:<12} {said.run:<{self._width}}  {said}")

    def _text(self, progress: Progress) -> str:
        """How far a run is; what is wanted most stands first, as a narrow terminal cuts the end."""
        share = 100 * progress.step // progress.steps
        parts = [f"{progress.run:<{self._width}}", f"step {progress.step:,}/{progress.steps:,}  {share} %"]
        if progress.seconds_left is not None:
            parts += [f"{progress.step / progress.seconds:,.1f} steps/s  ETA {duration(progress.seconds_left)}"]
        return "  ".join([*parts, *_figures(progress)])


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


def _early(progress: Progress) -> str:
    ended = progress.step < progress.steps
    return f"  ended at step {progress.step:,} of {progress.steps:,}" if ended else ""
