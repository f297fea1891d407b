"""Which step of a run is kept: the one that validates best, and the last one; and when a run ends before its steps are done."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from kd.manifests import Manifest
from kd.training.config import LoopConfig
from kd.training.loop import State
from kd.training.runs import LAST_MODEL, MODEL, Queue
from kd.training.session import train_here
from kd.training.validation import Score
from tests.tiny_runs import SHORT, history, score_of, tiny_queue, trainer

torch.set_num_threads(1)
# It learns the label at once, and then a high learning rate drives it back and forth.
LONG = {"steps": 60, "eval_every_steps": 4, "log_every_steps": 4, "learning_rate": 0.05, "schedule": "constant"}


def queue_of(folder: Path, **changes: Any) -> Queue:
    return tiny_queue(folder, LoopConfig.model_validate(SHORT.model_dump() | LONG | changes))


def trained(folder: Path, **changes: Any) -> tuple[Queue, Manifest]:
    queue = queue_of(folder, **changes)
    train_here(queue)
    manifest = queue.store.manifest(queue.items[0].folder)
    assert manifest is not None
    return queue, manifest


def scores(queue: Queue) -> dict[int, Score]:
    return {entry["step"]: score_of(entry) for entry in history(queue)}


def expected_stop(found: dict[int, Score], patience: int) -> tuple[int, int]:
    """By the definition: the best step, and the first step that `patience` validations in a row lie behind it."""
    best, stale = 0, 0
    for step, score in found.items():
        best, stale = (step, 0) if score.beats(found.get(best)) else (best, stale + 1)
        if stale == patience:
            return best, step
    return best, max(found)


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Queue:
    return trained(tmp_path_factory.mktemp("unstopped"))[0]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_training_ends_when_validations_in_a_row_have_not_beaten_the_best(
    tmp_path: Path, unstopped: Queue, patience: int
) -> None:
    queue, manifest = trained(tmp_path, patience_evals=patience)
    best, stop = expected_stop(scores(unstopped), patience)
    assert stop < 60
    assert history(queue) == [entry for entry in history(unstopped) if entry["step"] <= stop]
    figures = manifest.figures
    assert (figures["best_step"], figures["last_step"]) == (best, stop)
    assert figures["last_validation_loss"] == scores(unstopped)[stop].loss_nats
    assert manifest.rows_per_s == pytest.approx(stop * 8 / manifest.seconds, rel=0.01)


def test_without_patience_a_run_goes_to_its_end_and_keeps_both_models(unstopped: Queue) -> None:
    item, found = unstopped.items[0], scores(unstopped)
    manifest = unstopped.store.manifest(item.folder)
    assert manifest is not None
    assert (manifest.figures["last_step"], manifest.figures["last_model"]) == (60, LAST_MODEL)
    assert manifest.figures["best_step"] == expected_stop(found, 99)[0] < 60
    assert manifest.figures["last_validation_accuracy"] == found[60].accuracy
    best, last = [load_file(unstopped.store.path(f"{item.folder}/{name}/model.safetensors")) for name in (MODEL, LAST_MODEL)]
    assert best.keys() == last.keys()
    assert not all(torch.equal(best[name], last[name]) for name in best)
    assert AutoModelForSeq2SeqLM.from_pretrained(unstopped.store.path(f"{item.folder}/{LAST_MODEL}")).num_parameters() > 0


def test_the_last_model_is_not_kept_where_nobody_wants_it(tmp_path: Path) -> None:
    queue, manifest = trained(tmp_path, keep_last=False, patience_evals=1)
    assert manifest.figures["last_model"] is None
    assert manifest.figures["last_step"] != manifest.figures["best_step"]
    assert not queue.store.exists(f"{queue.items[0].folder}/{LAST_MODEL}")


def test_a_last_step_that_is_the_best_is_written_once(tmp_path: Path) -> None:
    queue, manifest = trained(tmp_path, steps=4)
    assert (manifest.figures["best_step"], manifest.figures["last_step"], manifest.figures["last_model"]) == (4, 4, MODEL)
    assert not queue.store.exists(f"{queue.items[0].folder}/{LAST_MODEL}")


def ignore(state: State) -> None:
    """No progress file."""


def test_a_restart_between_validations_remembers_how_long_the_run_has_been_stale(tmp_path: Path, unstopped: Queue) -> None:
    best, stop = expected_stop(scores(unstopped), 3)
    queue, saved = queue_of(tmp_path, patience_evals=3, save_every_steps=stop - 4), tmp_path / "saved"
    saved.mkdir()
    with trainer(queue) as whole:
        expected = whole.train(ignore, lambda: whole.save(saved))
    with trainer(queue) as resumed:
        resumed.load(saved)
        assert (resumed.state.step, resumed.state.stale_evals) == (stop - 4, 2)
        state = resumed.train(ignore, lambda: None)
        assert (resumed.folder / "last" / "model.safetensors").exists()
    assert (state.step, state.best_step, state.done) == (stop, best, True)
    assert (state.history, state.best, state.last) == (expected.history, expected.best, expected.last)


def test_patience_is_part_of_what_a_run_is(tmp_path: Path) -> None:
    run = tiny_queue(tmp_path, SHORT).items[0].run
    digests = {run.digest(SHORT.model_copy(update=change)) for change in ({}, {"patience_evals": 2}, {"keep_last": False})}
    assert len(digests) == 3
