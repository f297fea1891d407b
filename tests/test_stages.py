"""What a job refuses before it starts anything."""

import io
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray
import torch

from jobs import attribute, pipeline, stages, teach
from jobs.cli import Session
from jobs.console import Console
from jobs.stages import check_models
from jobs.wiring import Wiring
from kd.config import Config
from kd.errors import ConfigError, InputError
from kd.loading import count_parameters, save
from kd.store import Store
from kd.tasks.planted import generate
from kd.training.adapters import Lora
from tests.mini import TINY, mini_config, prepared, write_mini
from tests.tiny import tiny_classifier, tiny_t5

FILES = {"train": "train", "test": "test"}


@pytest.fixture(autouse=True, scope="module")
def disconnected() -> None:
    """These tests see whether a job connects."""
    ray.shutdown()


def session(config: Config) -> Session:
    return Session(config, Store.at(config.directory), Console(io.StringIO()), ExitStack())


def with_a_student_that_is_nowhere(folder: Path, **changes: object) -> Session:
    return session(mini_config(write_mini(folder), student={"name": str(folder / "nowhere")}, **changes))


def test_a_student_that_cannot_be_opened_is_refused_before_the_corpus_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the student: there is no model folder .*nowhere"):
        pipeline.run(with_a_student_that_is_nowhere(tmp_path))
    assert not ray.is_initialized()


@pytest.mark.parametrize(("job", "teaching"), [(teach.run, {"steps": 2, "batch_rows": 2}), (attribute.run, None)])
def test_a_student_that_cannot_be_opened_is_refused_before_the_teacher_works(
    tmp_path: Path, job: Callable[[Session], None], teaching: dict[str, int] | None
) -> None:
    ready = with_a_student_that_is_nowhere(tmp_path, teach=teaching)
    prepared(ready.config)
    with pytest.raises(InputError, match=r"the student: there is no model folder .*nowhere"):
        job(ready)
    assert not ray.is_initialized()


def test_a_student_is_opened_without_its_weights_and_one_from_a_spec_not_at_all(tmp_path: Path) -> None:
    save(tiny_t5(tmp_path), tmp_path / "student")
    (tmp_path / "student" / "model.safetensors").unlink()
    config = mini_config(write_mini(tmp_path / "corpus"), student={"name": str(tmp_path / "student")})
    check_models(config)


def test_a_teacher_whose_weights_are_a_pickle_is_refused_before_the_corpus_is_read(tmp_path: Path) -> None:
    made = tiny_t5(tmp_path)
    save(made, tmp_path / "teacher")
    torch.save(made.model.state_dict(), tmp_path / "teacher" / "pytorch_model.bin")
    path, teacher = write_mini(tmp_path / "corpus"), {"name": str(tmp_path / "teacher")}
    check_models(mini_config(path, teacher=teacher))
    (tmp_path / "teacher" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"the teacher: .* its weights are a pickle .*allow_pickle = true"):
        check_models(mini_config(path, teacher=teacher))
    check_models(mini_config(path, teacher=teacher | {"allow_pickle": True}))


def test_a_chat_template_for_a_model_that_is_not_causal_is_refused_before_the_corpus_is_read(tmp_path: Path) -> None:
    save(tiny_t5(tmp_path), tmp_path / "student")
    config = mini_config(write_mini(tmp_path / "corpus"), student={"name": str(tmp_path / "student"), "chat_template": True})
    with pytest.raises(ConfigError, match="the student: .* is an encoder-decoder, and chat_template = true is for causal models"):
        check_models(config)


def test_adapters_without_a_layer_are_refused_before_the_corpus_is_read(tmp_path: Path) -> None:
    save(tiny_t5(tmp_path), tmp_path / "student")
    config = mini_config(write_mini(tmp_path / "corpus"), student={"name": str(tmp_path / "student")})
    for target in ("query", "lm_head"):
        training = config.training.model_copy(update={"lora": Lora(targets=("q", target))})
        with pytest.raises(ConfigError, match=f"the student: lora.targets: {target} names no linear layer"):
            check_models(config.model_copy(update={"training": training}))
    training = config.training.model_copy(update={"lora": Lora(targets=("q", "v"))})
    check_models(config.model_copy(update={"training": training}))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (300, "attribute    2 shards for 2 actors: some will be idle; prepare.rows_per_shard: 75, under a new run name,"),
        (75, ""),
    ],
)
def test_too_few_shards_for_the_actors_are_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, said: str
) -> None:
    path = write_mini(tmp_path)
    generate(tmp_path / "corpus", {"train": 600, "validation": 20, "test": 20}, seed=7)
    config = mini_config(path, teach=None, prepare={"rows_per_shard": size}, attribution={"splits": {"train": None}})
    ready, ran = session(prepared(config).config), list[str]()
    monkeypatch.setattr(stages, "run_works", lambda session, title, works, pool: ran.append(title))
    attribute.run(ready)
    assert ran == ["attribute"]
    assert isinstance(ready.console.stream, io.StringIO)
    printed = ready.console.stream.getvalue()
    assert (printed.startswith(said), printed.count("\n")) == (True, 1 if said else 0)


@pytest.mark.parametrize(("d_ff", "warned"), [(32, False), (64, True)])
def test_a_student_larger_than_its_teacher_is_warned_of_before_anything_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, d_ff: int, warned: bool
) -> None:
    student = {"spec": TINY | {"d_ff": d_ff}, "max_input_tokens": 96, "max_answer_tokens": 16}
    ready = session(prepared(mini_config(write_mini(tmp_path), teach=None, student=student)).config)
    monkeypatch.setattr(stages, "run_works", lambda session, title, works, pool: None)
    attribute.run(ready)
    assert isinstance(ready.console.stream, io.StringIO)
    added = 3 * (64 - 32) * 16 * 2  # three matrices of a gated feed-forward layer, in the encoder and in the decoder
    said = ready.console.stream.getvalue()
    teacher = count_parameters(Wiring(ready.config, ready.store).untrained(ready.config.teacher, 0))
    assert (f"WARNING: the student has {teacher + added:,} parameters, more than its teacher's {teacher:,}." in said) == warned
    assert ("WARNING" in said) == warned


@pytest.mark.parametrize(
    ("classes", "choices", "refused"),
    [
        (("yes", "no"), True, "has the fixed classes yes, no, and the rows bring choices"),
        (("good",), False, "has one logit and scores one choice at a time, and the rows bring no choices"),
        (("yes", "no"), False, None),
        (("good",), True, None),
    ],
)
def test_a_classifier_and_a_task_that_do_not_go_together_are_refused_before_the_corpus_is_read(
    tmp_path: Path, classes: tuple[str, ...], choices: bool, refused: str | None
) -> None:
    save(tiny_classifier(classes), tmp_path / "teacher")
    answers = {"choices": "options"} if choices else {"column": "hint"}
    task = {"type": "columns", "path": str(tmp_path), "files": FILES, "prompt": [{"column": "question"}, answers]}
    teacher = {"name": str(tmp_path / "teacher"), "max_input_tokens": 32, "max_answer_tokens": 8}
    config = mini_config(write_mini(tmp_path), task=task, teacher=teacher)
    if refused is None:
        check_models(config)
        return
    with pytest.raises(ConfigError, match=f"the teacher: .*{refused}"):
        check_models(config)
