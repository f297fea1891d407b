"""What models have in common that write an answer token by token.

Reading ends where the answer begins: with the keys and values of all that was read, and the probabilities of the first
token. Generated answers, ranked answers and the explained answer branch off from there, so nothing is computed twice.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, EncoderDecoderCache

from kd.errors import ConfigError
from kd.families.base import Answer, Explained, Family, Generated, Reading
from kd.families.text import Encoded


@dataclass(frozen=True)
class Opening:
    """Where a model stands before the answer: what it keeps of the input, and the log-probabilities of the first token.

    `memory` is what a decoder needs of the input beside the cache.
    """

    mask: Int[Tensor, "b t"]
    cache: Any
    memory: Any
    first: Float[Tensor, "b v"]


class Generative(Family):
    """A model that writes its answer; `ends` are the tokens that end one, first the one that it learns to write."""

    ends: tuple[int, ...]
    pads_left = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_token(self.ends[0], "end-of-sequence", self._embeddings_of_answer())

    def read(self, rows: Sequence[Encoded], differentiable: bool = False) -> "GenerativeReading":
        return GenerativeReading(self, rows, differentiable)

    @abstractmethod
    def open(self, embeds: Float[Tensor, "b t d"], mask: Int[Tensor, "b t"]) -> Opening:
        """Read embedded inputs up to the point where the answer begins."""

    @abstractmethod
    def write(self, opening: Opening, cache: Any, written: int, ids: Int[Tensor, "b a"]) -> Float[Tensor, "b a v"]:
        """Logits after each of `ids`, which go on behind `written` tokens of the answer; the cache grows by them."""

    def trial_answer(self, encoded: Encoded) -> Answer:
        """The row's own first tokens, and an end."""
        return [*[id_ for id_, span in zip(encoded.ids, encoded.spans, strict=True) if span][:3], self.ends[0]]

    def inputs(self, rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Ids and mask of a batch, padded on the side that the family reads best."""
        return self.batch(rows, left=self.pads_left)

    def answer_logprob(self, opening: Opening, answers: Sequence[Answer]) -> Float[Tensor, "b"]:
        """The log-probability of one answer per row in nats, in float32, from logits at its own positions only."""
        targets, mask = self.batch(answers)
        total = opening.first.gather(1, targets[:, :1]).squeeze(1)
        if targets.shape[1] == 1:
            return total
        wanted = mask[:, 1:].bool()
        with self.head_at(wanted):
            logits = self.write(opening, branched(opening.cache), 0, targets[:, :-1])
        return total - _summed_nll(logits, targets[:, 1:], wanted)

    def target_nll(
        self, forward: Callable[..., Any], targets: Int[Tensor, "b a"], mask: Int[Tensor, "b a"], **inputs: Any
    ) -> Float[Tensor, "b"]:
        """What each row's targets cost in nats, in float32; `forward` is the model, wrapped or not, which ends on the targets."""
        wanted = mask.bool()
        with self.head_at(wanted):
            logits = forward(use_cache=False, **inputs).logits.to(mask.device)
        return _summed_nll(logits, targets, wanted)

    @contextmanager
    def head_at(self, wanted: Bool[Tensor, "b a"]) -> Iterator[None]:
        """Inside, the model's logits are [n, v]: those at the wanted ones of its last positions, and no others.

        Its head, on a small model a third of the work, is handed these alone: padding costs nothing there, and no logits are
        copied.
        """

        def narrowed(_: Any, hidden: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (hidden[0][:, -wanted.shape[1] :][wanted.to(hidden[0].device)],)

        handle = self.model.get_output_embeddings().register_forward_pre_hook(narrowed)
        try:
            yield
        finally:
            handle.remove()

    def said(self, written: list[int]) -> Generated:
        """What stands up to the first token that ends an answer. Unknown words stay visible, other special tokens do not."""
        length = next((place for place, id_ in enumerate(written, start=1) if id_ in self.ends), None)
        ids = written[:length]
        text: str = self.tokenizer.decode([id_ for id_ in self.unended(ids) if id_ not in self.special_ids])
        return Generated(text.strip(), length is not None, ids)

    def _marks(self, label: str) -> list[Hashable]:
        """Its ids, and its text once it is written: a generated answer is read by the one or the other."""
        ids = self._answers(label)
        return [ids, self.said([*ids]).text]

    def _is_known(self, ids: Sequence[int]) -> bool:
        unknown = self.tokenizer.unk_token_id
        known = [id_ for id_ in ids if id_ not in self.special_ids and id_ != unknown]
        return unknown not in ids or bool(self.tokenizer.decode(known).strip())

    def counted_ends(self) -> tuple[int, ...]:
        """The tokens by which `Reading.ending` sees an answer end; none where that is not asked."""
        return ()

    def unended(self, ids: Sequence[int]) -> Answer:
        return list(ids[:-1] if ids and ids[-1] in self.ends else ids)


class GenerativeReading(Reading):
    """A batch of inputs, read up to the point where the answer begins."""

    def __init__(self, family: Generative, rows: Sequence[Encoded], differentiable: bool) -> None:
        self._family = family
        self._rows = rows
        ids, self._mask = family.inputs([row.ids for row in rows])
        self._embeds = family.embed(ids).requires_grad_(differentiable)
        with torch.enable_grad() if differentiable else torch.inference_mode():
            self._opening = family.open(self._embeds, self._mask)

    @torch.inference_mode()
    def generate(self) -> list[Generated]:
        family, opening = self._family, self._opening
        ends = torch.tensor(family.ends, device=opening.mask.device)
        step = opening.first.argmax(-1, keepdim=True)
        written, ended = [step], torch.isin(step, ends)
        cache = branched(opening.cache)
        while len(written) < family.max_generated_tokens and not ended.all():
            step = family.write(opening, cache, len(written) - 1, step)[:, -1].argmax(-1, keepdim=True)
            written.append(step)
            ended |= torch.isin(step, ends)
        return [family.said(ids) for ids in torch.cat(written, 1).tolist()]

    @torch.inference_mode()
    def logprobs(self, answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        # Every row's longest answer, then every row's second longest, and so on: less is padded than in their own order.
        by_length = [_longest_first(own) for own in answers]
        nothing = [self._family.ends[0]]
        scores = [[0.0] * len(own) for own in answers]
        for turn in range(max(map(len, answers), default=0)):
            asked = [own[places[turn]] if turn < len(places) else nothing for own, places in zip(answers, by_length, strict=True)]
            values = self._family.answer_logprob(self._opening, asked).tolist()
            for found, places, value in zip(scores, by_length, values, strict=True):
                if turn < len(places):
                    found[places[turn]] = value
        return scores

    @torch.inference_mode()
    def ending(self, answers: Sequence[Answer]) -> list[float]:
        family, opening = self._family, self._opening
        ends = list(family.counted_ends())
        if not ends:
            return []
        own = [family.unended(answer) for answer in answers]
        ids, mask = family.batch([answer or ends[:1] for answer in own])
        with family.head_at(functional.one_hot(mask.sum(1) - 1, mask.shape[1]).bool()):
            behind = family.write(opening, branched(opening.cache), 0, ids).float().log_softmax(-1)
        empty = torch.tensor([not answer for answer in own], device=mask.device).unsqueeze(1)
        found: list[float] = torch.where(empty, opening.first, behind)[:, ends].logsumexp(-1).tolist()
        return found

    def explained(self, answers: Sequence[Answer]) -> Explained:
        family, mask = self._family, self._mask

        def logprob(embeds: Float[Tensor, "n t d"], rows: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
            as_read = embeds is self._embeds
            opening = self._opening if as_read else family.open(embeds, mask[rows])
            return family.answer_logprob(opening, [answers[row] for row in rows.tolist()])

        return Explained(
            encoded=self._rows,
            mask=mask,
            embeds=self._embeds,
            forward=logprob,
            baseline=family.baseline,
        )


def _summed_nll(logits: Float[Tensor, "n v"], targets: Int[Tensor, "b a"], wanted: Bool[Tensor, "b a"]) -> Float[Tensor, "b"]:
    """Each row's sum over its wanted targets in nats, in float32; there are logits for these alone."""
    nll = functional.cross_entropy(logits.float(), targets[wanted], reduction="none")
    return torch.zeros_like(wanted, dtype=nll.dtype).masked_scatter(wanted, nll).sum(1)


def _longest_first(answers: Sequence[Answer]) -> list[int]:
    return sorted(range(len(answers)), key=lambda place: -len(answers[place]))


def branched(cache: Any) -> Any:
    """A cache that goes on from another and leaves it as it is: layers grow by replacing their keys and values.

    Raises:
        ConfigError: the model keeps something else than keys and values, which cannot be shared like this.
    """
    if isinstance(cache, EncoderDecoderCache):
        return EncoderDecoderCache(branched(cache.self_attention_cache), cache.cross_attention_cache)
    strange = [type(layer).__name__ for layer in cache.layers if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)]
    if strange:
        raise ConfigError(f"the model keeps {strange[0]} of what it reads; expected plain attention in every layer")
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch
