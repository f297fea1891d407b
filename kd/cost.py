"""What rows cost a model, in floating-point operations of its matrix products.

A weight costs 2 FLOP per token forward. Backward costs 2 for the gradient at its input, and 2 more for its own, which
frozen weights do not need. Attention's two products cost 2 FLOP per width and pair of positions forward, and twice that
backward. Everything else (norms, activations, the softmax) is left out, as is usual; so these are lower bounds.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd.models import Loaded

_CROSS = ("EncDecAttention", "encoder_attn", "crossattention")
_KEYS_VALUES = ("k", "v", "k_proj", "v_proj", "key", "value")
_QUERIES = ("q", "q_proj", "query")


@dataclass(frozen=True)
class Shape:
    """Weights in matrix products by what passes them, and attention widths (heads x size, summed over layers).

    `reader`: per input token; `crossed`: per input token too, the keys and values that a decoder makes of what an encoder
    read; `writer`: per token that is fed in behind the input; `head`: per token whose logits are wanted. A causal model
    reads and writes with the same weights. Widths: `reads` of the input over itself, `writes` of what is fed in behind it
    over itself, `crosses` over the input.

    The last token of an answer is never fed in. `starts` are the tokens that stand before the first: a decoder's start
    token; none where the input's last token already tells the answer's first.
    """

    reader: int
    crossed: int
    writer: int
    head: int
    reads: int
    writes: int
    crosses: int
    starts: int


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one row, forward; and with the gradient at its input on top."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        return self.forward + self.backward


def shape_of(loaded: "Loaded") -> Shape:
    """The shape of a model, also of one without weights (`load(..., "meta")`)."""
    inside = _encoder_decoder if loaded.family == "encoder_decoder" else _one_stack
    return inside(loaded)


def explained_row(shape: Shape, input_tokens: int, answer_tokens: int, frozen: bool = True) -> Flops:
    """One row's answer under teacher forcing: forward, and backward to the input's embeddings.

    Weights that are not frozen cost their own gradient too.
    """
    fed = shape.starts + answer_tokens - 1
    weights = (shape.reader + shape.crossed) * input_tokens + shape.writer * fed + shape.head * answer_tokens
    pairs = shape.reads * input_tokens**2 + shape.writes * fed**2 + shape.crosses * input_tokens * fed
    forward = 2.0 * weights + 4.0 * pairs
    return Flops(forward, (2.0 if frozen else 4.0) * weights + 8.0 * pairs)


def learned_row(shape: Shape, input_tokens: int, answer_tokens: int) -> float:
    """One sequence of one training step: forward, and backward to every weight; 6 FLOP per weight and token."""
    return explained_row(shape, input_tokens, answer_tokens, frozen=False).both


def answered_row(shape: Shape, input_tokens: int, answer_tokens: int) -> float:
    """One row read and its answer generated: the same tokens as under teacher forcing, one after the other."""
    return explained_row(shape, input_tokens, answer_tokens).forward


def written_row(shape: Shape, input_tokens: int, answer_tokens: int, answers: int = 1) -> float:
    """What one row's answers cost more, generated or ranked one after the other, where the input has been read.

    An answer's first token costs nothing: its probabilities come with the reading.
    """
    fed = answer_tokens - 1
    weights = (shape.writer + shape.head) * fed
    pairs = shape.writes * fed * (shape.starts + fed) + shape.crosses * input_tokens * fed
    return answers * (2.0 * weights + 4.0 * pairs)


def _encoder_decoder(loaded: "Loaded") -> Shape:
    model: Any = loaded.model
    encoder, decoder = _linears(model.get_encoder()), _linears(model.get_decoder())
    crossed = {name: size for name, size in decoder.items() if _is(name, _CROSS, _KEYS_VALUES)}
    return Shape(
        reader=sum(weights for weights, _ in encoder.values()),
        crossed=sum(weights for weights, _ in crossed.values()),
        writer=sum(weights for name, (weights, _) in decoder.items() if name not in crossed and not _is_head(name)),
        head=_head(loaded),
        reads=sum(width for name, (_, width) in encoder.items() if _is(name, (), _QUERIES)),
        writes=sum(width for name, (_, width) in decoder.items() if _is(name, (), _QUERIES) and not _is(name, _CROSS, _QUERIES)),
        crosses=sum(width for name, (_, width) in decoder.items() if _is(name, _CROSS, _QUERIES)),
        starts=1,
    )


def _one_stack(loaded: "Loaded") -> Shape:
    """An encoder, or a causal model, whose answer sees the prompt and itself through the same weights."""
    linears = _linears(loaded.model.base_model)
    weights = sum(size for size, _ in linears.values())
    width = sum(width for name, (_, width) in linears.items() if _is(name, (), _QUERIES)) or _fused_width(loaded)
    causal = loaded.family == "decoder_only"
    return Shape(weights, 0, weights * causal, _head(loaded) * causal, width, width * causal, width * causal, starts=0)


def _linears(module: Any) -> dict[str, tuple[int, int]]:
    """Weights and outputs of every matrix product in a module, by name; what pools a row into one vector is not per token."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found = {}
    for name, part in module.named_modules():
        if "pooler" in name.split("."):
            continue
        if isinstance(part, nn.Linear):
            found[name] = part.weight.numel(), part.out_features
        elif isinstance(part, Conv1D):
            found[name] = part.weight.numel(), part.nf
    return found


def _head(loaded: "Loaded") -> int:
    head = loaded.model.get_output_embeddings()
    return 0 if head is None else int(head.weight.numel())


def _fused_width(loaded: "Loaded") -> int:
    """For models that make queries, keys and values in one product."""
    config = loaded.model.config
    return int(config.hidden_size * config.num_hidden_layers)


def _is_head(name: str) -> bool:
    return name.endswith(("lm_head", "predictions.decoder"))


def _is(name: str, inside: tuple[str, ...], called: tuple[str, ...]) -> bool:
    """Whether a module has one of these names, inside one of those where there are any."""
    *outer, last = name.split(".")
    return last in called and (not inside or any(part in inside for part in outer))
