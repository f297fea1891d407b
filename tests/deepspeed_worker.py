"""One of some processes that train with DeepSpeed, without Ray: `python -m tests.deepspeed_worker RANK WORLD PORT FOLDER CASE...`.

For every case named it trains the tiny queue's first run and writes down what happened; where the case `resumes`, it saves a
checkpoint on the way and goes on from it with another model.
"""

import json
import shutil
import sys
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import distributed

from kd.deepspeed_engine import DeepSpeedEngine
from kd.training.config import LoopConfig
from kd.training.loop import BEST, LAST, Trainer
from kd.training.order import Order
from kd.training.runs import Queue
from kd.training.session import Opened, open_run
from tests.processes import forget, joined
from tests.tiny_runs import SHORT, tiny_queue

TOKENS = {"all": 10_000, "some": 40, "one": 1}
"""What a micro-batch holds of a batch of the tiny queue: everything (half of it, for two), a few sequences, a single one."""

DROPOUT = 0.1


@dataclass(frozen=True)
class Case:
    """A config, by what it has other than `SHORT`, for one worker or two."""

    world: int
    stage: int
    changes: dict[str, Any] = field(default_factory=dict)
    resumes: bool = False
    dropout: float = 0.0

    @property
    def config(self) -> LoopConfig:
        """Validated anew, since a copy would not be."""
        group = {"num_workers": self.world, "zero_stage": self.stage, "zero3_whole_below_params": 0}
        saves = {"save_every_steps": 3 if self.resumes else 0}
        return LoopConfig(**SHORT.model_dump() | {"micro_batch_tokens": TOKENS["some"]} | group | saves | self.changes)


def _cases() -> dict[str, Case]:
    found = {}
    for stage in range(4):
        found[f"two-zero{stage}"] = Case(2, stage, resumes=True)
        found[f"two-zero{stage}-all"] = Case(2, stage, {"micro_batch_tokens": TOKENS["all"]})
        found[f"two-zero{stage}-one"] = Case(2, stage, {"micro_batch_tokens": TOKENS["one"]})
        found[f"two-zero{stage}-row"] = Case(2, stage, {"batch_rows": 1})
        found[f"one-zero{stage}"] = Case(1, stage)
        found[f"one-zero{stage}-all"] = Case(1, stage, {"micro_batch_tokens": TOKENS["all"]})
    found["two-zero2-dropout"] = Case(2, 2, {"micro_batch_tokens": TOKENS["one"]}, dropout=DROPOUT)
    for stage in range(1, 4):
        found[f"two-zero{stage}-bfloat16"] = Case(2, stage, {"precision": "bfloat16"}, resumes=True)
        found[f"one-zero{stage}-bfloat16"] = Case(1, stage, {"precision": "bfloat16"})
    return found


LORA = {"lora": {"rank": 4, "targets": ["q", "v"]}}
STOPPING = {"steps": 14, "eval_every_steps": 2, "learning_rate": 0.03, "schedule": "constant", "patience_evals": 1}
CASES = _cases()
SWITCHES = {
    "zero2-checkpointing": Case(2, 2, {"gradient_checkpointing": True}, resumes=True),
    "zero2-offload": Case(2, 2, {"offload": "optimizer"}, resumes=True),
    "zero2-offload-bfloat16": Case(2, 2, {"offload": "optimizer", "precision": "bfloat16"}, resumes=True),
    "zero3-offload": Case(2, 3, {"offload": "parameters"}, resumes=True),
    "zero0-lora": Case(2, 0, LORA, resumes=True),
    "zero1-lora-offload": Case(2, 1, {"offload": "optimizer"} | LORA, resumes=True),
    "zero2-lora": Case(2, 2, LORA, resumes=True),
    "zero3-lora": Case(2, 3, {"gradient_checkpointing": True, "offload": "parameters"} | LORA, resumes=True),
    "zero3-lora-bfloat16": Case(2, 3, {"precision": "bfloat16"} | LORA, resumes=True),
    "zero3-stopping": Case(2, 3, STOPPING, resumes=True),
}
"""What saves memory and changes nothing, adapters, and a run that ends early."""
EVERY = CASES | SWITCHES


def train(opened: Opened, queue: Queue, name: str, folder: Path, saved: Path, resume: bool) -> Trainer:
    """One attempt at a case; validated, as that takes time, only where it is resumed. It has a model of its own."""
    model = deepcopy(opened.student.model)
    if resume:
        forget(model)
    engine = DeepSpeedEngine(model, queue.training, "cpu")
    own = replace(
        opened,
        student=replace(opened.student, model=model),
        lessons=replace(opened.lessons, order=order(queue)),
        validation=opened.validation if EVERY[name].resumes else None,
    )
    trainer = own.trainer(engine, queue, queue.items[0].run, folder)
    if resume:
        trainer.load(saved)
    trainer.train(lambda state: None, lambda: None if resume else save(trainer, saved))
    engine.close()
    return trainer


def order(queue: Queue) -> Order:
    run, training = queue.items[0].run, queue.training
    return Order([shard.rows for shard in run.shards], training.batch_rows, training.window_shards, run.seed)


def save(trainer: Trainer, saved: Path) -> None:
    """A checkpoint as a group finds it when it goes on: every rank's files and the best model, in one folder."""
    with TemporaryDirectory() as mine:
        trainer.save(Path(mine))
        shutil.copytree(mine, saved, dirs_exist_ok=True)
    if trainer.engine.rank == 0 and (trainer.folder / BEST).exists():
        shutil.copytree(trainer.folder / BEST, saved / BEST, dirs_exist_ok=True)
    distributed.barrier()


def run(name: str, opened: Opened, queue: Queue, folder: Path) -> None:
    saved = folder / name / "saved"
    saved.mkdir(parents=True, exist_ok=True)
    for attempt in ("whole", "resumed") if EVERY[name].resumes else ("whole",):
        with TemporaryDirectory() as scratch:
            trainer = train(opened, queue, name, Path(scratch), saved, resume=attempt == "resumed")
            if trainer.engine.rank == 0:
                (folder / name / f"{attempt}.json").write_text(json.dumps(trainer.state.history))
                for kept in (path for path in trainer.folder.iterdir() if path.name in (BEST, LAST)):
                    shutil.copytree(kept, folder / name / (attempt if kept.name == BEST else f"{attempt}-{LAST}"))


def main(rank: int, world: int, folder: Path, cases: Iterable[str]) -> None:
    mine = {name: EVERY[name] for name in cases}
    queues = {
        dropout: tiny_queue(folder / f"corpus{world}-{rank}-{dropout}", SHORT, dropout=dropout)
        for dropout in {case.dropout for case in mine.values()}
    }
    for name, case in mine.items():
        queue = replace(queues[case.dropout], training=case.config)
        with TemporaryDirectory() as scratch:
            run(name, open_run(queue, queue.items[0].run, Path(scratch), rank, world), queue, folder)


if __name__ == "__main__":
    number, size, gate = (int(argument) for argument in sys.argv[1:4])
    with joined(number, size, gate):
        main(number, size, Path(sys.argv[4]), sys.argv[5:])
