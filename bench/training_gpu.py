"""How much of a GPU the training of a student uses. No Ray, no DeepSpeed.

`python -m bench.training_gpu --out=bench/results/NAME.jsonl`: random weights of the shapes of T5-base and T5-large, kept in
float32 and multiplied in bfloat16 (autocast), by the product's plain torch engine: forward, backward, clipping, AdamW, dropout.
This is not `precision: bfloat16` of a run: there weights and gradients are in bfloat16 and DeepSpeed keeps the optimizer's copy
in float32, without the casts of autocast and with half the memory for weights and gradients. What is measured here says how much
of a GPU the loop and the model leave unused, not what such a run takes.
Rows are of one length, so nothing is padded. The share of the peak is that of a large matrix product measured in the same
run, by the FLOP count of `kd/cost.py`: what gradient checkpointing computes twice counts once. `--tiny` runs the same script
small, on a CPU, to see that it works. It has not been run on a GPU yet, and no result of one is kept.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bench.gpu import TINY, Bench, arguments, matrix_peak, random_t5
from bench.record import Record
from kd.cost import learned_row, shape_of
from kd.families.encoder_decoder import EncoderDecoder
from kd.training.config import LoopConfig
from kd.training.engine import TorchEngine, reseed

SHAPES = {
    "T5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128},
    "T5-large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16, "vocab_size": 32128},
}
LENGTHS = ((128, 32), (512, 64))
"""Input and target tokens of a row."""
BUDGETS = (8192, 16384, 32768, 65536, 131072)
"""Tokens of one update, which is one micro-batch."""


def main() -> None:
    """Measure everything."""
    given = arguments("training_gpu", __doc__)
    device = "cpu" if given.tiny else "cuda"
    record = Record("training_gpu", given.out)
    precision = "float32 weights and gradients, bfloat16 autocast; not a run's precision: bfloat16 (bfloat16 weights)"
    record.machine(dtype=precision, engine="plain torch, no DeepSpeed", optimizer="AdamW, fused", dropout=0.1)
    peak = matrix_peak(device, 256 if given.tiny else 8192, given.seconds)
    record.figure("peak", "bfloat16 matrix product", peak / 1e12, "TFLOP/s")
    for name, sizes in {"tiny": TINY}.items() if given.tiny else SHAPES.items():
        bench = Bench(record, family(sizes, device), given.seconds)
        record.figure(name, "parameters", sum(weights.numel() for weights in bench.family.model.parameters()), "count")
        for lengths in LENGTHS:
            sweep(bench, name, lengths, peak, BUDGETS[:1] if given.tiny else BUDGETS)
        del bench
        forget()
    record.end()


def family(sizes: Mapping[str, int], device: str) -> EncoderDecoder:
    """Random weights in float32, made on the device, with dropout."""
    loaded = random_t5(sizes, device)
    loaded.model.train()
    return EncoderDecoder(loaded, *max(LENGTHS), max(LENGTHS)[1])


def sweep(bench: Bench, name: str, lengths: tuple[int, int], peak: float, budgets: Sequence[int]) -> None:
    """One shape and one length of rows over all budgets, all activations kept and with gradient checkpointing."""
    input_tokens, target_tokens = lengths
    model, cost = bench.family.model, learned_row(shape_of(bench.family.loaded), input_tokens, target_tokens)
    for checkpointing in (False, True):
        how = "checkpointing" if checkpointing else "no checkpointing"
        for budget in budgets:
            rows = max(1, budget // sum(lengths))
            switch = model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable
            switch()
            case = f"{name}, {input_tokens} + {target_tokens} tokens, {rows} rows, {how}"
            bench.rate(case, rows, sum(lengths), updates(bench.family, rows, lengths), cost, peak)
            model.zero_grad()
            forget()
    model.gradient_checkpointing_disable()


def updates(reader: EncoderDecoder, rows: int, lengths: tuple[int, int]) -> Callable[[], None]:
    """One update of a fresh engine over made-up rows, again and again."""
    input_tokens, target_tokens = lengths
    input_ids, target_ids = [ids(input_tokens)] * rows, [ids(target_tokens)] * rows
    model, device = reader.model, reader.model.device.type
    engine = TorchEngine(model, LoopConfig(batch_rows=rows), device)
    steps = iter(range(10**9))

    def forward(**given: Any) -> Any:
        with torch.autocast(device, torch.bfloat16):
            return model(**given)

    def update() -> None:
        reseed(device, next(steps))
        nll = reader.sequence_nll(forward, input_ids, target_ids)
        engine.backward(nll.sum() / (rows * target_tokens), last=True)
        engine.step(learning_rate=1e-5)

    return update


def ids(tokens: int) -> list[int]:
    """A sequence of so many tokens."""
    return [3 + place % 90 for place in range(tokens)]


def forget() -> None:
    """Give back what the case before held: the optimizer's state above all."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
