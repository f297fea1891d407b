"""A run directory whose processes are killed at a chosen moment of a checkpoint, once; and whose workers leave their pids and nodes."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray

from kd.errors import StoreError
from kd.fingerprints import Fingerprint
from kd.rows import Row
from kd.store import Store
from kd.training.ranks import rank
from kd.training.runs import Queue
from kd.training.saved import CHECKPOINT_MANIFEST, CHECKPOINTS

R = TypeVar("R", bound=Row)
Moment = Literal["never", "a file is published", "before the manifest", "before older ones are deleted"]


@dataclass(frozen=True)
class Deadly(Store):
    """`victim` is the rank that dies by SIGKILL, in the checkpoint after `step`; if it `refuses`, it lives and is refused access
    once. Every checkpoint takes `pause_s` longer. Notes are left in the folder `notes`.
    """

    notes: str = ""
    moment: Moment = "never"
    victim: int = 0
    step: int = 0
    refuses: bool = False
    pause_s: float = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def has_struck(self) -> bool:
        """Whether the victim is dead."""
        return Path(self.notes, "struck").exists()

    def publish_file(self, local: Path, relative: str) -> Fingerprint:
        found = super().publish_file(local, relative)
        self._strike("a file is published", relative)
        return found

    def publish_json(self, relative: str, value: Mapping[str, Any]) -> None:
        if relative.endswith(CHECKPOINT_MANIFEST):
            time.sleep(self.pause_s)
            self._strike("before the manifest", relative)
        super().publish_json(relative, value)
        if relative.endswith(CHECKPOINT_MANIFEST):
            self._strike("before older ones are deleted", relative)

    def read_rows(self, relative: str, row_type: type[R]) -> list[R]:
        """Every worker reads the validation rows before it trains, so this is where it says who it is."""
        if Path(self.notes).exists():
            Path(self.notes, f"rank{rank()}").write_text(f"{os.getpid()} {ray.get_runtime_context().get_node_id()}")
        return super().read_rows(relative, row_type)

    def _strike(self, moment: Moment, relative: str) -> None:
        if moment != self.moment or rank() != self.victim or f"/{CHECKPOINTS}/{self.step:08d}-" not in relative:
            return
        try:
            Path(self.notes, "struck").touch(exist_ok=False)
        except FileExistsError:
            return
        if self.refuses:
            raise StoreError(f"cannot write {self.path(relative)}: 503; check the path, the credentials and the free space")
        os.kill(os.getpid(), signal.SIGKILL)


def whereabouts(queue: Queue, victim: int) -> tuple[int, str]:
    """The process of a rank, and its node."""
    assert isinstance(queue.store, Deadly)
    pid, node = Path(queue.store.notes, f"rank{victim}").read_text().split()
    return int(pid), node
