"""A checkpoint goes on with another number of workers: DeepSpeed's optimizer states are cut anew."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import work_together
from tests.recut_worker import CASES, SPIKED

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a group of one, then one of two, then again one made of every case."""
    folder = tmp_path_factory.mktemp("recut")
    for case in CASES:
        (folder / case).mkdir()
    for world in (1, 2, 1):
        work_together("tests.recut_worker", world, folder)
    return folder


def figures(path: Path) -> list[float]:
    """The losses and gradient norms of all steps, in order."""
    entries: list[dict[str, Any]] = json.loads(path.read_text())
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    return [value for entry in entries for value in (*entry["loss"].values(), entry["gradient_norm"])]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("before", [1, 2])
def test_a_run_goes_on_with_another_number_of_workers(outcomes: Path, case: str, before: int) -> None:
    # The group that goes on starts from other weights; half of the steps are its own. Matrices decay, norms do not.
    undisturbed, resumed = [figures(outcomes / case / name) for name in (f"by{before}.json", f"from{before}.json")]
    near: dict[str, float] = {"rel": 0.03} if "bfloat16" in case else {"abs": 1e-5}
    assert resumed == pytest.approx(undisturbed, **near)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("before", [1, 2])
def test_weights_moments_and_counts_of_steps_come_back_to_the_bit(outcomes: Path, case: str, before: int) -> None:
    saved, loaded, ended = [torch.load(outcomes / case / f"{name}{before}.pt") for name in ("saved", "loaded", "ended")]
    for what in ("master", "exp_avg", "exp_avg_sq", "used"):
        assert loaded[what].keys() == saved[what].keys()
        assert [name for name in saved[what] if not torch.equal(loaded[what][name], saved[what][name])] == []
    assert any(moment.abs().max() > 0 for moment in saved["exp_avg"].values())
    assert [held["steps"] for held in (saved, loaded, ended)] == [[3.0], [3.0], [6.0]]
    assert [held["decays"] for held in (saved, loaded, ended)] == [[0.1] if "lora" in case else [0.1, 0.0]] * 3


def test_a_full_disk_on_one_rank_is_an_error_on_all_and_the_last_checkpoint_stays(outcomes: Path) -> None:
    first, second = [json.loads((outcomes / f"full{rank}.json").read_text()) for rank in (0, 1)]
    assert first == second
    assert "cannot write a checkpoint to" in first["checkpoint"]
    assert re.search(r"cannot write .*/best: .*File too large.* check .*the free space", first["model"])
    assert re.search(r"cannot cut a checkpoint anew in .*; check the free space there", first["recut"])
    assert first["found"] == 3


@pytest.mark.parametrize("case", SPIKED)
def test_a_gradient_that_is_no_number_ends_the_run_on_all_ranks_though_later_steps_have_one(outcomes: Path, case: str) -> None:
    first, second = [(outcomes / case / f"spike{rank}.txt").read_text() for rank in (0, 1)]
    assert first == second
    assert re.search(r"the loss is (nan|[\d.]+), its gradient (nan|inf) at step 3; .* Lower the learning rate", first)
