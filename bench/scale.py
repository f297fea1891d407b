"""What a stage costs outside the model, at ten thousand, a hundred thousand and a million rows, and what a restart takes.

`make bench-scale`. The teacher is trivial: its tokens and scores are made beforehand. Rows have sixty tokens.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import ray

from bench.processes import watched
from bench.record import Record
from bench.trivial import SHARD_ROWS, TOKENS, Trivial, corpus, example, work
from kd import ray_data
from kd.ray_data import Pool
from kd.rows import Attribution
from kd.store import Store

T = TypeVar("T")
ACTORS = 2
POOL = Pool(ACTORS, ACTORS, cpus_per_actor=1, gpus_per_actor=0)


def main() -> None:
    """Measure everything and leave with the bars' status."""
    given = arguments()
    record = Record("scale", given.out)
    record.machine(tokens_per_row=TOKENS, shard_rows=SHARD_ROWS, actors=ACTORS)
    with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
        store = Store.at(scratch)
        conversion(record, store)
        sizes = [int(rows) for rows in given.rows.split(",")]
        found = {rows: stage(record, store, rows) for rows in sizes}
    small, large = sizes[-2:]
    grown = large / small
    for name, peak in found[large].peaks_mib.items():
        before = found[small].peaks_mib[name]
        record.bar(f"peak of {name}, {large} rows over {small}", peak / before if before else None, "at_most", 1.10)
    record.bar(f"time, {large} rows over {small}", found[large].seconds / found[small].seconds, "at_most", 1.1 * grown)
    record.bar("driver's peak, MiB", found[large].peaks_mib["the driver"], "at_most", 250)
    record.bar(f"restart of a finished stage of {large} rows, seconds", found[large].restart_s, "at_most", 10)
    record.end()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--rows", default="10000,100000,1000000", help="sizes, ascending; the last two are compared")
    parser.add_argument("--out", type=Path, help="file to write the lines to")
    return parser.parse_args()


# --- what is measured -------------------------------------------------------------------------------------------------


def conversion(record: Record, store: Store, rounds: int = 5) -> None:
    """One shard of attributions from Parquet to rows and back, processor time of all threads."""
    apply = Trivial().open()
    made = apply([example(number) for number in range(SHARD_ROWS)], Counter())
    store.publish_rows("attributions.parquet", made, Attribution, {})
    each = []
    for _ in range(rounds):
        started = time.process_time()
        rows = store.read_rows("attributions.parquet", Attribution)
        store.publish_rows("converted.parquet", rows, Attribution, {})
        each.append((time.process_time() - started) / (SHARD_ROWS * TOKENS) * 1e6)
    micros = statistics.median(each)
    record.figure("conversion", "cost per token and core", micros, "us")
    record.bar("conversion, us per token and core", micros, "at_most", 5)


@dataclass
class Found:
    """What a stage of one size took."""

    seconds: float
    cpu_s: float
    peaks_mib: Mapping[str, float]
    restart_s: float = 0.0


def stage(record: Record, store: Store, rows: int) -> Found:
    """The stage in a driver of its own, on a local cluster of its own; then the same job again, from the start of its process."""
    apart(corpus, store, rows)
    found = apart(first_run, store, rows)
    started = time.perf_counter()
    apart(again, store, rows)
    found.restart_s = time.perf_counter() - started
    case = f"{rows} rows"
    record.figure(case, "rate", rows / found.seconds, "rows/s")
    record.figure(case, "cpu per row, all processes", found.cpu_s / rows * 1e6, "us")
    record.figure(case, "restart", found.restart_s, "s")
    for name, peak in found.peaks_mib.items():
        record.figure(case, f"peak private memory of {name}", peak, "MiB")
    return found


def apart(do: Callable[[Store, int], T], store: Store, rows: int) -> T:
    """Something done in a process of its own, so that nothing done before counts as its memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        return other.submit(do, store, rows).result()


def first_run(store: Store, rows: int) -> Found:
    """The driver of a stage that nobody has begun."""
    with local_cluster(), watched() as watch:
        started = time.perf_counter()
        ray_data.run(store, [work(rows)], POOL, ignore)
        seconds = time.perf_counter() - started
    return Found(seconds, watch.cpu_s, watch.peaks_mib)


def again(store: Store, rows: int) -> None:
    """The driver of a stage that is finished."""
    (manifest,) = ray_data.run(store, [work(rows)], POOL, ignore)
    assert manifest.rows == rows


def ignore(done: int, total: int) -> None:
    """No progress line."""


@contextmanager
def local_cluster() -> Iterator[None]:
    """A Ray of this benchmark's own."""
    ray.init(address="local", num_cpus=4, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
