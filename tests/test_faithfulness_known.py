"""Faithfulness where its values are known, against chance, and the reason of every value that is missing."""

import dataclasses
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from kd.audit_rows import Erasure
from kd.evaluation.faithfulness import Ask, FaithfulnessConfig, Teacher, measure
from kd.evaluation.faithfulness_sums import FaithfulnessSums, faithfulness_sums
from kd.evaluation.metrics import About
from kd.evaluation.sums import Why
from kd.rationales import RandomSource, RationalesConfig
from kd.rows import Example, MetricRow, RationaleRow, RowError, as_errored, text_of
from kd.spans import words
from tests import tiny
from tests.test_measures_data import IN_QUESTION, on_evidence, planted
from tests.tiny_erasing import eraser, linear, rationalised
from tests.tiny_measures import marked

ABOUT = About("rationales", "audit", "attribution", None, "toy", "train")


def sums(
    rows: Sequence[RationaleRow], ask: Ask = linear, config: RationalesConfig | None = None, **by: object
) -> FaithfulnessSums:
    made = measure(rows, eraser(config, **by), ask, Counter())  # type: ignore[arg-type]
    assert all(isinstance(row, Erasure) for row in made)
    return faithfulness_sums(made, ranked=bool(by.get("by_importance", True)))  # type: ignore[arg-type]


def figures(found: FaithfulnessSums) -> dict[str, MetricRow]:
    return {row.metric: row for row in found.metrics(ABOUT)}


# --- planted evidence ---------------------------------------------------------------------------------------------------


def test_where_the_cue_alone_decides_every_value_on_planted_evidence_is_known() -> None:
    rows = planted(on_evidence, IN_QUESTION)
    cues = {row.uid: marked(row)[0] for row in rows}

    def ask(asked: Sequence[Example], _: Counter[str]) -> list[float | RowError]:
        return [1.0 if cues[row.uid] in _words(row) else 0.25 for row in asked]

    found = figures(sums(rows, ask, IN_QUESTION, fractions=(0.01, 0.1)))
    # The heaviest word is the cue: without it the probability falls from 1 to 1/4, with nothing else it does not fall.
    for order in ("rationale", "importance", "importance@0.01"):
        assert (found[f"comprehensiveness:{order}"].value, found[f"sufficiency:{order}"].value) == (0.75, 0.0)
    assert found["answer_probability"].value == 1.0
    # A random word is the cue in one of n draws.
    share = statistics.fmean(1 / len(IN_QUESTION.units(row, row.importance)) for row in rows)
    for name, expected in (
        ("comprehensiveness:rationale_random", 0.75 * share),
        ("sufficiency:rationale_random", 0.75 * (1 - share)),
        ("comprehensiveness_gain:rationale_random", 0.75 * (1 - share)),
        ("sufficiency_gain:rationale_random", 0.75 * (1 - share)),
        ("comprehensiveness:random@0.01", 0.75 * share),
    ):
        assert (found[name].ci_low or 0) < expected < (found[name].ci_high or 0), name
        assert found[name].n == 200
    assert found["comprehensiveness:lexical"].n == 0, "no word of a planted question stands in an option"


# --- chance -------------------------------------------------------------------------------------------------------------


def test_random_rationales_are_not_measured_against_themselves_and_gain_nothing() -> None:
    rows = [rationalised(uid=f"r{number}", source=RandomSource()) for number in range(400)]
    found = figures(sums(rows, by_importance=False))
    for name in ("comprehensiveness_gain:rationale_random", "sufficiency_gain:rationale_random"):
        low, high = found[name].ci_low, found[name].ci_high
        assert low is not None
        assert high is not None
        assert low < 0 < high


def repeating(number: int) -> RationaleRow:
    """Twelve words, of which one stands there four times and one is an option's too; the importance knows nothing of them."""
    draw = random.Random(f"blind/{number}")
    text = ["again"] * 4 + ["bank", *(f"w{place}" for place in range(7))]
    draw.shuffle(text)
    return rationalised(" ".join(text), 2, f"r{number}", lambda _: draw.random())


def of_any_weight(rows: Sequence[Example], _: Counter[str]) -> list[float | RowError]:
    """A linear teacher; how much each occurrence of a word weighs is drawn anew for every row."""
    return [sum(random.Random(f"{row.uid}/{word}").random() / 24 for word in _words(row)) for row in rows]


def _words(row: Example) -> list[str]:
    return [text_of(row, word) for word in words(row.segments)]


def test_a_blind_importance_gains_nothing_where_words_repeat() -> None:
    found = figures(sums([repeating(number) for number in range(1000)], of_any_weight))
    for metric in (f"{name}_gain:{control}" for name in MEASURES for control in CONTROLS):
        low, high = found[metric].ci_low, found[metric].ci_high
        assert low is not None
        assert high is not None
        assert low < 0 < high, metric
    assert (found["comprehensiveness:rationale"].value or 0) > 2 / 24 / 2, (
        "a word that is erased four times falls by more than one"
    )


def test_erasing_words_that_are_merged_is_refused() -> None:
    with pytest.raises(ValueError, match="expected every occurrence of a word as a unit of its own"):
        eraser(units=RationalesConfig().units).trials(rationalised("alpha beta alpha"))


def test_a_row_without_a_word_in_several_texts_has_no_lexical_order() -> None:
    both = sums([rationalised("alpha beta bank", uid="echo"), rationalised(uid="none")])
    found = figures(both)
    assert (found["comprehensiveness:lexical"].n, found["comprehensiveness:random"].n) == (1, 2)
    assert found["comprehensiveness_gain:lexical"].n == 1
    assert both.left_out()["comprehensiveness:lexical"] == {Why.NO_ECHO: 1}
    assert "comprehensiveness:random" not in both.left_out()
    assert found["comprehensiveness:lexical@0.25"].value == pytest.approx(0.01), "the echo is the first of three words"


# --- what has no value has its reason -----------------------------------------------------------------------------------


ORDERS = ("importance", "random", "shuffled", "lexical", "rationale", "rationale_random", "rationale_shuffled")
CONTROLS = ("random", "shuffled", "lexical", "rationale_random", "rationale_shuffled")
MEASURES = ("comprehensiveness", "sufficiency")
EVERY = {
    "answer_probability",
    *(f"{name}:{order}" for name in MEASURES for order in ORDERS),
    *(f"{name}_gain:{control}" for name in MEASURES for control in CONTROLS),
}


def reading(rows: Sequence[Example], tally: Counter[str]) -> list[float | RowError]:
    """The toy teacher, which cannot read a text of which nothing is left."""
    found = zip(rows, linear(rows, tally), strict=True)
    return [p if row.segments[0].text.strip() else RowError("empty_text", "nothing left") for row, p in found]


def test_without_rows_and_where_every_row_has_an_error_every_measure_is_null_with_the_reason() -> None:
    errored = as_errored(rationalised(), Erasure, RowError("too_long", "so many tokens"))
    for rows, why in (([], "there is no row"), ([errored] * 2, "2 of 2 rows: the row has an error")):
        found = faithfulness_sums(rows)
        assert found.nulls() == dict.fromkeys(EVERY, why)
        assert {row.metric for row in found.metrics(ABOUT)} == EVERY
        assert {row.value for row in found.metrics(ABOUT)} == {None}


def test_each_kind_of_row_that_says_nothing_is_told_apart() -> None:
    lexical = {f"{name}:lexical" for name in (*MEASURES, "comprehensiveness_gain", "sufficiency_gain")}
    why = "1 of 1 rows: the row has no word that stands in several of its texts"
    assert sums([rationalised()]).nulls() == dict.fromkeys(lexical, why)
    own = ("answer_probability", "rationale", "rationale_random")
    unranked = {metric for metric in EVERY if metric.rpartition(":")[2] not in own}
    why = "1 of 1 rows: the row has a rationale whose words are not ranked"
    assert sums([rationalised()], by_importance=False).nulls() == dict.fromkeys(unranked, why)
    why = "1 of 1 rows: the row has no word that may be erased"
    assert sums([rationalised("is it?")]).nulls() == dict.fromkeys(EVERY - {"answer_probability"}, why)
    why = "1 of 1 rows: the row has nothing left to read where words are erased"
    both = {
        f"comprehensiveness{of}"
        for of in (":rationale", *(f"{part}:{control}" for part in ("", "_gain") for control in CONTROLS[3:]))
    }
    assert sums([rationalised("alpha bank", 2)], reading, fractions=(0.5,)).nulls() == dict.fromkeys(both, why)


# --- the teacher and the config -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "llama", "scorer"])
def test_an_option_that_is_there_twice_is_one_answer(tmp_path: Path, kind: str) -> None:
    teacher = Teacher(tiny.family(tiny.tiny_models(tmp_path)[kind]), 1000)
    twice = tiny.example(choices=("river", "money", "river", "coffee cake"))
    once = dataclasses.replace(twice, label_set=["river", "money", "coffee cake"])
    shares = [teacher.ask([dataclasses.replace(row, target=text) for text in once.label_set], Counter()) for row in (twice, once)]
    assert sum(shares[0]) == pytest.approx(1.0, abs=1e-5)  # type: ignore[arg-type]
    assert shares[0] == pytest.approx(shares[1], abs=1e-5)


@pytest.mark.parametrize(
    ("fractions", "refusal"),
    [((), "at least 1 item"), ((0.1, 0.5, 0.1), "expected each share once, got 0.1, 0.5, 0.1"), ((0.0,), "greater than 0")],
)
def test_fractions_that_measure_nothing_or_something_twice_are_refused(fractions: tuple[float, ...], refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        FaithfulnessConfig(fractions=fractions)
