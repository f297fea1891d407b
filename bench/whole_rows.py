"""The attribution stage on one shard as the job does it, and where its time goes."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.record import Record
from bench.setting import LIMITS
from kd import shards
from kd.attribution.engine import Attribute, AttributionConfig, Engine
from kd.manifests import Shard
from kd.models import ModelSource
from kd.rows import Attribution, Example
from kd.shards import Claimed, Work, claim
from kd.store import Store


class ShardJob:
    """One shard in a run directory: read, explained with answers, checked, counted and published by every run.

    The engine is open and the stage claimed beforehand: a job does that once, not for each shard.
    """

    def __init__(self, run: Path, attributing: Engine, rows: Sequence[Example]) -> None:
        self.engine = attributing
        self.shard = Shard("train-0", "train", len(rows))
        self._store = Store.at(str(run))
        self._store.publish_rows(f"examples/{self.shard.file}", rows, Example, {})
        work = Work(
            title="attribute",
            recipe=Attribute(AttributionConfig(), ModelSource(LIMITS), "cpu", threads=1),  # never opened: the engine is there
            source="examples",
            target="attributions",
            reads=Example,
            writes=Attribution,
            shards=[self.shard],
            config={},
            inputs={},
            max_error_frac=0,
            max_error_key="none",
        )
        claimed = claim(self._store, work)
        assert isinstance(claimed, Claimed), "the folder is fresh"
        self._claimed = claimed

    def run(self) -> float:
        """The shard once; the same file again each time."""
        counted = shards.run_shard(self._store, self._claimed, self.shard, self.engine.attribute)
        assert not any(key.startswith("error.") for key in counted), "a row of the benchmark has an error"
        return self.shard.rows


class Clock:
    """The time of one thread, each moment counted to the innermost part that is open; so all parts make up the whole.

    What other threads do goes on beside that: it is in `beside`, and is no part of the whole.
    """

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = 0.0
        self._thread = threading.get_ident()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside, time goes to this part, but for the parts that are opened inside."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.spent[self._open[-1]] += now - self._since  # type: ignore[assignment]
        self._since = now

    def timed(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its calls counted to a part."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == self._thread:
                with self.part(name):
                    return do(*args, **kwargs)
            started = time.perf_counter()
            try:
                return do(*args, **kwargs)
            finally:
                self.beside[name] += time.perf_counter() - started  # type: ignore[assignment]

        return call


def parts(record: Record, case: str, job: ShardJob) -> None:
    """Where the time of a shard goes, with the clock around each part of one run."""
    clock = Clock()
    with ExitStack() as patches:
        for owner, name, part in (
            (Store, "read_rows", "read the shard"),
            (Store, "publish_rows", "publish the shard"),
            (shards, "check_conserved", "check the laws"),
            (shards, "count", "count"),
            (job.engine, "attribute", "sort, cut, wait for tokens"),
            (job.engine, "_questions", "tokenise"),
            (job.engine, "_explain", "explain"),
            (job.engine, "_attribution", "make rows"),
        ):
            patches.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        family = job.engine._family
        patches.enter_context(patch.object(family, "read", clock.timed("read by the model", _reading(clock, family.read))))
        with clock.part("the rest"):
            job.run()
    beside = {f"{part} (in a thread of its own)": seconds for part, seconds in clock.beside.items()}
    for part, seconds in (clock.spent | {"all of the above": sum(clock.spent.values())} | beside).items():
        record.figure(case, f"time, {part}", seconds / job.shard.rows * 1000, "ms/row")


def _reading(clock: Clock, read: Callable[..., Any]) -> Callable[..., Any]:
    """A family's `read` whose readings are timed too."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        reading = read(*args, **kwargs)
        reading.generate = clock.timed("generate", reading.generate)
        reading.logprobs = clock.timed("rank", reading.logprobs)
        return reading

    return timed
