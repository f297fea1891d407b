"""Which shards a stage takes, what a change of the config makes a stage do again, and whose examples it refuses."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.findings import Findings
from jobs.slices import first_rows
from jobs.wiring import Wiring
from kd.config import Config, validate
from kd.errors import InputError, StageError, StoreError
from kd.manifests import Shard
from kd.rows import Prediction
from kd.shards import Work, completed
from kd.training.runs import FAILURE, Failure
from kd.training.session import train_here
from tests.mini import TINY, alone, mini_config, plain, prepared, save_teacher, studied, taught, write_mini
from tests.tiny import tiny_pair

SHARDS = [Shard("a", "train", 20), Shard("b", "train", 20), Shard("c", "train", 5)]


@pytest.mark.parametrize(
    ("rows", "taken"),
    [(None, [20, 20, 5]), (1, [1]), (20, [20]), (21, [20, 1]), (45, [20, 20, 5]), (99, [20, 20, 5])],
)
def test_the_first_rows_of_a_split_end_inside_a_shard(rows: int | None, taken: list[int]) -> None:
    found = first_rows(SHARDS, rows)
    assert [shard.rows for shard in found] == taken
    assert [shard.name for shard in found] == ["a", "b", "c"][: len(taken)]


@pytest.fixture
def wiring(tmp_path: Path) -> Wiring:
    """A run with its examples, and a teacher from a folder that is used as it is."""
    path = write_mini(tmp_path)
    save_teacher(tmp_path)
    teacher = {"name": str(tmp_path / "teacher"), "max_input_tokens": 128, "max_answer_tokens": 16}
    return prepared(mini_config(path, teacher=teacher, teach=None, training=alone()))


def changed(wiring: Wiring, section: str, **values: object) -> Wiring:
    config: Config = wiring.config.model_copy(update={section: getattr(wiring.config, section).model_copy(update=values)})
    return Wiring(config, wiring.store)


def replaced(wiring: Wiring, **sections: Any) -> Wiring:
    """The same run directory with whole sections of the config replaced."""
    return Wiring(validate(wiring.config.model_dump(mode="json") | sections, "the test"), wiring.store)


# --- what is done again -----------------------------------------------------------------------------------------------


def test_attribution_depends_on_what_changes_its_rows_and_on_nothing_else(wiring: Wiring) -> None:
    digest = wiring.attributions().digest
    assert changed(wiring, "attribution", explained="predicted").attributions().digest != digest
    assert changed(wiring, "attribution", splits={"train": 7}).attributions().digest != digest
    assert changed(wiring, "teacher", max_input_tokens=64).attributions().digest != digest
    chatting = changed(wiring, "teacher", chat_template=True)
    assert chatting.attributions().digest != digest
    silent = changed(chatting, "teacher", chat_template_kwargs={"enable_thinking": False})
    assert silent.attributions().digest not in (digest, chatting.attributions().digest)
    assert changed(wiring, "attribution", batch_tokens=999).attributions().digest == digest
    assert changed(wiring, "attribution", max_error_frac=0.5).attributions().digest == digest
    assert changed(wiring, "cluster", max_actors=9).attributions().digest == digest


def bert(folder: Path, seed: int) -> dict[str, Any]:
    """A warm start from a random BERT in this folder."""
    pair = tiny_pair(seed)
    pair.model.encoder.save_pretrained(folder)
    pair.tokenizer.save_pretrained(folder)
    return {"spec": {"type": "warm_start", "encoder": str(folder)}}


def test_another_teacher_is_explained_anew(wiring: Wiring, tmp_path: Path) -> None:
    """A name, two specs of each kind, and a folder whose weights were replaced: no two share attributions or answers."""
    first, second = bert(tmp_path / "first", seed=0), bert(tmp_path / "second", seed=1)
    teachers = [first, second, {"spec": TINY}, {"spec": TINY | {"d_ff": 48}}]
    runs = [wiring, *(replaced(wiring, teacher=teacher) for teacher in teachers)]
    digests = {run.attributions().digest for run in runs} | {run.teacher_predictions().digest for run in runs}
    assert len(digests) == 10
    save_teacher(tmp_path, seed=1)
    assert Wiring(wiring.config, wiring.store).attributions().digest not in digests
    bert(tmp_path / "first", seed=2)
    assert replaced(wiring, teacher=first).attributions().digest not in digests


def test_another_student_reads_anew_what_it_learns(wiring: Wiring, tmp_path: Path) -> None:
    taught(wiring)
    first, second = bert(tmp_path / "first", seed=0), bert(tmp_path / "second", seed=1)
    digests = {replaced(wiring, student=student).student_features()[0].digest for student in (first, second, {"spec": TINY})}
    assert len(digests) == 3
    bert(tmp_path / "first", seed=2)
    assert replaced(wiring, student=first).student_features()[0].digest not in digests
    digest = wiring.student_features()[0].digest
    assert changed(wiring, "training", answers="teacher").student_features()[0].digest != digest
    assert changed(wiring, "training", max_error_frac=0.5, steps=9).student_features()[0].digest == digest


def test_another_limit_of_generated_tokens_selects_and_answers_anew(wiring: Wiring) -> None:
    """Validation generates, and selects the step by that."""
    taught(wiring)
    other = changed(wiring, "student", max_generated_tokens=5)
    for run in (wiring, other):
        plain(run.store, run.student_features())
    (first, *_), (second, *_) = wiring.students(), other.students()
    training = wiring.config.training
    assert first.digest(training) != second.digest(training)
    longer = changed(wiring, "teacher", max_generated_tokens=5)
    assert wiring.teacher_predictions().digest != longer.teacher_predictions().digest


def test_answers_that_were_judged_otherwise_are_those_of_another_corpus(wiring: Wiring) -> None:
    with pytest.raises(StoreError, match="new run name"):
        _ = changed(wiring, "task", match="exact").examples


def test_a_student_is_trained_anew_when_its_features_were_made_again(wiring: Wiring) -> None:
    """As `--retry-errors` does where fewer rows have an error than before."""
    taught(wiring)
    variant, training = wiring.config.training.variants[0], wiring.config.training
    with pytest.raises(StageError, match=r"features is not complete for this config; run the stage 'train' first"):
        wiring.student(variant, 0)
    plain(wiring.store, wiring.student_features())
    digest = wiring.student(variant, 0).digest(training)
    folder, features = completed(wiring.store, wiring.student_features()[0])
    wiring.store.publish_manifest(folder, replace(features, digest="of fewer errors"))
    assert wiring.student(variant, 0).digest(training) != digest


def test_a_teacher_to_be_trained_is_another_one_when_its_start_is(wiring: Wiring, tmp_path: Path) -> None:
    teach = {"steps": 1, "batch_rows": 8, "eval_rows": 0, "save_every_steps": 0}
    start = bert(tmp_path / "start", seed=0)
    digest = replaced(wiring, teacher=start, teach=teach).teaching_features().digest
    bert(tmp_path / "start", seed=1)
    assert replaced(wiring, teacher=start, teach=teach).teaching_features().digest != digest


def test_methods_have_folders_of_their_own_with_plain_names(wiring: Wiring) -> None:
    from kd.attribution.methods import IntegratedGradients

    assert wiring.attributions().target == "attributions/saliency"
    assert (
        changed(wiring, "attribution", method=IntegratedGradients()).attributions().target == "attributions/integrated-gradients"
    )


def test_a_device_is_an_order_not_a_wish(wiring: Wiring) -> None:
    assert wiring.pool.device == "cpu"
    cuda = changed(wiring, "cluster", device="cuda")
    assert cuda.pool.device == "cuda"
    assert cuda.pool.options(4)["num_gpus"] == 1
    assert cuda.cpu_pool.device == "cpu"


# --- whose examples ---------------------------------------------------------------------------------------------------


def test_the_examples_of_other_files_are_refused_by_every_stage(wiring: Wiring, tmp_path: Path) -> None:
    shutil.copytree(wiring.config.task.path, tmp_path / "moved")
    moved = changed(wiring, "task", path=str(tmp_path / "moved"))
    assert moved.attributions().digest == wiring.attributions().digest
    with (tmp_path / "moved" / "test.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(StoreError, match=r"moved/test\.jsonl, a file of test, is not .*: it had .* bytes and has"):
        changed(moved, "task").attributions()
    (tmp_path / "moved" / "test.jsonl").rename(tmp_path / "moved" / "other.jsonl")
    with pytest.raises(InputError, match=r"task\.files\.test: .* matches no file"):
        changed(moved, "task").attributions()
    with pytest.raises(StoreError, match=r"as these differ: rows_per_shard\. Use"):
        changed(wiring, "prepare", rows_per_shard=7).attributions()


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_corpus_that_is_gone_stops_no_later_stage(wiring: Wiring, left: str) -> None:
    digest = wiring.attributions().digest
    shutil.rmtree(wiring.config.task.path)
    if left == "an empty folder":
        Path(wiring.config.task.path).mkdir()
    assert changed(wiring, "task").attributions().digest == digest
    with pytest.raises(StoreError, match=r"as these differ: name\. Use a new run name"):
        changed(wiring, "task", name="other").attributions()


# --- errors -----------------------------------------------------------------------------------------------------------


def every_work(wiring: Wiring) -> list[Work]:
    features = [wiring.teaching_features(), *wiring.student_features()]
    return [*features, wiring.attributions(), *wiring.rationales().values(), wiring.teacher_predictions()]


def test_what_a_stage_allows_is_set_by_the_key_that_it_names(tmp_path: Path) -> None:
    run = taught(prepared(mini_config(write_mini(tmp_path), training=alone())))
    keys = set()
    for work in every_work(run):
        section, _, name = work.max_error_key.partition(".")
        data = run.config.model_dump(mode="json")
        lenient = replaced(run, **{section: data[section] | {name: 0.5}})
        (again,) = [other for other in every_work(lenient) if other.digest == work.digest]
        assert (work.max_error_frac, again.max_error_frac) == (0.01, 0.5)
        keys.add(section)
    assert keys == {"teach", "attribution", "rationales", "training", "evaluation"}


def test_rows_that_failed_in_one_stage_are_not_held_against_the_next(tmp_path: Path) -> None:
    path = write_mini(tmp_path)
    corpus = tmp_path / "corpus" / "train.jsonl"
    records = [json.loads(line) for line in corpus.read_text().splitlines()]
    for record in records[:3]:
        record["choices"][0] = record["answer"] = "word " * 200
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    run = prepared(mini_config(path, teach=None, training=alone()))
    with pytest.raises(
        StageError, match=r"3 of 60 rows got an error \(too_long 3\), more than attribution.max_error_frac = 0.01"
    ):
        taught(run)
    lenient = taught(changed(run, "attribution", max_error_frac=0.05))
    plain(lenient.store, lenient.student_features())
    features = run.store.manifest("students/attribution/features")
    assert features is not None
    assert (features.errors, features.counts["inherited_too_long"]) == ({"too_long": 3}, 3)


# --- without labels ---------------------------------------------------------------------------------------------------


@pytest.fixture
def unlabelled(wiring: Wiring, tmp_path: Path) -> Wiring:
    """A run over the same questions without their answers."""
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for path in Path(wiring.config.task.path).iterdir():
        records = [json.loads(line) for line in path.read_text().splitlines()]
        (folder / path.name).write_text("".join(json.dumps(record | {"answer": None}) + "\n" for record in records))
    prompt = [{"column": "question", "role": "question"}, {"choices": "choices"}]
    files = {split: f"{split}*" for split in ("train", "validation", "test")}
    task = {"type": "columns", "path": str(folder), "id": "id", "files": files, "prompt": prompt}
    config = wiring.config.model_dump(mode="json") | {"name": "unlabelled", "task": task}
    return taught(prepared(validate(config, "the test")))


def test_without_labels_students_learn_the_teachers_answers_and_predictions_are_all_there_is(unlabelled: Wiring) -> None:
    with pytest.raises(StageError, match=r"none of its 50 rows has anything to teach; .* set training\.answers = teacher"):
        studied(unlabelled)
    run = studied(changed(unlabelled, "training", answers="teacher"))
    for variant in ("teacher", "label-only", "attribution"):
        folder = f"predictions/{variant}/0"
        manifest = run.store.manifest(folder)
        assert manifest is not None
        assert manifest.counts["unlabelled"] == manifest.rows == 20
        rows = [row for shard in manifest.shards for row in run.store.read_rows(f"{folder}/{shard.file}", Prediction)]
        assert {row.correct for row in rows} == {None}
    accuracies = [row for row in Findings(run).report().metrics if row.metric == "accuracy"]
    assert [(row.variant, row.value) for row in accuracies] == [("teacher", None), ("label-only", None), ("attribution", None)]


# --- what failed ------------------------------------------------------------------------------------------------------


def test_a_student_whose_training_failed_is_left_out_of_evaluation_and_told_in_the_report(wiring: Wiring) -> None:
    taught(wiring)
    plain(wiring.store, wiring.student_features())
    queue = wiring.training_queue()
    train_here(replace(queue, items=queue.items[:1]))
    with pytest.raises(StageError, match="run the stage 'train' first"):
        wiring.predictions()
    failed = asdict(Failure("attribution/0", "the loss is nan", step=3, attempts=1, time="2026-01-01T00:00:00+00:00"))
    wiring.store.publish_json(f"{queue.items[1].folder}/{FAILURE}", failed)
    assert [work.target for work in wiring.predictions()] == ["predictions/teacher/0", "predictions/label-only/0"]
    notes = Findings(wiring).report().notes
    assert "The training of attribution/0 failed at step 3: the loss is nan" in notes
    train_here(queue)
    assert wiring.failed_students() == {}
    assert len(wiring.predictions()) == 3
