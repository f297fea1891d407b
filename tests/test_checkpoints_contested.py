"""Two groups of workers at the checkpoints of one run: the older one stops. And what a run that is finished leaves."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kd.errors import Overtaken
from kd.manifests import Manifest
from kd.store import Store
from kd.training.checkpoints import Checkpoints
from kd.training.runs import Queue
from kd.training.saved import CHECKPOINT_MANIFEST, CHECKPOINTS, clear_finished, newest_step
from tests.test_checkpoints import OFTEN, checkpoints, ignore, manifests, train, trainer
from tests.tiny_runs import tiny_queue

torch.set_num_threads(1)


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return tiny_queue(tmp_path / "run", OFTEN, dropout=0.1)


def test_of_two_groups_at_one_run_the_older_stops_and_takes_nothing_from_the_newer(queue: Queue, tmp_path: Path) -> None:
    undisturbed = trainer(queue, tmp_path / "undisturbed")
    undisturbed.train(ignore, lambda: None)
    older, first = checkpoints(queue), trainer(queue, tmp_path / "older")
    newer, second = list[Checkpoints](), trainer(queue, tmp_path / "newer", seed=5)

    def save() -> None:
        if first.state.step == 3:
            newer.append(checkpoints(queue))
        older.save(first)

    with pytest.raises(Overtaken, match=r"another job has started this stage in .*/students/words/0 and goes on with it"):
        first.train(ignore, save)
    assert [json.loads(path.read_text())["step"] for path in manifests(queue)] == [2]
    assert len(queue.store.folders(older.folder)) == 2, "a checkpoint and its best model; nothing of the older group's third"
    found = newer[0].newest(tmp_path / "scratch")
    assert found is not None
    found.load_into(second)

    def save_between() -> None:
        newer[0].save(second)
        before = queue.store.folders(older.folder)
        with pytest.raises(Overtaken):
            older.save(first)
        assert queue.store.folders(older.folder) == before

    second.train(ignore, save_between)
    assert second.state.history == undisturbed.state.history
    assert newest_step(queue.store, older.run) == 5
    with pytest.raises(Overtaken):
        older.check_newest()


class Overtaking(Store):
    """A run directory in which another group begins right after a checkpoint was published."""

    def publish_json(self, relative: str, value: Mapping[str, Any]) -> None:
        super().publish_json(relative, value)
        if relative.endswith(CHECKPOINT_MANIFEST):
            Checkpoints.begin(Store(self.root), relative.partition(f"/{CHECKPOINTS}/")[0], "", keep=1)


def test_a_group_that_was_overtaken_after_its_checkpoint_deletes_no_other(queue: Queue, tmp_path: Path) -> None:
    whole = train(queue, tmp_path / "whole")
    with pytest.raises(Overtaken):
        replace(checkpoints(queue), store=Overtaking(queue.store.root)).save(whole)
    assert [json.loads(path.read_text())["step"] for path in manifests(queue)] == [5, 6]


def test_checkpoints_of_finished_runs_go_when_their_queue_is_started(queue: Queue, tmp_path: Path) -> None:
    train(queue, tmp_path / "whole")
    item, other = queue.items[0], f"{queue.items[1].folder}/{CHECKPOINTS}/00000001-a"
    queue.store.publish(f"{other}/{CHECKPOINT_MANIFEST}", b"{}")
    clear_finished(queue, queue.todo())
    assert manifests(queue), "it is not finished yet"
    done = Manifest(stage="train", digest=item.digest, config={}, inputs={}, shards=[], rows=1, device="cpu", seconds=1.0)
    queue.store.publish_manifest(item.folder, done)
    clear_finished(queue, queue.todo())
    assert not Path(queue.store.path(f"{item.folder}/{CHECKPOINTS}")).exists()
    assert queue.store.exists(f"{other}/{CHECKPOINT_MANIFEST}")
