"""Rows per second of inseq on a model folder, in a Python that has it: FOLDER TEXTS THREADS. Prints one number."""

import ast
import sys
import time
from pathlib import Path

import inseq
import torch

folder, texts, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
pairs = [[ast.literal_eval(part) for part in line.split("\t")] for line in Path(texts).read_text().splitlines()]
model = inseq.load_model(folder, "saliency", device="cpu")
inputs, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
model.attribute(inputs[:4], targets[:4], batch_size=4, show_progress=False, pretty_progress=False)
started = time.perf_counter()
model.attribute(inputs, targets, batch_size=8, show_progress=False, pretty_progress=False)
print(len(pairs) / (time.perf_counter() - started))
