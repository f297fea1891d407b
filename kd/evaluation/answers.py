"""A model answers examples: it generates an answer, which is read and judged, or it ranks the answers to choose from.

A generated answer that cannot be read is `unparsed`, one that met the length limit `truncated`: neither is called wrong,
and nothing else is put in its place. A ranked answer is always one of the label set.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from kd.batching import MicroBatches
from kd.errors import RowFault
from kd.frozen import Frozen
from kd.models import ModelSource
from kd.rows import Example, Prediction, RowError, Segment, Split, extended
from kd.tasks.base import TaskConfig

if TYPE_CHECKING:
    from collections import Counter

    from kd.families.base import Answer as AnswerIds
    from kd.families.base import Family, Generated
    from kd.families.text import Encoded
    from kd.shards import Apply


ANSWERING_MS = "answering_ms"
"""The count of the milliseconds that a model took for its rows, without the time until it was loaded."""


class EvaluationConfig(Frozen):
    """On what models are measured."""

    split: Split = "test"
    """The split that is answered. Settings are tuned on validation; test is for the numbers that are reported."""
    limit_rows: PositiveInt | None = None
    """Only the first rows of the split; null for all."""
    answer: Literal["generate", "rank"] = "generate"
    """How a model answers: it writes the likeliest token again and again, or it takes the most probable entry of the label
    set. A row without a label set cannot be ranked and gets an error."""
    length_normalised: bool = False
    """With `rank`: an entry's log-probability is divided by its number of tokens, its end among them where that counts, so that
    long ones are not at a disadvantage. It changes nothing for classifiers, whose answers are not written token by token, nor
    for what is said of the teacher elsewhere: attribution ranks by the whole log-probability, and the audit calls that answer
    right or wrong."""
    batch_tokens: PositiveInt = 16384
    """Padded tokens of input and answer that go through the model at once; memory grows with it."""
    max_error_frac: float = Field(default=0.01, ge=0, le=1)
    """The stage fails where more than this share of the rows that reach it without an error gets one."""

    agreement_rows: NonNegativeInt = 200
    """On how many rows students are explained as their teacher was, to see whether they look where it looked: some of each of
    evenly spaced shards of the split, or of train where the teacher was not explained on the split. 0 for none; none without a
    teacher."""
    agreement_words: PositiveInt = 5
    """How many of the most important words of teacher and student are compared; the rank correlations are of all words."""

    @model_validator(mode="after")
    def _lengths_are_of_ranked_answers(self) -> EvaluationConfig:
        if self.length_normalised and self.answer != "rank":
            raise ValueError(f"length_normalised is about ranked answers, got answer: {self.answer}; set answer: rank")
        return self


@dataclass(frozen=True)
class Answer:
    """The stage: examples in, predictions out. The model is loaded in `open`.

    `prefix` is what stands before the input when the model is asked for the answer, empty for nothing. `variant` and
    `seed` name the run that made the model ("teacher" and 0 for the teacher). `device` is "cpu", "cuda" or "spread"; `threads`
    are torch's, so that actors on one machine do not fight for its cores.
    """

    config: EvaluationConfig
    task: TaskConfig
    source: ModelSource
    prefix: str
    variant: str
    seed: int
    device: str
    threads: int

    def open(self) -> Apply:
        """Load the model and return the function from examples to predictions."""
        from kd.families.opening import load_family

        return Answerer(self, load_family(self.source, self.device, self.threads)).answer


@dataclass(frozen=True)
class _Question:
    """A row ready for the model; `choices` are the answers that are ranked, none where one is generated."""

    row: Example
    encoded: Encoded
    choices: list[AnswerIds]
    size: tuple[int, int]


class Answerer:
    """Answers rows with one model."""

    def __init__(self, recipe: Answer, family: Family) -> None:
        self._recipe = recipe
        self._family = family
        self._batches = MicroBatches(recipe.config.batch_tokens)

    def answer(self, rows: Sequence[Example], tally: Counter[str]) -> list[Prediction | RowError]:
        """One prediction, or the reason why there is none, for each row in order.

        `tally` gets the time that it took, beside what `MicroBatches.run` counts.
        """
        began = time.perf_counter()
        found = self._batches.run(rows, self._questions, self._predict, tally)
        tally[ANSWERING_MS] += math.ceil(1000 * (time.perf_counter() - began))
        return found

    def _questions(self, rows: Sequence[Example]) -> list[_Question | RowFault]:
        prefix = [Segment("prompt", self._recipe.prefix)] if self._recipe.prefix else []
        return self._family.questions(rows, self._question, prefix)

    def _question(self, row: Example, encoded: Encoded) -> _Question:
        choices = self._choices(row)
        return _Question(row, encoded, choices, self._family.size(encoded, choices))

    def _choices(self, row: Example) -> list[AnswerIds]:
        """The answers to rank, as the model writes them; none where it generates one. Raises the RowFault of a label."""
        if self._recipe.config.answer == "generate":
            return []
        if not row.label_set:
            raise RowFault("missing_field", "evaluation.answer = rank, and the row has no set of answers; set it to generate")
        return [self._family.encode_answer(label) for label in row.label_set]

    def _predict(self, questions: list[_Question]) -> list[Prediction | RowError]:
        reading = self._family.read([question.encoded for question in questions])
        if self._recipe.config.answer == "generate":
            said = reading.generate()
            return [self._generated(*parts) for parts in zip(questions, said, strict=True)]
        logprobs = reading.logprobs([question.choices for question in questions])
        return [self._ranked(*parts) for parts in zip(questions, logprobs, strict=True)]

    def _generated(self, question: _Question, said: Generated) -> Prediction:
        answer = self._family.answer_in(said, question.row.label_set, self._recipe.task.judge)
        status = "truncated" if not said.finished else "unparsed" if answer is None else "ok"
        return self._prediction(question, answer, said.text, status, [])

    def _ranked(self, question: _Question, logprobs: list[float]) -> Prediction | RowError:
        """The entry of the label set with the largest log-probability, or the largest per token; the first of equals."""
        if not all(map(math.isfinite, logprobs)):
            return RowError("not_finite", "the log-probability of an answer is not a finite number; try dtype float32")
        weights = logprobs
        if self._recipe.config.length_normalised:
            factors = [self._family.factors(choice) for choice in question.choices]
            weights = [logprob / count for logprob, count in zip(logprobs, factors, strict=True)]
        answer = question.row.label_set[max(range(len(weights)), key=lambda place: weights[place])]
        return self._prediction(question, answer, answer, "ok", logprobs)

    def _prediction(
        self, question: _Question, answer: str | None, raw: str, status: str, choice_logprobs: list[float]
    ) -> Prediction:
        row, task = question.row, self._recipe.task
        right = answer is not None and row.target is not None and task.judge(answer, row.target)
        return extended(
            row,
            Prediction,
            student=self._family.name,
            variant=self._recipe.variant,
            seed=self._recipe.seed,
            answer=answer,
            raw=raw,
            choice_logprobs=choice_logprobs,
            status=status,
            correct=None if row.target is None else right,
            truncated_tokens=question.encoded.truncated_tokens,
        )
