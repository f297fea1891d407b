"""DeepSpeed trains what plain torch trains, on any number of workers; and Ray Train carries a queue of runs through."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from kd.errors import InputError, StageError
from kd.ray_train import _trainer, root_cause, train_queue
from kd.training.checkpoints import CHECKPOINT_MANIFEST, CHECKPOINTS
from kd.training.progress import read_progress
from kd.training.runs import MODEL, Queue
from kd.training.session import train_here
from tests.deepspeed_worker import CASES
from tests.tiny_runs import SHORT, history, tiny_queue

ROOT = Path(__file__).parents[1]
GROUP = SHORT.model_copy(
    update={"steps": 40, "num_workers": 2, "eval_every_steps": 10, "save_every_steps": 10, "log_every_steps": 5, "zero_stage": 2}
)


# --- DeepSpeed, without Ray -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of every case. No compiler is on their PATH, so all of this needs none."""
    folder = tmp_path_factory.mktemp("deepspeed")
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
                [*command, str(rank), str(port), str(folder)],
                cwd=ROOT,
                env=environment,
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            for rank, log in enumerate(logs)
        ]
        codes = [worker.wait(timeout=280) for worker in workers]
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Queue:
    """The same run in one process with plain torch."""
    queue = tiny_queue(tmp_path_factory.mktemp("plain"), SHORT)
    train_here(queue)
    return queue


def figures(entries: list[dict[str, Any]]) -> list[float]:
    return [value for entry in entries for value in (*entry["loss"].values(), entry["gradient_norm"])]


@pytest.mark.parametrize("case", [case for case in CASES if "bfloat16" not in case])
def test_two_workers_train_as_one_process_does(outcomes: Path, plain: Queue, case: str) -> None:
    # With clipping, accumulation and ranks that are empty now and then. AdamW hides a constant factor, the norm does not.
    entries = json.loads((outcomes / case / "whole.json").read_text())
    assert figures(entries) == pytest.approx(figures(history(plain)), abs=1e-5)
    expected = load_file(plain.store.path(f"{plain.items[0].folder}/{MODEL}/model.safetensors"))
    exported = load_file(outcomes / case / "whole" / "model.safetensors")
    assert exported.keys() == expected.keys()
    assert all(torch.allclose(exported[name], expected[name], atol=1e-5) for name in expected)


@pytest.mark.parametrize("case", [case for case in CASES if "bfloat16" in case])
def test_bfloat16_stays_near(outcomes: Path, plain: Queue, case: str) -> None:
    entries = json.loads((outcomes / case / "whole.json").read_text())
    assert figures(entries) == pytest.approx(figures(history(plain)), rel=0.02)
    weights = load_file(outcomes / case / "whole" / "model.safetensors").values()
    assert {weight.dtype for weight in weights} == {torch.bfloat16}


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_goes_on_exactly(outcomes: Path, case: str) -> None:
    whole, resumed = [json.loads((outcomes / case / f"{name}.json").read_text()) for name in ("whole", "resumed")]
    assert resumed == whole
    first, second = [load_file(outcomes / case / name / "model.safetensors") for name in ("whole", "resumed")]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_nothing_was_compiled(outcomes: Path) -> None:
    assert not list(outcomes.glob("extensions/**/*.so"))


# --- Ray Train --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attempt(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Queue, InputError]:
    """Two runs with dropout, trained by one group, and what it says of a third whose tokenizer is lost."""
    queue = tiny_queue(tmp_path_factory.mktemp("finished"), GROUP, dropout=0.1)
    run = queue.items[0].run
    lost = replace(queue.items[0], folder="lost", run=replace(run, model=replace(run.model, tokenizer_folder="tokenizers/lost")))
    with pytest.raises(InputError) as raised:
        train_queue(replace(queue, items=[*queue.items, lost]))
    return queue, raised.value


@pytest.fixture(scope="module")
def finished(attempt: tuple[Queue, InputError]) -> Queue:
    return attempt[0]


def test_a_users_mistake_on_a_worker_is_raised_as_itself_and_finished_runs_stay(attempt: tuple[Queue, InputError]) -> None:
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


def test_progress_ends_at_the_last_step(finished: Queue) -> None:
    progress = read_progress(finished.store, "train")
    assert progress is not None
    assert (progress.run, progress.steps_done, progress.steps_in_all) == ("label/0", 80, 120)


def test_a_group_that_loses_a_worker_goes_on_from_its_checkpoint_to_the_same_losses(finished: Queue, tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, GROUP, dropout=0.1)
    resumed_at: list[int] = []
    killer = Thread(target=kill_after_a_checkpoint, args=(queue, resumed_at))
    killer.start()
    train_queue(queue)
    killer.join()
    assert resumed_at
    assert resumed_at[0] > 10
    assert [history(queue, item) for item in (0, 1)] == [history(finished, item) for item in (0, 1)]


def test_a_run_goes_on_from_its_checkpoint_though_others_were_added_to_the_queue(finished: Queue, tmp_path: Path) -> None:
    both = tiny_queue(tmp_path, GROUP.model_copy(update={"max_failures": 0}), dropout=0.1)
    resumed_at: list[int] = []
    killer = Thread(target=kill_after_a_checkpoint, args=(both, resumed_at))
    killer.start()
    with pytest.raises(StageError, match="a training worker failed"):
        train_queue(replace(both, items=both.items[:1]))
    train_queue(both)
    killer.join()
    assert resumed_at
    assert resumed_at[0] > 10
    assert [history(both, item) for item in (0, 1)] == [history(finished, item) for item in (0, 1)]


def kill_after_a_checkpoint(queue: Queue, resumed_at: list[int]) -> None:
    """Kill the first worker once there is a checkpoint of the first run; note the first step of the one after it."""
    saved = Path(queue.store.path(queue.items[0].folder), CHECKPOINTS)
    wait_until(lambda: bool(list(saved.glob(f"*/{CHECKPOINT_MANIFEST}"))))
    seen = read_progress(queue.store, "train")
    if seen is None or seen.run == "" or len(queue.todo()) < len(queue.items):
        return
    os.kill(seen.pid, signal.SIGKILL)
    wait_until(lambda: (now := read_progress(queue.store, "train")) is not None and now.run != "" and now.pid != seen.pid)
    after = read_progress(queue.store, "train")
    if after is not None and after.run == seen.run:
        resumed_at.append(after.step)


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_training_workers_are_placed_by_label(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT)
    assert _trainer(queue, {"market": "on-demand"}).scaling_config.label_selector == {"market": "on-demand"}
    assert _trainer(queue, {}).scaling_config.label_selector is None


def test_of_a_failed_group_the_cause_is_told_and_not_its_echo() -> None:
    echo, cause = RuntimeError("Connection reset by peer"), ValueError("the disk is full")
    error = ray.train.WorkerGroupError("both died", {0: echo, 1: cause})
    assert isinstance(root_cause(error), StageError)
    assert "the disk is full" in str(root_cause(error))
    mistake = InputError("no such model")
    assert root_cause(ray.train.WorkerGroupError("both died", {0: echo, 1: mistake})) is mistake
