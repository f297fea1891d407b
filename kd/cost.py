"""What rows cost a model, in floating-point operations of its matrix products.

A weight costs 2 FLOP per token forward. Backward costs 2 for the gradient at its input, and 2 more for its own, which
frozen weights do not need. Attention's two products cost 2 FLOP per width and pair of positions forward, and twice that
backward. Everything else (norms, activations, the softmax) is left out, as is usual; so these are lower bounds.

How many weights a token passes is not read off a model's layers but counted: the model runs on torch's meta device, which
computes nothing, on inputs of a few lengths, and the counts are solved for the weights and widths. So shared layers count as
often as they run, of a mixture's experts those that a token is sent to, and every other product as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kd.errors import ConfigError

if TYPE_CHECKING:
    from kd.models import Loaded

_UNIT_TOKENS = 8
"""Inputs of one to three times so many tokens are counted, and of half as many tokens of an answer."""
_LONG_TOKENS = 1024
"""The count is checked on an input of so many tokens, or of as many as the model has positions for."""


@dataclass(frozen=True)
class Shape:
    """Weights of matrix products, counted by which tokens pass them; widths of attention: heads x size, summed over layers.

    `reader`: per input token; `crossed`: per input token too, the keys and values that a decoder makes of what an encoder
    read; `writer`: per token that is fed in behind the input; `head`: per token whose logits are wanted. A causal model
    reads and writes with the same weights. Widths: `reads` of the input over itself, `writes` of what is fed in behind it
    over itself, `crosses` over the input.

    The last token of an answer is never fed in. `starts` are the tokens that stand before the first: a decoder's start
    token; none where the input's last token already tells the answer's first.

    `once`: weights that a row passes once, whatever its length: what pools it, and a classifier's head. What the rows of a
    micro-batch share, such as DeBERTa's projections of relative positions: `pass_flops` operations of each forward pass, and
    `pass_weights` by each position of its longest row.
    `read_kernels` and `write_kernels` are how many operations a forward pass starts on a device: of the whole input, and of
    what is fed in behind it.
    """

    reader: int
    crossed: int
    writer: int
    head: int
    reads: int
    writes: int
    crosses: int
    starts: int
    once: int = 0
    pass_flops: int = 0
    pass_weights: int = 0
    read_kernels: int = 0
    write_kernels: int = 0

    @property
    def whole_kernels(self) -> int:
        """Operations that a forward pass over input and answer together starts on a device."""
        return self.read_kernels + (self.write_kernels if self.starts else 0)

    def shared_flops(self, longest_tokens: int) -> float:
        """Operations of a forward pass that the rows of a micro-batch share, the longest of so many tokens."""
        return self.pass_flops + 2.0 * self.pass_weights * longest_tokens


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one row, forward; and with the gradient at its input on top."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        return self.forward + self.backward


def shape_of(loaded: "Loaded") -> Shape:
    """The shape of a model, also of one without weights (`load(..., "meta")`).

    Raises:
        ConfigError: what a row costs cannot be counted without weights, or is no sum of weights times tokens and widths times
            pairs of positions (block-wise attention, for instance).
    """
    inside = _encoder_decoder if loaded.family == "encoder_decoder" else _one_stack
    try:
        with _countable(loaded.model):
            return inside(loaded)
    except Exception as error:
        raise ConfigError(
            f"{loaded.name}: what a row costs a {type(loaded.model).__name__} is not known: {error}. Plan with another model"
        ) from error


def explained_row(shape: Shape, input_tokens: int, answer_tokens: int, frozen: bool = True) -> Flops:
    """One row's answer under teacher forcing: forward, and backward to the input's embeddings.

    Weights that are not frozen cost their own gradient too.
    """
    fed = shape.starts + answer_tokens - 1
    weights = (shape.reader + shape.crossed) * input_tokens + shape.writer * fed + shape.head * answer_tokens + shape.once
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


@dataclass(frozen=True)
class _Count:
    """One forward pass: its floating-point operations, and the operations that it starts on a device."""

    flops: int
    kernels: int


def _encoder_decoder(loaded: "Loaded") -> Shape:
    from transformers.modeling_outputs import BaseModelOutput

    model, head = loaded.model, _head(loaded)
    encoder, unit = model.get_encoder(), _UNIT_TOKENS

    def read(rows: int, tokens: int) -> Callable[[], object]:
        embedded = _zeros(encoder, rows, tokens)
        return lambda: encoder(inputs_embeds=embedded)

    def written(rows: int, tokens: int, fed: int) -> Callable[[], object]:
        states = BaseModelOutput(last_hidden_state=_zeros(encoder, rows, tokens))
        ids = _ids(model, rows, fed)
        return lambda: model(encoder_outputs=states, decoder_input_ids=ids, use_cache=False)

    shape, few = _read_shape(read, _longest(encoder)), unit // 2
    sizes = [(unit, few), (2 * unit, few), (unit, 2 * few), (2 * unit, 2 * few), (unit, 3 * few), (_longest(encoder), 3 * few)]
    counts = [_counted(written(1, *size)) for size in sizes]
    terms = [[2 * tokens, 2 * fed, 4 * fed**2, 4 * tokens * fed, 1] for tokens, fed in sizes]
    crossed, writer, writes, crosses, shared = _solved(terms, [count.flops for count in counts])
    return replace(
        shape,
        crossed=crossed,
        writer=writer - head,
        head=head,
        writes=writes,
        crosses=crosses,
        starts=1,
        pass_flops=shape.pass_flops + shared,
        write_kernels=counts[0].kernels,
    )


def _one_stack(loaded: "Loaded") -> Shape:
    """An encoder, or a causal model, whose answer sees the prompt and itself through the same weights."""
    model, causal = loaded.model, loaded.family == "decoder_only"
    more = {"use_cache": False, "logits_to_keep": 1} if causal else {}

    def read(rows: int, tokens: int) -> Callable[[], object]:
        embedded = _zeros(model, rows, tokens)
        return lambda: model(inputs_embeds=embedded, **more)

    shape = _read_shape(read, _longest(model))
    if not causal:
        return shape
    head = _head(loaded)
    behind = {"writer": shape.reader, "writes": shape.reads, "crosses": shape.reads, "write_kernels": shape.read_kernels}
    return replace(shape, once=shape.once - head, head=head, **behind)


def _read_shape(read: Callable[[int, int], Callable[[], object]], longest: int) -> Shape:
    """The part of a shape that reads, from counted passes over so many rows of so many tokens."""
    unit = _UNIT_TOKENS
    sizes = [(1, unit), (1, 2 * unit), (1, 3 * unit), (2, unit), (2, 2 * unit), (1, longest)]
    counts = [_counted(read(*size)) for size in sizes]
    terms = [[2 * rows * tokens, 4 * rows * tokens**2, 2 * rows, 2 * tokens, 1] for rows, tokens in sizes]
    reader, reads, once, per_token, shared = _solved(terms, [count.flops for count in counts])
    passes = {"pass_flops": shared, "pass_weights": per_token, "read_kernels": counts[0].kernels}
    return Shape(reader, 0, 0, 0, reads, 0, 0, 0, once=once, **passes)


def _longest(model: Any) -> int:
    return min(_LONG_TOKENS, getattr(model.config, "max_position_embeddings", None) or _LONG_TOKENS)


def _solved(terms: Sequence[Sequence[int]], flops: Sequence[int]) -> list[int]:
    """The whole number that stands before each term, the same in every count. Raises ValueError where there are none such."""
    import numpy as np

    left, right = np.array(terms, dtype=float), np.array(flops, dtype=float)
    scale = np.abs(left).max(0)
    found = [round(float(value)) for value in np.linalg.lstsq(left / scale, right, rcond=None)[0] / scale]
    again = [sum(factor * value for factor, value in zip(row, found, strict=True)) for row in terms]
    if again != list(flops):
        raise ValueError("it does not grow with the tokens, and with their pairs, as that of attention and matrices does")
    return found


def _counted(work: Callable[[], object]) -> _Count:
    """What a forward pass costs, by torch's own formula for each matrix product."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    found = {"flops": 0, "kernels": 0}

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
                return True  # of tensors without values a model only asks whether its mask has no padding
            out = func(*args, **(kwargs or {}))
            if func._overloadpacket in flop_registry:
                found["flops"] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            found["kernels"] += not func.is_view
            return out

    with torch.no_grad(), Counting():  # type: ignore[no-untyped-call]
        work()
    return _Count(**found)


@contextmanager
def _countable(model: Any) -> Iterator[None]:
    """Inside, attention is matrix products that torch counts, and a token is multiplied by its own experts alone."""
    attention, experts = model.config._attn_implementation, model.get_experts_implementation()
    model.set_attn_implementation("eager")
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        if model._can_set_experts_implementation():
            model.set_experts_implementation(experts)


def _zeros(model: Any, rows: int, tokens: int) -> Any:
    """Embedded inputs, where the model is."""
    import torch

    weight = model.get_input_embeddings().weight
    return torch.zeros(rows, tokens, weight.shape[1], device=weight.device, dtype=weight.dtype)


def _ids(model: Any, rows: int, tokens: int) -> Any:
    import torch

    return torch.zeros(rows, tokens, device=model.device, dtype=torch.long)


def _head(loaded: "Loaded") -> int:
    head = loaded.model.get_output_embeddings()
    return 0 if head is None else int(head.weight.numel())
