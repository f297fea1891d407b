"""Models of which a test knows what they do: one whose scores can be worked out by hand, one that says what it is told."""

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from kd.models import Loaded
from kd.specs import T5Spec
from kd.vocabulary import train_tokenizer


class ToyTeacher(nn.Module):
    """A linear teacher: the logits of every answer token are the sum of the input's embeddings, one per vocabulary entry.

    The vocabulary is <pad>, </s>, <unk>, yes, no. Every embedding is zero, but that of "yes" is ln 4 for "yes". So an
    input with one "yes" has the probabilities 1/8 1/8 1/8 4/8 1/8, an input without it 1/5 each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 5)
        with torch.no_grad():
            self.embedding.weight.zero_()
            self.embedding.weight[3, 3] = math.log(4)
        self.head = nn.Identity()
        self.config = self.generation_config = _ToyConfig(decoder_start_token_id=0, eos_token_id=1)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def get_encoder(self) -> "ToyTeacher":
        return self

    def get_decoder(self) -> "ToyTeacher":
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def get_output_embeddings(self) -> nn.Identity:
        return self.head

    def forward(
        self,
        attention_mask: Int[Tensor, "b t"],
        input_ids: Int[Tensor, "b t"] | None = None,
        inputs_embeds: Float[Tensor, "b t d"] | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        decoder_input_ids: Int[Tensor, "b a"] | None = None,
        past_key_values: None = None,
        use_cache: bool = False,
    ) -> Any:
        if input_ids is not None:
            inputs_embeds = self.embedding(input_ids)
        states = inputs_embeds if encoder_outputs is None else encoder_outputs.last_hidden_state
        if decoder_input_ids is None:
            return BaseModelOutput(last_hidden_state=states)
        logits = (states * attention_mask.unsqueeze(-1)).sum(1, keepdim=True)
        return SimpleNamespace(logits=self.head(logits.expand(-1, decoder_input_ids.shape[1], -1)), past_key_values=None)


def toy_teacher() -> Loaded:
    """The linear teacher with its tokenizer."""
    tokenizer = train_tokenizer(T5Spec(vocab_size=8), ["yes yes no"])
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["<pad>", "</s>", "<unk>", "▁yes", "▁no"]
    return Loaded(ToyTeacher().eval(), tokenizer, "toy@1")  # type: ignore[arg-type]


class Steered(nn.Module):
    """A model that generates what it is told, row by row, whatever it reads; everything else is the model's own."""

    def __init__(self, inner: Any, answers: list[list[int]]) -> None:
        super().__init__()
        self.inner, self.answers = inner, answers
        self.config, self.generation_config = inner.config, inner.generation_config
        self.device, self.dtype = inner.device, inner.dtype
        self.get_encoder, self.get_decoder = inner.get_encoder, inner.get_decoder
        self.get_output_embeddings = inner.get_output_embeddings

    def forward(self, use_cache: bool, past_key_values: Any = None, **given: Any) -> Any:
        written = past_key_values.get_seq_length() if past_key_values is not None else 0
        out = self.inner(use_cache=use_cache, past_key_values=past_key_values, **given)
        generates = out.logits.dim() == 3 and use_cache  # an answer that is given is asked about at its own tokens alone
        for row in range(len(out.logits) if generates else 0):
            answer = self.answers[min(row, len(self.answers) - 1)]
            out.logits[row, -1, answer[min(written, len(answer) - 1)]] = 1e4
        return out


def steered(loaded: Loaded, *answers: list[int]) -> Loaded:
    """A model that generates these target ids, one answer per row, the last one for all rows after it."""
    model = Steered(loaded.model, list(answers))
    return Loaded(model, loaded.tokenizer, "steered", embedding_scale=1.0)  # type: ignore[arg-type]


class _ToyConfig(SimpleNamespace):
    attribute_map: ClassVar[dict[str, str]] = {}

    def to_dict(self) -> dict[str, Any]:
        return vars(self)

    to_diff_dict = to_dict
