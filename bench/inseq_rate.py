"""Rows per second of inseq on a model folder, in a Python that has it: FOLDER TEXTS THREADS.

Prints two numbers: as it comes (a call without `batch_size` takes all its texts as one batch, padded to the longest text
and the longest answer; calls are of 128 rows, which fit into memory), and with `batch_size=8`.
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
for settings in ({}, {"batch_size": 8}):
    started = time.perf_counter()
    for start in range(0, len(pairs), CALL_ROWS):
        model.attribute(inputs[start : start + CALL_ROWS], targets[start : start + CALL_ROWS], **settings, **quiet)
    print(len(pairs) / (time.perf_counter() - started))
