"""The teacher's answers and what they rest on: encode, answer, rank, explain, and scores to spans.

A row costs one encoder pass and some decoder passes without gradient, shared by the generated answer and the ranking of
the label set, and the method's own passes with gradient. Rows run in micro-batches of like length; a row's scores do not
depend on its batch mates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from kd.attribution.methods import MethodConfig, Saliency
from kd.batching import cut
from kd.errors import RowFault
from kd.frozen import Frozen
from kd.models import ModelSource, load
from kd.rows import Attribution, Example, RowError, Split, extended

if TYPE_CHECKING:
    from kd.families.encoder_decoder import Encoded, EncoderDecoder, Generated
    from kd.shards import Apply


class AttributionConfig(Frozen):
    """Which words decided the teacher's answer."""

    method: MethodConfig = Saliency()
    """How a token's influence is measured."""
    explained: Literal["gold", "predicted"] = "gold"
    """Which answer is explained: the row's target, or the teacher's own (the most probable entry of the label set; the
    generated answer where there is no label set). A row without target always has the teacher's own explained."""
    splits: dict[Split, PositiveInt | None] = Field(default={"train": None})
    """Which rows: split to the number of its first rows, null for all."""
    batch_tokens: PositiveInt = 8192
    """Padded tokens of input and answer that go through the model at once; memory grows with it."""
    max_error_frac: float = Field(default=0.01, ge=0, le=1)
    """The stage fails where more than this share of its rows has an error."""


@dataclass(frozen=True)
class Attribute:
    """The stage: examples in, attributions out. The model is loaded in `open`.

    `device` is "cpu" or "cuda"; `threads` are torch's, so that actors on one machine do not fight for its cores.
    """

    config: AttributionConfig
    source: ModelSource
    device: str
    threads: int

    def open(self) -> Apply:
        """Load the teacher and return the function from examples to attributions."""
        import torch

        from kd.families.encoder_decoder import EncoderDecoder

        torch.set_num_threads(self.threads)
        limits = self.source.config
        family = EncoderDecoder(load(self.source, self.device), limits.max_input_tokens, limits.max_answer_tokens)
        return Engine(self.config, family).attribute


@dataclass(frozen=True)
class _Question:
    """A row ready for the model. `candidates` are its label set, then the answer to explain if that is none of them."""

    row: Example
    encoded: Encoded
    explained: Literal["gold", "predicted"]
    candidates: list[str]
    candidate_ids: list[list[int]]

    def lengths(self, unknown_tokens: int) -> tuple[int, int]:
        """Input tokens, and tokens of the longest candidate; `unknown_tokens` for an answer that is not there yet."""
        return len(self.encoded.ids), max((len(ids) for ids in self.candidate_ids), default=unknown_tokens)

    def after(self, said: Generated) -> _Question:
        """With the generated answer as the candidate where there is no other."""
        return self if self.candidates else dataclasses.replace(self, candidates=[said.text], candidate_ids=[said.ids])

    def explained_place(self, logprobs: list[float]) -> int:
        """Which candidate is explained, given the log-probability of each."""
        if self.explained == "gold" and self.row.target is not None:
            return self.candidates.index(self.row.target)
        return _argmax(logprobs)

    def generated(self, said: Generated) -> str:
        """The generated answer; in the label's own spelling where it is, token by token, exactly one label."""
        same = [label for label, ids in zip(self.row.label_set, self.candidate_ids, strict=False) if ids == said.ids]
        return same[0] if len(same) == 1 else said.text


class Engine:
    """Explains rows with one model, whose weights it freezes. Nothing is drawn at random."""

    def __init__(self, config: AttributionConfig, family: EncoderDecoder) -> None:
        family.model.requires_grad_(False)  # a third of the backward's work, and a whole copy of the weights
        self._config = config
        self._family = family

    def attribute(self, rows: Sequence[Example]) -> list[Attribution | RowError]:
        """One attribution, or the reason why there is none, for each row in order."""
        results: dict[int, Attribution | RowError] = {}
        questions: dict[int, _Question] = {}
        for index, row in enumerate(rows):
            try:
                questions[index] = self._question(row)
            except RowFault as fault:
                results[index] = RowError(fault.reason, fault.detail)
        places = list(questions)
        lengths = [question.lengths(self._family.max_answer_tokens) for question in questions.values()]
        for batch in cut(lengths, self._config.batch_tokens):
            indices = [places[i] for i in batch]
            results |= zip(indices, self._explain([questions[index] for index in indices]), strict=True)
        return [results[index] for index in range(len(rows))]

    def _question(self, row: Example) -> _Question:
        explained = "predicted" if row.target is None else self._config.explained
        candidates = list(row.label_set)
        if explained == "gold" and row.target is not None and row.target not in candidates:
            candidates.append(row.target)
        encoded = self._family.encode(row.segments)
        return _Question(row, encoded, explained, candidates, [self._family.encode_answer(text) for text in candidates])

    def _explain(self, questions: list[_Question]) -> list[Attribution | RowError]:
        """One micro-batch."""
        family = self._family
        inputs = [question.encoded.ids for question in questions]
        ids, mask = family.batch(inputs)
        states = family.encode_states(ids, mask)
        generated = family.generate(inputs, states)
        questions = [question.after(said) for question, said in zip(questions, generated, strict=True)]
        logprobs = family.choice_logprobs(inputs, [question.candidate_ids for question in questions], states)
        places = [question.explained_place(own) for question, own in zip(questions, logprobs, strict=True)]
        targets = [question.candidate_ids[place] for question, place in zip(questions, places, strict=True)]
        explanation = self._config.method.explain(
            lambda embeds: family.target_logprob(embeds, mask, targets),
            family.embed(ids),
            baseline=family.embed(family.blank([question.encoded for question in questions])),
        )
        gaps = [None] * len(questions) if explanation.completeness_gap is None else explanation.completeness_gap.tolist()
        return [
            self._attribution(*parts)
            for parts in zip(questions, generated, logprobs, places, explanation.scores.tolist(), gaps, strict=True)
        ]

    def _attribution(
        self, question: _Question, said: Generated, logprobs: list[float], place: int, scores: list[float], gap: float | None
    ) -> Attribution | RowError:
        """One row's result. Scores of special tokens and padding are left out."""
        encoded, row = question.encoded, question.row
        scores = scores[: len(encoded.ids)]
        if not all(map(math.isfinite, [*logprobs, *scores])):
            return RowError("not_finite", "a score or log-probability is not a finite number; try dtype float32")
        scored = [part for part in zip(encoded.spans, encoded.tokens, scores, strict=True) if part[0]]
        ranking = logprobs[: len(row.label_set)]
        return extended(
            row,
            Attribution,
            model=self._family.name,
            method=self._config.method.type,
            explained=question.explained,
            explained_answer=question.candidates[place],
            generated=question.generated(said),
            ranked=row.label_set[_argmax(ranking)] if ranking else None,
            choice_logprobs=ranking,
            target_logprob=logprobs[place],
            tokens=[token for _, token, _ in scored],
            token_segment=[span.segment for span, _, _ in scored if span],
            token_start=[span.start for span, _, _ in scored if span],
            token_end=[span.end for span, _, _ in scored if span],
            scores=[score for _, _, score in scored],
            completeness_gap=gap,
            truncated_tokens=encoded.truncated_tokens,
            fold=0,
        )


def _argmax(values: Sequence[float]) -> int:
    """The place of the largest value, the first of equals."""
    return max(range(len(values)), key=lambda place: values[place])
