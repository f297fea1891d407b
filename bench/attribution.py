"""How fast the attribution engine is: beside the floor, Captum row by row, and inseq.

`make bench-attribution`, which runs `bench/attribution_ray.py` too. One model of the T5-small shape with random weights, one
list of questions, saliency, one run.
"""

import argparse
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
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
"""The case of each of inseq's modes. The bars are about the first, in which it is fast: calls of many texts, no progress bars."""


def main() -> None:
    """Measure everything and leave with the bars' status."""
    given = arguments(__doc__)
    record = Record("attribution", given.out)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch) / "model"
        shard = model_and_rows(folder, given.data)
        rows = shard[: given.rows]
        describe(record, given, len(rows))
        answer_tokens(record, folder, rows)
        padding(record, folder, shard, rows, given.budget)
        alone(record, folder, rows, given)
    end(record, given)


def answer_tokens(record: Record, folder: Path, rows: Sequence[Example]) -> None:
    """How long the explained answers are; inseq runs backward once for each token of them."""
    family = open_model(folder, device="meta")
    mean = statistics.mean(len(family.encode_answer(row.target or "")) for row in rows)
    record.figure("explained answers", "mean length", mean, "tokens")


def padding(record: Record, folder: Path, shard: Sequence[Example], rows: Sequence[Example], budget: int) -> None:
    """What is padded, counted through the engine's own batches; no model is needed for it."""
    family = open_model(folder, device="meta")
    for case, part, tokens in (("shard", shard, SHARD_BUDGET_TOKENS), ("bench", rows, budget)):
        record.figure(f"padding, {case}", "rows", len(part), "rows")
        scores, whole = (padding_frac(engine(family, tokens, answers), part) for answers in (False, True))
        record.figure(f"padding, {case}", "padding_frac", scores, "share")
        record.figure(f"padding, {case}, whole rows", "padding_frac", whole, "share")
        if case == "shard":
            record.bar("padding wasted over a shard", scores, "at_most", 0.05)


def padding_frac(counting: Engine, rows: Sequence[Example]) -> float:
    """The share of padding in the engine's batches of these rows."""
    tally: Counter[str] = Counter()
    counting._batches.run(rows, counting._questions, lambda batch: [None] * len(batch), tally)
    return tally["padding_tokens"] / tally.total()


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
    versions(record, inseq)
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
    """Rows per second of every case in every round; of inseq's modes the last one, for information, in the first only."""
    found: dict[str, list[float]] = {case: [] for case in [*cases, *INSEQ.values()]}
    for number in range(rounds):
        measured = {case: each[0] for case, each in rates(cases, 1).items()}
        asked = Inseq.MODES if number == 0 else Inseq.MODES[:2]
        for case, rate in [*measured.items(), *((INSEQ[mode], inseq.rate(mode)) for mode in asked)]:
            found[case] += [] if rate is None else [rate]
    return found


def compare(record: Record, found: Mapping[str, list[float]], case: str, dtype: str, captum: float, times: float) -> None:
    """The bars beside the usual tools, and a figure beside inseq as its quickstart calls it; none where a round lacks a rate."""
    fast, quickstart = (
        ratio(found, case, INSEQ[mode]) if len(found[INSEQ[mode]]) == len(found[case]) else None for mode in Inseq.MODES[:2]
    )
    record.figure(case, f"rate over that of {INSEQ[Inseq.MODES[1]]}", quickstart, "times")
    record.bar(f"a / c, a in {dtype}", ratio(found, case, CAPTUM), "at_least", captum)
    record.bar(f"a / d, a in {dtype}", fast, "at_least", times)


def versions(record: Record, inseq: Inseq) -> None:
    """Of the libraries that are compared, here and in inseq's environment."""
    for name in ("captum", "transformers"):
        record.figure("machine", name, version(name), "version")
    for name, value in inseq.versions.items():
        record.figure("machine", f"{name}, beside inseq" if name != "inseq" else name, value, "version")


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
