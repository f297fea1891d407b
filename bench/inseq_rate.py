"""Rows per second of inseq on a model folder, in a Python that has it: FOLDER TEXTS THREADS.

The model is loaded once, then a line is written. For each line on stdin, a mode, all rows are explained and the rate is
written. The modes: as it comes (a call without `batch_size` takes all its texts as one batch, padded to the longest text and
the longest answer; calls are of 128 rows, which fit into memory); with `batch_size=8`; and row by row, every eighth row.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import inseq  # type: ignore[import-not-found]
import torch

MODES: dict[str, tuple[int, int, dict[str, int]]] = {
    "as it comes": (128, 1, {}),
    "batch_size=8": (128, 1, {"batch_size": 8}),
    "row by row, every eighth row": (1, 8, {}),
}
"""Rows in a call, one row of how many, and what the call is told."""


def rate(model: Any, inputs: list[str], targets: list[str], mode: str) -> float:
    """Rows per second in one mode."""
    call_rows, every, told = MODES[mode]
    asked, answered = inputs[::every], targets[::every]
    started = time.perf_counter()
    for start in range(0, len(asked), call_rows):
        explain(model, asked[start : start + call_rows], answered[start : start + call_rows], **told)
    return len(asked) / (time.perf_counter() - started)


def explain(model: Any, inputs: list[str], targets: list[str], **told: int) -> None:
    model.attribute(inputs, targets, show_progress=False, pretty_progress=False, **told)


def main() -> None:
    folder, texts, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    inputs, targets = json.loads(Path(texts).read_text(encoding="utf-8"))
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print; only answers go where answers are read
        model = inseq.load_model(folder, "saliency", device="cpu")
        explain(model, inputs[:4], targets[:4])
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            print(rate(model, inputs, targets, line.strip()), file=answers, flush=True)


if __name__ == "__main__":
    main()
