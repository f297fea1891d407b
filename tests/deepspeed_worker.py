"""One of two processes that train with DeepSpeed, without Ray: `python -m tests.deepspeed_worker RANK PORT FOLDER CASE...`.

For every case named it trains the tiny queue's first run, saves a checkpoint on the way, goes on from it with another
model, and writes down what happened.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed

from kd.deepspeed_engine import DeepSpeedEngine
from kd.training.config import LoopConfig
from kd.training.loop import BEST, LAST, Trainer
from kd.training.runs import Claimed, Queue
from kd.training.session import open_run
from tests.tiny_runs import SHORT, tiny_queue

TWO = {"num_workers": 2, "micro_batch_rows": 2, "zero3_whole_below_params": 0, "save_every_steps": 3}
CASES: dict[str, dict[str, Any]] = {f"zero{stage}": {"zero_stage": stage} for stage in range(4)} | {
    f"zero{stage}-bfloat16": {"zero_stage": stage, "precision": "bfloat16"} for stage in range(1, 4)
}
LORA = {"lora": {"rank": 4, "targets": ["q", "v"]}}
EVERYTHING = {"gradient_checkpointing": True, "offload": "parameters"}
STOPPING = {"steps": 14, "eval_every_steps": 2, "learning_rate": 0.02, "schedule": "constant", "patience_evals": 1}
SWITCHES: dict[str, dict[str, Any]] = {
    "zero2-checkpointing": {"zero_stage": 2, "gradient_checkpointing": True},
    "zero2-offload": {"zero_stage": 2, "offload": "optimizer"},
    "zero2-offload-bfloat16": {"zero_stage": 2, "offload": "optimizer", "precision": "bfloat16"},
    "zero3-offload": {"zero_stage": 3, "offload": "parameters"},
    "zero0-lora": {"zero_stage": 0} | LORA,
    "zero1-lora-offload": {"zero_stage": 1, "offload": "optimizer"} | LORA,
    "zero2-lora": {"zero_stage": 2} | LORA,
    "zero3-lora": {"zero_stage": 3} | LORA | EVERYTHING,
    "zero3-lora-bfloat16": {"zero_stage": 3, "precision": "bfloat16"} | LORA,
    "zero3-stopping": {"zero_stage": 3} | STOPPING,
}
"""What saves memory and changes nothing, adapters, and a run that ends early."""
ROOT = Path(__file__).parents[1]


def two_workers(folder: Path, cases: Iterable[str]) -> None:
    """Let two processes make what they make of these cases, in a folder each. No compiler is on their PATH."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "bin").mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "tests.deepspeed_worker"]
    environment = os.environ | {"PATH": str(folder / "bin"), "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    logs = [folder / f"{rank}.log" for rank in range(2)]
    with ExitStack() as stack:
        workers = [
            subprocess.Popen(
                [*command, str(rank), str(port), str(folder), *cases],
                cwd=ROOT,
                env=environment,
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            for rank, log in enumerate(logs)
        ]
        codes = [worker.wait(timeout=280) for worker in workers]
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


def config(case: str) -> LoopConfig:
    """The case's config; validated anew, since a copy would not be."""
    return LoopConfig(**SHORT.model_dump() | TWO | (CASES | SWITCHES)[case])


def train(queue: Queue, item: Claimed, folder: Path, saved: Path, resume: bool) -> Trainer:
    rank = distributed.get_rank()
    opened = open_run(queue, item.run, folder, rank, world=2)
    engine = DeepSpeedEngine(opened.student.model, queue.training, "cpu")
    trainer = opened.trainer(engine, queue, item.run, folder)
    if resume:
        trainer.load(saved)
    trainer.train(lambda state: None, lambda: None if resume else save(trainer, saved))
    engine.close()
    return trainer


def save(trainer: Trainer, saved: Path) -> None:
    """What Ray Train does with a checkpoint: every rank's files are merged into one folder."""
    with TemporaryDirectory() as mine:
        trainer.save(Path(mine))
        shutil.copytree(mine, saved, dirs_exist_ok=True)
    distributed.barrier()


def run(case: str, queue: Queue, folder: Path) -> None:
    queue = replace(queue, training=config(case))
    item, saved = queue.items[0], folder / case / "saved"
    stranger = replace(item, run=replace(item.run, model=replace(item.run.model, seed=9)))
    for name, which in (("whole", item), ("resumed", stranger)):
        with TemporaryDirectory() as scratch:
            trainer = train(queue, which, Path(scratch), saved, resume=name == "resumed")
            if trainer.engine.rank == 0:
                (folder / case / f"{name}.json").write_text(json.dumps(trainer.state.history))
                for kept in (path for path in trainer.folder.iterdir() if path.name in (BEST, LAST)):
                    shutil.copytree(kept, folder / case / (name if kept.name == BEST else f"{name}-{LAST}"))


def main(rank: int, port: int, folder: Path, cases: Iterable[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    queue = tiny_queue(folder / f"corpus{rank}", SHORT)
    for case in cases:
        (folder / case / "saved").mkdir(parents=True, exist_ok=True)
        run(case, queue, folder)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
