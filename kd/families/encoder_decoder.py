"""Encoder-decoders: T5, Flan-T5, BART and pairs of encoders (`EncoderDecoderModel`), through what they have in common.

The encoder reads the segments' texts joined as they are; the decoder writes the answer, from its start token on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from kd.errors import ConfigError
from kd.families.base import check_positions, embeddings_of
from kd.families.generative import Generative, Opening


class EncoderDecoder(Generative):
    """A model that reads with an encoder and answers with a decoder."""

    def open(self, embeds: Float[Tensor, "b t d"], mask: Int[Tensor, "b t"]) -> Opening:
        """The encoder's pass, and the decoder's over the start token alone."""
        encoder = self.model.get_encoder()
        states = BaseModelOutput(
            last_hidden_state=encoder(inputs_embeds=embeds.to(self.model.dtype), attention_mask=mask).last_hidden_state
        )
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        start = torch.full_like(mask[:, :1], self._start)
        logits = self._decode(states, mask, cache, start)[:, -1]
        return Opening(mask, cache, states, logits.float().log_softmax(-1))

    def write(self, opening: Opening, cache: Any, written: int, ids: Int[Tensor, "b a"]) -> Float[Tensor, "b a v"]:  # noqa: ARG002
        return self._decode(opening.memory, opening.mask, cache, ids)

    def sequence_nll(
        self, forward: Callable[..., Any], input_ids: Sequence[list[int]], target_ids: Sequence[list[int]]
    ) -> Float[Tensor, "n"]:
        """Teacher forcing in one pass of the whole model: what the decoder would have paid for the targets, in float32."""
        ids, mask = self.inputs(input_ids)
        targets, target_mask = self.batch(target_ids)
        shifted = torch.cat([torch.full_like(targets[:, :1], self._start), targets[:, :-1]], 1)
        return self.target_nll(forward, targets, target_mask, input_ids=ids, attention_mask=mask, decoder_input_ids=shifted)

    def _decode(self, states: Any, mask: Int[Tensor, "b t"], cache: Any, ids: Int[Tensor, "b a"]) -> Float[Tensor, "b a v"]:
        out = self.model(
            encoder_outputs=states, attention_mask=mask, decoder_input_ids=ids, past_key_values=cache, use_cache=True
        )
        logits: Float[Tensor, "b a v"] = out.logits.to(mask.device)  # a model over several GPUs ends on another one
        return logits

    def _answer_ids(self, text: str) -> tuple[int, ...]:
        """Without the decoder's start token, with the end-of-sequence token."""
        ids = self.tokenizer(text_target=text, verbose=False)["input_ids"]
        ids = ids[1:] if ids[:1] == [self._start] else ids
        return tuple(ids) if ids and ids[-1] in self.ends else (*ids, self.ends[0])

    def _embedding(self) -> Any:
        return self.model.get_encoder().get_input_embeddings()

    def _embeddings_of_answer(self) -> int:
        return embeddings_of(self.model.get_decoder().get_input_embeddings())

    def _check_model(self) -> None:
        said = self.model.config.to_dict() | self.model.generation_config.to_diff_dict()
        start, end = said.get("decoder_start_token_id"), said.get("eos_token_id")
        if start is None or end is None:
            raise ConfigError(
                f"{self.name}: expected decoder_start_token_id and eos_token_id, got {start} and {end}; "
                "set them in the model's generation_config.json"
            )
        self._start: int = start
        self._check_token(start, "start", self._embeddings_of_answer())
        self.ends = tuple(end) if isinstance(end, list) else (end,)
        check_positions(self.model.get_encoder().config, "max_input_tokens", self.max_input_tokens)
        check_positions(self.model.get_decoder().config, "max_answer_tokens", self.max_answer_tokens)
        check_positions(self.model.get_decoder().config, "max_generated_tokens", self.max_generated_tokens)
