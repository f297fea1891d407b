"""Which words are erased from a text, in which order, and what is left."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.attribution.engine import AttributionConfig, Engine
from kd.audit_rows import Erasure
from kd.evaluation.erasing import erased
from kd.evaluation.faithfulness import Teacher, measure
from kd.rationales import AttributionSource, RationalesConfig, Rationalise
from kd.rows import Attribution, RationaleRow, Segment
from kd.spans import words
from tests import tiny
from tests.tiny_erasing import eraser, measured, rationalised

OPTIONS = ("river", "money", "coffee cake")

# --- what is left of a text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gone", "left"),
    [
        ("is it red ?", "it", "is red ?"),
        ("is it red", "is", "it red"),
        ("is it red", "red", "is it "),
        ("is it  red", "is it", "red"),
        ("a bank, or", "bank", "a , or"),
        ("(bank)", "bank", "( )"),
        ("red,blue", ",", "red blue"),
        ("我爱你", "爱", "我 你"),
        ("is it", "is it", ""),
        ("is it", "", "is it"),
    ],
)
def test_what_is_left_of_a_text(text: str, gone: str, left: str) -> None:
    segments = [Segment("question", text), Segment("choice", "it is")]
    spans = [word for word in words(segments, ["question"]) if text[word.start : word.end] in gone.split()]
    assert erased(segments, spans) == (left, "it is")


@settings(deadline=None)
@given(st.text("ab1 ,.-'中🙂", max_size=20), st.integers(0, 2**20))
def test_the_words_that_are_left_are_the_other_words(text: str, mask: int) -> None:
    segments = [Segment("text", text)]
    found = words(segments)
    gone = [word for place, word in enumerate(found) if mask >> place & 1]
    (left,) = erased(segments, gone)
    kept = [text[word.start : word.end] for word in found if word not in gone]
    assert [left[word.start : word.end] for word in words([Segment("text", left)])] == kept


# --- what is erased, and what never is ----------------------------------------------------------------------------------


def test_options_and_prompts_are_never_erased() -> None:
    row = rationalised("alpha bank")
    config = RationalesConfig(roles=("question", "choice"))
    texts = [trial.texts for trial in eraser(config).trials(row)]
    assert {text[1:] for text in texts} == {("\n(a) ", "bank", "park")}
    assert {text[0] for text in texts} == {"alpha ", "bank"}


def test_sufficiency_leaves_nothing_but_the_words_in_their_segments() -> None:
    by = eraser(RationalesConfig(keep_stop_words=True))
    left = {trial.texts[0] for trial in by.trials(rationalised("is it alpha, or not?")) if trial.measure == "sufficiency"}
    assert all(len(text.split()) <= 3 for text in left)
    assert not any("," in text or "?" in text for text in left)
    assert "alpha " in left


def test_all_occurrences_of_a_word_go_together() -> None:
    texts = {(t.measure, t.texts[0]) for t in eraser().trials(rationalised("alpha beta Alpha beta?")) if t.order == "rationale"}
    assert texts == {("comprehensiveness", "beta beta?"), ("sufficiency", "alpha Alpha ")}


def test_a_word_is_the_same_with_either_apostrophe_when_it_is_echoed() -> None:
    row = rationalised("alpha bank’s beta", segments=_with_option(rationalised("alpha bank’s beta"), "bank's"))
    first = next(trial for trial in eraser().trials(row) if trial.order == "lexical")
    assert first.texts[0] == "alpha beta"


def _with_option(row: RationaleRow, text: str) -> list[Segment]:
    return [*row.segments[:2], Segment("choice", text), *row.segments[3:]]


def test_words_that_the_teacher_had_not_read_do_not_come_in_when_the_text_is_shorter() -> None:
    row = rationalised("alpha beta gamma")
    cut = dataclasses.replace(
        row,
        truncated_tokens=1,
        **{
            name: [v for i, v in enumerate(getattr(row, name)) if i != 2]
            for name in ("tokens", "token_segment", "token_start", "token_end", "scores")
        },
    )
    assert eraser().whole(row)[0] == "alpha beta gamma"
    assert eraser().whole(cut)[0] == "alpha beta "
    assert not any("gamma" in trial.texts[0] for trial in eraser().trials(cut))


@pytest.mark.parametrize("kind", ["t5", "bart", "llama", "scorer"])
def test_options_and_prompts_are_never_cut_also_where_a_teacher_reads_one_by_one(tmp_path: Path, kind: str) -> None:
    family = tiny.family(tiny.tiny_models(tmp_path)[kind])
    row = tiny.example(" ".join(tiny.TEXTS[:2] * 4), OPTIONS)
    (explained,) = Engine(AttributionConfig(), family).attribute([row], Counter())
    assert isinstance(explained, Attribution)
    assert explained.truncated_tokens > 0
    (cut,) = Rationalise(RationalesConfig(), AttributionSource()).open()([explained], Counter())
    assert isinstance(cut, RationaleRow)
    question, *others = eraser().whole(cut)
    assert others == [segment.text for segment in row.segments[1:]]
    assert row.segments[0].text.startswith(question.rstrip())
    assert 0 < len(question) < len(row.segments[0].text)
    (asked,) = measure([cut], eraser(), Teacher(family, 1000).ask, Counter())
    assert isinstance(asked, Erasure)
    assert 0 < asked.probability < 1
    options = RationalesConfig(roles=("choice",)).units(cut, cut.importance)
    assert [unit.text for unit in options] == ["river", "money", "coffee", "cake"]
    within = RationalesConfig(merge_duplicates=False).units(cut, cut.importance)
    last = max(cut.word_end[index] for unit in within for index in unit.occurrences)
    assert last <= len(question), "what was cut off is no candidate"


def test_a_source_that_does_not_follow_the_importance_has_its_rationale_measured_alone() -> None:
    orders = {order for _, order, _ in measured(rationalised(), eraser(by_importance=False))}
    assert orders == {"rationale", "rationale_random"}
