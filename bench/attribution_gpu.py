"""How much of a GPU the attribution of a teacher of three billion parameters uses. No Ray, no DeepSpeed.

`python -m bench.attribution_gpu --out=bench/results/NAME.jsonl`: random weights of the T5-3B shape in bfloat16, inputs of
128 and 512 tokens, answers of 8, saliency. The share of the peak is that of a large matrix product measured in the same
run, by the FLOP count of `kd/cost.py`. `--tiny` runs the same script small, on a CPU, to see that it works. No result of a
GPU is kept yet.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.record import Record
from kd.attribution.methods import Case, Saliency
from kd.cost import explained_row, shape_of, written_row
from kd.families.encoder_decoder import EncoderDecoder
from kd.families.text import Encoded
from kd.models import Loaded
from kd.rows import Span
from kd.specs import T5Spec
from kd.vocabulary import train_tokenizer

T5_3B = {"d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24, "num_heads": 32, "vocab_size": 32128}
TINY = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 1000}
INPUT_TOKENS = (128, 512)
ANSWER_TOKENS = 8
BUDGETS = (4096, 8192, 16384, 32768, 65536, 131072)
AIM = 0.40
"""Share of the measured peak that one device is to reach."""


@dataclass(frozen=True)
class Bench:
    """One model on one device, and where figures go."""

    record: Record
    family: EncoderDecoder
    seconds: float

    def explain(self, rows: int, input_tokens: int, answers: bool = False) -> None:
        """One micro-batch: read, answer if asked, explain."""
        batch = [made_up(input_tokens) for _ in range(rows)]
        target = [3 + place for place in range(ANSWER_TOKENS - 1)] + [self.family.ends[0]]
        reading = self.family.read(batch, differentiable=True)
        if answers:
            reading.generate()
            reading.logprobs([[target]] * rows)
        scores = Saliency().explain(Case(reading.explained([target] * rows), lambda: torch.zeros(0), rows)).scores
        assert scores.shape == (rows, input_tokens)

    def rate(self, case: str, rows: int, input_tokens: int, do: Callable[[], None], flops: float, peak: float) -> float | None:
        """A case over and over: rows and tokens per second, and the share of the peak, which is returned; None without memory."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            each = seconds_each(do, self.seconds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            self.record.figure(case, "rate", "out of memory", "rows/s")
            return None
        share = flops * rows / each / peak
        self.record.figure(case, "rate", rows / each, "rows/s")
        self.record.figure(case, "rate", rows * input_tokens / each, "tokens/s")
        self.record.figure(case, "share of the measured peak", share, "share")
        if torch.cuda.is_available():
            self.record.figure(case, "peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        return share


def main() -> None:
    """Measure everything and leave with the bars' status."""
    given = arguments()
    if not given.tiny and not torch.cuda.is_available():
        sys.exit("bench.attribution_gpu: expected a GPU that torch can use, got none; run it on one, or small with --tiny")
    device = "cpu" if given.tiny else "cuda"
    record = Record("attribution_gpu", given.out)
    record.machine(shape="tiny" if given.tiny else "T5-3B", dtype="bfloat16", answer_tokens=ANSWER_TOKENS)
    bench = Bench(record, model(TINY if given.tiny else T5_3B, device), given.seconds)
    peak = matrix_peak(device, 256 if given.tiny else 8192, given.seconds)
    record.figure("peak", "bfloat16 matrix product", peak / 1e12, "TFLOP/s")
    for input_tokens in INPUT_TOKENS:
        best = sweep(bench, input_tokens, peak, BUDGETS[:2] if given.tiny else BUDGETS)
        record.bar(f"share of the measured peak, {input_tokens} input tokens", best, "at_least", AIM)
    unfrozen(bench, peak)
    compiled(bench, peak, "aot_eager" if given.tiny else "inductor")  # the former needs no compiler
    record.end()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.attribution_gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each case is repeated")
    parser.add_argument("--out", type=Path, help="file to write the lines to")
    return parser.parse_args()


def model(sizes: dict[str, int], device: str) -> EncoderDecoder:
    """Random weights in bfloat16, made on the device, frozen."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = train_tokenizer(T5Spec(vocab_size=100), ["some words for a tokenizer that nobody uses"])
    config = T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    with torch.device(device):
        made = T5ForConditionalGeneration(config).to(torch.bfloat16).eval().requires_grad_(False)
    return EncoderDecoder(Loaded(made, tokenizer, "t5"), max(INPUT_TOKENS), ANSWER_TOKENS, ANSWER_TOKENS)


def made_up(tokens: int) -> Encoded:
    """An input of so many tokens."""
    return Encoded(
        [3 + place % 90 for place in range(tokens)], [Span(0, place, place + 1) for place in range(tokens)], [""] * tokens, 0
    )


def matrix_peak(device: str, size: int, seconds: float) -> float:
    """FLOP/s of a large square bfloat16 matrix product."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_each(lambda: torch.mm(one, other), seconds)


def sweep(bench: Bench, input_tokens: int, peak: float, budgets: tuple[int, ...]) -> float | None:
    """Scores only over all budgets; whole rows at the best. The best share is returned."""
    shape = shape_of(bench.family.loaded)
    cost = explained_row(shape, input_tokens, ANSWER_TOKENS).both
    shares: dict[int, float] = {}
    for budget in budgets:
        rows = max(1, budget // (input_tokens + ANSWER_TOKENS))
        case = f"{input_tokens} tokens, budget {budget}"
        share = bench.rate(case, rows, input_tokens, lambda rows=rows: bench.explain(rows, input_tokens), cost, peak)  # type: ignore[misc]
        shares |= {} if share is None else {budget: share}
    if not shares:
        return None
    best = max(shares, key=lambda budget: shares[budget])
    rows = max(1, best // (input_tokens + ANSWER_TOKENS))
    whole = cost + written_row(shape, input_tokens, ANSWER_TOKENS, answers=2)
    case = f"{input_tokens} tokens, budget {best}, with answers"
    bench.rate(case, rows, input_tokens, lambda: bench.explain(rows, input_tokens, answers=True), whole, peak)
    return shares[best]


def unfrozen(bench: Bench, peak: float) -> None:
    """The same with trainable weights whose gradients are computed, as tools do that call backward on the model."""
    rows, input_tokens = 32, INPUT_TOKENS[0]
    cost = explained_row(shape_of(bench.family.loaded), input_tokens, ANSWER_TOKENS, frozen=False).both
    given = inputs(bench.family, rows, input_tokens)

    def backward() -> None:
        bench.family.model(**given).loss.backward()
        bench.family.model.zero_grad(set_to_none=True)

    bench.family.model.requires_grad_(True)
    bench.rate("128 tokens, 32 rows, unfrozen", rows, input_tokens, backward, cost, peak)
    bench.family.model.requires_grad_(False)
    frozen = explained_row(shape_of(bench.family.loaded), input_tokens, ANSWER_TOKENS).both
    bench.rate("128 tokens, 32 rows, frozen", rows, input_tokens, lambda: bench.explain(rows, input_tokens), frozen, peak)


def compiled(bench: Bench, peak: float, backend: str) -> None:
    """Forward and backward of the model as it is, and compiled."""
    rows, input_tokens = 64, INPUT_TOKENS[0]
    cost = explained_row(shape_of(bench.family.loaded), input_tokens, ANSWER_TOKENS).both
    given = inputs(bench.family, rows, input_tokens)
    for case, forward in (("plain", bench.family.model), ("compiled", torch.compile(bench.family.model, backend=backend))):

        def explain(forward: Any = forward) -> None:
            torch.autograd.grad(forward(**given).loss, given["inputs_embeds"])

        bench.rate(f"128 tokens, 64 rows, {case}", rows, input_tokens, explain, cost, peak)


def inputs(family: EncoderDecoder, rows: int, input_tokens: int) -> dict[str, Tensor]:
    """A batch as the model itself takes it."""
    ids, mask = family.batch([made_up(input_tokens).ids] * rows)
    labels = torch.full((rows, ANSWER_TOKENS), 3, device=ids.device)
    embeds = family.embed(ids).to(torch.bfloat16).requires_grad_()
    return {"inputs_embeds": embeds, "attention_mask": mask, "labels": labels}


def seconds_each(do: Callable[[], object], seconds: float) -> float:
    """Seconds of one go, over as many as fill the time, after two that are not counted."""
    for _ in range(2):
        do()
    started, goes = _now(), 0
    while _now() - started < seconds or not goes:
        do()
        goes += 1
    return (_now() - started) / goes


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
