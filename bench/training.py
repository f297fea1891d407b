"""How fast students learn: beside the usual way to train the baseline, and under Ray beside a bare loop.

`make bench-training`. One model of T5-small's shape with random weights, the baseline's batches of 64 rows, the same rows and
the same updates everywhere: label and rationale of CommonsenseQA and e-SNLI in turn. Rates are of real tokens, input and
target, in the steady state, by the worker's own clock.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ray
import torch

from bench import seq2seq
from bench.learning import MICRO_BATCH_TOKENS, SIZES, Classroom, loop_config, quantiles, steady_rate, taught_rows
from bench.record import Record, ratio
from bench.setting import end
from kd.families.opening import open_family
from kd.loading import load
from kd.ray_train import KEEP_MEMORY, train_queue
from kd.training.engine import adamw
from kd.training.objectives import coefficients, sums_per_term
from kd.training.order import Order
from kd.training.runs import Queue
from kd.training.session import Opened, open_run, train_here

OURS = "a: our loop"
USUAL = "b: Seq2SeqTrainer, two passes"
BARE = "c: bare torch loop, 1 thread"
ONE = "d: Ray Train + DeepSpeed, 1 worker"
TWO = "d: Ray Train + DeepSpeed, 2 workers"
WARM = 1
"""Steps at the start of each measurement that are not counted."""


@dataclass
class Bench:
    """The cases. What a case found beside its rate is kept by its name."""

    room: Classroom
    batch_rows: int
    steps: int
    threads: int
    scratch: Path
    shares: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    first_losses: dict[str, float] = field(default_factory=dict)
    _made: int = 0

    def ours(self) -> float:
        """The product's loop, plain torch, in this process."""
        queue = self._queue(threads=self.threads)
        train_here(queue)
        first = self.room.timings(queue)[0]["loss"]
        self.first_losses[OURS] = 0.5 * first["label"] + 0.5 * first["rationale"]
        return self._rate(OURS, queue)

    def usual(self) -> float:
        """The same rows and updates by the usual trainer."""
        queue = self._queue(threads=self.threads)
        order = Order([self.room.shard.rows], self.batch_rows, queue.training.window_shards, seed=0)
        batches = [[self.room.rows[place] for place in order.rows_of_batch(step)] for step in range(self.steps)]
        rows = [row for batch in batches for row in batch]
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            loaded = load(self.room.source, "cpu")
            clock = seq2seq.train(loaded, rows, self.batch_rows, self.steps, Path(folder), self.threads)
        self.first_losses[USUAL] = clock.losses[0]
        tokens = sum(real_tokens(row.input_ids, row.target_ids) for batch in batches[WARM:] for row in batch)
        return tokens / (clock.ended_s[-1] - clock.ended_s[WARM - 1])

    def bare(self) -> float:
        """Forward, backward, clipping and AdamW over batches that were cut before, in a process of its own, which keeps the
        memory that it frees as a worker does.
        """
        with variables(KEEP_MEMORY), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
            return other.submit(bare_loop, self.lone_queue()).result()

    def under_ray(self, workers: int) -> float:
        """The product as it is started on a cluster, with one thread per worker."""
        queue = self._queue(threads=1, workers=workers)
        train_queue(queue)
        return self._rate(ONE if workers == 1 else TWO, queue)

    def lone_queue(self) -> Queue:
        """A run of a lone worker with one thread."""
        return self._queue(threads=1)

    def _queue(self, threads: int, workers: int = 1) -> Queue:
        """The same run again and again, each time as a stage of its own."""
        self._made += 1
        return self.room.queue(f"train{self._made}", loop_config(self.steps, self.batch_rows, threads, workers))

    def _rate(self, case: str, queue: Queue) -> float:
        """Real tokens per second of a finished queue; the shares of waiting and padding, and a step's time, are noted."""
        timings = self.room.timings(queue)
        steady = timings[WARM:]
        seconds, tokens = (sum(step[name] for step in steady) for name in ("seconds", "tokens"))
        noted = {
            "waiting": sum(step["waited_s"] for step in steady) / seconds,
            "padding": 1 - tokens / sum(step["tokens"] / (1 - step["padding_frac"]) for step in steady),
            "step": seconds / len(steady),
        }
        for name, value in noted.items():
            self.shares.setdefault(case, {}).setdefault(name, []).append(value)
        return steady_rate(timings, WARM)


def real_tokens(input_ids: Sequence[Sequence[int]], target_ids: Sequence[Sequence[int]]) -> int:
    """What is read and written, without padding."""
    return sum(map(len, input_ids)) + sum(map(len, target_ids))


def bare_loop(queue: Queue) -> float:
    """Real tokens per second of the shortest loop that makes these updates: everything that can be is prepared before."""
    torch.set_num_threads(queue.training.threads_per_worker)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        opened = open_run(queue, queue.items[0].run, Path(scratch), rank=0, world=1)
        batches = [cut_before(opened, queue, step) for step in range(queue.training.steps)]
    model, config = opened.student.model.train(), queue.training
    family, optimizer = open_family(opened.student, queue.items[0].run.model.config), adamw(opened.student.model, config)
    ended_s = []
    for parts, weights in batches:
        for part in parts:
            nll = family.sequence_nll(model, part.input_ids, part.target_ids)
            (sums_per_term(nll, torch.tensor(part.term), len(weights)) * weights).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        ended_s.append(time.perf_counter())
    tokens = sum(real_tokens(part.input_ids, part.target_ids) for parts, _ in batches[WARM:] for part in parts)
    return tokens / (ended_s[-1] - ended_s[WARM - 1])


def cut_before(opened: Opened, queue: Queue, step: int) -> tuple[list[Any], torch.Tensor]:
    """The micro-batches that a lone worker's loop would see in a step, and what a nat of each term weighs."""
    lessons, terms = opened.lessons, opened.lessons.terms
    config, batch = queue.training, lessons.table.batch(lessons.order.rows_of_batch(step))
    share = batch.share(0, 1, config.micro_batch_tokens, len(terms), config.is_in_step, config.cut_for_workers)
    return share.micro_batches, torch.tensor(coefficients(terms, share.target_tokens))


def readying_ms(queue: Queue) -> float:
    """How long the median batch takes to be read and cut for a lone worker, in milliseconds: a loop whose steps are no longer
    would wait for data.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        opened = open_run(queue, queue.items[0].run, Path(scratch), rank=0, world=1)
        ended_s = [time.perf_counter()]
        for step in range(queue.training.steps):
            cut_before(opened, queue, step)
            ended_s.append(time.perf_counter())
    return 1000 * statistics.median(end - begin for begin, end in itertools.pairwise(ended_s))


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that processes started inside have."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def in_turn(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Every case's own rate in every round; the cases take turns, so that a slow spell hits all of them."""
    found: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, measure in cases.items():
            found[case].append(measure())
    return found


def measure(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """All cases. Those under Ray come first, and Ray is up for them only: the others leave this process gigabytes, which the
    kernel would look through while workers work.
    """
    ray.init(address="local", num_cpus=4, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    try:
        cases = {BARE: bench.bare, ONE: lambda: bench.under_ray(1), TWO: lambda: bench.under_ray(2)}
        under_ray = in_turn(cases, rounds)
    finally:
        ray.shutdown()
    return in_turn({OURS: bench.ours, USUAL: bench.usual}, rounds) | under_ray


def say(record: Record, bench: Bench, found: Mapping[str, list[float]]) -> None:
    """Every figure, then the bars."""
    for case, each in found.items():
        record.figure(case, "rate", statistics.median(each), "real tokens/s")
    for case, noted in bench.shares.items():
        record.figure(case, "padding_frac", statistics.median(noted["padding"]), "share")
        record.figure(case, "waiting_frac", statistics.median(noted["waiting"]), "share")
        record.figure(case, "time of a step", statistics.median(noted["step"]), "s")
    record.figure(BARE, "time to read and cut a batch", readying_ms(bench.lone_queue()), "ms")
    for case, loss in bench.first_losses.items():
        record.figure(case, "loss of the first step", loss, "nats")
    record.bar("our loop / Seq2SeqTrainer", ratio(found, OURS, USUAL), "at_least", 1.5)
    record.bar("Ray Train + DeepSpeed / bare loop, 1 thread", ratio(found, ONE, BARE), "at_least", 0.9)
    record.bar("time waiting for data, 1 worker", statistics.median(bench.shares[ONE]["waiting"]), "at_most", 0.03)
    record.bar("two workers / one", ratio(found, TWO, ONE), "at_least", 1.6)


def main() -> None:
    """Measure everything and leave with the bars' status."""
    given = arguments()
    record = Record("training", given.out)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        rows = taught_rows(given.data, given.steps * given.batch_rows)
        room = Classroom.furnished(Path(scratch), rows, SIZES[given.size])
        bench = Bench(room, given.batch_rows, given.steps, given.threads, Path(scratch))
        record.machine(
            text="CommonsenseQA and e-SNLI" if given.data else "made up",
            model=given.size,
            input_tokens=quantiles([len(ids) for row in room.rows for ids in row.input_ids]),
            target_tokens=quantiles([len(ids) for row in room.rows for ids in row.target_ids]),
            batch_rows=given.batch_rows,
            micro_batch_tokens=MICRO_BATCH_TOKENS,
            steps=f"{given.steps}, the first {WARM} not counted",
            rounds=given.rounds,
            threads_of_a_and_b=given.threads,
        )
        say(record, bench, measure(bench, given.rounds))
    end(record, given)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--data", type=Path, help="CommonsenseQA's folder, e-SNLI's beside it; without it rows are made up")
    parser.add_argument("--size", choices=sorted(SIZES), default="t5-small", help="shape of the model")
    parser.add_argument("--batch-rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the first two cases")
    parser.add_argument("--out", type=Path, help="file to write the lines to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
