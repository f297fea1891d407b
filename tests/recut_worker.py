"""A rank of a group that trains with DeepSpeed, without Ray: `python -m tests.recut_worker RANK WORLD PORT FOLDER`.

For every case of `CASES` it trains the tiny queue's first run with a checkpoint on the way, unless a group of this size has
done so before. Then it goes on, with another model, from the checkpoint that a group of the other size has left in the
folder, if one has. Histories are written down.
"""

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import distributed

from kd.deepspeed_engine import DeepSpeedEngine
from kd.errors import StoreError
from kd.store import Store
from kd.training.checkpoints import Checkpoints
from kd.training.config import LoopConfig
from kd.training.loop import Trainer
from kd.training.ranks import by_first, rank, world
from kd.training.runs import Claimed, Queue
from kd.training.session import open_run
from tests.full_disk import files_no_larger_than
from tests.tiny_runs import SHORT, tiny_queue

PARTS = {"micro_batch_tokens": 40, "zero3_whole_below_params": 0, "save_every_steps": 3}
CASES: dict[str, dict[str, Any]] = {f"zero{stage}": {"zero_stage": stage} for stage in range(4)} | {
    f"zero{stage}-bfloat16": {"zero_stage": stage, "precision": "bfloat16"} for stage in (2, 3)
}


def config(case: str, world: int) -> LoopConfig:
    """The case's config; validated anew, since a copy would not be."""
    return LoopConfig(**SHORT.model_dump() | PARTS | CASES[case] | {"num_workers": world})


def checkpoints_of(folder: Path, case: str, world: int) -> Checkpoints:
    """Those that a group of this size writes."""
    return Checkpoints.begin(Store.at(str(folder)), f"{case}/by{world}", case, keep=1)


def train(queue: Queue, item: Claimed, scratch: Path, checkpoints: Checkpoints, resume: bool) -> Trainer:
    opened = open_run(queue, item.run, scratch, rank(), world())
    found = checkpoints.newest(scratch) if resume else None
    engine = DeepSpeedEngine(opened.student.model, queue.training, "cpu", found.checkpoint.world if found else None)
    trainer = opened.trainer(engine, queue, item.run, scratch)
    if found:
        found.load_into(trainer)
        assert trainer.state.step == 3
    trainer.train(lambda state: None, lambda: None if resume else checkpoints.save(trainer))
    engine.close()
    return trainer


def note(queue: Queue, item: Claimed, target: Path, checkpoints: Checkpoints, resume: bool) -> None:
    """Train, and write the history down."""
    with TemporaryDirectory() as scratch:
        trainer = train(queue, item, Path(scratch), checkpoints, resume)
        if rank() == 0:
            target.write_text(json.dumps(trainer.state.history))


def run(case: str, queue: Queue, folder: Path) -> None:
    queue = replace(queue, training=config(case, world()))
    item, mine, others = queue.items[0], *(checkpoints_of(folder, case, by) for by in (world(), 3 - world()))
    if not has_saved(mine):
        note(queue, item, folder / case / f"by{world()}.json", mine, resume=False)
    if has_saved(others):
        stranger = replace(item, run=replace(item.run, model=replace(item.run.model, seed=9)))
        note(queue, stranger, folder / case / f"from{3 - world()}.json", others, resume=True)


def has_saved(checkpoints: Checkpoints) -> bool:
    return by_first(lambda: bool(checkpoints.store.folders(checkpoints.folder)))


def fill_the_disk(folder: Path) -> None:
    """The second of two ranks cannot write. What each of them is told, and which checkpoint is found then, is written down."""
    case = "zero2"
    queue = tiny_queue(folder / f"corpus{rank()}", config(case, 2))
    checkpoints = checkpoints_of(folder, case, 2)
    with TemporaryDirectory() as scratch:
        opened = open_run(queue, queue.items[0].run, Path(scratch), rank(), world())
        engine = DeepSpeedEngine(opened.student.model, queue.training, "cpu")
        trainer = opened.trainer(engine, queue, queue.items[0].run, Path(scratch))
        trainer.state.step = 5
        with files_no_larger_than(1000) if rank() == 1 else nullcontext(), pytest.raises(StoreError) as told:
            checkpoints.save(trainer)
        found = checkpoints.newest(Path(scratch))
        engine.close()
    step = found.checkpoint.step if found else None
    (folder / f"full{rank()}.json").write_text(json.dumps({"told": str(told.value), "found": step}))


def main(number: int, size: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=number, world_size=size)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with TemporaryDirectory() as corpus:
        queue = tiny_queue(Path(corpus), SHORT)
        for case in CASES:
            run(case, queue, folder)
    if world() == 2:
        fill_the_disk(folder)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
