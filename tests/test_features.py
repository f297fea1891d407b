"""Rows become token ids, behind the prefixes of the objective."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kd.loading import load, save
from kd.rows import Example, Features, RowError, Segment
from kd.training.features import Featurise
from kd.training.objectives import AnyObjective, LabelOnly, MultiTask
from tests.tiny import example, family, tiny_source
from tests.tiny_runs import rationale_row


def featurise(folder: Path, objective: AnyObjective, *rows: Example, **limits: Any) -> list[Features | RowError]:
    return Featurise(objective, tiny_source(folder, **limits)).open()(list(rows), Counter())


def test_each_target_is_read_behind_its_prefix(tmp_path: Path) -> None:
    (made,) = featurise(tmp_path, MultiTask(), rationale_row(example(), "find bank"))
    tokens = family(load(tiny_source(tmp_path), "cpu"))
    expected = [tokens.encode([Segment("prompt", prefix), *example().segments]).ids for prefix in ("predict: ", "explain: ")]
    assert made == Features(
        uid="r1",
        error=None,
        term=[0, 1],
        input_ids=expected,
        target_ids=[tokens.encode_answer("money"), tokens.encode_answer("find bank")],
        truncated=False,
    )


def test_the_teacher_learns_from_examples_without_prefix(tmp_path: Path) -> None:
    (made,) = featurise(tmp_path, LabelOnly(), example())
    tokens = family(load(tiny_source(tmp_path), "cpu"))
    assert isinstance(made, Features)
    assert made.input_ids == [tokens.encode(example().segments).ids]
    assert made.target_ids == [tokens.encode_answer("money")]


def test_an_unlabelled_row_has_no_sequence_and_is_counted(tmp_path: Path) -> None:
    (made,) = featurise(tmp_path, LabelOnly(), example(target=None))
    assert isinstance(made, Features)
    assert (made.term, made.input_ids, made.tally()) == ([], [], ("teaches_nothing",))


def test_a_students_answer_is_the_targets_or_the_teachers(tmp_path: Path) -> None:
    rows = [replace(rationale_row(example(target=target), "find"), explained_answer="river") for target in ("money", None)]
    tokens = family(load(tiny_source(tmp_path), "cpu"))
    source = tiny_source(tmp_path)
    learned = {answers: Featurise(LabelOnly(), source, answers).open()(rows, Counter()) for answers in ("gold", "teacher")}
    money, river = ([tokens.encode_answer(text)] for text in ("money", "river"))
    assert [made.target_ids for made in learned["gold"]] == [money, []]
    assert [made.target_ids for made in learned["teacher"]] == [river, river]


def test_an_llms_label_is_learned_in_place_of_the_target_and_a_row_without_one_teaches_nothing(tmp_path: Path) -> None:
    rows = [rationale_row(example(llm_label=label), "find") for label in (" river", None, "  ")]
    tokens = family(load(tiny_source(tmp_path), "cpu"))
    first, *others = Featurise(MultiTask(), tiny_source(tmp_path), "llm").open()(rows, Counter())
    assert first.target_ids == [tokens.encode_answer("river"), tokens.encode_answer("find")]
    assert [made.tally() for made in others] == [("teaches_nothing",)] * 2


def test_a_teacher_who_said_nothing_teaches_nothing(tmp_path: Path) -> None:
    silent = replace(rationale_row(example(target=None), ""), explained_answer="")
    (made,) = Featurise(LabelOnly(), tiny_source(tmp_path), "teacher").open()([silent], Counter())
    assert made.tally() == ("teaches_nothing",)


def test_a_label_over_the_limit_is_the_rows_error_and_the_others_go_on(tmp_path: Path) -> None:
    rows = [example(uid="long", target="river bank coffee cake"), example(uid="short")]
    long, short = featurise(tmp_path, LabelOnly(), *rows, max_answer_tokens=3)
    assert isinstance(long, RowError)
    assert long.reason == "too_long"
    assert isinstance(short, Features)


@pytest.mark.parametrize("limit", [2, 3, 4, 5])
def test_a_rationale_over_the_limit_keeps_as_many_words_as_fit(tmp_path: Path, limit: int) -> None:
    words = ["river", "bank", "coffee", "cake"]
    (made,) = featurise(tmp_path, MultiTask(), rationale_row(example(), " ".join(words)), max_answer_tokens=limit)
    assert isinstance(made, Features)
    kept = words[: limit - 1]  # one token a word, and the end of the sequence
    assert made.target_ids[1] == family(load(tiny_source(tmp_path), "cpu")).encode_answer(" ".join(kept))
    assert made.truncated == (len(kept) < len(words))
    assert made.tally() == ("truncated",) * made.truncated


def test_a_cut_input_is_counted(tmp_path: Path) -> None:
    (made,) = featurise(tmp_path, LabelOnly(), example("bank " * 60), max_input_tokens=32)
    assert isinstance(made, Features)
    assert len(made.input_ids[0]) == 32
    assert made.tally() == ("truncated",)


def test_a_row_of_options_alone_is_too_long_to_read(tmp_path: Path) -> None:
    row = replace(example(), segments=[Segment("choice", "bank " * 60)])
    (made,) = featurise(tmp_path, LabelOnly(), row, max_input_tokens=32)
    assert isinstance(made, RowError)
    assert made.reason == "too_long"


def test_a_pretrained_models_weights_are_not_read(tmp_path: Path) -> None:
    source = tiny_source(tmp_path)
    folder = tmp_path / "teacher" / "model"
    save(load(source, "cpu"), folder)
    (folder / "model.safetensors").unlink()
    trained = replace(source, folder="teacher/model")
    assert Featurise(LabelOnly(), trained).open()([example()], Counter()) == Featurise(LabelOnly(), source).open()(
        [example()], Counter()
    )
