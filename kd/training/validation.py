"""Validation while training: the student answers a fixed sample of the validation split."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kd.batching import cut
from kd.errors import RowFault, StageError
from kd.families.base import Family
from kd.families.text import Encoded
from kd.manifests import Shard
from kd.rows import Example, Segment
from kd.store import Store
from kd.training.engine import Engine
from kd.training.runs import Judge


@dataclass(frozen=True)
class Question:
    """One validation row as the student sees it."""

    encoded: Encoded
    target_ids: list[int]
    target: str
    label_set: list[str]
    size: tuple[int, int]


@dataclass(frozen=True)
class Score:
    """How a step did: accuracy of the generated answers, and the mean loss per token of the right ones in nats.

    Beside the accuracy stand the shares of answers that could be read and of those that met the length limit, as evaluation
    counts generated ones.
    """

    accuracy: float
    loss_nats: float
    parse_rate: float
    truncation_rate: float

    def beats(self, other: "Score | None") -> bool:
        """More right answers, or as many at a lower loss."""
        return other is None or (self.accuracy, -self.loss_nats) > (other.accuracy, -other.loss_nats)


def named(score: Score | None) -> dict[str, float | None]:
    """A score by the names that histories and manifests give it; nulls where nothing was validated."""
    return {
        "validation_accuracy": score.accuracy if score else None,
        "validation_parse_rate": score.parse_rate if score else None,
        "validation_truncation_rate": score.truncation_rate if score else None,
        "validation_loss": score.loss_nats if score else None,
    }


@dataclass(frozen=True)
class Validation:
    """This rank's share of the questions, cut into batches, and how answers are judged. `total` counts every rank's."""

    questions: Sequence[Question]
    batches: Sequence[Sequence[int]]
    total: int
    judge: Judge

    def score(self, engine: Engine, family: Family) -> Score:
        """Let the family's model answer; every rank gets the score over all of them."""
        right = parsed = cut_short = nll_nats = tokens = 0.0
        for batch in self.batches:
            asked = [self.questions[index] for index in batch]
            inputs, targets = [question.encoded.ids for question in asked], [question.target_ids for question in asked]
            answers = family.read([question.encoded for question in asked]).generate()
            read = [family.answer_in(said, q.label_set, self.judge) for said, q in zip(answers, asked, strict=True)]
            right += sum(answer is not None and self.judge(answer, q.target) for answer, q in zip(read, asked, strict=True))
            parsed += sum(answer is not None for answer in read)
            cut_short += sum(not said.finished for said in answers)
            nll_nats += float(family.sequence_nll(family.model, inputs, targets).sum())
            tokens += sum(map(len, targets))
        mine = torch.tensor([right, parsed, cut_short, nll_nats, tokens], dtype=torch.float64, device=engine.device)
        right, parsed, cut_short, nll_nats, tokens = engine.total(mine).tolist()
        return Score(right / self.total, nll_nats / tokens, parsed / self.total, cut_short / self.total)


def sample(store: Store, folder: str, shards: Sequence[Shard], most: int) -> list[Example]:
    """At most `most` rows with a target from the validation shards, the same ones for every run.

    Shards are read in a fixed random order until there are enough rows, then rows are drawn from those.

    Raises:
        StageError: all rows have an error. That none has a label is no error: a corpus may be without.
    """
    draw = random.Random(0)
    rows: list[Example] = []
    faults: list[bool] = []
    for shard in draw.sample(list(shards), len(shards)):
        if len(rows) >= most:
            break
        read = store.read_rows(f"{folder}/{shard.file}", Example)[: shard.rows]
        rows += [row for row in read if _is_usable(row)]
        faults += [row.error is not None for row in read]
    if faults and all(faults):
        raise StageError(
            f"{store.path(folder)}: all {len(faults)} rows of validation have an error, expected some without; mend the corpus,"
            " or set eval_rows: 0 to train without validation"
        )
    return draw.sample(rows, min(most, len(rows)))


def open_validation(
    rows: Sequence[Example], family: Family, prefix: str, judge: Judge, budget_tokens: int, rank: int, world: int
) -> Validation | None:
    """The rows as questions behind the objective's prefix, shared out over the ranks; None where there are none.

    A row that the student cannot read (too long, for instance) is left out: evaluation counts those.

    Raises:
        StageError: it can read none of the rows.
    """
    before = [Segment("prompt", prefix)] if prefix else []
    asked = family.questions(rows, lambda row, encoded: _question(row, encoded, family), before)
    questions = [question for question in asked if isinstance(question, Question)]
    faults = [fault for fault in asked if isinstance(fault, RowFault)]
    if faults and not questions:
        raise StageError(
            f"none of {len(faults)} rows of validation can be read and answered by the student, the first one for"
            f" {faults[0].reason} ({faults[0].detail}); expected some. Raise the student's max_input_tokens or max_answer_tokens,"
            " give a classifier a class for every label of the task, or set eval_rows: 0 to train without validation"
        )
    if not questions:
        return None
    mine = questions[rank::world]
    return Validation(mine, cut([question.size for question in mine], budget_tokens), len(questions), judge)


def _is_usable(row: Example) -> bool:
    return row.error is None and row.target is not None


def _question(row: Example, encoded: Encoded, family: Family) -> Question:
    assert row.target is not None  # only rows with a target are sampled
    return Question(encoded, family.encode_target(row.target), row.target, row.label_set, family.size(encoded, []))
