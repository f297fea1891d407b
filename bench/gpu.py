"""What the benchmarks on a GPU share: the command line, a T5 of random weights, and how a case is timed beside the peak."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.record import Record
from kd.families.encoder_decoder import EncoderDecoder
from kd.models import Loaded
from kd.specs import T5Spec
from kd.vocabulary import train_tokenizer

TINY = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 1000}


@dataclass(frozen=True)
class Bench:
    """One model on one device, and where figures go."""

    record: Record
    family: EncoderDecoder
    seconds: float

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


def arguments(bench: str, about: str | None) -> argparse.Namespace:
    """The command line of a benchmark, which ends here where it wants a GPU and there is none."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{bench}", description=about)
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each case is repeated")
    parser.add_argument("--out", type=Path, help="file to write the lines to")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        sys.exit(f"bench.{bench}: expected a GPU that torch can use, got none; run it on one, or small with --tiny")
    return given


def random_t5(sizes: Mapping[str, int], device: str) -> Loaded:
    """A T5 of random weights in float32, made on the device, with dropout."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = train_tokenizer(T5Spec(vocab_size=100), ["some words for a tokenizer that nobody uses"])
    config = T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, dropout_rate=0.1)
    torch.manual_seed(0)
    with torch.device(device):
        return Loaded(T5ForConditionalGeneration(config), tokenizer, "t5")


def matrix_peak(device: str, size: int, seconds: float) -> float:
    """FLOP/s of a large square bfloat16 matrix product."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_each(lambda: torch.mm(one, other), seconds)


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
