"""How fast the attribution engine is: beside the floor, Captum row by row, and inseq.

`make bench-attribution`, which runs `bench/attribution_ray.py` too. One model of the T5-small shape with random weights, one
list of questions, saliency, one run.
"""

import argparse
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from bench.competitors import CaptumRows, Floor, Inseq
from bench.record import Record, rates, ratio
from bench.setting import arguments, describe, end, engine, model_and_rows, open_model
from bench.whole_rows import ShardJob, parts
from kd.attribution.engine import Engine
from kd.rationales import pool_to_words
from kd.rows import Attribution, Example
from kd.spans import words

SHARD_BUDGET_TOKENS = 16384
FLOOR = "e: floor"
SCORES = "a: engine, scores only"
SCORES_BF16 = "a: engine, scores only, bf16"
WHOLE = "a': engine, whole rows"
CAPTUM = "c: captum, row by row"
INSEQ = {mode: f"d: inseq{',' if number else ''} {mode}" for number, mode in enumerate(Inseq.MODES)}
"""The case of each of inseq's modes. The first is what the bars are about."""


def main() -> None:
    """Measure everything and leave with the bars' status."""
    given = arguments(__doc__)
    record = Record("attribution", given.out)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch) / "model"
        shard = model_and_rows(folder, given.data)
        rows = shard[: given.rows]
        describe(record, given, len(rows))
        padding(record, folder, shard, rows, given.budget)
        alone(record, folder, rows, given)
    end(record, given)


def padding(record: Record, folder: Path, shard: Sequence[Example], rows: Sequence[Example], budget: int) -> None:
    """What is padded, counted through the engine's own batches; no model is needed for it."""
    family = open_model(folder, device="meta")
    for case, part, tokens in (("shard", shard, SHARD_BUDGET_TOKENS), ("bench", rows, budget)):
        tally: Counter[str] = Counter()
        counting = engine(family, tokens, answers=False)
        counting._batches.run(part, counting._questions, lambda batch: [None] * len(batch), tally)
        frac = tally["padding_tokens"] / tally.total()
        record.figure(f"padding, {case}", "rows", len(part), "rows")
        record.figure(f"padding, {case}", "padding_frac", frac, "share")
        if case == "shard":
            record.bar("padding wasted over a shard", frac, "at_most", 0.05)


def alone(record: Record, folder: Path, rows: Sequence[Example], given: argparse.Namespace) -> None:
    """The engine, the floor and the usual tools in turn."""
    fp32 = open_model(folder)
    scores, whole = engine(fp32, given.budget, answers=False), engine(fp32, given.budget, answers=True)
    job = ShardJob(folder.parent / "run", whole, rows)
    cases: dict[str, Callable[[], float]] = {
        FLOOR: Floor(fp32, rows, given.budget).run,
        SCORES: lambda: run_engine(scores, rows),
        WHOLE: job.run,
        CAPTUM: CaptumRows(folder, rows).run,
    }
    bf16 = has_bf16()
    if bf16:
        half = engine(open_model(folder, "bfloat16"), given.budget, answers=False)
        cases[SCORES_BF16] = lambda: run_engine(half, rows)
    run_engine(scores, rows[:64])
    with Inseq(given.inseq, folder, rows) as inseq:
        found = in_turn(cases, inseq, given.rounds)
    for case, each in found.items():
        record.figure(case, "rate", statistics.median(each) if each else None, "rows/s")
    parts(record, WHOLE, job)
    record.bar("a / e", ratio(found, SCORES, FLOOR), "at_least", 0.9)
    record.bar("a' / e", ratio(found, WHOLE, FLOOR), "at_least", 0.6)
    compare(record, found, SCORES, "fp32", 1.8, 10)
    if bf16:
        compare(record, found, SCORES_BF16, "bf16", 3.5, 20)
        record.bar("top-5 words, bf16 and fp32", top_words_shared(scores, half, rows), "at_least", 0.95)
    else:
        record.figure(SCORES_BF16, "rate", "not applicable: this CPU has no bf16", "rows/s")


def in_turn(cases: Mapping[str, Callable[[], float]], inseq: Inseq, rounds: int) -> dict[str, list[float]]:
    """Rows per second of every case in every round; inseq's modes for information in the first round only."""
    found: dict[str, list[float]] = {case: [] for case in [*cases, *INSEQ.values()]}
    for number in range(rounds):
        measured = {case: each[0] for case, each in rates(cases, 1).items()}
        asked = Inseq.MODES if number == 0 else Inseq.MODES[:1]
        for case, rate in [*measured.items(), *((INSEQ[mode], inseq.rate(mode)) for mode in asked)]:
            found[case] += [] if rate is None else [rate]
    return found


def compare(record: Record, found: Mapping[str, list[float]], case: str, dtype: str, captum: float, times: float) -> None:
    """The bars beside the usual tools; inseq's has no value where a round lacks its rate."""
    inseq = INSEQ[Inseq.MODES[0]]
    beside = ratio(found, case, inseq) if len(found[inseq]) == len(found[case]) else None
    record.bar(f"a / c, a in {dtype}", ratio(found, case, CAPTUM), "at_least", captum)
    record.bar(f"a / d, a in {dtype}", beside, "at_least", times)


def run_engine(attributing: Engine, rows: Sequence[Example]) -> float:
    """All rows once."""
    found = attributing.attribute(rows, Counter())
    assert all(isinstance(row, Attribution) for row in found), "a row of the benchmark has an error"
    return len(found)


def top_words_shared(one: Engine, other: Engine, rows: Sequence[Example], k: int = 5) -> float:
    """The share of each row's k words of highest score that two engines have in common, mean over rows."""
    shared = []
    for pair in zip(one.attribute(rows, Counter()), other.attribute(rows, Counter()), strict=True):
        tops = [top_words(row, k) for row in pair if isinstance(row, Attribution)]
        shared.append(len(tops[0] & tops[1]) / len(tops[0]))
    return statistics.mean(shared)


def top_words(row: Attribution, k: int) -> set[int]:
    importance = pool_to_words(row, words(row.segments))
    return set(sorted(range(len(importance)), key=lambda place: -importance[place])[:k])


def has_bf16() -> bool:
    """Whether this CPU computes matrix products in bf16 itself."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


if __name__ == "__main__":
    main()
