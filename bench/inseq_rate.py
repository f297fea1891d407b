"""Rows per second of inseq on a model folder, in a Python that has it: FOLDER TEXTS THREADS.

Prints three numbers: as it comes (a call without `batch_size` takes all its texts as one batch, padded to the longest text
and the longest answer; calls are of 128 rows, which fit into memory); with `batch_size=8`; and row by row, every eighth row.
"""

import ast
import sys
import time
from pathlib import Path

import inseq
import torch

CALL_ROWS = 128

folder, texts, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
pairs = [[ast.literal_eval(part) for part in line.split("\t")] for line in Path(texts).read_text().splitlines()]
inputs, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
model = inseq.load_model(folder, "saliency", device="cpu")
quiet = {"show_progress": False, "pretty_progress": False}
model.attribute(inputs[:4], targets[:4], **quiet)
for call_rows, every, settings in ((CALL_ROWS, 1, {}), (CALL_ROWS, 1, {"batch_size": 8}), (1, 8, {})):
    asked, answered = inputs[::every], targets[::every]
    started = time.perf_counter()
    for start in range(0, len(asked), call_rows):
        model.attribute(asked[start : start + call_rows], answered[start : start + call_rows], **settings, **quiet)
    print(len(asked) / (time.perf_counter() - started))
