"""What holds of every task: judging answers, uids, the hold-out, and configs that are refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from kd.errors import InputError
from kd.tasks.anli import Anli
from kd.tasks.base import Files, Match, is_content_uid, normalise
from kd.tasks.commonsense_qa import CommonsenseQA
from kd.tasks.holdout import Holdout
from kd.tasks.svamp import Svamp


def test_answers_are_compared_without_case_spacing_and_a_final_full_stop() -> None:
    assert normalise("  The\tBridge . ") == "the bridge"
    assert CommonsenseQA().judge("Water  bottle.", "water bottle")
    assert not CommonsenseQA().judge("water", "water bottle")
    assert not CommonsenseQA().judge("", "water")


def test_a_uid_without_an_id_column_depends_on_the_content_alone() -> None:
    task = Svamp(id=None)
    uid = task.uid({"body": "a", "equation": "1", "note": None}, "train")
    assert uid == task.uid({"equation": "1", "body": "a"}, "train")
    assert uid != task.uid({"equation": "2", "body": "a"}, "train")
    assert uid.partition("#")[0] == "train/"
    assert is_content_uid(uid)
    assert not is_content_uid("train/#12")
    assert task.uid({"body": "\ud83d"}, "train") != uid


# --- the hold-out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("records", "seed", "fraction"), [(9741, 0, 0.1), (800, 0, 0.1), (10, 3, 0.25), (7, 0, 0.5)])
def test_the_hold_out_by_position_is_that_of_hugging_face(records: int, seed: int, fraction: float) -> None:
    from datasets import Dataset

    dataset = Dataset.from_dict({"position": list(range(records))})
    parts = dataset.train_test_split(test_size=fraction, seed=seed)
    held = Holdout(fraction=fraction, seed=seed, by="position").positions(records)
    assert [position for position in range(records) if held[position]] == sorted(parts["test"]["position"])
    assert held.sum() == len(parts["test"])


def test_the_published_hold_outs_have_their_published_sizes() -> None:
    for task, records, held in ((CommonsenseQA(), 9741, 975), (Svamp(), 800, 80)):
        assert task.holdout is not None
        assert task.holdout.by == "position"
        assert task.holdout.positions(records).sum() == held


def test_the_hold_out_by_uid_depends_on_uid_and_seed_and_takes_about_its_share() -> None:
    uids = [f"train/{number}" for number in range(2000)]
    one, other = Holdout(fraction=0.25, seed=1), Holdout(fraction=0.25, seed=2)
    taken = [uid for uid in uids if one.takes(uid)]
    assert 420 < len(taken) < 580
    assert taken == [uid for uid in uids if one.takes(uid)]
    assert taken != [uid for uid in uids if other.takes(uid)]


# --- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "folder", "pattern"),
    [
        ("data/x.jsonl.gz", "data", "x.jsonl.gz"),
        ("/abs/part-*.parquet", "/abs", "part-*.parquet"),
        ("s3://bucket/a/**/b.csv", "s3://bucket/a", "**/b.csv"),
        ("x.csv", ".", "x.csv"),
        ("/x.json", "/", "x.json"),
    ],
)
def test_a_path_that_is_a_file_or_a_glob_is_all_train(path: str, folder: str, pattern: str) -> None:
    task = Svamp(path=path)
    assert task.path == folder
    assert task.files == Files(train=pattern)
    assert Svamp.model_validate(task.model_dump()) == task


def test_what_a_config_does_not_say_of_files_and_hold_out_keeps_the_presets_value() -> None:
    task = Anli.model_validate({"files": {"train": "mine*"}})
    assert task.files == Files(train="mine*", validation=Anli().files.validation, test=Anli().files.test)
    assert Svamp.model_validate({"holdout": {"seed": 3}}).holdout == Holdout(fraction=0.1, seed=3, by="position")
    with pytest.raises(ValidationError, match="fraction"):
        Anli.model_validate({"holdout": {"seed": 3}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"files": {"validation": "dev*"}}, "set one of them to null"),
        ({"files": {"train": None}}, "set files.train"),
        ({"id": None, "llm": {"path": "x.jsonl"}}, "attaches a side file by id"),
        ({"path": "a/b.csv", "files": {"train": "x*"}}, "give their folder as path"),
        ({"files": {"train": None, "test": None}, "holdout": None}, "no split has files"),
        ({"holdout": {"fraction": 1.0}}, "less than 1"),
        ({"splits": 3}, "Extra inputs"),
    ],
)
def test_an_impossible_task_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Svamp.model_validate(given)


def test_a_missing_column_is_named_with_those_that_are_there_and_the_key_to_set() -> None:
    there = {"train": {"id", "question", "choices", "answer"}, "test": {"question", "choices", "answer"}}
    with pytest.raises(
        InputError, match=r"column id, which the test records .* do not have; they have answer, choices, question"
    ) as caught:
        CommonsenseQA().check_columns(there)
    assert "Set task.id to one of these, or to null" in str(caught.value)
    CommonsenseQA(id=None).check_columns(there)
    with pytest.raises(InputError, match=r"column answer or label or answerKey"):
        CommonsenseQA(id=None).check_columns({"train": {"question", "choices"}})
    CommonsenseQA(id=None).check_columns({"train": {"question", "choices", "answer"}, "test": {"question", "choices"}})


@pytest.mark.parametrize(
    ("match", "right"),
    [
        ("exact", ["water bottle"]),
        ("normalised", ["water bottle", "Water  bottle.", " water bottle"]),
        ("value", []),
    ],
)
def test_a_task_says_when_a_text_is_right(match: Match, right: list[str]) -> None:
    answers = ["water bottle", "Water  bottle.", " water bottle", "water", ""]
    task = CommonsenseQA(match=match)
    assert [answer for answer in answers if task.judge(answer, "water bottle")] == right


@pytest.mark.parametrize(
    ("match", "right"),
    [("exact", ["( 6.0 * 12.0 )"]), ("normalised", ["( 6.0 * 12.0 )", "( 6.0  * 12.0 )."]), ("value", ["( 6.0 * 12.0 )", "72"])],
)
def test_a_task_says_when_an_equation_is_right(match: Match, right: list[str]) -> None:
    answers = ["( 6.0 * 12.0 )", "( 6.0  * 12.0 ).", "72", "( 6.0 *", "72 pens"]
    assert [answer for answer in answers if Svamp(match=match).judge(answer, "( 6.0 * 12.0 )")] == right
    assert Svamp().match == "value"
