"""Decoders alone: the shape of GPT, Llama, Qwen. The prompt is the row's text, and the answer goes on behind it.

Prompts are padded on the left and answers on the right, whatever side the tokenizer prefers: so the answer begins at the
same place in every row, and positions are counted over real tokens only.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from kd.errors import ConfigError, RowFault
from kd.families.base import check_positions
from kd.families.generative import Generative, Opening, branched
from kd.families.text import Frame, Reader, as_fault

LEAD = "\nAnswer:"
"""What stands between a row's text and its answer where there is no chat template; the answer then follows a space."""

MARK = "\ue000text\ue000"
"""A text that no chat template holds, as its first and last character are for private use: where it stands, texts stand."""


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

    def _answer_ids(self, text: str) -> tuple[int, ...]:
        """Behind the lead or the template, with the end-of-sequence token."""
        behind = text if self.loaded.chat_template else f" {text}"
        return (*self.tokenizer(behind, add_special_tokens=False, verbose=False)["input_ids"], self.ends[0])

    def _reader(self) -> Reader:
        """An end-of-sequence token that the tokenizer puts behind the prompt is dropped: the answer is still to come."""
        end = self.tokenizer.eos_token_id
        return Reader(
            self.tokenizer,
            self.special_ids,
            self.max_input_tokens,
            frame=self._templated if self.loaded.chat_template else _led,
            adds_special_tokens=not self.loaded.chat_template,
            never_last=frozenset() if self.loaded.chat_template or end is None else frozenset({end}),
        )

    def _templated(self, text: str) -> Frame:
        """The text as one message of a user in the tokenizer's chat template, up to where the assistant answers."""
        frame = Frame.behind(self._template_lead, self._rendered(text), text)
        if frame is None:
            raise RowFault("tokenizer_error", "the chat template changes this text")
        return frame

    def _rendered(self, text: str) -> str:
        message = [{"role": "user", "content": text}]
        with as_fault("the chat template"):
            whole: str = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            return whole

    def _lead_of_template(self) -> int:
        """How many characters the chat template writes before the text of a message."""
        if self.tokenizer.chat_template is None:
            raise ConfigError(f"{self.name}: chat_template = true, but its tokenizer has no chat template")
        try:
            lead = self._rendered(MARK).find(MARK)
        except RowFault as fault:
            raise ConfigError(f"{self.name}: {fault.detail}, the message of a user; set chat_template = false") from fault
        if lead < 0:
            raise ConfigError(f"{self.name}: its chat template changes the text of a message; set chat_template = false")
        return lead

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
        self._template_lead = self._lead_of_template() if self.loaded.chat_template else 0
        self.ends = tuple(end) if isinstance(end, list) else (end,)
        self._takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        for name, tokens in (("max_answer_tokens", self.max_answer_tokens), ("max_generated_tokens", self.max_generated_tokens)):
            check_positions(self.model.config, f"max_input_tokens + {name}", self.max_input_tokens + tokens)


def _led(text: str) -> Frame:
    return Frame(text + LEAD, 0, len(text), 0)
