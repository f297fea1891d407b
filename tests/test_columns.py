"""Anybody's columns, one test for each shape that YAML can describe."""

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from kd.errors import InputError
from kd.rows import Example, RowError, text_of
from kd.tasks import columns
from kd.tasks.columns import Columns


def task(text: str) -> Columns:
    return Columns.model_validate({"path": "data/mine.jsonl", **yaml.safe_load(text)})


def read(text: str, **record: Any) -> Example:
    return task(text).example(record, "train")


def joined(row: Example) -> str:
    return "".join(segment.text for segment in row.segments)


REVIEWS = """
    name: reviews
    id: id
    prompt:
      - {text: "How good? "}
      - {column: review, evidence: highlights}
    target: stars
    labels: {1: bad, 5: good}
    llm_rationale: why
"""


def test_the_samples_are_a_classification_of_one_text_with_evidence_and_rationales() -> None:
    rows = [task(REVIEWS).example(record, "train") for record in columns.SAMPLE]
    assert [(row.error, row.target, row.label_set) for row in rows] == [
        (None, "good", ["bad", "good"]),
        (None, "bad", ["bad", "good"]),
        (None, "bad", ["bad", "good"]),
    ]
    assert [row.uid for row in rows] == ["train/1", "train/2", "train/3"]
    assert {row.task for row in rows} == {"reviews"}
    assert joined(rows[0]) == "How good? A quiet, lovely film."
    assert [segment.role for segment in rows[0].segments] == ["prompt", "text"]
    assert [[text_of(row, span) for span in row.evidence] for row in rows] == [["lovely"], ["want back"], []]
    assert [row.llm_rationale for row in rows] == ["It is called lovely.", "They regret the time.", None]


def test_options_may_be_a_list_column_and_the_label_a_text() -> None:
    shape = "prompt: [{column: q, role: question}, {choices: options}]\ntarget: answer"
    row = read(shape, q="Which?", options=["tea", "milk", "tea"], answer="milk")
    assert joined(row) == "Which?\n(a) tea\n(b) milk\n(c) tea"
    assert [segment.role for segment in row.segments] == ["question", "prompt", "choice", "prompt", "choice", "prompt", "choice"]
    assert (row.target, row.label_set) == ("milk", ["tea", "milk", "tea"])


def test_options_may_be_several_columns_and_the_label_a_letter() -> None:
    shape = """
        prompt:
          - {column: q, role: question}
          - {text: "\\nOptions:"}
          - {choices: [first, second], before: " {number}) "}
        target: key
        target_is: letter
    """
    row = read(shape, q="Which?", first="tea", second="milk", key="B")
    assert joined(row) == "Which?\nOptions: 1) tea 2) milk"
    assert row.target == "milk"
    assert read(shape, q="Which?", first="tea", second="milk", key="1").target == "tea"


def test_options_may_be_a_field_of_a_column_and_the_label_an_index() -> None:
    shape = "prompt: [{column: q}, {choices: choices.text}]\ntarget: answer\ntarget_is: index"
    assert read(shape, q="Which?", choices={"text": ["tea", "milk"]}, answer=0).target == "tea"
    assert read(shape, q="Which?", choices={"text": ["tea", "milk"]}, answer="1").target == "milk"


@pytest.mark.parametrize("answer", [2, -1, "C", 0.5, "zero"])
def test_an_index_outside_the_options_is_an_error(answer: Any) -> None:
    error = read("prompt: [{column: q}, {choices: o}]\ntarget: a\ntarget_is: index", q="?", o=["x", "y"], a=answer).error
    assert error is not None
    assert error.reason == "answer_not_in_choices"


def test_a_pair_of_texts_may_be_classified_by_index() -> None:
    shape = """
        prompt:
          - {text: "Premise: "}
          - {column: sentence1, role: premise}
          - {text: "\\nHypothesis: "}
          - {column: sentence2, role: hypothesis, evidence: marks}
        target: label
        target_is: index
        labels: [entailment, neutral, contradiction]
    """
    row = read(shape, sentence1="It rains.", sentence2="It is dry.", label=2, marks=[[6, 9]])
    assert joined(row) == "Premise: It rains.\nHypothesis: It is dry."
    assert [segment.role for segment in row.segments] == ["prompt", "premise", "prompt", "hypothesis"]
    assert (row.target, [text_of(row, span) for span in row.evidence]) == ("contradiction", ["dry"])
    assert getattr(read(shape, sentence1="a", sentence2="b", label=3).error, "reason", None) == "unknown_label"


@pytest.mark.parametrize("labels", ["{true: 'yes', false: 'no'}", "{'true': 'yes', 'false': 'no'}"])
def test_labels_may_be_true_and_false(labels: str) -> None:
    shape = f"prompt: [{{column: q}}]\ntarget: answer\nlabels: {labels}"
    assert [read(shape, q="?", answer=value).target for value in (True, False, "true")] == ["yes", "no", "yes"]
    assert getattr(read(shape, q="?", answer="maybe").error, "reason", None) == "unknown_label"


def test_a_label_outside_the_list_is_an_error() -> None:
    shape = "prompt: [{column: q}]\ntarget: answer\nlabels: [up, down]"
    assert read(shape, q="?", answer="up").target == "up"
    assert getattr(read(shape, q="?", answer="left").error, "reason", None) == "unknown_label"


def test_free_text_has_no_label_set_and_a_number_is_a_text() -> None:
    shape = "prompt: [{column: q}]\ntarget: answer"
    row = read(shape, q="Capital of Peru?", answer="Lima")
    assert (row.target, row.label_set) == ("Lima", [])
    assert [read(shape, q="?", answer=value).target for value in (42, 42.0, 0.5)] == ["42", "42", "0.5"]


def test_without_a_target_the_corpus_is_unlabelled() -> None:
    row = read("prompt: [{column: q}, {choices: o}]", q="Which?", o=["x", "y"], answer="x")
    assert (row.error, row.target, row.label_set, row.tally()) == (None, None, ["x", "y"], ("unlabelled",))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_record_without_target_is_an_error_in_train_and_unlabelled_elsewhere(split: str) -> None:
    mine = task("prompt: [{column: q}, {choices: o}]\ntarget: a\ntarget_is: index")
    for record in ({"q": "Which?", "o": ["x", "y"]}, {"q": "Which?", "o": ["x", "y"], "a": None}):
        row = mine.example(record, split)
        assert (row.error, row.target, row.label_set, row.tally()) == (None, None, ["x", "y"], ("unlabelled",))
        error = mine.example(record, "train").error
        assert error is not None
        assert (error.reason, error.detail) == ("missing_field", "a is missing")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"o": ["x"], "a": "x"}, "missing_field"),
        ({"q": "?", "o": ["x"], "a": ""}, "missing_field"),
        ({"q": "?", "o": ["x"], "a": None}, "missing_field"),
        ({"q": "", "o": ["x"], "a": "x"}, "empty_text"),
        ({"q": "?", "o": [], "a": "x"}, "unparsable"),
        ({"q": "?", "o": ["x"] * 27, "a": "x"}, "unparsable"),
        ({"q": "?", "o": ["x", 3], "a": "x"}, "unparsable"),
        ({"q": "?", "o": ["x"], "a": {"b": 1}}, "unparsable"),
        ({"q": "?", "o": ["x"], "a": "y"}, "answer_not_in_choices"),
    ],
)
def test_a_bad_record_says_why(record: dict[str, Any], reason: str) -> None:
    error = read("prompt: [{column: q}, {choices: o}]\ntarget: a", **record).error
    assert error is not None
    assert error.reason == reason


def test_where_values_are_compared_a_target_without_one_is_an_error_and_numbers_may_be_labels() -> None:
    mine = "prompt: [{column: q}, {choices: o}]\ntarget: a\nmatch: value"
    error = read(mine, q="How many?", o=["6 * 12", "many"], a="many").error
    assert error is not None
    assert (error.reason, error.detail[-21:]) == ("unparsable", "got the target 'many'")
    assert read(mine, q="How many?", o=["6 * 12", "many"], a="6 * 12").error is None
    assert read(mine.replace("value", "exact"), q="How many?", o=["6 * 12", "many"], a="many").error is None
    stars = "prompt: [{column: q}]\ntarget: a\nmatch: value\nlabels: ['1', '2', '3']"
    assert read(stars, q="Lovely.", a=3).target == "3"
    assert task(stars).judge("3.0", "3")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("prompt: []", "at least 1 item"),
        ("prompt: [{text: hello}]", "reads the same in every row"),
        ("prompt: [{column: a, text: b}]", "exactly one of text, column and choices, got text and column"),
        ("prompt: [{role: text}]", "got none"),
        ("prompt: [{column: a}, {choices: b}, {choices: c}]", "at most one part"),
        ("prompt: [{column: a}, {choices: b}]\nlabels: [x]", "set labels to null"),
        ("prompt: [{column: a}]\ntarget: b\ntarget_is: letter", "counts options or a list of labels"),
        ("prompt: [{text: a, evidence: b}, {column: c}]", "give it to a part with `column`"),
        ("prompt: [{column: a}, {choices: b, role: text}]", "leave role out"),
        ("prompt: [{column: a, role: choice}]", "role"),
        (
            "prompt: [{column: a}]\nmatch: value\nlabels: [bad, good]",
            "the label 'bad' has no value; set match to normalised or exact",
        ),
        ("prompt: [{column: a}]\nmatch: value\nlabels: {no: '0', yes: '1', sure: '1.0'}", "'1' and '1.0' have the same value"),
    ],
)
def test_an_impossible_description_is_refused(shape: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        task(shape)


def test_a_missing_column_is_named_with_the_key_that_names_it() -> None:
    with pytest.raises(InputError, match=r"column stars, which the train records in data do not have; .* Set task\.target to"):
        task(REVIEWS).check_columns({"train": {"id", "review", "highlights", "why"}})


def test_the_target_is_a_column_of_train_and_need_not_be_in_another_split() -> None:
    read_too = {"id", "review", "highlights", "why"}
    task(REVIEWS).check_columns({"train": read_too | {"stars"}, "test": read_too})
    with pytest.raises(InputError, match=r"column stars, which the train records"):
        task(REVIEWS).check_columns({"train": read_too, "test": read_too | {"stars"}})


def test_highlights_and_rationales_need_not_be_in_every_split_but_in_one() -> None:
    labelled = {"id", "review", "stars"}
    task(REVIEWS).check_columns({"train": labelled | {"highlights", "why"}, "test": labelled})
    with pytest.raises(InputError, match=r"column why, which the train and test records .* Set task\.llm_rationale"):
        task(REVIEWS).check_columns({"train": labelled | {"highlights"}, "test": labelled})


def test_where_later_records_may_have_more_columns_only_those_of_every_record_are_asked_for() -> None:
    task(REVIEWS).check_columns({"train": {"id", "review", "stars"}}, may_have_more=True)
    with pytest.raises(InputError, match="column review"):
        task(REVIEWS).check_columns({"train": {"id", "stars"}}, may_have_more=True)


# --- what labels a column has, and which values are none ---------------------------------------------------------------


CLASSES = "prompt: [{column: q}]\ntarget: a\n"


def targets(text: str, *values: Any, split: str = "test") -> list[str | None]:
    rows = [task(CLASSES + text).example({"q": "?", "a": value}, split) for value in values]
    return [row.error.reason if row.error else row.target for row in rows]


@pytest.mark.parametrize("target_is", ["index", "letter"])
def test_an_index_counts_in_the_list_of_labels_as_it_is_written(target_is: str) -> None:
    first = {"index": 0, "letter": 1}[target_is]
    mine = f"target_is: {target_is}\nlabels: [neg, neg, pos]"
    assert targets(mine, *range(first, first + 4)) == ["neg", "neg", "pos", "unknown_label"]
    assert task(CLASSES + mine).fixed_labels == ["neg", "pos"]


def test_several_values_may_be_one_class_and_a_listed_label_may_be_there_twice() -> None:
    assert targets("labels: {1: bad, 2: bad, 5: good}", 1, "2", 5.0) == ["bad", "bad", "good"]
    assert targets("labels: [neg, neg, pos]", "neg", "pos") == ["neg", "pos"]


@pytest.mark.parametrize(
    ("labels", "value"),
    [("{0: neg, 1: pos, -1: null}", -1), ("{0: neg, 1: pos, -1: null}", "-1"), ("{0: neg, 1: pos, -1: null}", -1.0)],
)
def test_a_value_that_says_that_there_is_no_label_is_mapped_to_null(labels: str, value: Any) -> None:
    assert targets(f"labels: {labels}", 0, value) == ["neg", None]
    assert targets(f"labels: {labels}", 0, value, split="train") == ["neg", "missing_field"]
    assert task(CLASSES + f"labels: {labels}").fixed_labels == ["neg", "pos"]


def test_a_dash_may_say_so_too_and_an_unknown_label_tells_how() -> None:
    assert targets('labels: {up: up, down: down, "-": null}', "up", "-") == ["up", None]
    error = read(CLASSES + "labels: {0: neg, 1: pos}", q="?", a=-1).error
    assert error is not None
    assert error.detail == (
        "a: expected one of 0, 1; got '-1'; a value that marks records without a label is mapped to null in task.labels"
    )


def test_labels_are_the_same_after_a_config_was_written_and_read() -> None:
    for labels in ("{1.0: a, 2: b}", "{true: a, false: b}", "{0: neg, -1: null}", "[x, x]"):
        before = task(CLASSES + f"labels: {labels}")
        assert Columns.model_validate_json(before.model_dump_json()) == before
    assert targets("labels: {1.0: a, 2: b}", 1, 1.0, "1", 2.0) == ["a", "a", "a", "b"]


@pytest.mark.parametrize("labels", ["[]", "{}", "{x: null}", "{'0': a, 0: b}", "{true: a, 'true': b}", "[a, null]"])
def test_labels_that_name_no_class_or_one_value_twice_are_refused(labels: str) -> None:
    with pytest.raises(ValidationError, match="labels"):
        task(CLASSES + f"labels: {labels}")


@pytest.mark.parametrize("nan", [float("nan"), np.float32("nan"), np.float64("nan"), np.float16("nan"), Decimal("NaN")])
def test_nan_is_no_value_in_any_column(nan: Any) -> None:
    shape = """
        id: id
        prompt: [{column: q, evidence: marks}, {choices: [x, y]}]
        target: a
        llm_rationale: why
        llm_label: label
    """
    good = {"id": "1", "q": "?", "x": "tea", "y": "milk", "a": "tea", "why": "so", "label": "tea", "marks": [[0, 1]]}
    found = {name: task(shape).example(good | {name: nan}, "train") for name in good}
    for name in ("id", "q", "x", "y", "a"):
        assert found[name].error == RowError("missing_field", f"{name} is missing")
    rest = [
        (found[name].error, found[name].llm_rationale, found[name].llm_label, len(found[name].evidence))
        for name in list(good)[5:]
    ]
    assert rest == [(None, None, "tea", 1), (None, "so", None, 1), (None, "so", "tea", 0)]
    unlabelled = task(shape).example(good | {"a": nan}, "test")
    assert (unlabelled.error, unlabelled.target) == (None, None)
    listed = "prompt: [{column: q}, {choices: o}]\ntarget: a"
    assert getattr(read(listed, q="?", o=["tea", nan], a="tea").error, "reason", None) == "unparsable"
