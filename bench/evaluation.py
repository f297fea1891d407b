"""How fast a student answers: batched beside row by row, and choices ranked with the encoder's work shared or not.

`make bench-evaluation`. One model of the T5-small shape with random weights, one list of questions with five options, one
run. Such a model seldom ends its answers, so nearly every one is as long as the limit, batched and row by row alike: bars say
so, as the comparison is not fair otherwise. The slow ways take every fifth row, since what is compared are rows per second;
1,000 rows are some ten minutes on two cores that do nothing else. Beside other work the threads of two cores wait for each
other, and all figures are many times smaller: they mean nothing then.
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
CHOICES = 5
"""Options of a question. The bar on ranking is for so many: with more of them more of the encoder's work is shared."""
SLOW_STEP = 5
"""The slow ways take every so manieth row."""


def main() -> None:
    """Measure everything and leave with the bar's status."""
    given = arguments(__doc__, rows=1000)
    record = Record("evaluation", given.out)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch) / "model"
        rows = model_and_rows(folder, given.data)[: given.rows]
        describe(record, given, len(rows))
        compare(record, open_model(folder), RowByRow(folder, rows[::SLOW_STEP]), rows, given)
    end(record, given)


def compare(record: Record, family: Family, plain: "RowByRow", rows: Sequence[Example], given: argparse.Namespace) -> None:
    """All ways in turn."""
    writing, ranking = (answerer(family, answer, given.budget) for answer in ("generate", "rank"))
    few = rows[::SLOW_STEP]
    assert {len(row.label_set) for row in rows} == {CHOICES}, "a question of the benchmark has another number of options"
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
    same = [row.raw == text for row, text in zip(answers[BATCHED][::SLOW_STEP], plain.texts, strict=True)]
    record.figure("a and b", "same_frac", statistics.fmean(same), "share of answers")
    gap = max(
        abs(one - other) for one, other in zip(_numbers(answers[SHARED][::SLOW_STEP]), _numbers(answers[APART]), strict=True)
    )
    record.figure("c and d", "largest_difference_nats", gap, "nats")
    record.bar("a / b", ratio(found, BATCHED, ROW_BY_ROW), "at_least", 3)
    record.bar(f"c / d, {CHOICES} choices", ratio(found, SHARED, APART), "at_least", 2)
    whole = statistics.fmean(row.status == "truncated" for row in answers[BATCHED])
    record.bar("a: share of answers as long as the limit", whole, "at_least", 0.99)
    record.bar("b: share of answers as long as the limit", statistics.fmean(plain.are_whole), "at_least", 0.99)


def _numbers(rows: Sequence[Prediction]) -> list[float]:
    return [number for row in rows for number in row.choice_logprobs]


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
        self.are_whole: list[bool] = []

    def run(self) -> float:
        """All rows once."""
        self.texts, self.are_whole = [], []
        for text in self._inputs:
            self._answer(text)
        return len(self.texts)

    def _answer(self, text: str) -> None:
        inputs = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=LIMITS.max_input_tokens)
        with torch.no_grad():
            written = self._model.generate(**inputs, max_new_tokens=LIMITS.max_answer_tokens, do_sample=False)
        ids = written[0].tolist()[1:]  # behind the token that the decoder starts with
        self.texts.append(self._tokenizer.decode(ids, skip_special_tokens=True).strip())
        self.are_whole.append(len(ids) == LIMITS.max_answer_tokens and self._tokenizer.eos_token_id not in ids)


if __name__ == "__main__":
    main()
