"""Rows per second of inseq on a model folder, in a Python that has it: FOLDER TEXTS THREADS.

The model is loaded once, then a line with the versions of the libraries is written. For each line on stdin, a mode, rows are
explained and the rate is written. The modes: as it comes (a call without `batch_size` takes all its texts as one batch, padded to
the longest text and the longest answer; calls are of 128 rows, which fit into memory); one text a call with its defaults, as
inseq's own README shows it, progress bars included, every eighth row; and with `batch_size=8`. Where many texts are in a call no
bars are drawn: that makes it faster.
"""

import contextlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import inseq  # type: ignore[import-not-found]
import torch

LIBRARIES = ("inseq", "transformers", "captum", "torch")
SILENT = {"show_progress": False, "pretty_progress": False}
MODES: dict[str, tuple[int, int, dict[str, int]]] = {
    "as it comes": (128, 1, SILENT),
    "one text a call, its defaults": (1, 8, {}),
    "batch_size=8": (128, 1, {**SILENT, "batch_size": 8}),
}
"""Rows in a call, one row of how many, and what the call is told."""


def rate(model: Any, inputs: list[str], targets: list[str], mode: str) -> float:
    """Rows per second in one mode."""
    call_rows, every, told = MODES[mode]
    asked, answered = inputs[::every], targets[::every]
    started = time.perf_counter()
    for start in range(0, len(asked), call_rows):
        model.attribute(asked[start : start + call_rows], answered[start : start + call_rows], **told)
    return len(asked) / (time.perf_counter() - started)


def main() -> None:
    folder, texts, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    inputs, targets = json.loads(Path(texts).read_text(encoding="utf-8"))
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print; only answers go where answers are read
        model = inseq.load_model(folder, "saliency", device="cpu")
        model.attribute(inputs[:4], targets[:4], **SILENT)
        print(json.dumps({name: version(name) for name in LIBRARIES}), file=answers, flush=True)
        for line in sys.stdin:
            print(rate(model, inputs, targets, line.strip()), file=answers, flush=True)


if __name__ == "__main__":
    main()
