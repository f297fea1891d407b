"""Answers of a small T5 that knows six questions by heart."""

import dataclasses
import pickle
from collections import Counter

import pytest

from kd.evaluation.answers import Answerer
from kd.families.opening import load_family
from kd.models import ModelSource
from kd.rows import Example, RowError, Segment
from kd.shards import count
from kd.tasks.svamp import Svamp
from kd.training.engine import TorchEngine
from kd.training.validation import open_validation
from tests import tiny
from tests.tiny_answers import LEARNT, TOY, answered, outcome, question, recipe
from tests.tiny_runs import SHORT

pytestmark = pytest.mark.usefixtures("one_thread")


# --- what becomes of an answer --------------------------------------------------------------------------------------------


def test_an_answer_is_right_or_wrong_by_its_target(student: ModelSource) -> None:
    assert outcome(answered(student, question("is it red", "yes", ("yes", "no")))) == ("yes", "ok", True)
    assert outcome(answered(student, question("is it blue", "yes", ("yes", "no")))) == ("no", "ok", False)


def test_an_answer_outside_the_label_set_is_unparsed_and_what_was_written_is_kept(student: ModelSource) -> None:
    made = answered(student, question("is it red", "blue", ("blue", "late")))
    assert outcome(made) == (None, "unparsed", False)
    assert made.raw == "yes"


def test_an_answer_without_its_end_is_truncated(student: ModelSource) -> None:
    made = answered(student, question("is it late", "one two three four five six"))
    assert outcome(made) == (None, "truncated", False)
    assert made.raw == "one two three four five six"


def test_an_answer_is_given_in_the_spelling_of_the_label(student: ModelSource) -> None:
    assert outcome(answered(student, question("say: is it red", "red", ("red", "blue")))) == ("red", "ok", True)


def test_where_only_the_very_text_is_right_another_spelling_of_the_label_is_unparsed(student: ModelSource) -> None:
    exact = TOY.model_copy(update={"match": "exact"})
    assert outcome(answered(student, question("say: is it red", "red", ("red", "blue")), exact)) == (None, "unparsed", False)
    assert outcome(answered(student, question("is it red", "yes", ("yes", "no")), exact)) == ("yes", "ok", True)
    assert outcome(answered(student, question("say: is it red", "red"), exact)) == ("Red", "ok", False)


def test_a_limit_of_generated_tokens_holds_for_answers_and_one_of_targets_does_not(student: ModelSource) -> None:
    """The model knows this answer of seven tokens, and its own limit of answers is six."""
    row = question("is it late", "one two three four five six")
    for limit, found in ((7, (LEARNT["is it late"], "ok", True)), (3, (None, "truncated", False))):
        config = student.config.model_copy(update={"max_generated_tokens": limit})
        assert outcome(answered(dataclasses.replace(student, config=config), row)) == found


def test_free_text_is_read_as_it_is(student: ModelSource) -> None:
    assert outcome(answered(student, question("say: is it red", "red."))) == ("Red", "ok", True)


def test_without_a_target_nothing_is_right_or_wrong(student: ModelSource) -> None:
    assert outcome(answered(student, question("is it red", None, ("yes", "no")))) == ("yes", "ok", None)
    assert outcome(answered(student, question("is it red", None, ("maybe",)))) == (None, "unparsed", None)


def test_the_prefix_is_what_the_model_is_asked_behind(student: ModelSource) -> None:
    assert answered(student, question("is it red"), prefix="say: ").answer == "Red"
    assert answered(student, question("is it red")).answer == "yes"


def test_the_prefix_does_not_become_part_of_the_row(student: ModelSource) -> None:
    row = question("is it red")
    made = answered(student, row, prefix="say: ")
    assert all(getattr(made, field.name) == getattr(row, field.name) for field in dataclasses.fields(Example))


def test_an_equation_is_right_by_its_value_and_half_an_equation_is_unparsed(student: ModelSource) -> None:
    svamp = Svamp(path="nowhere")
    assert outcome(answered(student, question("two and two", "8 / 2"), svamp)) == ("( 2 + 2 )", "ok", True)
    assert outcome(answered(student, question("is it blue", "8 / 2"), svamp, "say: ")) == (None, "unparsed", False)


def test_validation_while_training_counts_answers_as_evaluation_does(student: ModelSource) -> None:
    rows = [
        question("is it red", "yes", ("yes", "no")),
        question("is it blue", "yes", ("yes", "no")),
        question("is it red", "blue", ("blue", "late")),
        question("is it late", "yes"),
        question("two and two", "( 2 + 2 )"),
    ]
    family = load_family(student, "cpu", 1)
    validation = open_validation(rows, family, "", TOY.judge, 4096, rank=0, world=1)
    assert validation is not None
    engine = TorchEngine(family.model, SHORT, "cpu")
    with engine.whole():
        score = validation.score(engine, family)
    made = Counter(prediction.status for prediction in (answered(student, row) for row in rows))
    assert made == {"ok": 3, "unparsed": 1, "truncated": 1}
    assert (score.accuracy, score.parse_rate, score.truncation_rate) == (2 / 5, 3 / 5, 1 / 5)


# --- the stage ------------------------------------------------------------------------------------------------------------


def test_a_prediction_says_which_model_made_it(student: ModelSource) -> None:
    made = answered(student, question("is it red"))
    assert (made.variant, made.seed) == ("words", 7)
    assert made.student.startswith("model@")
    assert made.choice_logprobs == []


def test_a_row_that_cannot_be_read_is_an_error_in_its_place(student: ModelSource) -> None:
    long = dataclasses.replace(question("x"), segments=[Segment("choice", "is it red " * 10)])
    rows = [question("is it red"), long, question("is it blue"), question("")]
    results = recipe(student).open()(rows, Counter())
    assert [result.reason if isinstance(result, RowError) else result.answer for result in results] == [
        "yes",
        "too_long",
        "no",
        "empty_text",
    ]


def test_a_label_that_a_classifier_does_not_have_is_an_error_of_its_row_alone(student: ModelSource) -> None:
    rows = tiny.rows_for("classifier")[:2]
    rows.append(dataclasses.replace(rows[0], label_set=["yes", "no", "perhaps"]))
    results = Answerer(recipe(student), tiny.family(tiny.tiny_classifier())).answer(rows, Counter())
    assert [result.reason if isinstance(result, RowError) else result.status for result in results] == [
        "ok",
        "ok",
        "unknown_label",
    ]


def test_a_label_longer_than_an_answer_may_be_is_no_error(student: ModelSource) -> None:
    made = answered(student, question("is it red", "yes", ("yes", "one two three four five six and no")))
    assert outcome(made) == ("yes", "ok", True)


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_answers_come_in_the_order_of_the_rows_however_they_are_batched(student: ModelSource, batch_tokens: int) -> None:
    questions = ["is it red", "two and two", "is it late", "is it blue", "is it red and is it red"]
    results = recipe(student, batch_tokens=batch_tokens).open()([question(text) for text in questions], Counter())
    alone = [answered(student, question(text)) for text in questions]
    assert results == alone
    assert [result.raw for result in results[:4]] == [LEARNT[text] for text in questions[:4]]


def test_what_was_cut_off_the_input_is_counted(student: ModelSource) -> None:
    made = answered(student, question(" ".join(["is it red"] * 5)))
    assert made.truncated_tokens == 15 + 1 - 12


def test_no_rows_have_no_predictions(student: ModelSource) -> None:
    assert recipe(student).open()([], Counter()) == []


def test_the_recipe_can_be_sent_to_a_worker(student: ModelSource) -> None:
    row = question("is it red", "yes", ("yes", "no"))
    (made,) = pickle.loads(pickle.dumps(recipe(student))).open()([row], Counter())
    assert count([made]) == {"rows": 1, "ok": 1, "correct": 1}
