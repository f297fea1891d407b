"""How fast rows are explained here: the stage's own work on sampled rows, in processes like the actors that will do it."""

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from statistics import fmean

from kd.attribution.engine import Attribute
from kd.config import ClusterConfig
from kd.errors import ConfigError, StageError
from kd.models import check_device
from kd.planning.rows import bytes_per_row
from kd.rows import Attribution, Example

PROBE_SECONDS = 30.0
"""The last and longest measurement of a probe takes about this at most, unless one row alone takes longer."""
GROWTH = 4
"""Each measurement takes so many times the rows of the one before, which has warmed up what it needs."""


@dataclass(frozen=True)
class Probe:
    """What was measured: `at_once` actors side by side, each of which explained `rows` rows.

    `load_s` are from the start of an actor's work to its first row, model libraries included.
    """

    device: str
    at_once: int
    threads: int
    load_s: float
    rows: int
    errors: int
    rows_per_s: float
    """Of one actor, while the others work."""
    tokens_per_s: float
    padding_frac: float
    bytes_per_row: float


def probe(recipe: Attribute, rows: Sequence[Example], at_once: int) -> Probe:
    """Explain rows in `at_once` new processes at the same time.

    Raises:
        ConfigError: the device is a GPU and there is none here.
        StageError: a process ended without a word, which is how memory runs out.
    """
    try:
        check_device(recipe.device)
    except ConfigError as error:
        raise ConfigError(f"{error}; or plan without measuring, with --no-probe") from error
    try:
        with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("spawn")) as processes:
            found = [task.result() for task in [processes.submit(measure, recipe, rows, at_once) for _ in range(at_once)]]
    except BrokenProcessPool as error:
        raise StageError(
            f"the probe: one of {at_once} processes that explain rows died, probably for lack of memory; set cluster.max_actors"
            " or attribution.batch_tokens lower, or plan without measuring, with --no-probe"
        ) from error
    rates = {name: fmean(one[name] for one in map(vars, found)) for name in ("rows_per_s", "tokens_per_s")}
    return Probe(**vars(found[0]) | rates | {"load_s": max(one.load_s for one in found)})


def measure(recipe: Attribute, rows: Sequence[Example], at_once: int = 1) -> Probe:
    """Open the teacher in this process and explain one row, then more and more of them; the last time counts."""
    started = time.perf_counter()
    apply = recipe.open()
    load_s, taken = time.perf_counter() - started, 1
    while True:
        tally: Counter[str] = Counter()
        started = time.perf_counter()
        found = apply(spread(rows, taken), tally)
        seconds = time.perf_counter() - started
        if taken == len(rows) or seconds * GROWTH > PROBE_SECONDS:
            break
        taken = min(len(rows), taken * GROWTH)
    explained = [row for row in found if isinstance(row, Attribution)]
    return Probe(
        device=recipe.device,
        at_once=at_once,
        threads=recipe.threads,
        load_s=load_s,
        rows=taken,
        errors=taken - len(explained),
        rows_per_s=taken / seconds,
        tokens_per_s=tally["tokens"] / seconds,
        padding_frac=tally["padding_tokens"] / max(1, tally["tokens"] + tally["padding_tokens"]),
        bytes_per_row=bytes_per_row(explained, Attribution),
    )


def spread(rows: Sequence[Example], count: int) -> list[Example]:
    """So many of the rows, at even distances."""
    return [rows[place * len(rows) // count] for place in range(count)]


def actors_here(cluster: ClusterConfig) -> int:
    """How many actors one machine like this will run side by side; one where they use a GPU."""
    if cluster.device != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cluster.max_actors, cores // cluster.threads_per_actor))
