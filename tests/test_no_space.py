"""Without space on the disk a run ends with an error that says where and what to do, whatever library was writing."""

from pathlib import Path

import pytest

from kd.errors import StoreError
from kd.loading import save
from kd.refusals import written
from kd.training.data import open_features
from tests import tiny
from tests.full_disk import files_no_larger_than
from tests.tiny_runs import SHORT, tiny_queue, trainer


def test_a_model_that_cannot_be_written(tmp_path: Path) -> None:
    loaded = tiny.tiny_t5(tmp_path)
    with files_no_larger_than(1000), pytest.raises(StoreError, match=r"cannot write .*/best: .*; check .* the free space"):
        save(loaded, tmp_path / "best")
    with files_no_larger_than(10_000), pytest.raises(StoreError, match=r"cannot write .*/best: .*os error .*the free space"):
        save(loaded, tmp_path / "best")
    save(loaded, tmp_path / "best")


def test_a_tokenizer_that_cannot_be_written(tmp_path: Path) -> None:
    tokenizer = tiny.tiny_t5(tmp_path).tokenizer.backend_tokenizer
    with (
        files_no_larger_than(1000),
        pytest.raises(StoreError, match=r"cannot write here: .*os error .*the free space"),
        written("here"),
    ):
        tokenizer.save(str(tmp_path / "tokenizer.json"))


def test_what_is_no_lack_of_space_stays_what_it_was() -> None:
    with pytest.raises(ValueError, match="no tensor"), written("here"):
        raise ValueError("no tensor")


def test_features_that_cannot_be_mapped(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path / "run", SHORT)
    run = queue.items[0].run
    with (
        files_no_larger_than(100),
        pytest.raises(StoreError, match=r"cannot read .*students/words/features into .*/cache: .*the free space"),
    ):
        open_features(queue.store, run.features, run.shards, tmp_path / "cache")
    assert len(open_features(queue.store, run.features, run.shards, tmp_path / "other")) == 24


def test_features_that_are_damaged(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path / "run", SHORT)
    run = queue.items[0].run
    Path(queue.store.path(f"{run.features}/{run.shards[0].file}")).write_bytes(b"PAR1 and no more")
    with pytest.raises(StoreError, match=r"cannot read .*students/words/features into .*check that the files are whole"):
        open_features(queue.store, run.features, run.shards, tmp_path / "cache")


def test_a_best_model_that_cannot_be_copied_from_a_checkpoint(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path / "run", SHORT.model_copy(update={"eval_every_steps": 2, "save_every_steps": 3}))
    saved = tmp_path / "saved"
    saved.mkdir()

    with trainer(queue) as whole:

        def checkpoint() -> None:
            whole.save(saved)
            whole.folder.joinpath("best").rename(saved / "best")

        whole.train(lambda state: None, checkpoint)
    with trainer(queue) as resumed:
        with files_no_larger_than(1000), pytest.raises(StoreError, match=r"cannot copy .*/best to .*/best: .*the free space"):
            resumed.load(saved)
        resumed.load(saved)
        assert (resumed.folder / "best" / "model.safetensors").exists()
