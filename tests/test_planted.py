"""The quickstart's corpus has one cue per question, and it is what the record says it is."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kd.arrow import to_table
from kd.rows import Example, text_of
from kd.tasks import planted
from kd.tasks.planted import CUES, DISTRACTORS, NAMES, QUESTIONS, RATIONALES, STORIES, Planted, generate, question

RECORDS = [question(0, "train", number) for number in range(2000)]
CUES_OF = {answer: cues.split() for answers in CUES.values() for answer, cues in answers.items()}
OWNER = {cue: answer for answer, cues in CUES_OF.items() for cue in cues}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def test_there_are_24_answers_with_ten_cues_each_and_no_cue_belongs_to_two() -> None:
    assert len(CUES_OF) == 24
    assert {len(cues) for cues in CUES_OF.values()} == {10}
    assert len(OWNER) == 240
    assert len(STORIES) == len(set(STORIES)) == 24


def test_no_cue_is_an_answer_a_distractor_a_name_or_a_word_of_a_template() -> None:
    templates = [*STORIES, *(text for texts in [*QUESTIONS.values(), *RATIONALES.values()] for text in texts)]
    others = {*CUES_OF, *DISTRACTORS, *(name.lower() for name in NAMES), *(word for text in templates for word in words(text))}
    assert not set(OWNER) & others
    assert not set(DISTRACTORS) & set(CUES_OF)
    assert len(set(DISTRACTORS)) == len(DISTRACTORS) >= 40


@pytest.mark.parametrize("story", STORIES)
def test_a_story_has_room_for_six_things_each_once(story: str) -> None:
    assert sorted(re.findall(r"{(\d)}", story)) == list("012345")


def test_a_question_holds_one_cue_and_five_distractors_and_the_cue_is_the_answers() -> None:
    for record in RECORDS:
        found = [word for word in words(record["question"]) if word in OWNER]
        assert len(found) == 1
        assert OWNER[found[0]] == record["answer"]
        assert sum(word in DISTRACTORS for word in words(record["question"])) == 5
        assert found[0] in words(record["llm_rationale"])
        assert record["answer"] in words(record["llm_rationale"])


def test_the_options_are_four_answers_of_one_topic_with_the_right_one_among_them() -> None:
    for record in RECORDS:
        assert len(set(record["choices"])) == 4
        assert record["answer"] in record["choices"]
        assert any(set(record["choices"]) <= set(answers) for answers in CUES.values())


def test_the_answer_is_at_every_position_and_the_cue_at_every_place_about_equally_often() -> None:
    letters = [record["choices"].index(record["answer"]) for record in RECORDS]
    things = [[word for word in words(r["question"]) if word in OWNER or word in DISTRACTORS] for r in RECORDS]
    places = [next(i for i, word in enumerate(row) if word in OWNER) for row in things]
    assert all(420 < letters.count(letter) < 580 for letter in range(4))
    assert all(265 < places.count(place) < 402 for place in range(6))


def test_every_story_question_answer_cue_and_distractor_is_used() -> None:
    seen = {word for record in RECORDS for word in words(record["question"])}
    assert seen >= {*OWNER, *DISTRACTORS, *(name.lower() for name in NAMES)}
    assert {record["answer"] for record in RECORDS} == set(CUES_OF)


def test_the_same_arguments_write_the_same_bytes_and_another_seed_or_split_other_questions(tmp_path: Path) -> None:
    rows = {"train": 20, "validation": 5, "test": 5}
    for folder in ("once", "again"):
        generate(tmp_path / folder, rows, seed=3)
    for split in rows:
        assert (tmp_path / "once" / f"{split}.jsonl").read_bytes() == (tmp_path / "again" / f"{split}.jsonl").read_bytes()
    drawn = [question(seed, split, 0)["question"] for seed in (3, 4) for split in rows]
    assert len(set(drawn)) == 6


def test_a_longer_corpus_begins_with_the_shorter_one(tmp_path: Path) -> None:
    generate(tmp_path / "short", {"train": 5})
    generate(tmp_path / "long", {"train": 9})
    assert (tmp_path / "long" / "train.jsonl").read_text().startswith((tmp_path / "short" / "train.jsonl").read_text())


def test_the_command_writes_a_file_per_split_with_as_many_records_as_asked(tmp_path: Path) -> None:
    planted.main([str(tmp_path / "corpus"), "--seed", "2", "--train", "7", "--validation", "3", "--test", "4"])
    lines = {path.stem: path.read_text().splitlines() for path in (tmp_path / "corpus").iterdir()}
    assert {split: len(rows) for split, rows in lines.items()} == {"train": 7, "validation": 3, "test": 4}
    assert json.loads(lines["test"][3]) == question(2, "test", 3)


@pytest.mark.parametrize("record", [*planted.SAMPLE, *RECORDS[:50]])
def test_a_record_becomes_a_row_whose_evidence_is_the_cue(record: dict[str, Any]) -> None:
    row = Planted().example(record, "train")
    assert row.error is None
    assert (row.uid, row.task, row.target) == (f"train/{record['id']}", "planted", record["answer"])
    assert [OWNER[text_of(row, span)] for span in row.evidence] == [row.target]
    assert to_table([row], Example).num_rows == 1


def test_the_model_reads_the_question_and_a_line_per_option() -> None:
    row = Planted().example(planted.SAMPLE[1], "test")
    assert Planted().brings_choices
    assert "".join(segment.text for segment in row.segments) == (
        "This song is about the gavel, sofa, stone, candle, fence and parcel. Which job is it?"
        "\nOptions: judge, tailor, plumber, dentist"
    )
    assert [segment.role for segment in row.segments] == ["question"] + ["prompt", "choice"] * 4
    assert row.label_set == ["judge", "tailor", "plumber", "dentist"]


def test_an_answer_that_is_not_among_the_options_is_an_error() -> None:
    row = Planted().example(planted.SAMPLE[0] | {"answer": "library"}, "train")
    assert row.error is not None
    assert row.error.reason == "answer_not_in_choices"
