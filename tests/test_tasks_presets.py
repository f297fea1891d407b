"""Presets read their upstream's formats, and a bad record becomes a row that says why."""

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from kd.arrow import to_table
from kd.rows import Example, Segment, text_of
from kd.tasks import anli, commonsense_qa, esnli, planted, svamp, tweet_sentiment
from kd.tasks.anli import Anli
from kd.tasks.base import TaskConfig, is_content_uid
from kd.tasks.commonsense_qa import CommonsenseQA
from kd.tasks.esnli import ESNLI
from kd.tasks.planted import Planted
from kd.tasks.svamp import Svamp
from kd.tasks.tweet_sentiment import TweetSentiment

PRESETS: list[tuple[TaskConfig, list[dict[str, Any]]]] = [
    (CommonsenseQA(), commonsense_qa.SAMPLE),
    (ESNLI(), esnli.SAMPLE),
    (Anli(), anli.SAMPLE),
    (Svamp(), svamp.SAMPLE),
    (TweetSentiment(), tweet_sentiment.SAMPLE),
]
QUESTION = commonsense_qa.SAMPLE[0]
NEEDED = {
    "commonsense_qa": {"id", "question", "choices"},
    "esnli": {"id", "premise", "hypothesis"},
    "anli": {"uid", "context", "hypothesis"},
    "svamp": {"id", "body", "sub_question"},
    "tweet_sentiment_spans": {"id", "text"},
}
"""Fields of a preset's first sample that every record needs."""
LABEL = {"commonsense_qa": "answer", "esnli": "label", "anli": "label", "svamp": "equation", "tweet_sentiment_spans": "label"}
"""The one that only records of train need."""


def joined(row: Example) -> str:
    return "".join(segment.text for segment in row.segments)


def without(record: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != field}


def changed(record: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {**record, **fields}


@pytest.mark.parametrize(("task", "sample"), PRESETS, ids=lambda value: getattr(value, "type", ""))
def test_the_three_samples_of_a_preset_are_good_rows_of_the_contract(task: TaskConfig, sample: list[dict[str, Any]]) -> None:
    rows = [task.example(record, "train") for record in sample]
    assert len(rows) == 3
    assert [row.error for row in rows] == [None] * 3
    assert [row.uid for row in rows] == [f"train/{record[str(task.id)]}" for record in sample]
    assert {row.task for row in rows} == {task.type}
    assert all(row.target for row in rows)
    assert {any(segment.role == "choice" for segment in row.segments) for row in rows} == {task.brings_choices}
    assert to_table(rows, Example).num_rows == 3


@pytest.mark.parametrize(("task", "sample"), PRESETS, ids=lambda value: getattr(value, "type", ""))
def test_a_record_without_a_field_that_it_needs_is_an_error_and_no_exception(
    task: TaskConfig, sample: list[dict[str, Any]]
) -> None:
    for split in ("train", "validation", "test"):
        for missing in sample[0]:
            error = task.example(without(sample[0], missing), split).error
            needed = missing in NEEDED[task.type] or (split == "train" and missing == LABEL[task.type])
            assert (error and error.reason) == ("missing_field" if needed else None), (split, missing)
    empty = task.example({}, "test")
    assert empty.error is not None
    assert (empty.error.reason, empty.split, empty.segments) == ("missing_field", "test", [])


@pytest.mark.parametrize(("task", "sample"), PRESETS, ids=lambda value: getattr(value, "type", ""))
@pytest.mark.parametrize("split", ["validation", "test"])
def test_without_a_label_a_row_of_validation_or_test_is_unlabelled(
    task: TaskConfig, sample: list[dict[str, Any]], split: str
) -> None:
    label = LABEL[task.type]
    labelled = task.example(sample[0], split)
    for record in (without(sample[0], label), changed(sample[0], **{label: None}), changed(sample[0], **{label: " "})):
        row = task.example(record, split)
        assert (row.error, row.target, row.tally()) == (None, None, ("unlabelled",))
        assert (row.segments, row.label_set) == (labelled.segments, labelled.label_set)


def test_the_hubs_test_split_of_commonsense_qa_is_unlabelled() -> None:
    row = CommonsenseQA().example(changed(commonsense_qa.SAMPLE[2], answerKey=""), "test")
    assert (row.error, row.target, len(row.label_set)) == (None, None, 5)


@pytest.mark.parametrize(("task", "sample"), PRESETS, ids=lambda value: getattr(value, "type", ""))
def test_a_field_of_any_other_kind_is_an_error_and_no_exception(task: TaskConfig, sample: list[dict[str, Any]]) -> None:
    odd: list[Any] = [
        None,
        "",
        "  ",
        7,
        1.5,
        float("nan"),
        True,
        [],
        [None],
        ["x"],
        [[1]],
        {"a": 1},
        {"text": 3},
        "\ud800",
        "\U0001f600",
    ]
    for record in sample:
        for field in record:
            rows = [task.example(changed(record, **{field: value}), "train") for value in odd]
            assert to_table(rows, Example).num_rows == len(odd)


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"answer": "oven"}, "answer_not_in_choices", "got oven"),
        ({"answer": None}, "missing_field", "answer or label or answerKey is missing"),
        ({"question": " \n"}, "empty_text", "the question is empty"),
        ({"choices": ["stove", ""]}, "empty_text", "the choice is empty"),
        ({"choices": "stove"}, "unparsable", "choices: expected a list of texts"),
        ({"question": 4}, "unparsable", "question: expected text, got 4"),
        ({"question": "half a pair \ud83d"}, "unparsable", "question: expected text"),
        ({"human_rationale_spans": [[0, 999]]}, "unparsable", "outside a text of 43 characters"),
        ({"human_rationale_spans": [[0, 4.5]]}, "unparsable", "in whole numbers"),
        ({"id": None}, "missing_field", "id is missing"),
        ({"id": ""}, "missing_field", "id is empty"),
        ({"id": 1.5}, "unparsable", "id: expected text"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(fields: dict[str, Any], reason: str, detail: str) -> None:
    error = CommonsenseQA().example(changed(QUESTION, **fields), "train").error
    assert error is not None
    assert error.reason == reason
    assert detail in error.detail


def test_a_record_without_its_id_is_an_error_with_a_uid_of_its_content() -> None:
    row = Svamp().example({key: value for key, value in svamp.SAMPLE[0].items() if key != "id"}, "test")
    assert row.error is not None
    assert is_content_uid(row.uid)


def test_an_id_may_look_like_anything() -> None:
    rows = [Svamp().example(changed(svamp.SAMPLE[0], id=value), "train") for value in (0, "#1", "a/b", "ü")]
    assert [(row.uid, row.error) for row in rows] == [
        ("train/0", None),
        ("train/#1", None),
        ("train/a/b", None),
        ("train/ü", None),
    ]


# --- each preset by itself --------------------------------------------------------------------------------------------


def test_commonsense_qa_is_written_as_the_baseline_writes_it() -> None:
    row = CommonsenseQA().example(QUESTION, "train")
    assert joined(row) == (
        "Where would you put a kettle to boil water?\nAnswer Choices:\n(a) stove\n(b) garden\n(c) shelf\n(d) bath\n(e) car"
    )
    assert [segment.role for segment in row.segments] == ["question"] + ["prompt", "choice"] * 5
    assert (row.target, row.label_set) == ("stove", ["stove", "garden", "shelf", "bath", "car"])
    assert [text_of(row, span) for span in row.evidence] == ["boil water"]
    assert (row.llm_label, str(row.llm_rationale)[:10]) == ("stove", "The answer")


def test_a_highlight_of_the_whole_question_is_no_evidence_and_an_option_may_occur_twice() -> None:
    row = CommonsenseQA().example(commonsense_qa.SAMPLE[1], "train")
    assert row.evidence == []
    assert row.label_set.count("bridge") == 2
    assert row.error is None


def test_commonsense_qa_reads_labelled_choices_and_an_answer_key() -> None:
    row = CommonsenseQA().example(commonsense_qa.SAMPLE[2], "train")
    assert row.target == "plumber"
    wrong = CommonsenseQA().example(changed(commonsense_qa.SAMPLE[2], answerKey="F"), "train")
    assert wrong.error is not None
    assert wrong.error.reason == "answer_not_in_choices"


def test_nli_puts_the_end_of_sequence_text_between_premise_and_hypothesis() -> None:
    row = ESNLI().example(esnli.SAMPLE[0], "train")
    assert row.segments[1] == Segment("prompt", "</s>")
    assert joined(row) == "A girl sleeps under a tree.</s>A girl is running."
    assert row.label_set == ["entailment", "neutral", "contradiction"]
    assert joined(ESNLI(separator="\n").example(esnli.SAMPLE[0], "train")) == "A girl sleeps under a tree.\nA girl is running."


def test_a_word_is_evidence_when_more_than_half_of_the_annotators_marked_it() -> None:
    of_three = ESNLI().example(esnli.SAMPLE[0], "train")
    assert [text_of(of_three, span) for span in of_three.evidence] == ["sleeps", "running."]
    of_one = ESNLI().example(esnli.SAMPLE[2], "train")
    assert [text_of(of_one, span) for span in of_one.evidence] == ["painter."]
    assert ESNLI().example(esnli.SAMPLE[1], "train").evidence == []


@pytest.mark.parametrize("highlights", [[{"premise": [["sleeps", 8]], "hypothesis": []}], [{"premise": [["sleeps"]]}], [3], "x"])
def test_a_highlight_that_is_not_where_it_says_is_an_error(highlights: Any) -> None:
    error = ESNLI().example(changed(esnli.SAMPLE[0], human_highlights=highlights), "train").error
    assert error is not None
    assert error.reason == "unparsable"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (0, "entailment"),
        ("1", "neutral"),
        (2.0, "contradiction"),
        ("Neutral ", "neutral"),
        ("c", "contradiction"),
        (-1, None),
        ("-", None),
    ],
)
def test_nli_labels_come_by_name_index_or_initial(label: Any, expected: str | None) -> None:
    row = Anli().example(changed(anli.SAMPLE[1], label=label), "train")
    assert row.target == expected
    assert (row.error is None) == (expected is not None)
    assert row.error is None or row.error.reason == "unknown_label"


def test_svamp_is_body_line_break_question_and_its_answer_an_equation() -> None:
    row = Svamp().example(svamp.SAMPLE[0], "train")
    assert joined(row) == "Ada packed 6 boxes with 12 pens in each\nHow many pens did she pack?"
    assert [segment.role for segment in row.segments] == ["context", "prompt", "question"]
    assert (row.target, row.label_set) == ("( 6.0 * 12.0 )", [])


@pytest.mark.parametrize(
    ("answer", "right"),
    [("(12 * 6)", True), ("72", True), ("( 12.0 + 6.0 )", False), ("72 pens", False), ("( 6 / 0 )", False), ("", False)],
)
def test_a_svamp_answer_is_right_by_the_value_of_the_equation(answer: str, right: bool) -> None:
    assert Svamp().judge(answer, "( 6.0 * 12.0 )") is right


def test_a_gold_equation_without_a_value_is_an_error() -> None:
    error = Svamp().example(changed(svamp.SAMPLE[0], equation="( 6.0 / 0.0 )"), "train").error
    assert error is not None
    assert error.reason == "unparsable"


def test_a_tweets_highlight_comes_by_offsets_or_by_its_words_and_is_no_evidence_where_the_tweet_is_neutral() -> None:
    by_offsets, by_words, neutral = (TweetSentiment().example(record, "train") for record in tweet_sentiment.SAMPLE)
    assert [text_of(by_offsets, span) for span in by_offsets.evidence] == ["lovely, lovely"]
    assert [text_of(by_words, span) for span in by_words.evidence] == ["i hate mondays"]
    assert (neutral.target, neutral.evidence) == ("neutral", [])
    assert by_offsets.label_set == ["negative", "neutral", "positive"]


def test_selected_words_that_are_not_in_the_tweet_are_an_error() -> None:
    error = TweetSentiment().example(changed(tweet_sentiment.SAMPLE[1], selected_text="i love mondays"), "train").error
    assert error is not None
    assert (error.reason, "expected a part of the text" in error.detail) == ("unparsable", True)


def test_one_annotator_who_marks_a_word_twice_has_one_vote() -> None:
    twice = {"premise": [["girl", 2], ["girl", 2]], "hypothesis": [["running.", 10]]}
    once = {"premise": [["sleeps", 7]], "hypothesis": [["running.", 10]]}
    row = ESNLI().example(changed(esnli.SAMPLE[0], human_highlights=[twice, once, once]), "train")
    assert [text_of(row, span) for span in row.evidence] == ["sleeps", "running."]


@pytest.mark.parametrize("task", [ESNLI, Anli, TweetSentiment])
def test_labels_that_are_words_are_not_compared_by_value(task: type[TaskConfig]) -> None:
    with pytest.raises(ValidationError, match="has no value; set match to normalised or exact"):
        task.model_validate({"match": "value"})
    row = task().example(next(sample for known, sample in PRESETS if isinstance(known, task))[0], "train")
    assert task().fixed_labels == row.label_set


def test_an_equation_that_is_compared_as_text_need_have_no_value() -> None:
    row = Svamp(match="exact").example(changed(svamp.SAMPLE[0], equation="6 boxes of 12"), "train")
    assert (row.error, row.target) == (None, "6 boxes of 12")


class Watched(dict[str, Any]):
    """A record that knows what was asked of it."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__(record)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


@pytest.mark.parametrize(
    ("task", "sample"), [*PRESETS, (Planted(), planted.SAMPLE)], ids=lambda value: getattr(value, "type", "")
)
def test_a_preset_names_every_column_that_it_reads(task: TaskConfig, sample: list[dict[str, Any]]) -> None:
    for record in sample:
        watched = Watched(record)
        assert task.parse(watched) == task.parse({key: value for key, value in record.items() if key in task.columns_read})
        assert watched.asked <= task.columns_read
        assert record.keys() - task.columns_read <= {"Answer", "reason"}  # SVAMP's value, and why ANLI's annotators were right
    assert task.uid(sample[0] | {"other": 1}, "train") == task.uid(sample[0], "train")
