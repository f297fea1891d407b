"""Encoder-decoders: T5, Flan-T5, BART and pairs of encoders (`EncoderDecoderModel`), through what they have in common.

The encoder reads the segments' texts joined as they are; the decoder writes the answer. Axis names: b rows, t input
tokens, a answer tokens, d hidden, v vocabulary, n sequences.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from kd.errors import ConfigError, RowFault
from kd.models import Loaded
from kd.rows import Segment, Span

NEVER_CUT = ("prompt", "choice")
"""Roles whose segments keep all their tokens when an input is too long."""


@dataclass(frozen=True)
class Encoded:
    """A tokenised input: parallel ids, spans (None for special tokens) and token strings; and how many were cut off."""

    ids: list[int]
    spans: list[Span | None]
    tokens: list[str]
    truncated_tokens: int


@dataclass(frozen=True)
class Generated:
    """A greedy answer, with its target ids. It is not `finished` where the limit came before the end-of-sequence token."""

    text: str
    finished: bool
    ids: list[int]


class EncoderDecoder:
    """A model that reads with an encoder and answers with a decoder.

    Raises:
        ConfigError: a limit is beyond the model's positions, or the model does not say how an answer starts or ends.
    """

    def __init__(self, loaded: Loaded, max_input_tokens: int, max_answer_tokens: int) -> None:
        self.model = loaded.model
        self.name = loaded.name
        self.max_input_tokens = max_input_tokens
        self.max_answer_tokens = max_answer_tokens
        self._tokenizer = loaded.tokenizer
        self._start, self._pad, self._ends = _frame(loaded)
        self._special_ids = set(loaded.tokenizer.all_special_ids) - {loaded.tokenizer.unk_token_id}
        # Labels come back in every row; a tokenizer call costs more than a small model's forward.
        self._answer_ids = lru_cache(maxsize=2**16)(self._tokenize_answer)
        _check_positions(self.model.get_encoder().config, "max_input_tokens", max_input_tokens)
        _check_positions(self.model.get_decoder().config, "max_answer_tokens", max_answer_tokens)

    def encode(self, segments: Sequence[Segment]) -> Encoded:
        """The segments' texts, joined as they are and tokenised once, each token with its span.

        Over the limit, the longest segment that may be cut loses its last token, again and again: options and prompts
        stay whole.

        Raises:
            RowFault: "empty_text" without a token of a segment, "too_long" if what must stay is over the limit.
        """
        text = "".join(segment.text for segment in segments)
        found = self._tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        ids: list[int] = found["input_ids"]
        special = [bool(mask) or id_ in self._special_ids for id_, mask in zip(ids, found["special_tokens_mask"], strict=True)]
        starts = list(itertools.accumulate((len(segment.text) for segment in segments), initial=0))
        spans = [
            None if no_text else _span(text, starts, start, end)
            for no_text, (start, end) in zip(special, found["offset_mapping"], strict=True)
        ]
        if not text.strip() or not any(spans):
            raise RowFault("empty_text", f"no token in {len(segments)} segments of {len(text)} characters")
        kept = _kept(spans, segments, self.max_input_tokens)
        tokens = self._tokenizer.convert_ids_to_tokens([ids[i] for i in kept])
        return Encoded([ids[i] for i in kept], [spans[i] for i in kept], tokens, len(ids) - len(kept))

    def encode_answer(self, text: str) -> list[int]:
        """The target ids of an answer: without the decoder's start token, with the end-of-sequence token.

        Raises:
            RowFault: "too_long" over the limit; an answer is never cut.
        """
        ids = self._answer_ids(text)
        if len(ids) > self.max_answer_tokens:
            raise RowFault("too_long", f"answer of {len(ids)} tokens, limit max_answer_tokens = {self.max_answer_tokens}")
        return list(ids)

    def batch(self, ids: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Ids and mask (1 for tokens) on the model's device, padded on the right."""
        width = max(len(row) for row in ids)
        padded = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        return padded.to(self.model.device), mask.to(self.model.device)

    def embed(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The encoder's input embeddings in float32, before positions are added; a fresh tensor without gradient."""
        with torch.no_grad():
            embeds: Tensor = self.model.get_encoder().get_input_embeddings()(ids).float()
            return embeds

    def blank(self, encoded: Sequence[Encoded]) -> Int[Tensor, "b t"]:
        """The inputs with padding in place of every token of a segment; special tokens stay."""
        rows = [[self._pad if span else id_ for id_, span in zip(e.ids, e.spans, strict=True)] for e in encoded]
        return self.batch(rows)[0]

    @torch.inference_mode()
    def encode_states(self, ids: Int[Tensor, "b t"], mask: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The encoder's output, to be shared by `generate` and `choice_logprobs`."""
        states: Tensor = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    @torch.inference_mode()
    def generate(self, batch: Sequence[list[int]], encoder_states: Float[Tensor, "b t d"] | None = None) -> list[Generated]:
        """The greedy answer to each row; `encoder_states` are those of the same batch, made here if absent."""
        ids, mask = self.batch(batch)
        states = BaseModelOutput(last_hidden_state=self.encode_states(ids, mask) if encoder_states is None else encoder_states)
        ends = torch.tensor(self._ends, device=ids.device)
        step = torch.full_like(ids[:, :1], self._start)
        ended = torch.zeros_like(step, dtype=torch.bool)
        written, cache = [], None
        for _ in range(self.max_answer_tokens):
            out = self.model(
                encoder_outputs=states, attention_mask=mask, decoder_input_ids=step, past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            step = out.logits[:, -1:].argmax(-1)
            written.append(step)
            ended |= torch.isin(step, ends)
            if ended.all():
                break
        return [self._read(ids) for ids in torch.cat(written, 1).tolist()]

    @torch.inference_mode()
    def choice_logprobs(
        self,
        batch: Sequence[list[int]],
        answers: Sequence[Sequence[list[int]]],
        encoder_states: Float[Tensor, "b t d"] | None = None,
    ) -> list[list[float]]:
        """For each row, the log-probability in nats of each of its answers: the sum over the answer's tokens.

        `answers` are target ids. The encoder runs once per row, or not at all with the batch's `encoder_states`; then the
        decoder runs for the first answer of every row, for the second, and so on. What it makes of the encoder's states
        (keys and values of cross-attention, most of its work) is made once and stays in `memory`.
        """
        ids, mask = self.batch(batch)
        states = self.encode_states(ids, mask) if encoder_states is None else encoder_states
        memory = DynamicCache()
        scores: list[list[float]] = [[] for _ in answers]
        for place in range(max(map(len, answers), default=0)):
            given = {
                "encoder_outputs": BaseModelOutput(last_hidden_state=states),
                "attention_mask": mask,
                "past_key_values": EncoderDecoderCache(DynamicCache(), memory),
                "use_cache": True,
            }
            nll = self._nll(self.model, given, [own[place] if place < len(own) else [self._ends[0]] for own in answers])
            for own, found, value in zip(answers, scores, nll.tolist(), strict=True):
                found.extend([-value] if place < len(own) else [])
        return scores

    def target_logprob(
        self, embeds: Float[Tensor, "b t d"], mask: Int[Tensor, "b t"], answers: Sequence[list[int]]
    ) -> Float[Tensor, "b"]:
        """The log-probability of one answer per row (target ids), in nats, as a function of the input embeddings."""
        given = {"inputs_embeds": embeds.to(self.model.dtype), "attention_mask": mask, "use_cache": False}
        return -self._nll(self.model, given, answers)

    def sequence_nll(
        self, forward: Callable[..., Any], input_ids: Sequence[list[int]], target_ids: Sequence[list[int]]
    ) -> Float[Tensor, "n"]:
        """The summed negative log-likelihood of each target sequence in nats; `forward` is the model, wrapped or not."""
        ids, mask = self.batch(input_ids)
        return self._nll(forward, {"input_ids": ids, "attention_mask": mask, "use_cache": False}, target_ids)

    def _nll(self, forward: Callable[..., Any], given: dict[str, Any], target_ids: Sequence[list[int]]) -> Float[Tensor, "n"]:
        """Teacher forcing: what the decoder would have paid for the targets, in float32, at their positions only."""
        targets, mask = self.batch(target_ids)
        shifted = torch.cat([torch.full_like(targets[:, :1], self._start), targets[:, :-1]], 1)
        logits: Float[Tensor, "n a v"] = forward(**given, decoder_input_ids=shifted).logits
        wanted = mask.bool()
        nll = functional.cross_entropy(logits[wanted].float(), targets[wanted], reduction="none")
        return torch.zeros_like(targets, dtype=torch.float32).masked_scatter(wanted, nll).sum(1)

    def _tokenize_answer(self, text: str) -> tuple[int, ...]:
        ids = self._tokenizer(text_target=text, verbose=False)["input_ids"]
        ids = ids[1:] if ids[:1] == [self._start] else ids
        return tuple(ids) if ids and ids[-1] in self._ends else (*ids, self._ends[0])

    def _read(self, written: list[int]) -> Generated:
        """What stands up to the first end-of-sequence token. Unknown words stay visible, other special tokens do not."""
        length = next((place for place, id_ in enumerate(written, start=1) if id_ in self._ends), None)
        ids = written[:length]
        text: str = self._tokenizer.decode([id_ for id_ in ids if id_ not in self._special_ids])
        return Generated(text.strip(), length is not None, ids)


def _frame(loaded: Loaded) -> tuple[int, int, tuple[int, ...]]:
    """The ids that start an answer, pad and end one."""
    said = loaded.model.config.to_dict() | loaded.model.generation_config.to_diff_dict()
    start, end, pad = said.get("decoder_start_token_id"), said.get("eos_token_id"), loaded.tokenizer.pad_token_id
    if start is None or end is None or pad is None:
        raise ConfigError(
            f"{loaded.name}: expected decoder_start_token_id, eos_token_id and a padding token, got {start}, {end}, {pad}; "
            "set them in the model's generation_config.json"
        )
    return start, pad, tuple(end) if isinstance(end, list) else (end,)


def _check_positions(config: Any, name: str, limit: int) -> None:
    positions = config.to_dict().get("max_position_embeddings")
    if positions is not None and limit > positions:
        raise ConfigError(f"{name}: the model has {positions} positions, got {limit}; set {name} to at most {positions}")


def _span(text: str, starts: Sequence[int], start: int, end: int) -> Span:
    """Offsets into the joined text as a span of the segment that they overlap most (of equals, the first).

    White space at the ends is left out: many tokenizers count the space before a word as part of it.
    """
    inner = text[start:end].strip()
    if inner:
        start += text[start:end].index(inner)
        end = start + len(inner)
    first = min(bisect_right(starts, start) - 1, len(starts) - 2)
    candidates = range(first, max(first, bisect_left(starts, end) - 1) + 1)
    best = max(candidates, key=lambda segment: min(end, starts[segment + 1]) - max(start, starts[segment]))
    return Span(best, max(start, starts[best]) - starts[best], min(end, starts[best + 1]) - starts[best])


def _kept(spans: Sequence[Span | None], segments: Sequence[Segment], limit: int) -> list[int]:
    """Indices of the tokens that stay."""
    sizes = Counter(span.segment for span in spans if span and segments[span.segment].role not in NEVER_CUT)
    fixed = len(spans) - sizes.total()
    if fixed > limit:
        raise RowFault("too_long", f"{fixed} tokens of options and prompt, limit max_input_tokens = {limit}")
    for _ in range(len(spans) - limit):
        sizes[max(sizes, key=lambda segment: sizes[segment])] -= 1
    kept = []
    for index, span in enumerate(spans):
        if span and span.segment in sizes:
            sizes[span.segment] -= 1
            if sizes[span.segment] < 0:
                continue
        kept.append(index)
    return kept
