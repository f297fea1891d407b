"""A model answers examples: each row is read, answered greedily, and its answer read and judged.

An answer that cannot be read is `unparsed`, one that met the length limit `truncated`: neither is called wrong, and
nothing else is put in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from kd.batching import MicroBatches
from kd.errors import RowFault
from kd.frozen import Frozen
from kd.models import ModelSource
from kd.rows import Example, Prediction, RowError, Segment, Split, extended
from kd.tasks.base import TaskConfig, normalise

if TYPE_CHECKING:
    from collections import Counter

    from kd.families.base import Family, Generated
    from kd.families.text import Encoded
    from kd.shards import Apply


class EvaluationConfig(Frozen):
    """On what models are measured."""

    split: Split = "test"
    """The split that is answered. Settings are tuned on validation; test is for the numbers that are reported."""
    limit_rows: PositiveInt | None = None
    """Only the first rows of the split; null for all."""
    batch_tokens: PositiveInt = 16384
    """Padded tokens of input and answer that go through the model at once; memory grows with it."""
    max_error_frac: float = Field(default=0.01, ge=0, le=1)
    """The stage fails where more than this share of the rows that reach it without an error gets one."""


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
    """A row ready for the model."""

    row: Example
    encoded: Encoded
    size: tuple[int, int]


class Answerer:
    """Answers rows with one model."""

    def __init__(self, recipe: Answer, family: Family) -> None:
        self._recipe = recipe
        self._family = family
        self._batches = MicroBatches(recipe.config.batch_tokens)

    def answer(self, rows: Sequence[Example], tally: Counter[str]) -> list[Prediction | RowError]:
        """One prediction, or the reason why there is none, for each row in order; see `MicroBatches.run` for `tally`."""
        return self._batches.run(rows, self._questions, self._predict, tally)

    def _questions(self, rows: Sequence[Example]) -> list[_Question | RowFault]:
        prefix = [Segment("prompt", self._recipe.prefix)] if self._recipe.prefix else []
        encoded = self._family.encode_rows([[*prefix, *row.segments] for row in rows])
        return [self._question(row, found) for row, found in zip(rows, encoded, strict=True)]

    def _question(self, row: Example, encoded: Encoded | RowFault) -> _Question | RowFault:
        if isinstance(encoded, RowFault):
            return encoded
        try:
            self._family.check_labels(row.label_set)
        except RowFault as fault:
            return fault
        return _Question(row, encoded, self._family.size(encoded, []))

    def _predict(self, questions: list[_Question]) -> list[Prediction]:
        said = self._family.read([question.encoded for question in questions]).generate()
        return [self._prediction(*parts) for parts in zip(questions, said, strict=True)]

    def _prediction(self, question: _Question, said: Generated) -> Prediction:
        row, task = question.row, self._recipe.task
        answer = self._read(said, row) if said.finished else None
        right = answer is not None and row.target is not None and task.judge(answer, row.target)
        return extended(
            row,
            Prediction,
            student=self._family.name,
            variant=self._recipe.variant,
            seed=self._recipe.seed,
            answer=answer,
            raw=said.text,
            choice_logprobs=[],
            status="truncated" if not said.finished else "unparsed" if answer is None else "ok",
            correct=None if row.target is None else right,
            truncated_tokens=question.encoded.truncated_tokens,
        )

    def _read(self, said: Generated, row: Example) -> str | None:
        """The answer in what was generated; None where it cannot be read.

        Where there is a label set, it is the label that was generated (`Family.label_of`), as the task judges. Elsewhere it is
        the text itself, unless that is empty or the task cannot judge it: what a task can read is right for itself.
        """
        judge = self._recipe.task.judge
        if row.label_set:
            return self._family.label_of(said, row.label_set, judge)
        return said.text if normalise(said.text) and judge(said.text, said.text) else None
