"""What the training loop needs from whatever holds the weights and the optimizer, and the plain torch way to give it.

The contract on gradients: `backward` gets this rank's part of the loss of the whole global batch, and `step` follows the
sum of the gradients over every rank and every `backward` since the last one. Nothing is averaged.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kd.errors import ConfigError, StoreError
from kd.training.config import LoopConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STATE = "engine.pt"


class Engine(Protocol):
    """Weights and optimizer of one worker among `world`, of which this is number `rank`."""

    rank: int
    world: int
    device: str
    forward: Callable[..., Any]
    """The model as it is called for training; every rank must call it equally often."""

    def backward(self, loss: Float[Tensor, ""], last: bool) -> None:
        """Add the gradient of a part of the loss; `last` before a step, on every rank alike."""

    def step(self, learning_rate: float) -> Float[Tensor, ""]:
        """Update the weights and forget the gradient; its norm before clipping comes back."""

    def total(self, values: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
        """The sum over ranks."""

    def whole(self) -> AbstractContextManager["PreTrainedModel"]:
        """The model with all its weights on every rank, in evaluation mode, for as long as it is looked at."""

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state; every rank calls it, each with a folder of its own. Raises OSError."""

    def load(self, folder: Path) -> None:
        """Read what every rank saved, merged in one folder."""


class TorchEngine:
    """One process, plain torch, fp32: a laptop's engine, and the measure for the others."""

    rank = 0
    world = 1

    def __init__(self, model: "PreTrainedModel", config: LoopConfig, device: str) -> None:
        if config.precision != "float32" or config.num_workers != 1:
            raise ConfigError(
                "the plain torch engine trains in float32 in one process, "
                f"got precision = {config.precision}, num_workers = {config.num_workers}"
            )
        model.to(device=device)
        self.model = model
        self.forward = model
        self.device = device
        self.parameters = list(model.parameters())
        self.clip_norm = config.clip_norm
        self.optimizer = adamw(model, config)

    def backward(self, loss: Float[Tensor, ""], last: bool) -> None:  # noqa: ARG002 - torch adds up until it is told to step
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> Float[Tensor, ""]:
        norm = clip_gradient(self.parameters, self.clip_norm)
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def total(self, values: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
        return values

    @contextmanager
    def whole(self) -> Iterator["PreTrainedModel"]:
        with evaluating(self.model):
            yield self.model

    def save(self, folder: Path) -> None:
        write_state({"model": learned(self.model), "optimizer": self.optimizer.state_dict()}, folder / _STATE)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / _STATE, map_location=self.device, weights_only=True)
        learn_again(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def is_frozen(model: torch.nn.Module) -> bool:
    """Whether some of it is not trained, and so comes from the model that the run starts from at every attempt."""
    return not all(parameter.requires_grad for parameter in model.parameters())


def learned(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state of a model without its frozen weights, by whichever of their names."""
    frozen = {name for name, weight in model.named_parameters(remove_duplicate=False) if not weight.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def learn_again(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `learned` gave. Raises StoreError where that was of a model with other weights to train."""
    expected = learned(model).keys()
    if state.keys() != expected:
        names = sorted(state.keys() ^ expected)
        raise StoreError(
            f"a checkpoint holds {len(state)} weights, expected the {len(expected)} that are trained: {names[0]} is in one of the"
            " two only; delete the run's checkpoints and start again"
        )
    model.load_state_dict(state, strict=False)


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """torch.save. Raises OSError where the disk is full, which torch would hide behind a RuntimeError."""
    try:
        with path.open("wb") as stream:
            torch.save(state, stream)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def adamw(model: torch.nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with decay for matrices and none for norms and biases, T5's of positions among them.

    The fused form updates all weights in one call, which on a small model is a tenth of the step; torch ships it compiled.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decaying = {name for name, parameter in trained.items() if parameter.dim() > 1 and "bias" not in name}
    matrices = [parameter for name, parameter in trained.items() if name in decaying]
    others = [parameter for name, parameter in trained.items() if name not in decaying]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group: it is a function of the step, so no scheduler has a state to lose."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradient(parameters: Sequence[Tensor], clip_norm: float) -> Float[Tensor, ""]:
    """Scale the gradient of all these parameters together down to `clip_norm` (0: leave it); its norm before that."""
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm


def reseed(device: str, *key: int) -> None:
    """Seed torch from a key, so that a restart has no random state to restore.

    `torch.manual_seed` would cost a small model 3 % of its step: without a GPU it notes a whole stack trace each time.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    torch.default_generator.manual_seed(seed)
    if device == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No dropout and no graph inside."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
