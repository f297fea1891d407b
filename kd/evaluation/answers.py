"""A model answers examples: each row is read, answered greedily, and its answer read and judged.

An answer that cannot be read is `unparsed`, one that met the length limit `truncated`: neither is called wrong, and
nothing else is put in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from kd.batching import cut
from kd.errors import RowFault
from kd.frozen import Frozen
from kd.models import ModelSource, load
from kd.rows import Example, Prediction, RowError, Segment, Split, extended
from kd.tasks.base import TaskConfig, normalise

if TYPE_CHECKING:
    from kd.families.encoder_decoder import Encoded, EncoderDecoder, Generated
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
    """The stage fails where more than this share of its rows has an error."""


@dataclass(frozen=True)
class Answer:
    """The stage: examples in, predictions out. The model is loaded in `open`.

    `prefix` is what stands before the input when the model is asked for the answer, empty for nothing. `variant` and
    `seed` name the run that made the model ("teacher" and 0 for the teacher). `device` is "cpu" or "cuda"; `threads` are
    torch's, so that actors on one machine do not fight for its cores.
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
        import torch

        from kd.families.encoder_decoder import EncoderDecoder

        torch.set_num_threads(self.threads)
        limits = self.source.config
        family = EncoderDecoder(load(self.source, self.device), limits.max_input_tokens, limits.max_answer_tokens)
        return lambda rows: self._answer(family, rows)

    def _answer(self, family: EncoderDecoder, rows: Sequence[Example]) -> list[Prediction | RowError]:
        """One prediction, or the reason why there is none, for each row in order."""
        results: dict[int, Prediction | RowError] = {}
        inputs: dict[int, Encoded] = {}
        for index, row in enumerate(rows):
            try:
                inputs[index] = family.encode([Segment("prompt", self.prefix), *row.segments] if self.prefix else row.segments)
            except RowFault as fault:
                results[index] = RowError(fault.reason, fault.detail)
        places = list(inputs)
        lengths = [(len(encoded.ids), family.max_answer_tokens) for encoded in inputs.values()]
        for batch in cut(lengths, self.config.batch_tokens):
            indices = [places[i] for i in batch]
            said = family.generate([inputs[index].ids for index in indices])
            for index, one in zip(indices, said, strict=True):
                results[index] = self._prediction(rows[index], inputs[index], one, family.name)
        return [results[index] for index in range(len(rows))]

    def _prediction(self, row: Example, encoded: Encoded, said: Generated, student: str) -> Prediction:
        answer = read_answer(said.text, row.label_set, self.task) if said.finished else None
        right = answer is not None and row.target is not None and self.task.judge(answer, row.target)
        return extended(
            row,
            Prediction,
            student=student,
            variant=self.variant,
            seed=self.seed,
            answer=answer,
            raw=said.text,
            choice_logprobs=[],
            status="truncated" if not said.finished else "unparsed" if answer is None else "ok",
            correct=None if row.target is None else right,
            truncated_tokens=encoded.truncated_tokens,
        )


def read_answer(raw: str, label_set: Sequence[str], task: TaskConfig) -> str | None:
    """The answer in a generated text; None where it cannot be read.

    Where there is a label set, it is the label that the text equals, `normalise`d, in the label's own spelling. Elsewhere
    it is the text itself, unless that is empty or the task cannot judge it: what a task can read is right for itself.
    """
    if label_set:
        return next((label for label in label_set if normalise(label) == normalise(raw)), None)
    return raw if normalise(raw) and task.judge(raw, raw) else None
