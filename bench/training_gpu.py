"""How much of a GPU the training of a student uses. No Ray.

`python -m bench.training_gpu --out=bench/results/NAME.jsonl`: random weights of the shapes of T5-base and T5-large; forward,
backward, clipping, AdamW, dropout. Rows are of one length, so nothing is padded. Two engines of the product do that:

- plain torch, with weights kept in float32 and multiplied in bfloat16 (autocast), with and without gradient checkpointing: how
  much of a GPU the loop and the model leave unused;
- DeepSpeed at ZeRO stage 1, alone in its group, where it is installed: what a run with `precision: bfloat16` does, weights and
  gradients in bfloat16, the optimizer's copy in float32.

The share of the peak is that of a large matrix product measured in the same run, by the FLOP count of `kd/cost.py`: what
gradient checkpointing computes twice counts once. `--tiny` runs the same script small, on a CPU, to see that it works. It has
not been run on a GPU yet, and no result of one is kept.
"""

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed

from bench.gpu import TINY, Bench, arguments, matrix_peak, random_t5
from bench.record import Record
from kd.cost import learned_row, shape_of
from kd.families.encoder_decoder import EncoderDecoder
from kd.training.config import LoopConfig
from kd.training.engine import Engine, TorchEngine, reseed

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
    precision = "float32 weights and gradients, bfloat16 autocast; where a case says so, precision: bfloat16 as in a run"
    record.machine(dtype=precision, engine="plain torch; for the latter DeepSpeed", optimizer="AdamW, fused", dropout=0.1)
    peak = matrix_peak(device, 256 if given.tiny else 8192, given.seconds)
    record.figure("peak", "bfloat16 matrix product", peak / 1e12, "TFLOP/s")
    budgets = BUDGETS[:1] if given.tiny else BUDGETS
    with group_of_one(device):
        for name, sizes in {"tiny": TINY}.items() if given.tiny else SHAPES.items():
            bench = Bench(record, family(sizes, device), given.seconds)
            record.figure(name, "parameters", sum(weights.numel() for weights in bench.family.model.parameters()), "count")
            for lengths in LENGTHS:
                sweep(bench, name, lengths, peak, budgets)
            del bench
            forget()
            for lengths, budget in product(LENGTHS, budgets):
                as_in_a_run(Bench(record, family(sizes, device), given.seconds), name, lengths, budget, peak)
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
            engine = TorchEngine(model, LoopConfig(batch_rows=rows), model.device.type)
            bench.rate(case, rows, sum(lengths), updates(bench.family, engine, rows, lengths), cost, peak)
            del engine
            model.zero_grad()
            forget()
    model.gradient_checkpointing_disable()


def as_in_a_run(bench: Bench, name: str, lengths: tuple[int, int], budget: int, peak: float) -> None:
    """One shape, length and budget with a run's `precision: bfloat16`, in a process group of one."""
    rows, model = max(1, budget // sum(lengths)), bench.family.model
    case = f"{name}, {lengths[0]} + {lengths[1]} tokens, {rows} rows, precision: bfloat16"
    if find_spec("deepspeed") is None:
        bench.record.figure(case, "rate", "not applicable: DeepSpeed is not installed", "rows/s")
        return
    from kd.deepspeed_engine import DeepSpeedEngine

    cost, device = learned_row(shape_of(bench.family.loaded), *lengths), model.device.type
    engine = DeepSpeedEngine(model, LoopConfig(batch_rows=rows, precision="bfloat16", zero_stage=1), device)
    bench.rate(case, rows, sum(lengths), updates(bench.family, engine, rows, lengths), cost, peak)
    engine.close()


@contextmanager
def group_of_one(device: str) -> Iterator[None]:
    """A process group with this process alone. DeepSpeed wants one, and the same for as long as the process lives."""
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with TemporaryDirectory() as folder:
        os.environ |= told
        backend = "nccl" if device == "cuda" else "gloo"
        distributed.init_process_group(backend, f"file://{Path(folder, 'group')}", rank=0, world_size=1)
        try:
            yield
        finally:
            distributed.destroy_process_group()
            for key in told:
                del os.environ[key]


def updates(reader: EncoderDecoder, engine: Engine, rows: int, lengths: tuple[int, int]) -> Callable[[], None]:
    """One update of an engine over made-up rows, again and again. Weights in float32 are multiplied in bfloat16."""
    input_tokens, target_tokens = lengths
    input_ids, target_ids = [ids(input_tokens)] * rows, [ids(target_tokens)] * rows
    casts = reader.model.dtype == torch.float32
    steps = iter(range(10**9))

    def forward(**given: Any) -> Any:
        with torch.autocast(engine.device, torch.bfloat16, enabled=casts):
            return engine.forward(**given)

    def update() -> None:
        reseed(engine.device, next(steps))
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
