"""This process and all below it, watched: private memory at its highest, and processor time, of those that ended too."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil  # type: ignore[import-untyped]

Key = tuple[int, float]
"""A process: its id and when it started, as ids are used again."""

WORKER = "ray::"
"""How Ray names a process that runs tasks or an actor; its own servers have other names."""


@dataclass
class Watch:
    """What was seen: `peaks_mib` of the driver, of the largest Ray worker and of all together; `cpu_s` of all since the start.

    A process that has ended counts as it was last seen: what it computed after that is missing, at most one interval.
    """

    peaks_mib: dict[str, float] = field(default_factory=dict)
    cpu_s: float = 0.0
    _before_s: dict[Key, float] = field(default_factory=dict)
    _latest_s: dict[Key, float] = field(default_factory=dict)

    def start(self) -> None:
        """From here on processor time counts."""
        self._before_s = {key: seconds for key, seconds in map(_cpu, _family()) if key}

    def sample(self) -> None:
        """Look at every process once."""
        driver, *others = _family()
        sizes = {process: _private_mib(process) for process in others}
        own = _private_mib(driver)
        workers = [size for process, size in sizes.items() if is_worker(process)]
        self._rises("the driver", own)
        self._rises("the largest worker", max(workers, default=0.0))
        self._rises("all processes", own + sum(sizes.values()))
        for key, seconds in map(_cpu, [driver, *others]):
            if key:
                self._latest_s[key] = max(seconds, self._latest_s.get(key, 0.0))
        self.cpu_s = sum(seconds - self._before_s.get(key, 0.0) for key, seconds in self._latest_s.items())

    def _rises(self, name: str, size: float) -> None:
        self.peaks_mib[name] = max(size, self.peaks_mib.get(name, 0.0))


@contextmanager
def watched(every_s: float = 0.25) -> Iterator[Watch]:
    """Inside, all processes are looked at again and again, and once more at the end."""
    watch, over = Watch(), threading.Event()

    def sample() -> None:
        while not over.wait(every_s):
            watch.sample()

    watch.start()
    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield watch
    finally:
        over.set()
        sampler.join()
        watch.sample()


def _family() -> list[psutil.Process]:
    """This process, then all below it."""
    here = psutil.Process(os.getpid())
    return [here, *here.children(recursive=True)]


def is_worker(process: psutil.Process) -> bool:
    """Whether a process runs Ray's tasks or an actor."""
    try:
        return any(name.startswith(WORKER) for name in (process.name(), *process.cmdline()[:1]))
    except psutil.Error:
        return False


def _private_mib(process: psutil.Process) -> float:
    """Memory that a process shares with no other; zero once it has ended."""
    try:
        return float(process.memory_full_info().uss) / 2**20
    except psutil.Error:
        return 0.0


def _cpu(process: psutil.Process) -> tuple[Key | None, float]:
    """A process and what it has computed; no key once it has ended."""
    try:
        times = process.cpu_times()
        return (process.pid, process.create_time()), times.user + times.system
    except psutil.Error:
        return None, 0.0
