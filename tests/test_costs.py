"""The size of a teacher that is used as it is: of its files where they are here, else of its weights."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.costs import costs
from jobs.wiring import Wiring
from kd.evaluation.answers import ANSWERING_MS
from kd.origins import size_of
from kd.reporting.cost_table import Cost, cost_table
from kd.training.runs import trained
from kd.training.session import train_here
from tests.mini import alone, mini_config, plain, prepared, save_teacher, taught, write_mini
from tests.tiny import cached, saved_t5
from tests.tiny_reports import manifest

ANSWERED = {("teacher", 0): ("predictions/teacher/0", manifest(rows=20, counts={ANSWERING_MS: 4000}))}


@pytest.fixture
def wiring(tmp_path: Path) -> Wiring:
    path = write_mini(tmp_path)
    save_teacher(tmp_path)
    teacher = {"name": str(tmp_path / "teacher"), "dtype": "bfloat16", "max_input_tokens": 128, "max_answer_tokens": 16}
    return prepared(mini_config(path, teacher=teacher, teach=None, training=alone()))


def test_the_size_of_a_teacher_in_a_folder_is_that_of_the_files_that_are_read(wiring: Wiring, tmp_path: Path) -> None:
    files = sum(path.stat().st_size for path in (tmp_path / "teacher").iterdir())
    for name in ("flax_model.msgpack", "pytorch_model.bin", "README.md"):
        (tmp_path / "teacher" / name).write_bytes(b"another copy")
    (found,) = costs(wiring, ANSWERED)
    assert (found.size_bytes, found.weights_only, found.rows_per_s) == (files, False, 5.0)
    assert found.parameters is not None
    assert files > 4 * found.parameters, "the files are float32, in whichever precision they are used"


def test_where_the_weights_are_elsewhere_the_size_is_theirs_and_the_table_says_so(wiring: Wiring, tmp_path: Path) -> None:
    (tmp_path / "teacher" / "model.safetensors").unlink()
    (found,) = costs(wiring, ANSWERED)
    assert found.parameters is not None
    assert (found.size_bytes, found.weights_only) == (2 * found.parameters, True)
    assert "The size of teacher is that of its weights only: its files are not on this machine." in cost_table([found]).notes


def test_a_teacher_that_cannot_be_opened_has_no_size(wiring: Wiring, tmp_path: Path) -> None:
    (tmp_path / "teacher" / "config.json").unlink()
    (found,) = costs(wiring, ANSWERED)
    assert (found.parameters, found.size_bytes, found.weights_only) == (None, None, False)


def test_a_student_whose_parameters_nobody_counted_has_none_of_them(tmp_path: Path) -> None:
    run = prepared(mini_config(write_mini(tmp_path), teach=None, training=alone()))
    plain(run.store, taught(run).student_features())
    train_here(run.training_queue())
    student, training = run.students()[0], run.config.training
    folder, manifest = trained(run.store, student, training)
    run.store.publish_manifest(folder, replace(manifest, figures=dict(manifest.figures) | {"parameters": None}))
    found = {each.variant: each for each in costs(run, {("label-only", 0): None, ("attribution", 0): None})}
    assert found["label-only"].parameters is None
    assert found["attribution"].parameters == manifest.figures["parameters"]


def test_two_types_of_gpu_are_told_apart_and_their_rates_are_not_to_be_compared() -> None:
    teacher = Cost("teacher", "teacher", 0, 100, 400, 100, 2.0, "NVIDIA A100, NVIDIA L4")
    student = Cost("student", "words", 0, 10, 40, 100, 50.0, "NVIDIA L4")
    note = "On different devices (NVIDIA A100, NVIDIA L4): their rates are not to be compared."
    table = cost_table([teacher, student, replace(student, seed=1)])
    assert [row[-1] for row in table.rows] == ["NVIDIA A100, NVIDIA L4", "NVIDIA L4"]
    assert note in table.notes
    assert note in cost_table([teacher]).notes, "a stage that went on elsewhere"
    assert note not in cost_table([replace(teacher, device="NVIDIA L4"), student]).notes


def test_the_size_of_a_hub_model_is_that_of_its_snapshot(tmp_path: Path) -> None:
    """A cache as the hub's client leaves it, read by a process that is told to stay offline."""
    commit, folder = "0123456789abcdef0123456789abcdef01234567", saved_t5(tmp_path)
    size = size_of(folder)
    cached(folder, tmp_path / "cache", commit)
    code = """
from kd.origins import files_here, size_of
print(size_of(files_here("acme/tiny-t5", "main")), files_here("acme/other", "main"))
"""
    offline = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=offline
    )
    assert done.stdout.split() == [str(size), "None"], done.stderr


def test_the_weights_of_several_files_are_added_up_and_a_folder_without_any_has_no_size(tmp_path: Path) -> None:
    for name, size in (("model-1-of-2.safetensors", 100), ("model-2-of-2.safetensors", 50), ("config.json", 7), ("notes.md", 9)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert size_of(tmp_path) == 157
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    assert size_of(tmp_path) is None
