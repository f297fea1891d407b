"""LoRA (Hu et al. 2021, arXiv:2106.09685): small matrices beside the linear layers of a frozen model learn what it lacks.

The model stays what it was for everybody else: its layers are replaced in place, and what is validated and exported has the
adapters merged in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kd.errors import ConfigError
from kd.frozen import Frozen

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Lora(Frozen):
    """The adapters: beside each chosen weight W stands alpha / rank x B A, and only A and B are trained."""

    rank: int = Field(default=8, ge=1)
    """Rows of A and columns of B."""
    alpha: float = Field(default=16.0, gt=0)
    """Scale of what is added, before it is divided by the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of what A reads, while training."""
    targets: tuple[str, ...] = Field(min_length=1)
    """Names of linear layers, as the model's modules end: `q` and `v` for a T5, `q_proj` and `v_proj` for a Llama."""


def adapted_layers(model: PreTrainedModel, lora: Lora) -> dict[str, torch.nn.Module]:
    """The layers that get adapters, by their full names. The model may be on "meta".

    Raises:
        ConfigError: a target names no linear layer with a weight of its own.
    """
    linear = _linear_layers(model)
    found = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in lora.targets}
    unknown = [target for target, names in found.items() if not names]
    if unknown:
        raise ConfigError(
            f"lora.targets: {', '.join(unknown)} names no linear layer of {type(model).__name__} with a weight of its own;"
            f" expected names among {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}"
        )
    return {name: linear[name] for names in found.values() for name in names}


def add_adapters(model: PreTrainedModel, lora: Lora) -> None:
    """Freeze the model and put adapters beside its chosen layers, in place. They begin as nothing: B is zero, A is random.

    Raises:
        ConfigError: as `adapted_layers`.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    chosen = adapted_layers(model, lora)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(chosen),
        bias="none",
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in chosen.values()),
    )
    inject_adapter_in_model(config, model)
    del model.peft_config


@contextmanager
def merged(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model's adapters are added to its weights, rounded once, and there is no trace of them besides.

    Outside it is what it was, to the bit; only the weights that have adapters are held twice.
    """
    from peft.tuners.lora import LoraLayer

    adapted = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    weights = {name: layer.get_base_layer().weight.data for name, layer in adapted.items()}
    try:
        for name, layer in adapted.items():
            plain = layer.get_base_layer()
            plain.weight.data = (weights[name].float() + _added(layer)).to(weights[name].dtype)
            model.set_submodule(name, plain)
        yield
    finally:
        for name, layer in adapted.items():
            layer.get_base_layer().weight.data = weights[name]
            model.set_submodule(name, layer)


def _added(layer: Any) -> torch.Tensor:
    """What a layer's adapters add to its weight, in fp32. (peft would round this to the weight's precision, and then the sum.)"""
    (name,) = layer.active_adapters
    product: torch.Tensor = layer.lora_B[name].weight.data.float() @ layer.lora_A[name].weight.data.float()
    scaling: float = layer.scaling[name]
    return (product.T if layer.fan_in_fan_out else product) * scaling


def _linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Those with a weight of their own: merging into a shared one would change another layer too."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    named = {name: module for name, module in model.named_modules() if isinstance(module, Linear | Conv1D)}
    return {name: module for name, module in named.items() if owners[id(module.weight)] == 1}
