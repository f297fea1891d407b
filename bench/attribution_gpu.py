"""How much of a GPU the attribution of a teacher of three billion parameters uses. No Ray, no DeepSpeed.

`python -m bench.attribution_gpu --out=bench/results/NAME.jsonl`: random weights of the T5-3B shape in bfloat16, inputs of
128 and 512 tokens, answers of 8, saliency. The share of the peak is that of a large matrix product measured in the same
run, by the FLOP count of `kd/cost.py`. `--tiny` runs the same script small, on a CPU, to see that it works. No result of a
GPU is kept yet.
"""

from typing import Any

import torch
from torch import Tensor

from bench.gpu import TINY, Bench, arguments, matrix_peak, random_t5
from bench.record import Record
from kd.attribution.methods import Case, Saliency
from kd.cost import explained_row, shape_of, written_row
from kd.families.encoder_decoder import EncoderDecoder
from kd.families.text import Encoded
from kd.rows import Span

T5_3B = {"d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24, "num_heads": 32, "vocab_size": 32128}
INPUT_TOKENS = (128, 512)
ANSWER_TOKENS = 8
BUDGETS = (4096, 8192, 16384, 32768, 65536, 131072)
AIM = 0.40
"""Share of the measured peak that one device is to reach."""


def main() -> None:
    """Measure everything and leave with the bars' status."""
    given = arguments("attribution_gpu", __doc__)
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


def model(sizes: dict[str, int], device: str) -> EncoderDecoder:
    """Random weights in bfloat16, made on the device, frozen."""
    loaded = random_t5(sizes, device)
    loaded.model.to(torch.bfloat16).eval().requires_grad_(False)
    return EncoderDecoder(loaded, max(INPUT_TOKENS), ANSWER_TOKENS, ANSWER_TOKENS)


def explain(family: EncoderDecoder, rows: int, input_tokens: int, answers: bool = False) -> None:
    """One micro-batch: read, answer if asked, explain."""
    batch = [made_up(input_tokens) for _ in range(rows)]
    target = [3 + place for place in range(ANSWER_TOKENS - 1)] + [family.ends[0]]
    reading = family.read(batch, differentiable=True)
    if answers:
        reading.generate()
        reading.logprobs([[target]] * rows)
    scores = Saliency().explain(Case(reading.explained([target] * rows), lambda: torch.zeros(0), rows)).scores
    assert scores.shape == (rows, input_tokens)


def made_up(tokens: int) -> Encoded:
    """An input of so many tokens."""
    return Encoded(
        [3 + place % 90 for place in range(tokens)], [Span(0, place, place + 1) for place in range(tokens)], [""] * tokens, 0
    )


def sweep(bench: Bench, input_tokens: int, peak: float, budgets: tuple[int, ...]) -> float | None:
    """Scores only over all budgets; whole rows at the best. The best share is returned."""
    shape = shape_of(bench.family.loaded)
    cost = explained_row(shape, input_tokens, ANSWER_TOKENS).both
    shares: dict[int, float] = {}
    for budget in budgets:
        rows = max(1, budget // (input_tokens + ANSWER_TOKENS))
        case = f"{input_tokens} tokens, budget {budget}"
        share = bench.rate(case, rows, input_tokens, lambda rows=rows: explain(bench.family, rows, input_tokens), cost, peak)  # type: ignore[misc]
        shares |= {} if share is None else {budget: share}
    if not shares:
        return None
    best = max(shares, key=lambda budget: shares[budget])
    rows = max(1, best // (input_tokens + ANSWER_TOKENS))
    whole = cost + written_row(shape, input_tokens, ANSWER_TOKENS, answers=2)
    case = f"{input_tokens} tokens, budget {best}, with answers"
    bench.rate(case, rows, input_tokens, lambda: explain(bench.family, rows, input_tokens, answers=True), whole, peak)
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
    bench.rate("128 tokens, 32 rows, frozen", rows, input_tokens, lambda: explain(bench.family, rows, input_tokens), frozen, peak)


def compiled(bench: Bench, peak: float, backend: str) -> None:
    """Forward and backward of the model as it is, and compiled."""
    rows, input_tokens = 64, INPUT_TOKENS[0]
    cost = explained_row(shape_of(bench.family.loaded), input_tokens, ANSWER_TOKENS).both
    given = inputs(bench.family, rows, input_tokens)
    for case, forward in (("plain", bench.family.model), ("compiled", torch.compile(bench.family.model, backend=backend))):

        def backward(forward: Any = forward) -> None:
            torch.autograd.grad(forward(**given).loss, given["inputs_embeds"])

        bench.rate(f"128 tokens, 64 rows, {case}", rows, input_tokens, backward, cost, peak)


def inputs(family: EncoderDecoder, rows: int, input_tokens: int) -> dict[str, Tensor]:
    """A batch as the model itself takes it."""
    ids, mask = family.batch([made_up(input_tokens).ids] * rows)
    labels = torch.full((rows, ANSWER_TOKENS), 3, device=ids.device)
    embeds = family.embed(ids).to(torch.bfloat16).requires_grad_()
    return {"inputs_embeds": embeds, "attention_mask": mask, "labels": labels}


if __name__ == "__main__":
    main()
