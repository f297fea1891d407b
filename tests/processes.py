"""Groups of processes that train together without Ray: how they are started, and what each of them does first."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import distributed

ROOT = Path(__file__).parents[1]
DEADLINE_S = 800


def work_together(program: str, world: int, folder: Path, *arguments: str) -> None:
    """Run `python -m PROGRAM RANK WORLD PORT FOLDER ARGUMENTS` for every rank. No compiler is on their PATH."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "bin").mkdir(exist_ok=True)
    environment = os.environ | {"PATH": str(folder / "bin"), "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    logs = [folder / f"{world}-{rank}.log" for rank in range(world)]
    with ExitStack() as stack:
        workers = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", program, str(rank), str(world), str(port), str(folder), *arguments],
                cwd=ROOT,
                env=environment,
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            for rank, log in enumerate(logs)
        ]
        for worker in workers:
            stack.callback(worker.kill)
        codes = [worker.wait(timeout=DEADLINE_S) for worker in workers]
    assert codes == [0] * world, "\n".join(log.read_text()[-3000:] for log in logs)


@contextmanager
def joined(rank: int, world: int, port: int) -> Iterator[None]:
    """Be one of these processes, with one thread."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    yield
    distributed.destroy_process_group()


@torch.no_grad()
def forget(model: torch.nn.Module) -> None:
    """Other weights in all that is trained. What is frozen is of the model that the run starts from, at every attempt."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.fill_(0.5)
