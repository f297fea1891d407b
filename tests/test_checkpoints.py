"""Checkpoints of a run: what counts as one, what is refused unread, and that the last whole one stays."""

import json
import logging
import pickle
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kd.errors import StoreError
from kd.fingerprints import Fingerprint
from kd.store import Store
from kd.training.checkpoints import Checkpoints
from kd.training.config import LoopConfig
from kd.training.engine import TorchEngine
from kd.training.loop import State, Trainer
from kd.training.runs import Queue
from kd.training.saved import CHECKPOINTS, Harmed, newest_step
from kd.training.session import open_run
from tests.deepspeed_worker import LORA
from tests.full_disk import files_no_larger_than
from tests.processes import forget
from tests.tiny_runs import SHORT, tiny_queue

torch.set_num_threads(1)
OFTEN = SHORT.model_copy(update={"eval_every_steps": 2, "save_every_steps": 1})


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return tiny_queue(tmp_path / "run", OFTEN, dropout=0.1)


@pytest.fixture
def anywhere(store: Store, tmp_path: Path) -> Queue:
    """The same on each kind of store."""
    return tiny_queue(tmp_path / "run", OFTEN, dropout=0.1, store=store)


def checkpoints(queue: Queue, keep: int = 1) -> Checkpoints:
    item = queue.items[0]
    return Checkpoints.begin(queue.store, item.folder, item.digest, keep)


def trainer(queue: Queue, folder: Path, seed: int = 0) -> Trainer:
    """The queue's first run, from another model where the seed is another."""
    run = replace(queue.items[0].run, model=replace(queue.items[0].run.model, seed=seed))
    opened = open_run(queue, run, folder, rank=0, world=1)
    return opened.trainer(TorchEngine(opened.student.model, queue.training, "cpu"), queue, queue.items[0].run, folder)


def ignore(state: State) -> None:
    """No progress file."""


def train(queue: Queue, folder: Path, keep: int = 1) -> Trainer:
    """Train the first run, with a checkpoint after each step but the last."""
    saved, whole = checkpoints(queue, keep), trainer(queue, folder)
    whole.train(ignore, lambda: saved.save(whole))
    return whole


def manifests(queue: Queue) -> list[Path]:
    """The manifests of the run's checkpoints, the oldest first."""
    return sorted(Path(queue.store.path(queue.items[0].folder), CHECKPOINTS).glob("*/manifest.json"))


def engine_file(manifest: Path) -> Path:
    return manifest.parent / "engine.pt"


def test_a_run_goes_on_exactly_from_a_checkpoint_with_its_best_model(anywhere: Queue, tmp_path: Path) -> None:
    whole = train(anywhere, tmp_path / "whole")
    resumed = trainer(anywhere, tmp_path / "resumed", seed=5)
    found = checkpoints(anywhere).newest(tmp_path / "scratch")
    assert found is not None
    found.load_into(resumed)
    assert resumed.state.step == 5
    assert not found.folder.exists(), "the copy is gone once it was read"
    resumed.train(ignore, lambda: None)
    assert (resumed.state.history, resumed.state.best) == (whole.state.history, whole.state.best)
    assert resumed.state.best_step == whole.state.best_step
    names = {path.relative_to(whole.folder) for path in whole.folder.glob("best/*")}
    assert Path("best/model.safetensors") in names
    assert all((resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes() for name in names)


def adapted(folder: Path) -> Queue:
    """A queue that trains adapters."""
    return tiny_queue(folder / "run", LoopConfig.model_validate(OFTEN.model_dump() | LORA))


def test_adapters_go_on_exactly_though_their_checkpoint_holds_nothing_of_the_model(tmp_path: Path) -> None:
    queue = adapted(tmp_path)
    whole, resumed = train(queue, tmp_path / "whole"), trainer(queue, tmp_path / "resumed")
    forget(resumed.student.model)
    found = checkpoints(queue).newest(tmp_path / "scratch")
    assert found is not None
    weights = torch.load(found.folder / "engine.pt", weights_only=True)["model"]
    assert {name for name in weights if "lora_" not in name} == set()
    assert sum(weight.numel() for weight in weights.values()) == 1536
    found.load_into(resumed)
    resumed.train(ignore, lambda: None)
    assert resumed.state.history == whole.state.history


def test_adapters_are_put_beside_no_other_model_than_they_were_trained_beside(tmp_path: Path) -> None:
    queue = adapted(tmp_path)
    train(queue, tmp_path / "whole")
    found = checkpoints(queue).newest(tmp_path / "scratch")
    assert found is not None
    with pytest.raises(Harmed, match=r"the run started from spec:\w+@seed0, .* and this worker has spec:\w+@seed5"):
        found.load_into(trainer(queue, tmp_path / "other", seed=5))


def test_weights_of_another_model_than_the_one_that_is_trained_are_refused(queue: Queue, tmp_path: Path) -> None:
    other = adapted(tmp_path / "adapted")
    whole, adapters = trainer(queue, tmp_path / "whole"), trainer(other, tmp_path / "other")
    whole.save(tmp_path)
    with pytest.raises(StoreError, match=r"a checkpoint holds 54 weights, expected the 24 that are trained: "):
        adapters.load(tmp_path)


def test_a_run_without_checkpoints_starts_at_its_first_step(anywhere: Queue, tmp_path: Path) -> None:
    assert checkpoints(anywhere).newest(tmp_path) is None


def test_the_newest_ones_stay_and_the_best_model_is_published_once(anywhere: Queue, tmp_path: Path) -> None:
    quiet = replace(anywhere, training=OFTEN.model_copy(update={"eval_every_steps": 3}))
    saved, whole = checkpoints(quiet, keep=2), trainer(quiet, tmp_path / "whole")
    half = f"{saved.folder}/00000001-dead"
    anywhere.store.publish(f"{half}/engine.pt", b"half-written")
    whole.train(ignore, lambda: saved.save(whole))
    names = [f"{saved.folder}/{name}/manifest.json" for name in anywhere.store.folders(saved.folder)]
    kept = [anywhere.store.read_json(name) for name in names if anywhere.store.exists(name)]
    assert [manifest["step"] for manifest in kept] == [4, 5]
    assert kept[0]["best"] == kept[1]["best"] != []
    assert len(anywhere.store.folders(saved.folder)) == 3, "two checkpoints, one best model, nothing half-written"
    saved.clear()
    assert anywhere.store.folders(anywhere.items[0].folder) == []


@pytest.mark.parametrize("harm", ["lost", "changed", "cut"])
def test_a_harmed_checkpoint_is_passed_over_for_an_older_one_with_a_warning(
    queue: Queue, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    train(queue, tmp_path / "whole", keep=2)
    damage(engine_file(manifests(queue)[-1]), harm)
    with caplog.at_level(logging.WARNING):
        found = checkpoints(queue).newest(tmp_path / "scratch")
    assert found is not None
    assert found.checkpoint.step == 4
    assert str(engine_file(manifests(queue)[-1])) in caplog.text
    assert "going on from the checkpoint of step 4" in caplog.text
    assert not (tmp_path / "scratch" / "resumed" / manifests(queue)[-1].parent.name).exists()


def test_a_lack_of_space_for_reading_is_no_harm_to_a_checkpoint(queue: Queue, tmp_path: Path) -> None:
    train(queue, tmp_path / "whole", keep=2)
    with (
        files_no_larger_than(1000),
        pytest.raises(StoreError, match=r"engine\.pt.*File too large.*check .*the free space") as told,
    ):
        checkpoints(queue).newest(tmp_path / "scratch")
    assert "Delete" not in str(told.value)
    assert [json.loads(path.read_text())["step"] for path in manifests(queue)] == [4, 5]


def test_a_checkpoint_that_goes_while_it_is_fetched_is_looked_for_once_more(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another attempt, which has just been overtaken, makes a newer one and deletes the one that was listed."""
    train(queue, tmp_path, keep=2)
    older, newer = manifests(queue)
    plain = Checkpoints._listed

    def listed_before(self: Checkpoints) -> Any:
        monkeypatch.setattr(Checkpoints, "_listed", plain)
        listed, faults = plain(self)
        shutil.rmtree(older.parent)
        return listed[1:], faults

    monkeypatch.setattr(Checkpoints, "_listed", listed_before)
    found = checkpoints(queue).newest(tmp_path / "scratch")
    assert found is not None
    assert found.checkpoint.name == newer.parent.name


def test_a_finished_run_leaves_no_checkpoint_though_none_could_be_tidied(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise StoreError("503")

    saved, whole = checkpoints(queue), trainer(queue, tmp_path)
    assert saved.newest(tmp_path / "scratch") is None
    monkeypatch.setattr("kd.training.checkpoints.check_newest", lambda *given: refuses() if len(given) > 4 else None)
    whole.train(ignore, lambda: saved.save(whole))
    assert manifests(queue)
    saved.clear()
    assert manifests(queue) == []


def damage(path: Path, harm: str) -> None:
    content = path.read_bytes()
    if harm == "lost":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if harm == "changed" else content[:-1])


@pytest.mark.parametrize(
    ("harm", "message"),
    [("lost", r"engine\.pt is not there"), ("cut", r"engine\.pt is not what its manifest says: expected \d+ bytes .* got \d+")],
)
def test_where_no_checkpoint_is_whole_the_file_is_named_and_what_to_do(
    queue: Queue, tmp_path: Path, harm: str, message: str
) -> None:
    train(queue, tmp_path / "whole")
    damage(engine_file(manifests(queue)[-1]), harm)
    with pytest.raises(StoreError, match=rf"{message}.*no other checkpoint is whole. Delete .*/checkpoints to start the run"):
        checkpoints(queue).newest(tmp_path / "scratch")


class Bite:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_digests_are_compared_before_anything_is_unpickled(queue: Queue, tmp_path: Path) -> None:
    train(queue, tmp_path / "whole")
    bite = pickle.dumps(Bite(tmp_path / "bitten"))
    for path in manifests(queue)[-1].parent.glob("*.pt"):
        path.write_bytes(bite)
    with pytest.raises(StoreError, match="it was not opened"):
        checkpoints(queue).newest(tmp_path / "scratch")
    assert not (tmp_path / "bitten").exists()
    pickle.loads(bite)
    assert (tmp_path / "bitten").exists()


def test_a_checkpoint_of_another_config_is_never_gone_on_with(
    queue: Queue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(queue, tmp_path / "whole", keep=2)
    newest = manifests(queue)[-1]
    newest.write_text(newest.read_text().replace(queue.items[0].digest, "f" * 16))
    with caplog.at_level(logging.WARNING):
        found = checkpoints(queue).newest(tmp_path / "scratch")
    assert found is not None
    assert found.checkpoint.step == 4
    stranger = replace(checkpoints(queue), digest="0" * 16)
    with pytest.raises(StoreError, match=rf"is of another config: expected the digest {'0' * 16}, got {queue.items[0].digest}"):
        stranger.newest(tmp_path / "scratch")


def test_a_manifest_that_is_damaged_or_of_another_version_is_named(queue: Queue, tmp_path: Path) -> None:
    train(queue, tmp_path / "whole")
    manifest = manifests(queue)[-1]
    content = json.loads(manifest.read_text())
    for text, said in (
        (json.dumps(content | {"colour": "red"}), ".*colour"),
        (json.dumps({key: value for key, value in content.items() if key != "format"}), "expected format 2, got None"),
        (json.dumps(content | {"format": 1}), "expected format 2, got 1"),
        (json.dumps(content)[:-9], ""),
    ):
        manifest.write_text(text)
        with pytest.raises(StoreError, match=rf"manifest\.json is no manifest of a checkpoint of this version: {said}"):
            checkpoints(queue).newest(tmp_path / "scratch")


class Full(Store):
    """A run directory on a disk without space."""

    def publish_file(self, local: Path, relative: str) -> Fingerprint:
        with files_no_larger_than(1000):
            return super().publish_file(local, relative)


@pytest.mark.parametrize("place", ["scratch", "store"])
def test_without_space_the_last_whole_checkpoint_stays_and_nothing_half_written(queue: Queue, tmp_path: Path, place: str) -> None:
    whole = train(queue, tmp_path / "whole")
    before, folders = manifests(queue), queue.store.folders(checkpoints(queue).folder)
    store = Full(queue.store.root) if place == "store" else queue.store
    limit = nullcontext() if place == "store" else files_no_larger_than(1000)
    with limit, pytest.raises(StoreError, match=r"cannot write .*; check .*the free space"):
        replace(checkpoints(queue), store=store).save(whole)
    assert manifests(queue) == before
    assert queue.store.folders(checkpoints(queue).folder) == folders
    assert checkpoints(queue).newest(tmp_path / "scratch") is not None


class FullAtTheBest(Store):
    """A run directory whose disk is full once the best model's turn has come."""

    def publish_file(self, local: Path, relative: str) -> Fingerprint:
        with files_no_larger_than(1000) if "/best-" in relative else nullcontext():
            return super().publish_file(local, relative)


def test_without_space_for_the_best_model_nothing_of_it_stays(queue: Queue, tmp_path: Path) -> None:
    whole = train(queue, tmp_path / "whole")
    folders = queue.store.folders(checkpoints(queue).folder)
    whole.state.best_step = 99
    with pytest.raises(StoreError, match=r"cannot write .*/best-00000099-.*; check .*the free space"):
        replace(checkpoints(queue), store=FullAtTheBest(queue.store.root)).save(whole)
    assert queue.store.folders(checkpoints(queue).folder) == folders


class Sticky(Store):
    """A run directory in which nothing can be deleted."""

    def delete_folder(self, folder: str) -> None:
        raise StoreError(f"cannot delete {folder}: 503; check the path, the credentials and the free space, then run it again")


def test_what_cannot_be_tidied_now_costs_no_checkpoint_and_goes_later(
    queue: Queue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved, whole = checkpoints(queue), trainer(queue, tmp_path / "whole")
    sticky = replace(saved, store=Sticky(queue.store.root))
    with caplog.at_level(logging.WARNING):
        whole.train(ignore, lambda: sticky.save(whole))
    assert "cannot delete" in caplog.text
    assert newest_step(queue.store, saved.run) == 5
    whole.state.step = 7
    sticky.store = queue.store
    sticky.save(whole)
    assert [json.loads(path.read_text())["step"] for path in manifests(queue)] == [7]
    sticky.store = Sticky(queue.store.root)
    sticky.clear()
    assert newest_step(queue.store, saved.run) == 7, "a run that is finished does not fail for its leftovers"
