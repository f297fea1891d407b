"""The teacher's answers and what they rest on: read, answer, rank, explain, and scores to spans.

A batch is read once: the generated answer, the ranking of the label set and the explained number go on from there, and
with the methods that take the gradient at the input so does the backward. A row's scores do not depend on its batch mates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from kd.attribution.methods import Case, MethodConfig, Saliency
from kd.batching import MicroBatches
from kd.errors import RowFault
from kd.frozen import Frozen
from kd.models import ModelSource
from kd.rows import Attribution, Example, RowError, Span, Split, extended
from kd.spans import check_segmenter, touched, words

if TYPE_CHECKING:
    from collections import Counter

    from jaxtyping import Int
    from torch import Tensor

    from kd.families.base import Answer, Explained, Family, Generated, Reading
    from kd.families.text import Encoded
    from kd.shards import Apply


UNLIKELY_ENDS = "unlikely_ends"
"""The count of the rows behind whose explained answer the model hardly expects the end: with a probability below 1 %."""

UNLIKELY_ENDS_MILLINATS = "unlikely_ends_millinats"
"""The sum over these rows of the end's negative log-probability, in thousandths of a nat."""

_UNLIKELY_NATS = math.log(0.01)


class AttributionConfig(Frozen):
    """Which words decided the teacher's answer."""

    method: MethodConfig = Saliency()
    """How a token's influence is measured."""
    explained: Literal["gold", "predicted"] = "gold"
    """Which answer is explained: the row's target, or the teacher's own (the most probable entry of the label set; the
    generated answer where there is no label set). A row without target always has the teacher's own explained."""
    answers: bool = True
    """Whether the teacher answers too: its generated and its ranked answer and the log-probability of every label. Without
    them rows are cheaper; those whose explained answer is the teacher's own have them all the same: all of them with
    `explained: predicted`, else those without a target."""
    splits: dict[Split, PositiveInt | None] = Field(default={"train": None})
    """Which rows: split to the number of its first rows, null for all."""
    batch_tokens: PositiveInt = 8192
    """Padded tokens of input and answer that go through the model at once; memory grows with it."""
    max_error_frac: float = Field(default=0.01, ge=0, le=1)
    """The stage fails where more than this share of the rows that reach it without an error gets one."""


@dataclass(frozen=True)
class Attribute:
    """The stage: examples in, attributions out. The model is loaded in `open`.

    `device` is "cpu", "cuda" or "spread"; `threads` are torch's, so that actors on one machine do not fight for its cores.
    """

    config: AttributionConfig
    source: ModelSource
    device: str
    threads: int
    segmenter: str | None = None
    """What must find words, where the method looks at words and the corpus has text without spaces (`kd.spans.segmenter`)."""

    def open(self) -> Apply:
        """Load the teacher and return the function from examples to attributions."""
        from kd.families.opening import load_family

        if self.segmenter is not None:
            check_segmenter(self.segmenter)
        return Engine(self.config, load_family(self.source, self.device, self.threads)).attribute


@dataclass(frozen=True)
class _Question:
    """A row ready for the model. `asked` says whether the teacher answers it too, because that is wanted or explained.

    `candidates` are then its label set, and behind it the answer to explain if that is none of them; else that answer alone.
    """

    row: Example
    encoded: Encoded
    explained: Literal["gold", "predicted"]
    asked: bool
    candidates: list[str]
    candidate_ids: list[Answer]
    size: tuple[int, int]


@dataclass(frozen=True)
class _Answers:
    """The teacher's own answer to a row, its log-probability of every candidate, and the candidate that is explained."""

    said: Generated | None
    logprobs: list[float]
    text: str
    ids: Answer
    logprob: float | None


class Engine:
    """Explains rows with one model, whose weights it freezes. Nothing is drawn at random.

    Raises:
        ConfigError: the method asks for a baseline that the model does not have.
    """

    def __init__(self, config: AttributionConfig, family: Family) -> None:
        family.model.requires_grad_(False)  # a third of the backward's work, and a whole copy of the weights
        config.method.check(family)
        self._config = config
        self._family = family
        self._batches = MicroBatches(config.batch_tokens)

    def attribute(self, rows: Sequence[Example], tally: Counter[str]) -> list[Attribution | RowError]:
        """One attribution, or the reason why there is none, for each row in order.

        `tally` gets `UNLIKELY_ENDS` of models that write, beside what `MicroBatches.run` counts.
        """
        return self._batches.run(rows, self._questions, partial(self._explain, tally), tally)

    def _questions(self, rows: Sequence[Example]) -> list[_Question | RowFault]:
        return self._family.questions(rows, self._question)

    def _question(self, row: Example, encoded: Encoded) -> _Question:
        explained = "predicted" if row.target is None else self._config.explained
        asked = self._config.answers or explained == "predicted"
        candidates = list(row.label_set) if asked else []
        if explained == "gold" and row.target is not None and row.target not in candidates:
            candidates.append(row.target)
        candidate_ids = [self._family.encode_answer(text) for text in candidates]
        return _Question(row, encoded, explained, asked, candidates, candidate_ids, self._family.size(encoded, candidate_ids))

    def _explain(self, tally: Counter[str], questions: list[_Question]) -> list[Attribution | RowError]:
        """One micro-batch."""
        method = self._config.method
        reading = self._family.read([question.encoded for question in questions], differentiable=method.at_the_input)
        answers = self._answers(questions, reading)
        ids = [answer.ids for answer in answers]
        ends, what = reading.ending(ids), reading.explained(ids)
        segments = [question.row.segments for question in questions]
        width = what.mask.shape[1] + max(question.size[1] for question in questions)
        rows_at_once = self._batches.budget_tokens // width
        explanation = method.explain(Case(what, lambda: _word_places(what, [words(own) for own in segments]), rows_at_once))
        scores = [row[mask].tolist() for row, mask in zip(explanation.scores.cpu(), what.mask.bool().cpu(), strict=True)]
        gaps = [None] * len(questions) if explanation.completeness_gap is None else explanation.completeness_gap.tolist()
        _count_unlikely(ends, tally)  # here, where nothing can run out of memory and be done again
        return [self._attribution(*parts) for parts in zip(questions, what.encoded, answers, scores, gaps, strict=True)]

    def _answers(self, questions: list[_Question], reading: Reading) -> list[_Answers]:
        """What the teacher answers, where it is asked; all rows go through the model where one is."""
        if not any(question.asked for question in questions):
            return [_gold(question) for question in questions]
        said = reading.generate()
        ids = [q.candidate_ids or [self._family.counted(one.ids)] for q, one in zip(questions, said, strict=True)]
        found = [_explained(*parts) for parts in zip(questions, said, ids, reading.logprobs(ids), strict=True)]
        return [answer if question.asked else _gold(question) for question, answer in zip(questions, found, strict=True)]

    def _attribution(
        self, question: _Question, encoded: Encoded, answers: _Answers, scores: list[float], gap: float | None
    ) -> Attribution | RowError:
        """One row's result. Scores of special tokens are left out."""
        row = question.row
        if not all(map(math.isfinite, [*answers.logprobs, *scores, *([] if gap is None else [gap])])):
            detail = "a score, log-probability or completeness gap is not a finite number; try dtype float32"
            return RowError("not_finite", detail)
        scored = [part for part in zip(encoded.spans, encoded.tokens, scores, strict=True) if part[0]]
        ranking = answers.logprobs[: len(row.label_set)]
        said = answers.said
        return extended(
            row,
            Attribution,
            model=self._family.name,
            method=self._config.method.name,
            explained=question.explained,
            explained_answer=answers.text,
            generated=None if said is None else self._generated(said, row.label_set),
            generated_cut=None if said is None else not said.finished,
            ranked=row.label_set[_argmax(ranking)] if ranking else None,
            choice_logprobs=ranking,
            target_logprob=answers.logprob,
            tokens=[token for _, token, _ in scored],
            token_segment=[span.segment for span, _, _ in scored if span],
            token_start=[span.start for span, _, _ in scored if span],
            token_end=[span.end for span, _, _ in scored if span],
            scores=[score for _, _, score in scored],
            completeness_gap=gap,
            truncated_tokens=question.encoded.truncated_tokens,
            fold=0,
        )

    def _generated(self, said: Generated, labels: Sequence[str]) -> str:
        """The label that was generated, else the text; what met the length limit is no label, whatever it reads like."""
        return (self._family.label_of(said, labels) if said.finished else None) or said.text


def _gold(question: _Question) -> _Answers:
    """The row's target, with nothing of the teacher's own."""
    place = question.candidates.index(question.row.target or "")
    return _Answers(None, [], question.candidates[place], question.candidate_ids[place], None)


def _explained(question: _Question, said: Generated, ids: list[Answer], logprobs: list[float]) -> _Answers:
    """The teacher's answers, and which candidate is explained: without any, the generated one."""
    texts = question.candidates or [said.text]
    place = texts.index(question.row.target or "") if question.explained == "gold" else _argmax(logprobs)
    return _Answers(said, logprobs, texts[place], ids[place], logprobs[place])


def _count_unlikely(ends: Sequence[float], tally: Counter[str]) -> None:
    unlikely = [end for end in ends if -math.inf < end < _UNLIKELY_NATS]
    if unlikely:
        tally.update({UNLIKELY_ENDS: len(unlikely), UNLIKELY_ENDS_MILLINATS: sum(round(-1000 * end) for end in unlikely)})


def _word_places(what: Explained, found: Sequence[list[Span]]) -> Int[Tensor, "b t"]:
    """Each token's word, as a number from 0; a token of none is a word by itself. Special tokens count to the first word."""
    return what.laid_out([_words_of(row.spans, own) for row, own in zip(what.encoded, found, strict=True)])


def _words_of(tokens: Sequence[Span | None], found: Sequence[Span]) -> list[int]:
    numbers: dict[Span, int] = {}
    own = touched([token for token in tokens if token], found)
    return [numbers.setdefault(_owner(token, next(own), found), len(numbers)) if token else 0 for token in tokens]


def _owner(token: Span, shares: Sequence[tuple[int, int]], found: Sequence[Span]) -> Span:
    """The word that has most of a token, the first of equals; the token itself where none has any."""
    return found[max(shares, key=lambda share: share[1])[0]] if shares else token


def _argmax(values: Sequence[float]) -> int:
    """The place of the largest value, the first of equals."""
    return max(range(len(values)), key=lambda place: values[place])
