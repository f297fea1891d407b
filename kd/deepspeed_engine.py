"""DeepSpeed's ZeRO as the training loop wants it (`kd.training.engine.Engine`), for every stage and both precisions.

It knows torch's process group, which its caller has opened, and not Ray.
"""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from kd.errors import StoreError
from kd.training.config import LoopConfig
from kd.training.deepspeed import deepspeed_json
from kd.training.engine import adamw, clip_gradient, evaluating, set_learning_rate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TAG = "engine"


class DeepSpeedEngine:
    """One rank of a group.

    DeepSpeed averages over workers, so a loss is multiplied by their number. How many passes a step has it is not told: it
    sums their gradients, and reduces (stages 0, 1) or finishes (2, 3) them in the one that is said to be the last. On a CPU
    nothing is compiled: the optimizer is torch's, and the shared-memory operation is declared unavailable before it can be
    built.
    """

    def __init__(self, model: "PreTrainedModel", config: LoopConfig, device: str) -> None:
        self.rank, self.world, self.device = distributed.get_rank(), distributed.get_world_size(), device
        self.module = model
        self._parameters = list(model.parameters())
        self.config = config
        self._deepspeed = _import_deepspeed(device)
        self._copy = self._whole_copy(model) if config.zero_stage == 3 else None
        self._optimizer = adamw(model, config)
        settings = deepspeed_json(config, self.world)
        self._engine = self._deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=settings, dist_init_required=False
        )[0]
        self.forward: Callable[..., Any] = self._engine

    def backward(self, loss: Float[Tensor, ""], last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.world)

    def step(self, learning_rate: float) -> Float[Tensor, ""]:
        set_learning_rate(self._optimizer, learning_rate)
        if self.config.has_plain_gradients:
            norm = clip_gradient(self._parameters, self.config.clip_norm)
            self._engine.step()
            return norm
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def total(self, values: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
        summed = values.clone()
        distributed.all_reduce(summed)
        return summed

    @contextmanager
    def whole(self) -> Iterator["PreTrainedModel"]:
        model = self.module if self._copy is None else self._gathered(self._copy)
        with evaluating(model):
            yield model

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=_TAG)

    def load(self, folder: Path) -> None:
        if self._engine.load_checkpoint(str(folder), tag=_TAG)[0] is None:
            raise StoreError(f"{folder} holds no checkpoint of DeepSpeed; delete the run's checkpoints and start again")

    def close(self) -> None:
        """Free what the next run needs."""
        self._engine.destroy()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _whole_copy(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """A model of its own on every rank: under ZeRO-3 ranks that generate unequally long answers would wait forever."""
        copy = deepcopy(model)
        return copy.to(torch.bfloat16) if self.config.precision == "bfloat16" else copy

    @torch.no_grad()
    def _gathered(self, copy: "PreTrainedModel") -> "PreTrainedModel":
        """The copy with the weights of now, fetched one by one from the ranks that hold them."""
        for mine, shared in zip(copy.parameters(), self.module.parameters(), strict=True):
            with self._deepspeed.zero.GatheredParameters([shared]):
                mine.copy_(shared)
        return copy


def _import_deepspeed(device: str) -> Any:
    """DeepSpeed, which decides on the accelerator when it is imported."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
