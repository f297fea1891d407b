"""The checkpoints of a run as they lie in its folder: their files, their manifests, and which of them are no longer wanted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from kd.errors import StoreError
from kd.refusals import tolerated
from kd.store import Store
from kd.training.runs import Claimed, Queue

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, below the run's; it goes when the run is finished."""
CHECKPOINT_MANIFEST = "manifest.json"
FORMAT = 2
"""Of what the files of a checkpoint hold: it changes with what an engine writes, and others are not read."""


class Harmed(StoreError):
    """A checkpoint is not whole, or not this run's: no lack of space, no network that is down, so trying again mends nothing."""


@dataclass(frozen=True)
class Stored:
    """A file of a checkpoint: where it lies below the run's checkpoints, the rank that wrote it, and what it must be."""

    path: str
    rank: int
    size_bytes: int
    sha256: str

    @property
    def folder(self) -> str:
        """Its folder below the run's checkpoints."""
        return PurePosixPath(self.path).parts[0]

    @property
    def name(self) -> str:
        """Its path in that folder."""
        return str(PurePosixPath(*PurePosixPath(self.path).parts[1:]))


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's manifest says: whose it is, after which step and by how many ranks it was written, its files and their
    format.

    `started_from` is the name of the weights that the run started from; those of them that are frozen are in no checkpoint.
    """

    name: str
    digest: str
    step: int
    world: int
    started_from: str
    files: Sequence[Stored]
    best_step: int | None
    best: Sequence[Stored]
    format: int = FORMAT

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Checkpoint":
        """Raises TypeError where the keys, or the format, are not those of this version."""
        if content.get("format") != FORMAT:
            raise TypeError(f"expected format {FORMAT}, got {content.get('format')}")
        files = {key: [Stored(**each) for each in content[key]] for key in ("files", "best") if key in content}
        return cls(**{**content, **files})

    def folders(self) -> set[str]:
        """The folders that its files lie in."""
        return {self.name, *(file.folder for file in self.best)}


def newest_step(store: Store, run: str) -> int:
    """The step of the newest checkpoint of the run in this folder that has a manifest; 0 where there is none."""
    folder = f"{run}/{CHECKPOINTS}"
    named = {name: name.partition("-")[0] for name in store.folders(folder)}
    steps = [int(step) for name, step in named.items() if step.isdigit() and _is_whole(store, f"{folder}/{name}")]
    return max(steps, default=0)


def clear(store: Store, run: str) -> None:
    """Delete the checkpoints of a run that is finished; what cannot be deleted now goes when its queue is started next."""
    with tolerated():
        store.delete_folder(f"{run}/{CHECKPOINTS}")


def clear_finished(queue: Queue, todo: Sequence[Claimed]) -> None:
    """Delete the checkpoints of all runs but those: one that is killed between its manifest and its end leaves them."""
    for item in queue.items:
        if item in todo:
            continue
        with tolerated():
            if queue.store.folders(f"{item.folder}/{CHECKPOINTS}"):
                clear(queue.store, item.folder)


def _is_whole(store: Store, folder: str) -> bool:
    return store.exists(f"{folder}/{CHECKPOINT_MANIFEST}")
