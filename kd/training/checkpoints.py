"""The checkpoints of one run, in the run's own folder: files that every rank wrote, and a manifest that is written last.

`checkpoints/<step>-<token>/` holds what is needed to go on, `checkpoints/best-<step>-<token>/` the best model so far, which
several checkpoints may name. A checkpoint counts if its manifest is there and bears the digest of the run's config; its
files are fetched and their sizes and SHA-256 compared with the manifest before anything in them is unpickled.

Whoever trains the run next takes it over (`kd.attempts`): an older group of workers that still lives, of another job or on a
node that was cut off, publishes and deletes nothing from then on.
"""

import dataclasses
import json
import logging
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kd.attempts import NEWEST_WITHIN_S, begin_attempt, check_newest
from kd.errors import StoreError, UserError
from kd.fingerprints import Fingerprint
from kd.refusals import tolerated
from kd.store import Store
from kd.training.engine import is_frozen
from kd.training.loop import BEST, Trainer
from kd.training.ranks import by_first, gathered, local_rank, rank, together, world
from kd.training.saved import CHECKPOINT_MANIFEST, CHECKPOINTS, Checkpoint, Harmed, Stored, clear

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A whole checkpoint, and the folder on this node that its files were fetched to."""

    checkpoint: Checkpoint
    folder: Path

    def load_into(self, trainer: Trainer) -> None:
        """Go on from it on every rank, then free the node's copy.

        Raises:
            Harmed: weights that stay as they are came with another model than the run started from.
        """
        together(lambda: self._check_frozen(trainer))
        together(lambda: trainer.load(self.folder))
        if local_rank() == 0:
            shutil.rmtree(self.folder)

    def _check_frozen(self, trainer: Trainer) -> None:
        """A run's digest holds its model too, but as it was when the stage began; a branch of a hub can move after that."""
        if is_frozen(trainer.student.model) and trainer.student.name != self.checkpoint.started_from:
            raise Harmed(
                f"the run started from {self.checkpoint.started_from}, of which it trains only a part, and this worker has"
                f" {trainer.student.name}; make the former available, or start the stage again"
            )


@dataclass
class Checkpoints:
    """The checkpoints of the run in the folder `run`, whose config has this `digest`. Every rank calls each method.

    What any rank cannot read or write, all ranks raise as a StoreError; the last whole checkpoint stays. Where another
    `attempt` has begun at the run since, they raise Overtaken.
    """

    store: Store
    run: str
    digest: str
    keep: int
    attempt: str
    _whole: list[Checkpoint] = field(default_factory=list)
    _folders: set[str] | None = None
    """The folders that there are, once they were listed, on the first rank: only this attempt makes others."""

    @classmethod
    def begin(cls, store: Store, run: str, digest: str, keep: int) -> "Checkpoints":
        """Take the run over from whoever trains it."""
        return cls(store, run, digest, keep, by_first(lambda: begin_attempt(store, run)))

    @property
    def folder(self) -> str:
        """Where they lie."""
        return f"{self.run}/{CHECKPOINTS}"

    def save(self, trainer: Trainer) -> None:
        """Publish every rank's files, then the manifest; then delete what is older than `keep` or was left half-written."""
        name = by_first(lambda: f"{trainer.state.step:08d}-{_token()}")
        try:
            mine = together(lambda: self._save_mine(trainer, name))
            files = [file for part in gathered(mine) for file in part]
            by_first(lambda: self._commit(trainer, name, files))
        except UserError:
            by_first(lambda: self._give_up(name))
            raise
        by_first(self._tidy)

    def newest(self, scratch: Path) -> Found | None:
        """Fetch the newest whole checkpoint below `scratch`; None where the run has none yet.

        One that lacks a file, or whose files are not what its manifest says, is passed over for an older one, with a warning.

        Raises:
            Harmed: there are checkpoints, and none of them is whole and this run's.
        """
        faults: list[Harmed] = []
        for _ in range(2):  # an attempt that has just been overtaken may have made a newer one, and deleted what was listed
            listed, faults = by_first(self._listed)
            found = self._first_whole(listed, faults, scratch)
            if found is not None or not faults:
                return found
        where = self.store.path(self.folder)
        raise Harmed(f"{faults[0]}; no other checkpoint is whole. Delete {where} to start the run from its first step")

    def _first_whole(self, listed: Sequence[Checkpoint], faults: list[Harmed], scratch: Path) -> Found | None:
        """Fetch the first of these that is whole; what is wrong with the others is added to `faults`."""
        for place, checkpoint in enumerate(listed):
            try:
                folder = self._fetch(checkpoint, scratch)
            except Harmed as fault:
                faults.append(fault)
                continue
            self._warn(faults, checkpoint)
            self._whole = list(listed[place:])[::-1]
            return Found(checkpoint, folder)
        return None

    def check_newest(self) -> None:
        """Raise Overtaken where another attempt has begun; called by whoever is about to publish or delete."""
        check_newest(self.store, self.run, self.attempt, "training")

    def clear(self) -> None:
        """Delete them all, since the run is finished. Where `newest` has found no folder and none was made, nothing is asked."""
        by_first(lambda: clear(self.store, self.run) if self._folders != set() else None)

    def _save_mine(self, trainer: Trainer, name: str) -> list[Stored]:
        """This rank's part of a checkpoint."""
        with tempfile.TemporaryDirectory(prefix="kd-checkpoint-") as scratch:
            try:
                trainer.save(Path(scratch))
            except OSError as error:
                raise StoreError(f"cannot write a checkpoint to {scratch}: {error}; check the free space there") from error
            return self._publish(Path(scratch), name)

    def _publish(self, local: Path, folder: str) -> list[Stored]:
        """Every file below a local folder."""
        files = []
        for path in sorted(each for each in local.rglob("*") if each.is_file()):
            relative = f"{folder}/{path.relative_to(local).as_posix()}"
            found = self.store.publish_file(path, f"{self.folder}/{relative}")
            files.append(Stored(relative, rank(), found.size_bytes, found.sha256))
        return files

    def _commit(self, trainer: Trainer, name: str, files: Sequence[Stored]) -> None:
        """The first rank's part: the best model if it is a new one, and the manifest."""
        state, best = trainer.state, self._best(trainer, name)
        started_from = trainer.student.name
        checkpoint = Checkpoint(name, self.digest, state.step, world(), started_from, files, state.best_step, best)
        self.check_newest()
        self.store.publish_json(f"{self.folder}/{name}/{CHECKPOINT_MANIFEST}", dataclasses.asdict(checkpoint))
        self._whole = [*self._whole, checkpoint][-self.keep :]
        if self._folders is not None:
            self._folders = self._folders | set(checkpoint.folders())

    def _tidy(self) -> None:
        """Delete what is no longer needed; the checkpoint just made counts, whether that can be done now or not."""
        needed = {folder for each in self._whole for folder in each.folders()}
        with tolerated():
            check_newest(self.store, self.run, self.attempt, "training", NEWEST_WITHIN_S)  # it was read to commit
            there = set(self.store.folders(self.folder)) if self._folders is None else self._folders
            self._folders = there
            for folder in sorted(there - needed):
                self._delete(folder)
                self._folders.discard(folder)

    def _best(self, trainer: Trainer, name: str) -> Sequence[Stored]:
        """The best model's files, published with the checkpoint of this name unless the one before names the same model."""
        step = trainer.state.best_step
        if self._whole and self._whole[-1].best_step == step:
            return self._whole[-1].best
        return [] if step is None else self._publish(trainer.folder / BEST, f"{BEST}-{step:08d}-{_token_of(name)}")

    def _delete(self, folder: str) -> None:
        """The manifest goes first, where a folder is not deleted in one request: what is half deleted is no checkpoint."""
        if self.store.is_local:
            self.store.delete(f"{self.folder}/{folder}/{CHECKPOINT_MANIFEST}")
        self.store.delete_folder(f"{self.folder}/{folder}")

    def _give_up(self, name: str) -> None:
        """Delete what was published of a checkpoint and with it, as far as the file system lets one."""
        self._folders = None
        with tolerated():
            for folder in self.store.folders(self.folder):
                if _token_of(folder) == _token_of(name):
                    self._delete(folder)

    def _listed(self) -> tuple[list[Checkpoint], list[Harmed]]:
        """This run's checkpoints that have a manifest, the newest first, and what is wrong with others."""
        listed: list[Checkpoint] = []
        faults: list[Harmed] = []
        self._folders = set(self.store.folders(self.folder))
        for name in sorted(self._folders):
            if self.store.exists(f"{self.folder}/{name}/{CHECKPOINT_MANIFEST}"):
                try:
                    listed.append(self._read(name))
                except Harmed as fault:
                    faults.append(fault)
        return sorted(listed, key=lambda checkpoint: checkpoint.step, reverse=True), faults

    def _read(self, name: str) -> Checkpoint:
        relative = f"{self.folder}/{name}/{CHECKPOINT_MANIFEST}"
        content = self.store.read(relative)
        try:
            checkpoint = Checkpoint.from_json(json.loads(content))
        except (TypeError, ValueError) as error:
            raise Harmed(f"{self.store.path(relative)} is no manifest of a checkpoint of this version: {error}") from error
        if checkpoint.digest != self.digest:
            raise Harmed(
                f"{self.store.path(relative)} is of another config: expected the digest {self.digest}, got {checkpoint.digest}"
            )
        return checkpoint

    def _fetch(self, checkpoint: Checkpoint, scratch: Path) -> Path:
        """Fetch once per node what its ranks need: all files where the number of ranks is another one now."""
        places = gathered((rank() - local_rank(), scratch / "resumed" / checkpoint.name))
        first = places[rank()][0]
        here = {number for number, (other, _) in enumerate(places) if other == first}
        files = [file for file in checkpoint.files if file.rank in here | {0} or checkpoint.world != world()]
        folder = places[first][1]
        together(partial(self._fetch_files, files, checkpoint.best if 0 in here else [], folder))
        return folder

    def _fetch_files(self, files: Sequence[Stored], best: Sequence[Stored], folder: Path) -> None:
        if local_rank() > 0:
            return
        try:
            for file, target in [*((each, folder) for each in files), *((each, folder / BEST) for each in best)]:
                self._fetch_file(file, target / file.name)
        except StoreError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _fetch_file(self, file: Stored, target: Path) -> None:
        relative = f"{self.folder}/{file.path}"
        if not self.store.exists(relative):
            raise Harmed(f"{self.store.path(relative)} is not there, though its checkpoint's manifest names it")
        expected, got = Fingerprint(file.size_bytes, file.sha256), self.store.fetch_file(relative, target)
        if got != expected:
            raise Harmed(
                f"{self.store.path(relative)} is not what its manifest says: expected {expected.size_bytes} bytes with SHA-256"
                f" {expected.sha256[:16]}, got {got.size_bytes} bytes with {got.sha256[:16]}; it was not opened"
            )

    def _warn(self, faults: Sequence[Harmed], chosen: Checkpoint) -> None:
        for fault in faults if rank() == 0 else []:
            log.warning("%s; going on from the checkpoint of step %d", fault, chosen.step)


def _token() -> str:
    return uuid.uuid4().hex[:8]


def _token_of(folder: str) -> str:
    """What tells a checkpoint's folders from those of another one of the same step."""
    return folder.rpartition("-")[2]
