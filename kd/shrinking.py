"""A copy of a model's architecture that is small enough to be tried where a job starts: narrow, of few layers, weights drawn."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from kd.loading import seeded
from kd.models import Loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_PARAMETERS = 50_000_000
"""A copy with more than these, most of them a large vocabulary's, is not made: 200 MB."""

MOST_LAYERS = 8

_HEADS, _PER_HEAD, _INNER, _EXPERTS = 4, 8, 64, 4
_SIZES = {
    "hidden_size d_model n_embd n_embed dim emb_dim embedding_size": _HEADS * _PER_HEAD,
    "word_embed_proj_dim decoder_hidden_size pooler_hidden_size": _HEADS * _PER_HEAD,
    "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads": _HEADS,
    "num_encoder_attention_heads num_decoder_attention_heads": _HEADS,
    "num_key_value_heads num_kv_heads swa_num_key_value_heads": _HEADS // 2,
    "head_dim global_head_dim swa_head_dim d_head d_kv kv_channels attention_head_dim rotary_dim": _PER_HEAD,
    "qk_nope_head_dim qk_rope_head_dim v_head_dim": _PER_HEAD,
    "q_lora_rank kv_lora_rank": 2 * _PER_HEAD,
    "intermediate_size moe_intermediate_size shared_intermediate_size shared_expert_intermediate_size hidden_dim": _INNER,
    "d_ff dim_ff ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size": _INNER,
    "num_experts num_local_experts n_routed_experts moe_num_experts": _EXPERTS,
    "num_experts_per_tok moe_topk top_k moe_k": _EXPERTS // 2,
    "n_group topk_group": 1,
    "entity_vocab_size": 8,
}
_MOST: dict[str, int] = {key: size for keys, size in _SIZES.items() for key in keys.split()}
_LAYERS = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
)

_NOT_SO_SMALL = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    StrictDataclassError,
)
"""What the code of a model raises where its sizes do not go together."""


def shrunk(loaded: Loaded) -> Loaded | None:
    """A small model of the same architecture, vocabulary and tokenizer, in float32 on the CPU; None where none can be made.

    It takes part of a second, and no weights of the model, which may be on "meta". That a copy works is asked of
    transformers alone, with ids: so what fails afterwards is not the copy's fault. Weights are drawn larger than a
    fresh model's, so that the input decides what comes out.
    """
    import torch

    try:
        with torch.device("meta"):
            of_size = _built(loaded)
        if sum(parameter.numel() for parameter in of_size.parameters()) > MOST_PARAMETERS:
            return None
        with seeded(0):
            model = _built(loaded)
            _draw(model)
        _read_ids(model)
    except _NOT_SO_SMALL:
        return None
    return dataclasses.replace(loaded, model=model, embedding_scale=None)


def _built(loaded: Loaded) -> "PreTrainedModel":
    import torch

    config = loaded.model.config
    small = type(config).from_dict(narrowed(config.to_dict()))
    small.dtype = torch.float32
    model = type(loaded.model)(small).eval()
    if model.can_generate():
        model.generation_config = loaded.model.generation_config
    return model


def _draw(model: "PreTrainedModel") -> None:
    """Draw all matrices so that what goes through them keeps its size."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()))


def _read_ids(model: "PreTrainedModel") -> None:
    """What transformers' own examples do with a model."""
    import torch

    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    decoder = {"decoder_input_ids": ids[:, :1]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder)


def narrowed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as a dictionary with its sizes at most so large, those of configs inside it too."""
    layers = _layers(config)
    lengths = {size for key in _LAYERS if isinstance(size := config.get(key), int)}
    small = {key: _narrowed(key, value, lengths, layers) for key, value in config.items()}
    for keys in ("num_key_value_heads", "num_kv_heads"):
        if config.get(keys) is not None and config[keys] == config.get("num_attention_heads"):
            small[keys] = small["num_attention_heads"]  # every head has its own
    return small


def _narrowed(key: str, value: Any, lengths: set[int], layers: int) -> Any:
    if isinstance(value, Mapping) and "model_type" in value:
        return narrowed(value)
    if isinstance(value, list) and len(value) in lengths:
        return value[:layers]  # one entry for each layer
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    return min(value, layers if key in _LAYERS else _MOST.get(key, value))


def _layers(config: Mapping[str, Any]) -> int:
    """Two, or as many as have one of each kind."""
    kinds = config.get("layer_types") or []
    firsts = [kinds.index(kind) + 1 for kind in set(kinds)]
    return min(max([2, *firsts]), MOST_LAYERS)
