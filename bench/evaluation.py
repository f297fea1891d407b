"""How fast a student answers: batched beside row by row, and choices ranked with the encoder's work shared or not.

`make bench-evaluation`. One model of the T5-small shape with random weights, one list of questions with five options, one
run. Such a model seldom ends its answers, so every one is as long as the limit, batched and row by row alike.
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.record import Record, rates, ratio
from bench.setting import LIMITS, arguments, describe, end, model_and_rows, open_model
from kd.evaluation.answers import Answer, Answerer, EvaluationConfig
from kd.families.base import Family
from kd.models import ModelSource
from kd.rows import Example, Prediction
from kd.tasks.commonsense_qa import CommonsenseQA

BATCHED = "a: generate, batched"
ROW_BY_ROW = "b: generate, transformers row by row"
SHARED = "c: rank, encoder shared by the choices"
APART = "d: rank, encoder for every choice"


def main() -> None:
    """Measure everything and leave with the bar's status."""
    given = arguments(__doc__, rows=1000)
    record = Record("evaluation", given.out)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch) / "model"
        rows = model_and_rows(folder, given.data)[: given.rows]
        describe(record, given, len(rows))
        compare(record, open_model(folder), RowByRow(folder, rows), rows, given)
    end(record, given)


def compare(record: Record, family: Family, plain: "RowByRow", rows: Sequence[Example], given: argparse.Namespace) -> None:
    """All ways in turn."""
    writing, ranking = (answerer(family, answer, given.budget) for answer in ("generate", "rank"))
    few = rows[: len(rows) // 5]  # one row of them is as much work as five
    single = [dataclasses.replace(row, target=None, label_set=[choice]) for row in few for choice in row.label_set]
    answers: dict[str, list[Prediction]] = {}

    def answer(case: str, by: Answerer, asked: Sequence[Example], counted: int) -> float:
        answers[case] = [row for row in by.answer(asked, Counter()) if isinstance(row, Prediction)]
        assert len(answers[case]) == len(asked), "a row of the benchmark has an error"
        return counted

    cases: dict[str, Callable[[], float]] = {
        BATCHED: lambda: answer(BATCHED, writing, rows, len(rows)),
        ROW_BY_ROW: plain.run,
        SHARED: lambda: answer(SHARED, ranking, rows, len(rows)),
        APART: lambda: answer(APART, ranking, single, len(few)),
    }
    writing.answer(rows[:64], Counter())
    found = rates(cases, given.rounds)
    for case, each in found.items():
        record.figure(case, "rate", statistics.median(each), "rows/s")
    same = [row.raw == text for row, text in zip(answers[BATCHED], plain.texts, strict=True)]
    record.figure("a and b", "same_frac", statistics.fmean(same), "share of answers")
    shared, apart = ([number for row in answers[case] for number in row.choice_logprobs] for case in (SHARED, APART))
    gap = max(abs(one - other) for one, other in zip(shared[: len(apart)], apart, strict=True))
    record.figure("c and d", "largest_difference_nats", gap, "nats")
    record.figure("c / d", "ratio", ratio(found, SHARED, APART), "times")
    record.bar("a / b", ratio(found, BATCHED, ROW_BY_ROW), "at_least", 3)


def answerer(family: Family, answer: str, budget: int) -> Answerer:
    """The stage over a model that is open already."""
    config = EvaluationConfig.model_validate({"answer": answer, "batch_tokens": budget})
    return Answerer(Answer(config, CommonsenseQA(path=""), ModelSource(LIMITS), "", "bench", 0, "cpu", 1), family)


class RowByRow:
    """One row after the other through `generate`, as the documentation of transformers shows it."""

    def __init__(self, folder: Path, rows: Sequence[Example]) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        self._inputs = ["".join(segment.text for segment in row.segments) for row in rows]
        self.texts: list[str] = []

    def run(self) -> float:
        """All rows once."""
        self.texts = [self._answer(text) for text in self._inputs]
        return len(self.texts)

    def _answer(self, text: str) -> str:
        inputs = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=LIMITS.max_input_tokens)
        with torch.no_grad():
            written = self._model.generate(**inputs, max_new_tokens=LIMITS.max_answer_tokens, do_sample=False)
        said: str = self._tokenizer.decode(written[0], skip_special_tokens=True)
        return said.strip()


if __name__ == "__main__":
    main()
