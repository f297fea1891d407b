"""How should the scores of a word's tokens and occurrences become one? What the audit says of each way, on e-SNLI's highlights.

    python -m bench.pooling --data FOLDER

A MiniLM classifier (extra `offline`) is trained on rows of the development split, or read from `--teacher`, and explained on
others of it, which people marked. For each pooling of pieces and occurrences the audit's own measures are printed, with the
same scores shuffled beside them. It takes some ten minutes of one core, more than half of them to train.
"""

import argparse
import itertools
import operator
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from torch.nn import functional

from bench.record import Record
from kd.attribution.engine import AttributionConfig, Engine
from kd.attribution.methods import InputXGradient, MethodConfig, Saliency
from kd.audit_rows import Erasure, Measured
from kd.corpus import find_splits
from kd.evaluation.auditing import WHOLE, MeasureRationales, audit_sums
from kd.evaluation.erasing import Eraser
from kd.evaluation.faithfulness import Teacher, measure
from kd.evaluation.faithfulness_sums import faithfulness_sums
from kd.evaluation.metrics import About
from kd.examples import as_example
from kd.families.base import Family
from kd.families.opening import open_family
from kd.loading import load, save
from kd.models import ModelConfig, ModelSource
from kd.rationales import AttributionSource, PoolConfig, RationalesConfig, Rationalise, TopK
from kd.rows import Attribution, Example, RationaleRow, RowError
from kd.spans import Pooling
from kd.specs import PooledClassifierSpec
from kd.tasks.esnli import ESNLI
from kd.tasks.nli import LABELS

LIMITS = {"max_input_tokens": 128, "max_answer_tokens": 8}
BATCH_ROWS = 16
ABOUT = About("rationales", "audit", "attribution", None, "esnli", "train")
PRINTED = (
    *(f"{name}{beside}" for name in ("evidence_hit", "token_f1") for beside in ("_rate", "", "_chance", "_shuffled")),
    *(f"auprc{beside}" for beside in ("", "_chance", "_shuffled")),
    *(f"comprehensiveness_gain:{control}" for control in ("random", "shuffled", "rationale_random", "rationale_shuffled")),
    *(f"comprehensiveness:{order}" for order in ("rationale", "importance")),
)


class Memory:
    """A teacher that is asked about the same text once, however many ways of pooling ask it."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.known: dict[tuple[str, ...], float | RowError] = {}

    def ask(self, rows: Sequence[Example], tally: Counter[str]) -> list[float | RowError]:
        keys = [(row.target or "", *(segment.text for segment in row.segments)) for row in rows]
        new = [row for row, key in zip(rows, keys, strict=True) if key not in self.known]
        asked = [key for key in keys if key not in self.known]
        self.known |= dict(zip(asked, self.teacher.ask(new, tally), strict=True))
        return [self.known[key] for key in keys]


def rows_of(data: Path, count: int, marked: bool) -> list[Example]:
    """So many rows of the development split in a fixed random order: those that people marked, or the others."""
    task = ESNLI(path=str(data), separator=" [SEP] ")
    rows = [as_example(task, "train", record) for record in find_splits(task)["train"].all_records()]
    rows = [row for row in rows if row.error is None and row.target and bool(row.evidence) == marked]
    return random.Random(0).sample(rows, min(count, len(rows)))


def trained(rows: Sequence[Example]) -> Family:
    """A classifier after one pass over the rows; its token embeddings stay as they are."""
    config = ModelConfig(spec=PooledClassifierSpec(labels=tuple(LABELS)), **LIMITS)
    family = open_family(load(ModelSource(config, seed=0), "cpu"), config)
    named = dict(family.model.named_parameters())
    learnt = {of_encoder: [p for name, p in named.items() if ("encoder" in name) == of_encoder] for of_encoder in (True, False)}
    optimizer = torch.optim.AdamW([{"params": learnt[True], "lr": 1e-4}, {"params": learnt[False], "lr": 1e-3}])
    steps = len(rows) // BATCH_ROWS
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / steps))
    family.model.train()
    for start in range(0, steps * BATCH_ROWS, BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        loss = functional.cross_entropy(logits(family, batch), torch.tensor([LABELS.index(row.target or "") for row in batch]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimizer.step()
        schedule.step()
    family.model.eval()
    return family


def logits(family: Family, rows: Sequence[Example]) -> torch.Tensor:
    ids, mask = family.batch([family.encode(row.segments).ids for row in rows])
    found: torch.Tensor = family.logits(family.embed(ids), mask)  # type: ignore[attr-defined]  # a classifier's
    return found


def opened(folder: Path) -> Family:
    config = ModelConfig(name=str(folder), **LIMITS)
    return open_family(load(ModelSource(config), "cpu"), config)


def audited(rows: Sequence[Attribution], pool: PoolConfig, k: int, memory: Memory, erased: int) -> dict[str, float | None]:
    """What the audit says of rationales made by one way of pooling."""
    config = RationalesConfig(roles=("premise", "hypothesis"), selection=TopK(k=k), pool=pool)
    single = config.model_copy(update={"merge_duplicates": False})
    made = [row for row in Rationalise(config, AttributionSource()).open()(rows, Counter()) if isinstance(row, RationaleRow)]
    words = config.units, single.units, single.units, config.control, config.control
    found = MeasureRationales(*words, k, False, False, operator.eq).open()(made, Counter())
    sums = audit_sums(row for row in found if isinstance(row, Measured)).parts[WHOLE]
    values = {name: tally.mean for name, tally in sums.tallies.items()}
    eraser = Eraser(single.units, config.units, config.control, config.roles, (0.2,), seed=0)
    falls = measure(made[:erased], eraser, memory.ask, Counter())
    told = faithfulness_sums(row for row in falls if isinstance(row, Erasure)).metrics(ABOUT)
    return values | {row.metric: row.value for row in told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of e-SNLI as JSON lines")
    parser.add_argument("--teacher", type=Path, help="folder of a classifier; written there if it is not there yet")
    parser.add_argument("--train", type=int, default=4800, help="rows to train on")
    parser.add_argument("--rows", type=int, default=1000, help="rows to explain")
    parser.add_argument("--erased", type=int, default=150, help="of these, rows whose words are erased")
    parser.add_argument("--k", type=int, default=3, help="words of a rationale")
    parser.add_argument("--out", type=Path, help="file to write the lines to")
    given = parser.parse_args()
    record = Record("pooling", given.out)
    record.machine(text="e-SNLI", rows=given.rows, erased=given.erased, k=given.k)
    torch.manual_seed(0)
    there = given.teacher and (given.teacher / "config.json").exists()
    family = opened(given.teacher) if there else trained(rows_of(given.data, given.train, marked=False))
    if given.teacher and not there:
        save(family.loaded, given.teacher)
    rows, memory = rows_of(given.data, given.rows, marked=True), Memory(Teacher(family, 4096))
    methods: tuple[MethodConfig, ...] = (Saliency(), InputXGradient())
    for method in methods:
        found = Engine(AttributionConfig(method=method, batch_tokens=4096), family).attribute(rows, Counter())
        explained = [row for row in found if isinstance(row, Attribution)]
        right = sum(row.ranked == row.target for row in explained) / len(explained)
        record.figure(method.name, "teacher_accuracy", right, "share")
        for pieces, occurrences in itertools.product(get_args(Pooling), repeat=2):
            values = audited(explained, PoolConfig(pieces=pieces, occurrences=occurrences), given.k, memory, given.erased)
            for metric in filter(values.__contains__, PRINTED):
                record.figure(f"{method.name}, pieces {pieces}, occurrences {occurrences}", metric, values[metric], "share")
    record.end()


if __name__ == "__main__":
    main()
