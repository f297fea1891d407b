"""What a stage costs outside the model, at ten thousand, a hundred thousand and a million rows, and what a restart takes.

`make bench-scale`. The teacher is trivial: its tokens and scores are made beforehand. Rows have sixty tokens.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import ray

from bench.record import Record
from kd import ray_data
from kd.arrow import to_table
from kd.ray_data import Pool
from kd.rows import Attribution, Example, Segment, extended
from kd.shards import Apply, Work
from kd.store import Shard, Store

SHARD_ROWS = 10_000
TOKENS = 60
TEXTS = 100
"""Different texts; uids are all different."""
ACTORS = 2


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
        record.bar(f"peak of {name}, {large} rows over {small}", peak / found[small].peaks_mib[name], "at_most", 1.10)
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


# --- rows -------------------------------------------------------------------------------------------------------------


def text(number: int) -> str:
    """Sixty words of seven letters."""
    return " ".join(f"word{(number * 7 + place) % 1000:03d}" for place in range(TOKENS))


_FIRST = Example(
    uid="u",
    error=None,
    task="scale",
    split="train",
    segments=[],
    target="yes",
    label_set=["yes", "no"],
    evidence=[],
    llm_rationale=None,
    llm_label=None,
)


def corpus(store: Store, rows: int) -> list[Shard]:
    """Shards of examples; the texts repeat, the uids do not."""
    template = to_table(
        [dataclasses.replace(_FIRST, segments=[Segment("text", text(n % TEXTS))]) for n in range(SHARD_ROWS)], Example
    )
    shards = []
    for start in range(0, rows, SHARD_ROWS):
        shard = Shard(f"train-{start}", "train", SHARD_ROWS)
        uids = pa.array([f"train/{start + place}" for place in range(SHARD_ROWS)])
        store.publish_table(f"examples-{rows}/{shard.file}", template.set_column(0, template.schema.field("uid"), uids), {})
        shards.append(shard)
    return shards


@dataclass(frozen=True)
class Trivial:
    """A teacher whose answers are known: one token per word, one score each."""

    def open(self) -> Apply:
        """Tokens, spans and scores of every text, made once."""
        made = {text(number): _parts(text(number)) for number in range(TEXTS)}
        return lambda rows, _: [attributed(row, made[row.segments[0].text]) for row in rows]


Parts = tuple[list[str], list[int], list[int], list[int], list[float]]


def _parts(words: str) -> Parts:
    tokens = words.split()
    starts = [8 * place for place in range(len(tokens))]
    return tokens, [0] * len(tokens), starts, [start + 7 for start in starts], [1 / (place + 1) for place in range(len(tokens))]


def attributed(row: Example, parts: Parts) -> Attribution:
    """A row with its scores."""
    tokens, segments, starts, ends, scores = parts
    return extended(
        row,
        Attribution,
        model="trivial@1",
        method="saliency",
        explained="gold",
        explained_answer=row.target,
        generated=row.target,
        ranked=row.target,
        choice_logprobs=[-0.1, -2.4],
        target_logprob=-0.1,
        tokens=tokens,
        token_segment=segments,
        token_start=starts,
        token_end=ends,
        scores=scores,
        completeness_gap=None,
        truncated_tokens=0,
        fold=0,
    )


# --- what is measured -------------------------------------------------------------------------------------------------


def conversion(record: Record, store: Store, rounds: int = 5) -> None:
    """One shard from Parquet to rows and back, on one core, the teacher's own part left out."""
    (shard,) = corpus(store, SHARD_ROWS)
    apply = Trivial().open()
    each = []
    for _ in range(rounds):
        started = time.process_time()
        rows = store.read_rows(f"examples-{SHARD_ROWS}/{shard.file}", Example)
        reading = time.process_time() - started
        made = apply(rows, Counter())
        started = time.process_time()
        store.publish_rows("converted.parquet", made, Attribution, {})
        each.append((reading + time.process_time() - started) / (SHARD_ROWS * TOKENS) * 1e6)
    micros = statistics.median(each)
    record.figure("conversion", "cost per token and core", micros, "us")
    record.bar("conversion, us per token and core", micros, "at_most", 5)


@dataclass
class Found:
    """What a stage of one size took."""

    seconds: float = 0.0
    restart_s: float = 0.0
    peaks_mib: dict[str, float] = field(default_factory=dict)


def stage(record: Record, store: Store, rows: int) -> Found:
    """The stage on a local cluster of its own, then the same call again."""
    shards = corpus(store, rows)
    work = Work(
        title="attribute",
        recipe=Trivial(),
        source=f"examples-{rows}",
        target=f"attributions-{rows}",
        reads=Example,
        writes=Attribution,
        shards=shards,
        config={},
        inputs={},
        max_error_frac=0,
        max_error_key="none",
    )
    pool = Pool(ACTORS, ACTORS, cpus_per_actor=1, gpus_per_actor=0)
    found = Found()
    with local_cluster(), watched(found):
        before, started = cpu_seconds(), time.perf_counter()
        ray_data.run(store, [work], pool, ignore)
        found.seconds = time.perf_counter() - started
        spent = cpu_seconds() - before
    started = time.perf_counter()
    ray_data.run(store, [work], pool, ignore)
    found.restart_s = time.perf_counter() - started
    case = f"{rows} rows"
    record.figure(case, "rate", rows / found.seconds, "rows/s")
    record.figure(case, "cpu per row, all processes", spent / rows * 1e6, "us")
    record.figure(case, "restart", found.restart_s, "s")
    for name, peak in found.peaks_mib.items():
        record.figure(case, f"peak private memory of {name}", peak, "MiB")
    return found


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


@contextmanager
def watched(found: Found, every_s: float = 0.25) -> Iterator[None]:
    """Inside, private memory is sampled: of this process, of the largest worker, of all."""
    over = threading.Event()

    def sample() -> None:
        while not over.wait(every_s):
            driver = private_mib(psutil.Process(os.getpid()))
            others = [private_mib(process) for process in psutil.Process(os.getpid()).children(recursive=True)]
            sizes = {"the driver": driver, "the largest worker": max(others, default=0.0), "all processes": driver + sum(others)}
            for name, size in sizes.items():
                found.peaks_mib[name] = max(size, found.peaks_mib.get(name, 0.0))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield
    finally:
        over.set()
        sampler.join()


def private_mib(process: psutil.Process) -> float:
    """Memory that a process shares with no other."""
    try:
        return float(process.memory_full_info().uss) / 2**20
    except psutil.Error:
        return 0.0


def cpu_seconds() -> float:
    """What this process and all below it have computed, those that ended apart."""
    spent = 0.0
    for process in [psutil.Process(os.getpid()), *psutil.Process(os.getpid()).children(recursive=True)]:
        try:
            times = process.cpu_times()
            spent += times.user + times.system
        except psutil.Error:
            continue
    return spent


if __name__ == "__main__":
    main()
