"""Decoders alone: the shape of GPT, Llama, Qwen. The prompt is the row's text, and the answer goes on behind it.

Prompts are padded on the left and answers on the right, whatever side the tokenizer prefers: so the answer begins at the
same place in every row, and positions are counted over real tokens only.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from kd.errors import ConfigError
from kd.families.base import Answer, check_positions
from kd.families.generative import Generative, Opening, branched
from kd.families.prompts import PLAIN_TURN, AnswerTokens, ChatTemplate, end_of_turn, plain_frame
from kd.families.text import Reader


class DecoderOnly(Generative):
    """A causal model that reads a prompt and writes the answer behind it."""

    pads_left = True

    def open(self, embeds: Float[Tensor, "b t d"], mask: Int[Tensor, "b t"]) -> Opening:
        """The prompt's pass; logits of its last token only."""
        out = self.model(
            inputs_embeds=embeds.to(self.model.dtype),
            attention_mask=mask,
            past_key_values=DynamicCache(config=self.model.config),
            use_cache=True,
            logits_to_keep=1,
            **self._positions((mask.cumsum(1) - 1).clamp(min=0)),
        )
        return Opening(mask, out.past_key_values, None, out.logits[:, -1].to(mask.device).float().log_softmax(-1))

    def write(self, opening: Opening, cache: Any, written: int, ids: Int[Tensor, "b a"]) -> Float[Tensor, "b a v"]:
        mask, width = opening.mask, ids.shape[1]
        whole = torch.cat([mask, mask.new_ones(len(mask), written + width)], 1)
        places = mask.sum(1, keepdim=True) + written + torch.arange(width, device=mask.device)
        out = self.model(input_ids=ids, attention_mask=whole, past_key_values=cache, use_cache=True, **self._positions(places))
        logits: Float[Tensor, "b a v"] = out.logits.to(mask.device)
        return logits

    def sequence_nll(
        self, forward: Callable[..., Any], input_ids: Sequence[list[int]], target_ids: Sequence[list[int]]
    ) -> Float[Tensor, "n"]:
        """Prompt and target in one pass of the whole model, the loss at the target's positions only, in float32."""
        prompts, prompt_mask = self.inputs(input_ids)
        targets, target_mask = self.batch(target_ids)
        ids, mask = torch.cat([prompts, targets[:, :-1]], 1), torch.cat([prompt_mask, target_mask[:, :-1]], 1)
        positions = self._positions((mask.cumsum(1) - 1).clamp(min=0))
        return self.target_nll(
            forward, targets, target_mask, input_ids=ids, attention_mask=mask, logits_to_keep=targets.shape[1], **positions
        )

    def _positions(self, places: Int[Tensor, "b a"]) -> dict[str, Any]:
        """Positions for a model that takes them; others count by the attention mask."""
        return {"position_ids": places} if self._takes_positions else {}

    def counted(self, ids: Sequence[int]) -> Answer:
        """Without the end, unless a run here trained the model on answers with theirs.

        What another model does behind an answer (a new line, a full stop, an explanation) says nothing about the answer, and
        would be most of the number. An answer without a token of its own is its end.
        """
        ended = len(ids) > 1 and ids[-1] in self.ends
        return list(ids[:-1] if ended and not self.loaded.trained_here else ids)

    def counted_ends(self) -> tuple[int, ...]:
        return self.ends[:1] if self.loaded.trained_here else self.ends

    def _answer_ids(self, text: str) -> tuple[int, ...]:
        """Behind the lead or in the template, with the token that ends it there."""
        return (*self._tokens(text), self.ends[0])

    def _reader(self) -> Reader:
        """An end-of-sequence token that the tokenizer puts behind the prompt is dropped: the answer is still to come."""
        end, template = self.tokenizer.eos_token_id, self._template
        return Reader(
            self.tokenizer,
            self.special_ids,
            self.max_input_tokens,
            frame=template.frame if template else plain_frame,
            adds_special_tokens=template is None,
            never_last=frozenset() if template or end is None else frozenset({end}),
        )

    @cached_property
    def _template(self) -> ChatTemplate | None:
        loaded = self.loaded
        return ChatTemplate(self.tokenizer, loaded.chat_template_kwargs, self.name) if loaded.chat_template else None

    def _pad_token(self) -> int:
        """Padding is masked, so where a tokenizer has no token for it any other will do."""
        pad = self.tokenizer.pad_token_id
        return next((id_ for id_ in (pad, self.tokenizer.eos_token_id) if id_ is not None), 0)

    def _check_model(self) -> None:
        said = self.model.config.to_dict() | self.model.generation_config.to_diff_dict()
        branched(DynamicCache(config=self.model.config))  # refuses here what it would refuse in the first batch
        end = self.tokenizer.eos_token_id if said.get("eos_token_id") is None else said["eos_token_id"]
        if end is None:
            raise ConfigError(f"{self.name}: expected an eos_token_id, got none; set it in the model's generation_config.json")
        turn = self._template.turn if self._template else PLAIN_TURN
        self._tokens = AnswerTokens(self.tokenizer, turn)
        ends = tuple(end) if isinstance(end, list) else (end,)
        first = end_of_turn(self.tokenizer, turn.behind, ends)
        self.ends = tuple(dict.fromkeys([ends[0] if first is None else first, *ends]))
        self._takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        for name, tokens in (("max_answer_tokens", self.max_answer_tokens), ("max_generated_tokens", self.max_generated_tokens)):
            check_positions(self.model.config, f"max_input_tokens + {name}", self.max_input_tokens + tokens)
