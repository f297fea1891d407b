"""DeepSpeed's ZeRO as the training loop wants it (`kd.training.engine.Engine`), for every stage and both precisions.

It knows torch's process group, which its caller has opened, and not Ray.
"""

import gc
import io
import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from kd.errors import StoreError
from kd.training.config import LoopConfig
from kd.training.deepspeed import deepspeed_json
from kd.training.engine import adamw, clip_gradient, evaluating, learn_again, learned, set_learning_rate, write_state
from kd.training.ranks import local_rank, together

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TAG = "engine"
_UNIVERSAL_TAG = "universal"
"""DeepSpeed's form of a checkpoint that any number of workers can read."""


class DeepSpeedEngine:
    """One rank of a group.

    DeepSpeed averages over workers, so a loss is multiplied by their number. How many passes a step has it is not told: it
    sums their gradients, and reduces (stages 0, 1) or finishes (2, 3) them in the one that is said to be the last. On a CPU
    nothing is compiled: the optimizer is torch's, and the shared-memory operation is declared unavailable before it can be
    built.

    At stage 3 there is a whole copy of the model besides, which waits on the CPU and is on the device only while it is looked at.
    DeepSpeed has the model itself whole on the device once, when it is built, in the precision of its use.

    `saved_by` is the number of workers that wrote the checkpoint to be loaded, if one will be: DeepSpeed wants to know when
    it is built whether optimizer states are cut for the group that there is.
    """

    def __init__(self, model: "PreTrainedModel", config: LoopConfig, device: str, saved_by: int | None = None) -> None:
        self.rank, self.world, self.device = distributed.get_rank(), distributed.get_world_size(), device
        self.module = model
        self._parameters = list(model.parameters())
        self.config = config
        self._deepspeed = import_deepspeed(device)
        self._copy = whole_copy(model, config.precision) if config.zero_stage == 3 else None
        self._optimizer = adamw(model, config)
        self._hyperparameters = [{key: group[key] for key in group if key != "params"} for group in self._optimizer.param_groups]
        self._is_recut = config.zero_stage > 0 and saved_by not in (None, self.world)
        settings = deepspeed_json(config, self.world)
        settings["checkpoint"]["load_universal"] = self._is_recut
        self._engine = self._deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=settings, dist_init_required=False
        )[0]
        self.forward: Callable[..., Any] = self._engine
        self._unwritten: OSError | None = None
        self._engine.checkpoint_engine.save = self._write
        self._engine.module_state_dict = lambda **_: learned(model)  # DeepSpeed's own keeps frozen weights that have two names
        self._engine._copy_recovery_script = lambda _: None  # a checkpoint holds data, no programs

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
        with nullcontext(self.module) if self._copy is None else self._gathered(self._copy) as model, evaluating(model):
            yield model

    def save(self, folder: Path) -> None:
        """Write what is trained. Raises OSError on the ranks that cannot write, after all of them have come to the end."""
        self._unwritten = None
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)
        if self._unwritten is not None:
            raise self._unwritten

    def _write(self, state_dict: dict[str, Any], path: str) -> None:
        """DeepSpeed's way to write a file. It meets the other ranks afterwards, so a full disk must wait for that."""
        try:
            write_state(state_dict, Path(path))
        except OSError as error:
            self._unwritten = error

    def load(self, folder: Path) -> None:
        if self._is_recut:
            together(lambda: _make_universal(folder) if local_rank() == 0 else None)
        tag = _UNIVERSAL_TAG if self._is_recut else _TAG
        found, _ = self._engine.load_checkpoint(str(folder), tag=tag, custom_load_fn=lambda src, dst: learn_again(dst, src))
        if found is None:
            raise StoreError(f"{folder} holds no checkpoint of DeepSpeed; delete the run's checkpoints and start again")
        if self._is_recut:
            self._repair()

    def _repair(self) -> None:
        """Under ZeRO-3, DeepSpeed 0.19 reads a universal checkpoint so that all parameters share one count of steps, which
        AdamW then advances once for each, and gives every group of parameters the first one's decay.
        """
        optimizer = self._engine.optimizer.optimizer
        for parameter, state in optimizer.state.items():
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device).clone()
        for group, mine in zip(optimizer.param_groups, self._hyperparameters, strict=True):
            group.update(mine)

    def close(self) -> None:
        """Free what the next run needs."""
        self._engine.destroy()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _gathered(self, copy: "PreTrainedModel") -> Iterator["PreTrainedModel"]:
        """The copy on the device, with the weights of now, fetched one by one from the ranks that hold them."""
        try:
            copy.to(device=self.device)
            with torch.no_grad():
                for mine, shared in zip(copy.parameters(), self.module.parameters(), strict=True):
                    with self._deepspeed.zero.GatheredParameters([shared]):
                        mine.copy_(shared)
            yield copy
        finally:
            copy.to(device="cpu")


def whole_copy(model: "PreTrainedModel", precision: str) -> "PreTrainedModel":
    """A model of its own on every rank: under ZeRO-3 ranks that generate unequally long answers would wait forever.

    Parameters have the precision of training, buffers (the frequencies of rotary positions) that of the model, as DeepSpeed does.
    """
    copy = deepcopy(model)
    if precision == "bfloat16":
        for parameter in copy.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return copy


def _make_universal(folder: Path) -> None:
    """Bring a checkpoint into the form that any number of workers can read, beside itself."""
    from deepspeed.checkpoint.ds_to_universal import main

    options = Namespace(
        input_folder=str(folder / _TAG),
        output_folder=str(folder / _UNIVERSAL_TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            main(options)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        raise StoreError(f"cannot cut a checkpoint anew in {folder}: {error}; check the free space there") from error


def import_deepspeed(device: str) -> Any:
    """DeepSpeed, which decides on the accelerator when it is imported."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
