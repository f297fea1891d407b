"""Ray Train carries a queue of runs through."""

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import ray
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from kd.errors import InputError, StageError
from kd.ray_train import KEEP_MEMORY, _trainer, root_cause, train_queue
from kd.ray_worker import _too_large
from kd.training.config import LoopConfig
from kd.training.runs import MODEL, TIMINGS, Queue
from kd.training.saved import CHECKPOINT_MANIFEST, CHECKPOINTS
from tests.deadly import Deadly, whereabouts
from tests.tiny_runs import SHORT, history, tiny_queue

GROUP = SHORT.model_copy(
    update={"steps": 40, "num_workers": 2, "eval_every_steps": 10, "save_every_steps": 10, "log_every_steps": 5, "zero_stage": 2}
)


@pytest.fixture(scope="module")
def attempt(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Queue, StageError]:
    """Two runs with dropout, trained by one group, and what it says of a third whose tokenizer is lost."""
    queue = tiny_queue(tmp_path_factory.mktemp("finished"), GROUP, dropout=0.1)
    run = queue.items[0].run
    lost = replace(queue.items[0], folder="lost", run=replace(run, model=replace(run.model, tokenizer_folder="tokenizers/lost")))
    with pytest.raises(StageError) as raised:
        train_queue(replace(queue, items=[*queue.items, lost]))
    return queue, raised.value


@pytest.fixture(scope="module")
def finished(attempt: tuple[Queue, StageError]) -> Queue:
    return attempt[0]


def test_a_users_mistake_on_a_worker_is_told_and_finished_runs_stay(attempt: tuple[Queue, StageError]) -> None:
    queue, error = attempt
    assert "tokenizers/lost" in str(error)
    assert queue.todo() == []


def test_every_run_of_a_queue_is_exported_for_plain_transformers(finished: Queue) -> None:
    for item in finished.items:
        folder = finished.store.path(f"{item.folder}/{MODEL}")
        model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        manifest = finished.store.manifest(item.folder)
        assert manifest is not None
        assert manifest.figures["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert manifest.figures["best_step"] in (10, 20, 30, 40)
        assert model.generate(**tokenizer("river bank", return_tensors="pt"), max_new_tokens=2).shape[0] == 1


def test_a_finished_queue_starts_nothing(finished: Queue) -> None:
    before = finished.store.names(finished.items[0].folder), finished.store.manifest(finished.items[0].folder)
    train_queue(finished)
    assert (finished.store.names(finished.items[0].folder), finished.store.manifest(finished.items[0].folder)) == before


def test_a_group_that_loses_a_worker_goes_on_from_its_checkpoint_to_the_same_losses(finished: Queue, tmp_path: Path) -> None:
    queue = killable(tmp_path, GROUP)
    killed_s: list[float] = []
    killer = Thread(target=kill_after_a_checkpoint, args=(queue, killed_s))
    killer.start()
    train_queue(queue)
    killer.join()
    assert killed_s
    assert steps_before(queue, killed_s[0])[:2] == [5, 10]
    assert [history(queue, item) for item in (0, 1)] == [history(finished, item) for item in (0, 1)]


def test_a_run_goes_on_from_its_checkpoint_though_others_were_added_to_the_queue(finished: Queue, tmp_path: Path) -> None:
    both = killable(tmp_path, GROUP.model_copy(update={"max_failures": 0}))
    killed_s: list[float] = []
    killer = Thread(target=kill_after_a_checkpoint, args=(both, killed_s))
    killer.start()
    with pytest.raises(StageError, match="a training worker failed"):
        train_queue(replace(both, items=both.items[:1]))
    train_queue(both)
    killer.join()
    assert killed_s
    assert steps_before(both, killed_s[0])[:2] == [5, 10]
    assert [history(both, item) for item in (0, 1)] == [history(finished, item) for item in (0, 1)]


def killable(folder: Path, training: LoopConfig) -> Queue:
    """Two runs with dropout, whose workers leave their pids."""
    queue, notes = tiny_queue(folder, training, dropout=0.1), folder / "notes"
    notes.mkdir()
    return replace(queue, store=Deadly(queue.store.root, str(notes)))


def kill_after_a_checkpoint(queue: Queue, killed_s: list[float]) -> None:
    """Kill the first worker once there is a checkpoint of the first run, before that is finished; note when."""
    saved = Path(queue.store.path(queue.items[0].folder), CHECKPOINTS)
    wait_until(lambda: bool(list(saved.glob(f"*/{CHECKPOINT_MANIFEST}"))))
    if len(queue.todo()) == len(queue.items):
        os.kill(whereabouts(queue, 0)[0], signal.SIGKILL)
        killed_s.append(time.time())


def steps_before(queue: Queue, unix_s: float) -> list[int]:
    """The logged steps of the finished first run that were done before a moment; what came after a checkpoint is done anew."""
    timings = queue.store.read_json(f"{queue.items[0].folder}/{TIMINGS}")["timings"]
    return [timing["step"] for timing in timings if timing["unix_s"] < unix_s]


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_training_workers_are_placed_by_label(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT)
    assert _trainer(queue, {"market": "on-demand"}, None).scaling_config.label_selector == {"market": "on-demand"}
    assert _trainer(queue, {}, None).scaling_config.label_selector is None


def test_workers_keep_the_memory_that_they_free_only_where_they_train_in_it(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT)
    for device, kept in (("cpu", KEEP_MEMORY), ("cuda", {})):
        config = _trainer(replace(queue, device=device), {}, None).run_config
        assert config.worker_runtime_env == {"env_vars": kept}


@pytest.mark.parametrize(("stage", "section"), [("teach", "teach"), ("train", "training")])
def test_too_little_memory_is_told_with_the_keys_of_the_stages_own_section(tmp_path: Path, stage: str, section: str) -> None:
    said = _too_large(tiny_queue(tmp_path, SHORT, stage=stage), torch.OutOfMemoryError("CUDA out of memory.\nAnd more"))
    assert said.startswith("the device has too little memory for this run: CUDA out of memory. Lower ")
    fields = ["micro_batch_tokens", "eval_batch_tokens", "gradient_checkpointing", "lora", "num_workers", "zero_stage", "offload"]
    assert re.findall(r"(\w+)\.(\w+)", said) == [(section, field) for field in fields]
    assert set(fields) < set(LoopConfig.model_fields)


def test_of_a_failed_group_the_cause_is_told_and_not_its_echo() -> None:
    echo, cause = RuntimeError("Connection reset by peer"), ValueError("the disk is full")
    error = ray.train.WorkerGroupError("both died", {0: echo, 1: cause})
    assert isinstance(root_cause(error), StageError)
    assert "the disk is full" in str(root_cause(error))
    mistake = InputError("no such model")
    assert root_cause(ray.train.WorkerGroupError("both died", {0: echo, 1: mistake})) is mistake
