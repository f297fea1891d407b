"""How much of a GPU the attribution of a teacher of three billion parameters uses. No Ray, no DeepSpeed.

`python -m bench.attribution_gpu --out=bench/results/NAME.jsonl`: random weights of the T5-3B shape in bfloat16, inputs of
128 and 512 tokens, answers of 8, saliency. The share of the peak is that of a large matrix product measured in the same
run, by the FLOP count of `kd/cost.py`. `--tiny` runs the same script small, on a CPU, to see that it works. No result of a
GPU is kept yet.
"""

from collections.abc import Callable
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
    frozen(bench, peak)
    compiled(bench, peak, "aot_eager" if given.tiny else "inductor")  # the former needs no compiler
    record.end()


def model(sizes: dict[str, int], device: str) -> EncoderDecoder:
    """Random weights in bfloat16, made on the device, frozen."""
    loaded = random_t5(sizes, device)
    loaded.model.to(torch.bfloat16).eval().requires_grad_(False)
    return EncoderDecoder(loaded, max(INPUT_TOKENS), ANSWER_TOKENS, ANSWER_TOKENS)


def explaining(family: EncoderDecoder, rows: int, input_tokens: int, answers: bool = False) -> Callable[[], None]:
    """One micro-batch of rows that are there already: read, answer if asked, explain."""
    batch = made_up(rows, input_tokens)
    targets = [[*range(3, 2 + ANSWER_TOKENS), family.ends[0]]] * rows

    def explain() -> None:
        reading = family.read(batch, differentiable=True)
        if answers:
            reading.generate()
            reading.logprobs([[target] for target in targets])
        scores = Saliency().explain(Case(reading.explained(targets), lambda: torch.zeros(0), rows)).scores
        assert scores.shape == (rows, input_tokens)

    return explain


def made_up(rows: int, tokens: int) -> list[Encoded]:
    """So many inputs of so many tokens."""
    spans: list[Span | None] = [Span(0, place, place + 1) for place in range(tokens)]
    return [Encoded([3 + place % 90 for place in range(tokens)], spans, [""] * tokens, 0)] * rows


def sweep(bench: Bench, input_tokens: int, peak: float, budgets: tuple[int, ...]) -> float | None:
    """Scores only over all budgets; whole rows at the best. The best share is returned."""
    shape = shape_of(bench.family.loaded)
    cost = explained_row(shape, input_tokens, ANSWER_TOKENS).both
    shares: dict[int, float] = {}
    for budget in budgets:
        rows = max(1, budget // (input_tokens + ANSWER_TOKENS))
        case = f"{input_tokens} tokens, budget {budget}"
        share = bench.rate(case, rows, input_tokens, explaining(bench.family, rows, input_tokens), cost, peak)
        shares |= {} if share is None else {budget: share}
    if not shares:
        return None
    best = max(shares, key=lambda budget: shares[budget])
    rows = max(1, best // (input_tokens + ANSWER_TOKENS))
    whole = cost + written_row(shape, input_tokens, ANSWER_TOKENS, answers=2)
    case = f"{input_tokens} tokens, budget {best}, with answers"
    bench.rate(case, rows, input_tokens, explaining(bench.family, rows, input_tokens, answers=True), whole, peak)
    return shares[best]


def frozen(bench: Bench, peak: float) -> None:
    """Bare forward and backward with trainable weights, whose gradients are computed too, and with frozen ones."""
    rows, input_tokens, model = 32, INPUT_TOKENS[0], bench.family.model
    given = inputs(bench.family, rows, input_tokens)

    def backward() -> None:
        model(**given).loss.backward()
        model.zero_grad(set_to_none=True)
        given["inputs_embeds"].grad = None

    for case, is_frozen in (("unfrozen", False), ("frozen", True)):
        model.requires_grad_(not is_frozen)
        cost = explained_row(shape_of(bench.family.loaded), input_tokens, ANSWER_TOKENS, frozen=is_frozen).both
        bench.rate(f"{input_tokens} tokens, {rows} rows, {case}", rows, input_tokens, backward, cost, peak)


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
    ids, mask = family.batch([row.ids for row in made_up(rows, input_tokens)])
    labels = torch.full((rows, ANSWER_TOKENS), 3, device=ids.device)
    embeds = family.embed(ids).to(torch.bfloat16).requires_grad_()
    return {"inputs_embeds": embeds, "attention_mask": mask, "labels": labels}


if __name__ == "__main__":
    main()
