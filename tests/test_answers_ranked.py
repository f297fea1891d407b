"""Answers that are ranked: the most probable entry of the label set, whatever the family."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from kd.evaluation.answers import Answerer, EvaluationConfig
from kd.families.opening import open_family
from kd.loading import load
from kd.models import ModelSource
from kd.rows import Example, Prediction, RowError
from tests import tiny
from tests.tiny_answers import answered, outcome, question, recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def ranked(student: ModelSource, row: Example, **config: Any) -> Prediction:
    (result,) = recipe(student, answer="rank", **config).open()([row], Counter())
    assert isinstance(result, Prediction)
    return result


def test_the_most_probable_entry_of_the_label_set_is_the_answer(student: ModelSource) -> None:
    made = ranked(student, question("is it red", "no", ("no", "yes")))
    assert (made.answer, made.raw, made.status, made.correct) == ("yes", "yes", "ok", False)
    assert made.choice_logprobs[1] > math.log(0.5) > made.choice_logprobs[0]
    assert ranked(student, question("is it red", None, ("no", "yes"))).correct is None


def test_a_ranked_answer_need_not_be_what_would_be_written(student: ModelSource) -> None:
    made = ranked(student, question("is it red", "no", ("no", "( 2 + 2 )")))
    assert (made.answer, made.status) == (max(zip(made.choice_logprobs, made.label_set, strict=True))[1], "ok")
    assert outcome(answered(student, question("is it red", "no", ("no", "( 2 + 2 )")))) == (None, "unparsed", False)


def test_normalised_by_length_the_entry_of_the_largest_mean_is_taken_and_the_numbers_stay_those_of_whole_entries(
    student: ModelSource,
) -> None:
    row = question("is it red", "no", ("no", "( 2 + 2 )", "one two three"))
    plain, normalised = ranked(student, row), ranked(student, row, length_normalised=True)
    family = open_family(load(student, "cpu"), student.config)
    tokens = [len(family.encode_answer(label)) for label in row.label_set]
    assert len(set(tokens)) == 3
    assert normalised.choice_logprobs == plain.choice_logprobs
    means = [total / count for total, count in zip(plain.choice_logprobs, tokens, strict=True)]
    assert normalised.answer == row.label_set[means.index(max(means))]


def test_a_row_without_a_label_set_cannot_be_ranked(student: ModelSource) -> None:
    rows = [question("is it red"), question("is it red", "yes", ("yes", "no"))]
    error, made = recipe(student, answer="rank").open()(rows, Counter())
    assert (error.reason, made.answer) == ("missing_field", "yes")
    assert "evaluation.answer" in error.detail


def test_a_choice_that_no_answer_may_be_as_long_as_is_an_error_of_its_row(student: ModelSource) -> None:
    row = question("is it red", "yes", ("yes", "one two three four five six and no"))
    assert recipe(student, answer="rank").open()([row], Counter())[0].reason == "too_long"


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("length_normalised", [False, True])
def test_every_family_ranks_and_a_rows_numbers_do_not_depend_on_its_batch(
    student: ModelSource, tmp_path: Path, kind: str, length_normalised: bool
) -> None:
    family = tiny.family(tiny.tiny_models(tmp_path)[kind])
    rows = [row for row in tiny.rows_for(kind) if row.label_set]
    config = {"answer": "rank", "length_normalised": length_normalised}
    together = Answerer(recipe(student, **config), family).answer(rows, Counter())
    alone = [Answerer(recipe(student, **config), family).answer([row], Counter())[0] for row in rows]
    for row, one, other in zip(rows, together, alone, strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-5)
        lengths = [family.factors(family.encode_answer(label)) if length_normalised else 1 for label in row.label_set]
        best = max(range(len(row.label_set)), key=lambda place: one.choice_logprobs[place] / lengths[place])
        assert one.answer == other.answer == row.label_set[best]


@pytest.mark.parametrize("kind", ["classifier", "pooled", "scorer"])
def test_the_length_of_a_choice_changes_nothing_where_it_is_not_written(student: ModelSource, tmp_path: Path, kind: str) -> None:
    family, rows = tiny.family(tiny.tiny_models(tmp_path)[kind]), tiny.rows_for(kind)
    plain = Answerer(recipe(student, answer="rank"), family).answer(rows, Counter())
    assert Answerer(recipe(student, answer="rank", length_normalised=True), family).answer(rows, Counter()) == plain


def test_a_number_that_is_not_finite_is_an_error_of_its_row(student: ModelSource) -> None:
    family = tiny.family(tiny.tiny_classifier())
    with torch.no_grad():
        family.model.classifier.bias[0] = torch.nan
    (error,) = Answerer(recipe(student, answer="rank"), family).answer(tiny.rows_for("classifier")[:1], Counter())
    assert isinstance(error, RowError)
    assert error.reason == "not_finite"


def test_lengths_of_generated_answers_are_not_normalised() -> None:
    with pytest.raises(ValueError, match="length_normalised is about ranked answers, got answer: generate"):
        EvaluationConfig(length_normalised=True)
