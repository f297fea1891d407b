"""How fast rows are explained here: the stage's own work on sampled rows, in processes like the actors that will do it."""

import math
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from kd.attribution.engine import Attribute, AttributionConfig, Engine
from kd.batching import is_out_of_memory
from kd.cluster_config import ClusterConfig
from kd.errors import ConfigError, StageError
from kd.loading import check_device, gpus_here
from kd.planning.rows import bytes_per_row
from kd.rows import Attribution, Example, RowError

if TYPE_CHECKING:
    from kd.families.base import Family

M = TypeVar("M")
PROBE_SECONDS = 30.0
"""The last and longest measurement of a probe takes about this at most, unless one row alone takes longer."""
BUDGETS = (0.5, 1, 2)
"""What the budget of tokens is tried with: so many times the configured one. All tries together take a probe's time once more."""
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
    rows_per_s_by_budget: Mapping[int, float] = field(default_factory=dict)
    """The same with other budgets of tokens; empty where too few rows could be explained to tell them apart."""


class Probing:
    """Processes to measure in, like the actors that will do the work; they stay for one measurement after the other.

    `libraries_s` is what each takes from its first line until the model libraries are loaded.
    """

    def __init__(self, pool: ProcessPoolExecutor, processes: int) -> None:
        self._pool = pool
        self.libraries_s = max(self.side_by_side(_libraries_s, at_once=processes))

    def side_by_side(self, measure: Callable[..., M], *arguments: Any, at_once: int) -> list[M]:
        """What the same measurement gives in each of so many processes at the same time.

        Raises:
            StageError: a process ended without a word, which is how memory runs out.
        """
        try:
            return [task.result() for task in [self._pool.submit(measure, *arguments) for _ in range(at_once)]]
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, BrokenProcessPool) and not is_out_of_memory(error):
                raise
            raise StageError(
                f"the probe: one of {at_once} processes died, probably for lack of memory; set cluster.max_actors,"
                " attribution.batch_tokens or micro_batch_tokens lower, or on a GPU cluster.gpus_per_actor higher, or plan"
                " without measuring, with --no-probe"
            ) from error


@contextmanager
def probe_processes(device: str, processes: int) -> Iterator[Probing]:
    """So many new processes. Raises ConfigError where the device is a GPU and there is none here."""
    try:
        check_device(device)
    except ConfigError as error:
        raise ConfigError(f"{error}; or plan without measuring, with --no-probe") from error
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield Probing(pool, processes)


def _libraries_s() -> float:
    started = time.perf_counter()
    import kd.families.opening  # noqa: F401 - with it come torch and transformers

    return time.perf_counter() - started


def probe(processes: Probing, recipe: Attribute, rows: Sequence[Example], at_once: int) -> Probe:
    """Explain rows in `at_once` processes at the same time. Raises StageError as `Probing.side_by_side` does."""
    found = _together(processes.side_by_side(partial(measure, at_once=at_once), recipe, rows, at_once=at_once))
    return replace(found, load_s=found.load_s + processes.libraries_s)


def _together(found: Sequence[Probe]) -> Probe:
    """What actors side by side measured, as one: rates are means, loading ends with the last."""
    rates = {name: fmean(one[name] for one in map(vars, found)) for name in ("rows_per_s", "tokens_per_s")}
    budgets = [budget for budget in found[0].rows_per_s_by_budget if all(budget in one.rows_per_s_by_budget for one in found)]
    tried = {budget: fmean(one.rows_per_s_by_budget[budget] for one in found) for budget in budgets}
    return Probe(**vars(found[0]) | rates | {"load_s": max(one.load_s for one in found), "rows_per_s_by_budget": tried})


def measure(recipe: Attribute, rows: Sequence[Example], at_once: int = 1) -> Probe:
    """Open the teacher in this process and explain one row, then more and more of them; the last time counts.

    `load_s` is then the model's alone.
    """
    from kd.families.opening import load_family

    started = time.perf_counter()
    family = load_family(recipe.source, recipe.device, recipe.threads)
    load_s, taken = time.perf_counter() - started, 1
    while True:
        seconds, found, tally = _timed(recipe.config, family, spread(rows, taken))
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
        rows_per_s_by_budget=_by_budget(recipe.config, family, rows, seconds / taken, tally["tokens"] / taken),
    )


def _by_budget(
    config: AttributionConfig, family: "Family", rows: Sequence[Example], seconds_per_row: float, tokens_per_row: float
) -> dict[int, float]:
    """Rows per second with smaller and larger micro-batches. Too few rows to fill one of the largest tell nothing.

    Each is tried twice, there and back, and the faster time counts: other work on the machine only ever slows it down.
    """
    budgets = [max(1, int(config.batch_tokens * times)) for times in BUDGETS]
    tries = [*budgets, *reversed(budgets)]
    count = min(len(rows), int(PROBE_SECONDS / len(tries) / seconds_per_row))
    if count * tokens_per_row < max(budgets):
        return {}
    best = dict.fromkeys(budgets, 0.0)
    for budget in tries:
        seconds, _, _ = _timed(config.model_copy(update={"batch_tokens": budget}), family, spread(rows, count))
        best[budget] = max(best[budget], count / seconds)
    return best


def _timed(
    config: AttributionConfig, family: "Family", rows: Sequence[Example]
) -> tuple[float, list[Attribution | RowError], "Counter[str]"]:
    """The stage's work on these rows, by a model that is loaded: its seconds, what came of it, and what it counted."""
    tally: Counter[str] = Counter()
    started = time.perf_counter()
    found = Engine(config, family).attribute(rows, tally)
    return time.perf_counter() - started, found, tally


def spread(rows: Sequence[Example], count: int) -> list[Example]:
    """So many of the rows, at even distances."""
    return [rows[place * len(rows) // count] for place in range(count)]


def actors_here(cluster: ClusterConfig) -> int:
    """How many actors are probed side by side: as many as share a GPU; without one, as this machine has cores for."""
    if cluster.device != "cpu":
        return max(1, min(cluster.max_actors, int(1 / cluster.gpus_per_actor)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cluster.max_actors, cores // cluster.threads_per_actor))


def actors_like_these(cluster: ClusterConfig, local: bool) -> int:
    """How many actors as fast as a probed one a stage has: the config's; at most what this machine is good for if it is local.

    A local cluster has more logical CPUs than cores, so more actors may run than are probed, but they are together no faster.
    """
    if not local:
        return cluster.max_actors
    if cluster.device == "cpu":
        cpus = cluster.local_cpus or 2 * (os.cpu_count() or 1)
        return max(1, min(actors_here(cluster), int(cpus / cluster.cpus_per_actor)))
    places = gpus_here() // max(1, math.ceil(cluster.gpus_per_actor))
    return max(1, min(cluster.max_actors, places * actors_here(cluster)))
