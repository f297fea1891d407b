"""What the engine, training and evaluation ask of a model, whatever its family.

A batch of rows is *read* once; the generated answer, the probabilities of answers and the explained number all go on from
that `Reading`. Axis names: b rows, t input tokens, a answer tokens, d hidden, v vocabulary, n sequences.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kd.errors import ConfigError, RowFault
from kd.families.labels import check_apart
from kd.families.text import Encoded, Reader, as_fault
from kd.models import Loaded
from kd.rows import Example, Segment
from kd.tasks.base import is_read, reads_alike

Answer = list[int]
"""Ids of an answer: the tokens that the model is to write, with or without the end behind them; a classifier's is its class."""

Baseline = Literal["pad", "mask", "mean", "zero"]
"""What says nothing in a token's place: the embedding of the padding or of the mask token, the mean embedding, or zero."""

Q = TypeVar("Q")


@dataclass(frozen=True)
class Generated:
    """A model's own answer, with all ids that it wrote, its end among them. It is not `finished` where the limit came before."""

    text: str
    finished: bool
    ids: Answer


@dataclass(frozen=True)
class Explained:
    """One number per row as a function of the embeddings that enter the model, and where these come from.

    `forward` takes embeddings and the places in the batch of the rows that they are versions of. `mask` is 1 for
    tokens; a row's tokens are those of `encoded`, in order. `baseline` makes the embedding of what says nothing.
    """

    encoded: Sequence[Encoded]
    mask: Int[Tensor, "b t"]
    embeds: Float[Tensor, "b t d"]
    forward: Callable[[Float[Tensor, "b t d"], Int[Tensor, "b"]], Float[Tensor, "b"]]
    baseline: Callable[[Baseline], Float[Tensor, "d"]]

    @property
    def rows(self) -> Int[Tensor, "b"]:
        """The places of the rows as they are."""
        return torch.arange(len(self.mask), device=self.mask.device)

    def laid_out(self, values: Sequence[Sequence[int]]) -> Int[Tensor, "b t"]:
        """One value per token of each row, at the tokens' positions; zero at padding."""
        flat = torch.tensor([value for row in values for value in row], device=self.mask.device)
        return torch.zeros_like(self.mask).masked_scatter(self.mask.bool(), flat.to(self.mask.dtype))

    def is_text(self) -> Int[Tensor, "b t"]:
        """1 for tokens of a segment, 0 for special tokens and padding."""
        return self.laid_out([[span is not None for span in row.spans] for row in self.encoded])

    def blank(self, baseline: Baseline) -> Float[Tensor, "b t d"]:
        """The same embeddings with the baseline in place of every token of a segment; special tokens stay."""
        return torch.where(self.is_text().bool().unsqueeze(-1), self.baseline(baseline), self.embeds.detach())


class Reading(ABC):
    """A batch that the model has read."""

    @abstractmethod
    def generate(self) -> list[Generated]:
        """The model's greedy answer to each row."""

    @abstractmethod
    def logprobs(self, answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        """For each row, the log-probability in nats of each of its answers: the sum over the answer's tokens."""

    def ending(self, answers: Sequence[Answer]) -> list[float]:  # noqa: ARG002
        """The log-probability in nats that the model ends one answer per row where it ends; nothing where its family has no
        such question."""
        return []

    @abstractmethod
    def explained(self, answers: Sequence[Answer]) -> Explained:
        """The number that says how much the model is for one answer per row, ready to be explained."""


@dataclass
class Family(ABC):
    """A model that reads rows and answers, with its limits in tokens.

    Raises:
        ConfigError: a limit is beyond the model's positions, or the model lacks a token that its family needs.
    """

    needs_choices: ClassVar[bool] = False
    """Whether the model can read only rows that bring choices of their own."""

    loaded: Loaded
    max_input_tokens: int
    max_answer_tokens: int
    max_generated_tokens: int
    _answers: Callable[[str], tuple[int, ...]] = field(init=False, repr=False)
    _apart: Callable[[tuple[str, ...]], None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.special_ids = frozenset(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        self.pad = self._pad_token()
        self._check_token(self.pad, "padding", self._embeddings_of_input())
        self.reader = self._reader()
        # Labels come back in every row; a tokenizer call costs more than a small model's forward.
        self._answers = lru_cache(maxsize=2**16)(self._answer)
        self._apart = lru_cache(maxsize=2**10)(lambda labels: check_apart(labels, self._marks, self.name))
        self._check_model()

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer

    @property
    def name(self) -> str:
        return self.loaded.name

    def check_choices(self, brought: bool) -> None:  # noqa: B027 - most families read both
        """Raise ConfigError where the model cannot read rows that bring choices of their own, or rows that bring none."""

    # --- text to tokens ---

    def encode_rows(self, rows: Sequence[Sequence[Segment]]) -> list[Encoded | RowFault]:
        """Each row's segments as the model reads them, or its fault.

        That is one of `Reader.read`, or "tokenizer_error" where a token has no embedding.
        """
        return [self._embedded(found) for found in self.reader.read(rows)]

    def encode(self, segments: Sequence[Segment]) -> Encoded:
        """One row's segments as the model reads them. Raises its RowFault."""
        (found,) = self.encode_rows([segments])
        if isinstance(found, RowFault):
            raise found
        return found

    def questions(
        self, rows: Sequence[Example], ask: Callable[[Example, Encoded], Q], prefix: Sequence[Segment] = ()
    ) -> list[Q | RowFault]:
        """Each row made ready for the model by `ask`, from itself and what the model reads of it behind a prefix, or its fault.

        The fault is that of reading the row, of its labels (`check_labels`), or one that `ask` raises.
        """
        made: list[Q | RowFault] = []
        for row, found in zip(rows, self.encode_rows([[*prefix, *row.segments] for row in rows]), strict=True):
            try:
                self.check_labels(row.label_set)
                made.append(found if isinstance(found, RowFault) else ask(row, found))
            except RowFault as fault:
                made.append(fault)
        return made

    def encode_answer(self, text: str) -> Answer:
        """The ids by which an answer is ranked and explained: its target ids, as far as they are `counted`.

        Raises:
            RowFault: what `encode_target` raises.
        """
        return self.counted(self.encode_target(text))

    def encode_target(self, text: str) -> Answer:
        """The ids that a model learns to write for an answer: its tokens, and the end behind them.

        Raises:
            RowFault: "too_long" over the limit (an answer is never cut), and what `check_labels` raises.
        """
        ids = self._answers(text)
        if len(ids) > self.max_answer_tokens:
            raise RowFault("too_long", f"answer of {len(ids)} tokens, limit max_answer_tokens = {self.max_answer_tokens}")
        return list(ids)

    def counted(self, ids: Sequence[int]) -> Answer:
        """The ids of an answer, given or generated, whose probabilities make up the answer's: all of them, in most families."""
        return list(ids)

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise the RowFault of labels that the model cannot have: "unknown_label" where a classifier has no such class,
        "tokenizer_error" where the tokenizer fails on one, makes the same of two, or a token has no embedding. One that is too
        long to be written is not checked for."""
        self._apart(tuple(labels))

    def label_of(self, said: Generated, labels: Sequence[str], is_same: Callable[[str, str], bool] = reads_alike) -> str | None:
        """The label that was generated: token by token, or in a text that `is_same`; None for no or several labels.

        Unknown tokens alone are no label, whose own tokens they may be: they stand for any text. Raises what `check_labels` does.
        """
        if not self._is_known(said.ids):
            return None
        same = [label for label in labels if self.unended(self._answers(label)) == self.unended(said.ids)]
        if not same:
            same = [label for label in labels if is_same(said.text, label)]
        return same[0] if len(set(same)) == 1 else None

    def knows(self, label: str) -> bool:
        """Whether a label has tokens of its own, beside those that stand for all that the tokenizer does not know. Raises like
        `check_labels`."""
        return self._is_known(self._answers(label))

    def unended(self, ids: Sequence[int]) -> Answer:
        """The ids of an answer without the end behind them, where a family has one and it is there."""
        return list(ids)

    def answer_in(self, said: Generated, labels: Sequence[str], is_same: Callable[[str, str], bool]) -> str | None:
        """The answer in what was generated; None where it met the length limit or cannot be read.

        Where there are labels, it is the one that was generated (`label_of`). Elsewhere it is the text itself, unless that is
        no answer at all (`is_read`). Raises what `check_labels` does.
        """
        if not said.finished:
            return None
        if labels:
            return self.label_of(said, labels, is_same)
        return said.text if is_read(said.text, is_same) else None

    def size(self, encoded: Encoded, answers: Sequence[Answer]) -> tuple[int, int]:
        """Input and answer tokens that a row takes in a batch; without answers the most that may be generated."""
        return len(encoded.ids), max(map(len, answers), default=self.max_generated_tokens)

    def factors(self, answer: Answer) -> int:
        """How many probabilities an answer's is the product of: one for each of its `counted` tokens."""
        return len(answer)

    # --- tokens to answers ---

    @abstractmethod
    def read(self, rows: Sequence[Encoded], differentiable: bool = False) -> Reading:
        """A batch, read once. Where `differentiable`, the explained number's gradient at the input can be taken once."""

    @abstractmethod
    def sequence_nll(
        self, forward: Callable[..., Any], input_ids: Sequence[list[int]], target_ids: Sequence[list[int]]
    ) -> Float[Tensor, "n"]:
        """The summed negative log-likelihood of each target sequence in nats; `forward` is the model, wrapped or not."""

    def logprobs_from_ids(self, rows: Sequence[Encoded], answers: Sequence[Answer]) -> Float[Tensor, "b"]:
        """The log-probability of one answer per row in nats, of the model that reads ids by itself: the one that is trained."""
        return -self.sequence_nll(self.model, [row.ids for row in rows], answers)

    # --- what a family adds to the above ---

    @abstractmethod
    def trial_answer(self, encoded: Encoded) -> Answer:
        """An answer that the model can give to the row, whatever its task."""

    @abstractmethod
    def _answer_ids(self, text: str) -> tuple[int, ...]: ...

    def _answer(self, text: str) -> tuple[int, ...]:
        with as_fault("the tokenizer"):
            ids = self._answer_ids(text)
        self._check_embedded(ids, self._embeddings_of_answer())
        return ids

    def _embedded(self, found: Encoded | RowFault) -> Encoded | RowFault:
        """What was read, unless a token of it has no embedding."""
        if isinstance(found, RowFault):
            return found
        try:
            self._check_embedded(found.ids, self._embeddings_of_input())
        except RowFault as fault:
            return fault
        return found

    def _check_embedded(self, ids: Sequence[int], size: int) -> None:
        """Raise the RowFault of a token that the tokenizer has and the model, with its `size` embeddings, has not."""
        beyond = max(ids, default=0)
        if beyond >= size:
            token = self.tokenizer.convert_ids_to_tokens(beyond)
            raise RowFault("tokenizer_error", f"the token {token!r} has id {beyond}, and {self.name} has {size} embeddings")

    def _check_token(self, id_: int, called: str, size: int) -> None:
        """Raise ConfigError where a token that every batch or answer needs has no embedding."""
        if id_ >= size:
            raise ConfigError(
                f"{self.name}: its {called} token {self.tokenizer.convert_ids_to_tokens(id_)!r} has id {id_}, and the model has"
                f" {size} embeddings; expected an id below that. Resize the model to its tokenizer"
                " (model.resize_token_embeddings(len(tokenizer))) and save it, or give it the tokenizer that it was trained with"
            )

    def _embeddings_of_input(self) -> int:
        """How many tokens the model can read."""
        return embeddings_of(self._embedding())

    def _embeddings_of_answer(self) -> int:
        """How many tokens the model can write."""
        return self._embeddings_of_input()

    def _is_known(self, ids: Sequence[int]) -> bool:  # noqa: ARG002 - classes and options that are read are taken as they are
        return True

    def _marks(self, label: str) -> list[Hashable]:
        """What a label is recognised by. Raises the RowFault of one that the model cannot have."""
        return [self._answers(label)]

    @abstractmethod
    def _check_model(self) -> None: ...

    def _reader(self) -> Reader:
        return Reader(self.tokenizer, self.special_ids, self.max_input_tokens)

    def _pad_token(self) -> int:
        pad: int | None = self.tokenizer.pad_token_id
        if pad is None:
            raise ConfigError(
                f"{self.name}: expected a tokenizer with a padding token, got none; set it in tokenizer_config.json"
            )
        return pad

    # --- batches ---

    def batch(self, ids: Sequence[Sequence[int]], left: bool = False) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Ids and mask (1 for tokens) on the model's device, padded on the right or on the left."""
        width = max(map(len, ids))
        blanks = [[self.pad] * (width - len(row)) for row in ids]
        ones = [[1] * len(row) for row in ids]
        zeros = [[0] * len(blank) for blank in blanks]
        sides = ((blanks, ids), (zeros, ones)) if left else ((ids, blanks), (ones, zeros))
        padded, mask = (torch.tensor([[*a, *b] for a, b in zip(*side, strict=True)]) for side in sides)
        return padded.to(self.model.device), mask.to(self.model.device)

    def embed(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The model's input embeddings in float32, before positions are added; a fresh tensor without gradient.

        They are scaled as the model scales them where it looks them up itself.
        """
        with torch.no_grad():
            embeds: Tensor = self._embedding()(ids).float()
            return embeds * (self.loaded.embedding_scale or 1.0)

    def baseline(self, kind: Baseline) -> Float[Tensor, "d"]:
        """The embedding of what says nothing, in float32.

        Raises:
            ConfigError: the tokenizer has no such token, it is the one that ends texts, which does say something, or the model
                has no embedding for it.
        """
        if kind == "mean":
            return self._mean_embedding
        if kind == "zero":
            return torch.zeros_like(self.embed(torch.zeros(1, dtype=torch.long, device=self.model.device))[0])
        return self.embed(torch.tensor([self._blank_token(kind)], device=self.model.device))[0]

    def _blank_token(self, kind: Literal["pad", "mask"]) -> int:
        known = {"pad": ("padding", self.tokenizer.pad_token_id), "mask": ("mask", self.tokenizer.mask_token_id)}
        called, id_ = known[kind]
        if id_ is None or id_ == self.tokenizer.eos_token_id:
            found = "none" if id_ is None else f"{self.tokenizer.eos_token!r}, which ends a text"
            raise ConfigError(
                f"{self.name}: attribution.method.baseline = {kind} asks for the tokenizer's {called} token: expected one that"
                f" says nothing, got {found}; set baseline to mean or zero, which every model has"
            )
        self._check_token(id_, called, self._embeddings_of_input())
        return int(id_)

    @cached_property
    def _mean_embedding(self) -> Float[Tensor, "d"]:
        """Over the tokenizer's tokens, in slices: all embeddings of a large vocabulary in float32 are gigabytes."""
        tokens = torch.arange(min(len(self.tokenizer), self._embeddings_of_input()), device=self.model.device)
        return torch.stack([self.embed(ids).double().sum(0) for ids in torch.split(tokens, 8192)]).sum(0).div(len(tokens)).float()

    def _embedding(self) -> Any:
        return self.model.get_input_embeddings()


def embeddings_of(embedding: Any) -> int:
    """How many embeddings there are; of a weight that is split between GPUs the shape does not say."""
    count: int = embedding.num_embeddings if isinstance(embedding, torch.nn.Embedding) else embedding.weight.shape[0]
    return count


def check_positions(config: Any, name: str, limit: int) -> None:
    """Raise ConfigError where a limit in tokens is beyond the positions that a model's config says it has."""
    key = "max_position_embeddings"
    positions = config.to_dict().get(config.attribute_map.get(key, key))
    if positions is not None and limit > positions:
        raise ConfigError(f"{name}: the model has {positions} positions, got {limit}; set {name} to at most {positions}")
