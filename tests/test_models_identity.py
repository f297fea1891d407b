"""What a model is called: by spec, content or commit, so that another model has another name."""

import subprocess
import sys
from pathlib import Path

import pytest

from kd.errors import InputError
from kd.loading import load, save
from kd.models import ModelConfig, ModelSource, identity
from kd.store import Store
from tests import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.saved_t5(tmp_path)


def test_the_name_says_spec_tokenizer_and_seed(tmp_path: Path) -> None:
    source = tiny.tiny_source(tmp_path, seed=7)
    name = load(source, "cpu").name
    assert name.startswith("spec:")
    assert name.endswith("@seed7")
    other = tiny.SPEC.model_copy(update={"d_ff": 48})
    assert load(tiny.tiny_source(tmp_path, other, seed=7), "cpu").name != name


def test_a_spec_is_told_by_its_numbers_and_its_tokenizer() -> None:
    specs = [tiny.SPEC, tiny.SPEC.model_copy(update={"d_ff": 48})]
    found = {identity(ModelConfig(spec=spec), folder) for spec in specs for folder in ("tokenizers/a", "tokenizers/b")}
    assert len(found) == 4


def test_a_folder_of_the_run_directory_is_named_by_its_content_not_its_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        save(tiny.tiny_t5(tmp_path / "t"), tmp_path / place / "teacher" / "model")
    config = ModelConfig(spec=tiny.SPEC)
    here, there = (
        load(ModelSource(config, Store.at(str(tmp_path / place)), folder="teacher/model"), "cpu") for place in ("here", "there")
    )
    assert here.name == there.name
    assert here.name.startswith("teacher/model@")
    save(tiny.tiny_t5(tmp_path / "t", seed=1), tmp_path / "there" / "teacher" / "model")
    assert load(ModelSource(config, Store.at(str(tmp_path / "there")), folder="teacher/model"), "cpu").name != here.name


def test_a_folder_is_told_by_what_is_in_it_and_no_weights_are_loaded(folder: Path) -> None:
    config = ModelConfig(name=str(folder))
    before = identity(config, None)
    assert before == load(ModelSource(config), "cpu").name
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    assert identity(config, None) != before
    with pytest.raises(InputError, match="there is no model folder"):
        identity(ModelConfig(name=str(folder / "nowhere")), None)


def test_a_hub_model_is_named_by_the_commit_that_its_revision_resolved_to(folder: Path, tmp_path: Path) -> None:
    """A cache as the hub's client leaves it, read by a process that is told to stay offline."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    tiny.cached(folder, tmp_path / "cache", commit)
    code = """
from kd.loading import load
from kd.models import ModelConfig, ModelSource
print(load(ModelSource(ModelConfig(name="acme/tiny-t5")), "cpu").name)
"""
    offline = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=offline
    )
    assert done.stdout.strip() == f"acme/tiny-t5@{commit}", done.stderr


def identity_offline(cache: Path) -> str:
    code = "from kd.models import ModelConfig, identity; print(identity(ModelConfig(name='acme/tiny-t5'), None))"
    offline = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=offline
    )
    return done.stdout.strip() or done.stderr


def test_a_hub_model_is_another_one_when_its_branch_has_moved(tmp_path: Path) -> None:
    branch = tmp_path / "models--acme--tiny-t5" / "refs" / "main"
    branch.parent.mkdir(parents=True)
    for commit in ("0" * 40, "1" * 40):
        branch.write_text(commit)
        assert identity_offline(tmp_path) == f"acme/tiny-t5@{commit}"
