"""How fast the attribution engine is: beside the floor, Captum row by row, and inseq.

`make bench-attribution`, which runs `bench/attribution_ray.py` too. One model of the T5-small shape with random weights, one
list of questions, saliency, one run.
"""

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from captum.attr import Saliency as CaptumSaliency

from bench.record import Record, rates, ratio
from bench.texts import questions, sentences
from kd.arrow import to_table
from kd.attribution.engine import AttributionConfig, Engine
from kd.batching import cut
from kd.errors import RowFault
from kd.families.base import Family
from kd.families.opening import open_family
from kd.models import Loaded, ModelConfig, ModelSource, load, save
from kd.rationales import pool_to_words
from kd.rows import Attribution, Example, RowError
from kd.spans import words
from kd.specs import T5Spec
from kd.vocabulary import train_tokenizer

T5_SMALL = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32128}
LIMITS = ModelConfig(name="t5-small", max_input_tokens=256, max_answer_tokens=8)
SHARD_ROWS = 4096
SHARD_BUDGET_TOKENS = 16384


def main() -> None:
    """Measure everything and leave with the bars' status."""
    given = arguments(__doc__)
    record = Record("attribution", given.out)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch) / "model"
        shard = model_and_rows(folder, given.data)
        rows = shard[: given.rows]
        record.machine(text="CommonsenseQA" if given.data else "made up", rows=len(rows), budget_tokens=given.budget)
        padding(record, folder, shard, rows, given.budget)
        alone(record, folder, rows, given)
    record.end()


def model_and_rows(folder: Path, data: Path | None) -> list[Example]:
    """A model in a folder, and a shard of rows that it can answer."""
    torch.manual_seed(0)
    candidates = questions(data, 2 * SHARD_ROWS)
    make_model(candidates, folder)
    return fitting(candidates, open_model(folder, device="meta"))[:SHARD_ROWS]


def fitting(rows: Sequence[Example], family: Family) -> list[Example]:
    """The rows whose options all fit the limit of an answer; the others would be rows with an error."""

    def fits(row: Example) -> bool:
        try:
            return bool([family.encode_answer(option) for option in row.label_set])
        except RowFault:
            return False

    return [row for row in rows if fits(row)]


def arguments(description: str | None, rows: int = 512) -> argparse.Namespace:
    """The command line of the benchmarks on questions; `rows` unless told otherwise."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="folder of CommonsenseQA as JSON lines; without it rows are made up")
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=4096, help="padded tokens at once")
    parser.add_argument("--inseq", type=Path, help="a Python that has inseq; without it that comparison fails")
    parser.add_argument("--out", type=Path, help="file to write the lines to")
    return parser.parse_args()


def make_model(rows: Sequence[Example], folder: Path) -> None:
    """A T5 of random weights with a tokenizer trained on the rows, as a folder that plain transformers loads."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = train_tokenizer(T5Spec(vocab_size=8000, tokenizer="unigram"), sentences(rows))
    model = T5ForConditionalGeneration(T5Config(**T5_SMALL, decoder_start_token_id=tokenizer.pad_token_id, dropout_rate=0.1))
    save(Loaded(model, tokenizer, "t5-small"), folder)


def open_model(folder: Path, dtype: str = "float32", device: str = "cpu") -> Family:
    config = LIMITS.model_copy(update={"name": str(folder), "dtype": dtype})
    return open_family(load(ModelSource(config), device), config)


def engine(family: Family, budget: int, answers: bool) -> Engine:
    return Engine(AttributionConfig(answers=answers, batch_tokens=budget), family)


# --- padding ----------------------------------------------------------------------------------------------------------


def padding(record: Record, folder: Path, shard: Sequence[Example], rows: Sequence[Example], budget: int) -> None:
    """What is padded, counted through the engine's own batches; no model is needed for it."""
    family = open_model(folder, device="meta")
    for case, part, tokens in (("shard", shard, SHARD_BUDGET_TOKENS), ("bench", rows, budget)):
        tally: Counter[str] = Counter()
        counting = engine(family, tokens, answers=False)
        counting._batches.run(part, counting._questions, lambda batch: [None] * len(batch), tally)  # type: ignore[arg-type]
        frac = tally["padding_tokens"] / tally.total()
        record.figure(f"padding, {case}", "rows", len(part), "rows")
        record.figure(f"padding, {case}", "padding_frac", frac, "share")
        if case == "shard":
            record.bar("padding wasted over a shard", frac, "at_most", 0.05)


# --- the engine, beside the floor and the usual tools -----------------------------------------------------------------


def alone(record: Record, folder: Path, rows: Sequence[Example], given: argparse.Namespace) -> None:
    fp32 = open_model(folder)
    floor = Floor(fp32, rows, given.budget)
    scores, whole = engine(fp32, given.budget, False), engine(fp32, given.budget, True)
    cases: dict[str, Callable[[], float]] = {
        "e: floor": floor.run,
        "a: engine, scores only": lambda: run_engine(scores, rows),
        "a': engine, whole rows": lambda: write_rows(whole, rows),
        "c: captum, row by row": lambda: captum_rows(folder, rows),
    }
    bf16 = has_bf16()
    if bf16:
        half = open_model(folder, "bfloat16")
        cases["a: engine, scores only, bf16"] = lambda: run_engine(engine(half, given.budget, False), rows)
    run_engine(scores, rows[:64])
    found = rates(cases, given.rounds)
    for case, each in found.items():
        record.figure(case, "rate", statistics.median(each), "rows/s")
    parts(record, whole, rows)
    inseq, eights, ones = inseq_rates(folder, rows, given.inseq)
    record.figure("d: inseq as it comes", "rate", inseq, "rows/s")
    record.figure("d: inseq, batch_size=8", "rate", eights, "rows/s")
    record.figure("d: inseq, row by row, every eighth row", "rate", ones, "rows/s")
    record.bar("a / e", ratio(found, "a: engine, scores only", "e: floor"), "at_least", 0.9)
    record.bar("a' / e", ratio(found, "a': engine, whole rows", "e: floor"), "at_least", 0.6)
    compare(record, found, "a: engine, scores only", "fp32", inseq, 1.8, 10)
    if bf16:
        compare(record, found, "a: engine, scores only, bf16", "bf16", inseq, 3.5, 20)
        record.bar("top-5 words, bf16 and fp32", top_words_shared(folder, rows, given.budget), "at_least", 0.95)
    else:
        record.figure("a: engine, scores only, bf16", "rate", "not applicable: this CPU has no bf16", "rows/s")


def compare(
    record: Record, found: dict[str, list[float]], case: str, dtype: str, inseq: float | None, captum: float, times: float
) -> None:
    record.bar(f"a / c, a in {dtype}", ratio(found, case, "c: captum, row by row"), "at_least", captum)
    record.bar(f"a / d, a in {dtype}", statistics.median(found[case]) / inseq if inseq else None, "at_least", times)


def run_engine(attributing: Engine, rows: Sequence[Example]) -> float:
    found = attributing.attribute(rows, Counter())
    assert all(isinstance(row, Attribution) for row in found), "a row of the benchmark has an error"
    return len(found)


def write_rows(attributing: Engine, rows: Sequence[Example]) -> float:
    """As the job does it: attributions, and these as Parquet in memory."""
    found = attributing.attribute(rows, Counter())
    write_parquet(found)
    return len(found)


def write_parquet(found: Sequence[Attribution | RowError]) -> None:
    """Rows as a Parquet file in memory."""
    pq.write_table(to_table([row for row in found if isinstance(row, Attribution)], Attribution), io.BytesIO())


class Floor:
    """Forward and backward of batches that are tokenised, sorted and padded beforehand, and nothing else."""

    def __init__(self, family: Family, rows: Sequence[Example], budget: int) -> None:
        encoded = [family.encode(row.segments) for row in rows]
        answers = [family.encode_answer(row.target or "") for row in rows]
        sizes = [family.size(one, [answer]) for one, answer in zip(encoded, answers, strict=True)]
        self.model = family.model.requires_grad_(False)
        self.rows = len(rows)
        self.batches = []
        for places in cut(sizes, budget):
            ids, mask = family.batch([encoded[place].ids for place in places])
            targets, wanted = family.batch([answers[place] for place in places])
            start = torch.full_like(targets[:, :1], self.model.config.decoder_start_token_id)
            shifted = torch.cat([start, targets[:, :-1]], 1)
            self.batches.append((family.embed(ids), mask, shifted, targets, wanted.bool()))

    def run(self) -> float:
        for embeds, mask, shifted, targets, wanted in self.batches:
            given = embeds.requires_grad_()
            logits = self.model(inputs_embeds=given, attention_mask=mask, decoder_input_ids=shifted, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[wanted], targets[wanted], reduction="sum")
            torch.autograd.grad(loss, given)
        return self.rows


def captum_rows(folder: Path, rows: Sequence[Example]) -> float:
    """Row by row, as Captum's documentation shows it, with the model as `from_pretrained` gives it."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def forward(embeds: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logprobs = model(inputs_embeds=embeds, labels=labels).logits.log_softmax(-1)
        return logprobs.gather(2, labels.unsqueeze(2)).sum((1, 2))

    saliency = CaptumSaliency(forward)
    for row in rows:
        ids = tokenizer("".join(part.text for part in row.segments), return_tensors="pt").input_ids
        labels = tokenizer(text_target=row.target, return_tensors="pt").input_ids
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        saliency.attribute(embeds, additional_forward_args=(labels,)).sum(-1)
    return len(rows)


def inseq_rates(folder: Path, rows: Sequence[Example], python: Path | None) -> Sequence[float | None]:
    """Rows per second of inseq in an environment of its own, model load apart: see `bench/inseq_rate.py`."""
    if python is None:
        return None, None, None
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as texts:
        for row in rows:
            texts.write(repr("".join(part.text for part in row.segments)) + "\t" + repr(row.target) + "\n")
        texts.flush()
        command = [
            str(python),
            str(Path(__file__).parent / "inseq_rate.py"),
            str(folder),
            texts.name,
            str(torch.get_num_threads()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None, None, None
    return [float(rate) for rate in done.stdout.split()[-3:]]


def parts(record: Record, attributing: Engine, rows: Sequence[Example]) -> None:
    """Where a whole row's time goes, with the clock around each part of one pass."""
    spent: Counter[str] = Counter()
    family = attributing._family
    originals = family.encode_rows, family.read, attributing._attribution

    def clocked(part: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return do(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - started  # type: ignore[assignment]

        return timed

    def read(*args: Any, **kwargs: Any) -> Any:
        reading = clocked("read", originals[1])(*args, **kwargs)
        reading.generate = clocked("generate", reading.generate)
        reading.logprobs = clocked("rank", reading.logprobs)
        return reading

    family.encode_rows = clocked("tokenise", originals[0])  # type: ignore[method-assign]
    family.read = read  # type: ignore[method-assign]
    attributing._attribution = clocked("make rows", originals[2])  # type: ignore[method-assign]
    started = time.perf_counter()
    found = attributing.attribute(rows, Counter())
    family.encode_rows, family.read, attributing._attribution = originals  # type: ignore[method-assign]
    spent["explain"] = time.perf_counter() - started - sum(spent.values())  # type: ignore[assignment]
    clocked("to Parquet", write_parquet)(found)
    for part, seconds in spent.items():
        record.figure("a': engine, whole rows", f"time, {part}", seconds / len(rows) * 1000, "ms/row")


def top_words_shared(folder: Path, rows: Sequence[Example], budget: int, k: int = 5) -> float:
    """The share of each row's k words of highest score that bf16 and fp32 have in common, mean over rows."""
    found = [engine(open_model(folder, dtype), budget, False).attribute(rows, Counter()) for dtype in ("float32", "bfloat16")]
    shared = []
    for one, other in zip(*found, strict=True):
        assert isinstance(one, Attribution)
        assert isinstance(other, Attribution)
        tops = [top_words(row, k) for row in (one, other)]
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
