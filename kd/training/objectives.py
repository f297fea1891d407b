"""What a student learns from a row, and how its losses add up.

An objective turns a row into targets, each of one term, and says what evaluation puts before a question. Adding one is
one class here: the training loop only sees sequences, their terms, and the terms' weights.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kd.frozen import Frozen
from kd.rows import Attribution, Example, RationaleRow

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


Answers = Literal["gold", "teacher", "llm"]
"""What is learned as a row's answer: its target, the teacher's explained answer, or the LLM's label that came with it."""


@dataclass(frozen=True)
class Term:
    """One part of a loss: the mean over its target tokens counts `weight` times."""

    name: str
    weight: float


@dataclass(frozen=True)
class Target:
    """One thing to write: `text`, when the row is read behind `prefix`. `term` indexes the objective's terms.

    An answer is learned whole or not at all; a text that `may_be_cut` is learned up to the model's limit.
    """

    term: int
    prefix: str
    text: str
    may_be_cut: bool = False


class Objective(Frozen):
    """What every objective has."""

    @property
    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """The parts of the loss, in the order that `Target.term` counts."""

    @property
    @abstractmethod
    def answer_prefix(self) -> str:
        """What stands before the input when the student is asked for the answer."""

    @property
    @abstractmethod
    def prefixes(self) -> tuple[str, ...]:
        """Everything that is ever put before an input, so that a tokenizer made for it knows these words."""

    @property
    @abstractmethod
    def needs_rationales(self) -> bool:
        """Whether it is another objective where no row has a rationale."""

    @abstractmethod
    def targets(self, row: Example) -> list[Target]:
        """What this row teaches; nothing where it has no target."""


class LabelOnly(Objective):
    """Standard fine-tuning: the input as it is, the label as the answer."""

    type: Literal["label_only"] = "label_only"

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("label", 1.0),)

    @property
    def answer_prefix(self) -> str:
        return ""

    @property
    def prefixes(self) -> tuple[str, ...]:
        return ()

    @property
    def needs_rationales(self) -> bool:
        return False

    def targets(self, row: Example) -> list[Target]:
        return [] if row.target is None else [Target(0, "", row.target)]


class MultiTask(Objective):
    """Distilling step-by-step (Hsieh et al. 2023): a prefix asks for the label or for the rationale.

    The loss is alpha x label + (1 - alpha) x rationale, each a mean over the tokens of its own targets (the form of the
    authors' code; their equation with lambda = 1 is alpha = 0.5 up to a factor).
    """

    type: Literal["multi_task"] = "multi_task"
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the label's loss; the rationale's has the rest."""
    label_prefix: str = "predict: "
    """What asks for the label, in training and in evaluation."""
    rationale_prefix: str = "explain: "
    """What asks for the rationale."""

    @property
    def terms(self) -> tuple[Term, ...]:
        return Term("label", self.alpha), Term("rationale", 1 - self.alpha)

    @property
    def answer_prefix(self) -> str:
        return self.label_prefix

    @property
    def prefixes(self) -> tuple[str, ...]:
        return self.label_prefix, self.rationale_prefix

    @property
    def needs_rationales(self) -> bool:
        return self.alpha < 1

    def targets(self, row: Example) -> list[Target]:
        if row.target is None:
            return []
        if not isinstance(row, RationaleRow):
            raise TypeError(f"multi_task learns from RationaleRow, got {type(row).__name__}; it has no rationale")
        rationale = [Target(1, self.rationale_prefix, row.rationale_text, may_be_cut=True)] if row.rationale_text else []
        return [Target(0, self.label_prefix, row.target), *rationale]


AnyObjective = Annotated[LabelOnly | MultiTask, Field(discriminator="type")]


def taught(row: Example, answers: Answers) -> Example:
    """The row with the answer to learn as its target; none where the teacher wrote one that met the length limit.

    Raises TypeError for a teacher's answer to a row that none answered.
    """
    if answers == "gold":
        return row
    if answers == "llm":
        return dataclasses.replace(row, target=(row.llm_label or "").strip() or None)
    if not isinstance(row, Attribution):
        raise TypeError(f"expected an attributed row with the teacher's answer, got {type(row).__name__}")
    is_cut = row.explained == "predicted" and row.ranked is None and bool(row.generated_cut)
    return dataclasses.replace(row, target=None if is_cut else row.explained_answer or None)


def sums_per_term(nll_nats: Float[Tensor, "n"], term: Int[Tensor, "n"], terms: int) -> Float[Tensor, "k"]:
    """The losses of n sequences as one sum per term, never a mean.

    No index_add: on a GPU it adds in another order each time, and the losses of two runs would differ in their last digits.

    Args:
        nll_nats: negative log-likelihood of each sequence, summed over its target tokens.
        term: which of the `terms` terms each sequence belongs to.
    """
    import torch

    return torch.stack([torch.where(term == each, nll_nats, 0.0).sum() for each in range(terms)])


def coefficients(terms: Sequence[Term], counts: Sequence[int]) -> list[float]:
    """What one nat of each term adds to the loss of a batch: weight over count, 0 for a term that is absent.

    `counts` are the target tokens of the whole global batch. The loss is the sum of these times the terms' sums, over
    every rank and every micro-batch, so it is divided once and by the right number however the batch is cut.
    """
    return [term.weight / count if count else 0.0 for term, count in zip(terms, counts, strict=True)]


def total_loss(terms: Sequence[Term], means: Mapping[str, float | None]) -> float | None:
    """The loss that is learned from, of the terms' means by name; None where a term has none."""
    found = [means[term.name] for term in terms]
    present = [term.weight * mean for term, mean in zip(terms, found, strict=True) if mean is not None]
    return sum(present) if len(present) == len(terms) else None
