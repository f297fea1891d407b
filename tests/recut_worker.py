"""A rank of a group that trains with DeepSpeed, without Ray: `python -m tests.recut_worker RANK WORLD PORT FOLDER`.

For every case of `CASES` it trains the tiny queue's first run with a checkpoint on the way, unless a group of this size has
done so before. Then it goes on, with other weights, from the checkpoint that a group of the other size has left in the
folder, if one has. Histories are written down, and what the optimizer held when the checkpoint was written, after it was read,
and at the end.
"""

import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from kd.deepspeed_engine import DeepSpeedEngine
from kd.errors import StageError, StoreError
from kd.store import Store
from kd.training.checkpoints import Checkpoints, Found
from kd.training.config import LoopConfig
from kd.training.loop import Trainer
from kd.training.ranks import by_first, rank, world
from kd.training.runs import Queue
from kd.training.session import open_run
from tests.deepspeed_worker import LORA
from tests.full_disk import files_no_larger_than
from tests.processes import forget, joined
from tests.tiny_runs import SHORT, tiny_queue

PARTS = {"micro_batch_tokens": 40, "zero3_whole_below_params": 0, "save_every_steps": 3}
CASES: dict[str, dict[str, Any]] = {f"zero{stage}": {"zero_stage": stage} for stage in range(4)} | {
    f"zero{stage}-bfloat16": {"zero_stage": stage, "precision": "bfloat16"} for stage in (1, 2, 3)
}
CASES |= {
    "zero2-lora": {"zero_stage": 2} | LORA,
    "zero3-lora-offload": {"zero_stage": 3, "offload": "parameters"} | LORA,
}
DROPPING = {"zero1-dropout", "zero3-dropout"}
"""Cases whose model drops out; the batch is cut for two workers, also where one takes all of it."""
CASES |= {case: {"zero_stage": int(case[4]), "micro_batch_tokens": 1000, "cut_for_workers": 2} for case in sorted(DROPPING)}
SPIKED = ["zero0", "zero1", "zero2", "zero3", "zero1-bfloat16", "zero3-bfloat16"]


def config(case: str, world: int) -> LoopConfig:
    """The case's config; validated anew, since a copy would not be."""
    return LoopConfig(**SHORT.model_dump() | PARTS | CASES[case] | {"num_workers": world})


def checkpoints_of(folder: Path, case: str, world: int) -> Checkpoints:
    """Those that a group of this size writes."""
    return Checkpoints.begin(Store.at(str(folder)), f"{case}/by{world}", case, keep=1)


def opened_at(queue: Queue, scratch: Path, checkpoints: Checkpoints | None = None) -> tuple[Trainer, Found | None]:
    """The queue's first run, ready to start; or, with other weights in all that is trained, to go on from the newest checkpoint."""
    opened = open_run(queue, queue.items[0].run, scratch, rank(), world())
    found = checkpoints.newest(scratch) if checkpoints else None
    if found:
        forget(opened.student.model)
    engine = DeepSpeedEngine(opened.student.model, queue.training, "cpu", found.checkpoint.world if found else None)
    return opened.trainer(engine, queue, queue.items[0].run, scratch), found


def train(queue: Queue, folder: Path, checkpoints: Checkpoints) -> None:
    """Train with a checkpoint after the third step."""

    def save() -> None:
        note(trainer, folder, f"saved{world()}")
        checkpoints.save(trainer)

    with TemporaryDirectory() as scratch:
        trainer, _ = opened_at(queue, Path(scratch))
        trainer.train(lambda state: None, save)
        finish(trainer, folder / f"by{world()}.json")


def resume(queue: Queue, folder: Path, checkpoints: Checkpoints) -> None:
    """Go on from the checkpoint of a group of the other size."""
    with TemporaryDirectory() as scratch:
        trainer, found = opened_at(queue, Path(scratch), checkpoints)
        assert found is not None
        found.load_into(trainer)
        assert trainer.state.step == 3
        note(trainer, folder, f"loaded{3 - world()}")
        trainer.train(lambda state: None, lambda: None)
        note(trainer, folder, f"ended{3 - world()}")
        finish(trainer, folder / f"from{3 - world()}.json")


def finish(trainer: Trainer, target: Path) -> None:
    trainer.engine.close()  # type: ignore[attr-defined]
    if rank() == 0:
        target.write_text(json.dumps(trainer.state.history))


def note(trainer: Trainer, folder: Path, name: str) -> None:
    """Write down what the optimizer holds; every rank helps."""
    assert isinstance(trainer.engine, DeepSpeedEngine)
    held = held_by(trainer.engine)
    if rank() == 0:
        torch.save(held, folder / f"{name}.pt")


def held_by(engine: DeepSpeedEngine) -> dict[str, Any]:
    """The weights in fp32 and their moments by name, the counts of steps and every group's decay; the model's weights as used."""
    outer = engine._engine.optimizer
    inner = outer if engine.config.zero_stage == 0 else outer.optimizer
    if engine.config.zero_stage in (1, 2):
        outer._hp_optimizer_states_linked = False  # the first step links weights to moments, but those of the first group alone
        outer._lazy_init_hp_params_optimizer_state()
    trained = {name: each for name, each in engine.module.named_parameters() if each.requires_grad}
    with engine.whole() as model:
        used = {name: weight.clone() for name, weight in model.state_dict().items()}
    return {
        "master": {name: whole(engine, each, None).clone() for name, each in trained.items()},
        "exp_avg": {name: whole(engine, each, "exp_avg").clone() for name, each in trained.items()},
        "exp_avg_sq": {name: whole(engine, each, "exp_avg_sq").clone() for name, each in trained.items()},
        "used": used,
        "steps": sorted({float(state["step"]) for state in inner.state.values()}),
        "decays": [group["weight_decay"] for group in inner.param_groups],
    }


def whole(engine: DeepSpeedEngine, parameter: torch.nn.Parameter, moment: str | None) -> Tensor:
    """A weight in fp32, or one of its moments, put together from all ranks."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.config.zero_stage == 0:
        held: Tensor = engine._engine.optimizer.state[parameter][moment] if moment else parameter.detach()
        return held
    found: Tensor = safe_get_full_optimizer_state(parameter, moment) if moment else safe_get_full_fp32_param(parameter)
    return found


def run(case: str, queue: Queue, folder: Path) -> None:
    queue = replace(queue, training=config(case, world()))
    mine, others = (checkpoints_of(folder, case, by) for by in (world(), 3 - world()))
    if not has_saved(mine):
        train(queue, folder / case, mine)
    if has_saved(others):
        resume(queue, folder / case, others)


def has_saved(checkpoints: Checkpoints) -> bool:
    return by_first(lambda: bool(checkpoints.store.folders(checkpoints.folder)))


def fill_the_disk(folder: Path) -> None:
    """One of two ranks cannot write. What each of them is told, and which checkpoint is found then, is written down."""
    queue = tiny_queue(folder / f"corpus{rank()}", config("zero2", 2))
    checkpoints, others = (checkpoints_of(folder, "zero2", by) for by in (2, 1))
    told = {}
    with TemporaryDirectory() as scratch:
        trainer, _ = opened_at(queue, Path(scratch))
        trainer.state.step = 5
        told["checkpoint"] = refused(1, lambda: checkpoints.save(trainer))
        found = checkpoints.newest(Path(scratch))
        told["model"] = refused(0, lambda: trainer.train(lambda state: None, lambda: None))
        trainer.engine.close()  # type: ignore[attr-defined]
    with TemporaryDirectory() as scratch:
        trainer, other = opened_at(queue, Path(scratch), others)
        assert other is not None
        told["recut"] = refused(0, lambda: other.load_into(trainer))
        trainer.engine.close()  # type: ignore[attr-defined]
    step = found.checkpoint.step if found else None
    (folder / f"full{rank()}.json").write_text(json.dumps(told | {"found": step}))


def refused(number: int, act: Callable[[], object]) -> str:
    """What this rank is told where the rank with this number finds no room."""
    with files_no_larger_than(1000) if rank() == number else nullcontext(), pytest.raises(StoreError) as told:
        act()
    return str(told.value)


def spike(case: str, queue: Queue, folder: Path) -> None:
    """The second of two ranks has a gradient that is no number, in the third step of six that are logged as one."""
    training = config(case, 2).model_copy(update={"log_every_steps": 6, "save_every_steps": 0})
    with TemporaryDirectory() as scratch:
        trainer, _ = opened_at(replace(queue, training=training), Path(scratch))
        plain = trainer.engine.backward

        def spiked(loss: Tensor, last: bool) -> None:
            plain(loss * math.nan if rank() == 1 and trainer.state.step == 2 else loss, last)

        trainer.engine.backward = spiked  # type: ignore[method-assign]
        with pytest.raises(StageError) as told:
            trainer.train(lambda state: None, lambda: None)
        trainer.engine.close()  # type: ignore[attr-defined]
    (folder / case / f"spike{rank()}.txt").write_text(str(told.value))


def main(folder: Path) -> None:
    with TemporaryDirectory() as corpus, TemporaryDirectory() as dropping:
        queue, dropped = tiny_queue(Path(corpus), SHORT), tiny_queue(Path(dropping), SHORT, dropout=0.3)
        for case in CASES:
            run(case, dropped if case in DROPPING else queue, folder)
        for case in SPIKED if world() == 2 else []:
            spike(case, queue, folder)
    if world() == 2:
        fill_the_disk(folder)


if __name__ == "__main__":
    number, size, gate = (int(argument) for argument in sys.argv[1:4])
    with joined(number, size, gate):
        main(Path(sys.argv[4]))
