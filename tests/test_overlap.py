"""Words of the answer in a rationale: numbers worked out by hand."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

import pytest

from kd.evaluation.overlap import (
    TEXT,
    WORDS,
    Slice,
    all_by_chance,
    any_by_chance,
    label_overlap,
    teachers_answer,
    text_overlap,
)
from kd.evaluation.sums import Sums, Why
from kd.rationales import Candidate, RandomSource, RationalesConfig, Rationalise, TopK
from kd.rows import RationaleRow, RowError, Segment
from tests.test_rationales import attributed
from tests.tiny_measures import by_name, rationale_row, units_of, values

UNITS = RationalesConfig(roles=("question", "choice"))
# Units: bread (0), fresh (1), loaf (2), river (3), bank (4), bakery (5), shop (6); "the" is a stop word.
PARTS = (("question", "fresh bread the loaf"), ("choice", "river bank"), ("choice", "bakery shop"))
GOLD_IN = Slice("gold", "gold", "in")
COT_IN = Slice("llm", "gold", "in")


def units(row: RationaleRow, importance):
    return units_of(UNITS, row, importance)


def asked(importance=(5, 1, 9, 3, 0, 0, 4, 2), target="bakery shop", ranked="river bank", **more) -> RationaleRow:
    """Words in order: fresh, bread, the, loaf, river, bank, bakery, shop."""
    return rationale_row(*PARTS, importance=importance, target=target, ranked=ranked, **more)


def found(rows: list[RationaleRow], piece: Slice = GOLD_IN, k: int | None = 2) -> dict[str, float | None]:
    return values(label_overlap(rows, units, k)[piece].results(WORDS))


def test_any_first_and_all_of_the_k_heaviest_words() -> None:
    # The two heaviest are fresh and bakery; the answer has two of seven units and two of the options' four.
    values = found([asked()])
    assert {name: value for name, value in values.items() if name.endswith("_shuffled")} == dict.fromkeys(
        ("overlap_any_shuffled", "overlap_top1_shuffled", "overlap_all_shuffled"), None
    ), "no ranking was handed in to be shuffled"
    assert {name: value for name, value in values.items() if not name.endswith("_shuffled")} == pytest.approx(
        {
            "overlap_any": 1,
            "overlap_any_chance": 1 - (5 * 4) / (7 * 6),
            "overlap_any_option_chance": 1 - (2 * 1) / (4 * 3),
            "overlap_top1": 0,
            "overlap_top1_chance": 2 / 7,
            "overlap_top1_option_chance": 2 / 4,
            "overlap_all": 0,
            "overlap_all_chance": (2 * 1) / (7 * 6),
            "overlap_all_option_chance": (2 * 1) / (4 * 3),
        }
    )
    both = found([asked(importance=(0, 0, 0, 0, 1, 0, 5, 4))])
    assert (both["overlap_any"], both["overlap_top1"], both["overlap_all"]) == (1, 1, 1)


def test_the_predicted_answer_is_looked_for_too() -> None:
    wrong, right = asked(), asked(ranked="bakery shop", uid="right")
    predicted = Slice("gold", "predicted", "in")
    assert found([wrong], predicted, 3)["overlap_any"] == 0, "fresh, bakery and loaf hold no word of river bank"
    assert found([right], predicted, 3)["overlap_any"] == 1
    pieces = label_overlap([wrong, right], units, 3)
    assert {piece.explained for piece in pieces} == {"gold"}
    assert (pieces[predicted].results(WORDS)[0].n, pieces[GOLD_IN].results(WORDS)[0].n) == (2, 2)


def test_what_explains_the_label_and_what_explains_the_prediction_are_apart() -> None:
    pieces = label_overlap([asked(), asked(explained="predicted", uid="other")], units, 2)
    assert {(piece.explained, sums.results(WORDS)[0].n) for piece, sums in pieces.items()} == {
        ("gold", 1),
        ("predicted", 1),
    }


def test_without_options_the_k_heaviest_of_the_rest_are_taken() -> None:
    out = Slice("gold", "gold", "out")
    # fresh and loaf: no word of the answer stands in the question, so neither can a random one.
    alone = found([asked()], out)
    assert (alone["overlap_any"], alone["overlap_any_chance"]) == (0, 0)
    assert alone["overlap_any_option_chance"] is None
    parts = (("question", "the bakery sells bread"), ("choice", "river"), ("choice", "bakery"))
    # Units: bakery (question and option, 2 + 1), sells 1, bread 4, river 9.
    row = rationale_row(*parts, importance=(0, 2, 1, 4, 9, 1), target="bakery", ranked="bakery")
    within = found([row], out)
    assert (within["overlap_any"], within["overlap_top1"], within["overlap_all"]) == (1, 0, 0)
    assert within["overlap_any_chance"] == pytest.approx(1 - (2 * 1) / (3 * 2))


def test_a_source_that_ranks_nothing_is_measured_by_the_words_of_its_rationale() -> None:
    piece = found([asked(chosen=("shop", "loaf"))], k=None)
    assert (piece["overlap_any"], piece["overlap_all"], piece["overlap_top1"]) == (1, 0, None)


def in_question(row: RationaleRow, importance: Sequence[float]) -> Sequence[Candidate]:
    return units_of(RationalesConfig(roles=("question",)), row, importance)


def test_chance_draws_from_the_words_that_the_source_could_have_taken() -> None:
    parts = (("question", "the bakery sells bread"), ("choice", "river"), ("choice", "bakery shop"))
    row = rationale_row(*parts, chosen=("sells", "bread"), target="bakery shop", ranked="river")
    piece = values(label_overlap([row], units, None, in_question)[GOLD_IN].results(WORDS))
    # Two of bakery, sells and bread were taken; the options' words, of which two are right, are river, bakery and shop.
    assert (piece["overlap_any"], piece["overlap_any_chance"], piece["overlap_any_option_chance"]) == pytest.approx((0, 2 / 3, 1))
    assert (piece["overlap_all_chance"], piece["overlap_all_option_chance"]) == pytest.approx((0, 1 / 3))
    nowhere = rationale_row(*parts, chosen=("sells",), target="river", ranked="river")
    assert values(label_overlap([nowhere], units, None, in_question)[GOLD_IN].results(WORDS))["overlap_any_chance"] == 0


@pytest.mark.parametrize("merged", [True, False])
def test_random_rationales_score_their_chance(merged: bool) -> None:
    config = RationalesConfig(selection=TopK(k=2), roles=("question",), merge_duplicates=merged)
    both = config.model_copy(update={"roles": ("question", "choice")})
    segments = [Segment("question", "bank or river, bank or sea"), Segment("choice", "bank"), Segment("choice", "lake")]
    scored = [attributed(segments, [1.0] * 9, uid=str(number)) for number in range(1500)]
    rows = [row for row in Rationalise(config, RandomSource()).open()(scored, Counter()) if isinstance(row, RationaleRow)]
    found = by_name(label_overlap(rows, both.units, None, config.units)[GOLD_IN].results(WORDS))
    expected = {"overlap_any": 2 / 3, "overlap_all": 0} if merged else {"overlap_any": 5 / 6, "overlap_all": 1 / 6}
    for name, chance in expected.items():
        assert found[f"{name}_chance"].value == pytest.approx(chance)
        low, high = found[name].ci_low, found[name].ci_high
        assert low is not None
        assert high is not None
        assert low <= chance <= high


def test_words_of_no_weight_are_not_taken_and_an_empty_rationale_overlaps_with_nothing() -> None:
    assert found([asked(importance=(0, 0, 0, 0, 0, 0, 3, 0))], k=5)["overlap_all"] == 1
    nothing = found([asked(importance=[0.0] * 8)])
    assert {name: value for name, value in nothing.items() if value} == {}


def test_rows_that_cannot_overlap_are_left_out_and_counted() -> None:
    rows = [
        asked(target=None, uid="unlabelled"),
        asked(target="elsewhere", uid="elsewhere"),
        asked(uid="bad", error=RowError("too_long", "")),
    ]
    (first, *_) = label_overlap(rows, units, 2)[GOLD_IN].results(WORDS)
    assert (first.value, first.left_out) == (None, {Why.NO_LABEL: 1, Why.ANSWER_NOT_IN_INPUT: 1, Why.ERRORED: 1})
    silent = label_overlap([asked(ranked=None)], units, 2)
    assert silent[Slice("gold", "predicted", "in")].results(WORDS)[0].left_out == {Why.NO_ANSWER: 1}
    assert label_overlap([], units, 2) == {}


def test_the_teachers_answer_is_the_ranked_one_or_the_generated_one() -> None:
    assert teachers_answer(asked()) == "river bank"
    assert teachers_answer(asked(ranked=None)) is None


@pytest.mark.parametrize(("n", "right", "drawn"), [(5, 2, 2), (6, 1, 3), (4, 4, 2), (5, 0, 2), (3, 2, 3), (3, 1, 0)])
def test_chances_are_the_shares_of_all_choices(n: int, right: int, drawn: int) -> None:
    draws = list(itertools.combinations(range(n), drawn))
    assert any_by_chance(n, right, drawn) == pytest.approx(sum(any(i < right for i in draw) for draw in draws) / len(draws))
    every = sum(bool(draw) and all(i < right for i in draw) for draw in draws) / len(draws)
    assert all_by_chance(n, right, drawn) == pytest.approx(every)


def test_shards_add_up() -> None:
    rows = [asked(uid="a"), asked(uid="b", ranked="bakery shop"), asked(uid="c", importance=(0, 0, 0, 0, 1, 0, 5, 4))]
    parts = [label_overlap([row], units, 2) for row in rows]
    for piece, sums in label_overlap(rows, units, 2).items():
        total = sum((part[piece] for part in parts), Sums())
        assert values(total.results(WORDS)) == pytest.approx(values(sums.results(WORDS)))


# --- a chain of thought -------------------------------------------------------------------------------------------------


def cot(text: str | None, label: str | None = "bakery shop", **more) -> RationaleRow:
    return asked(llm=(text, label), **more)


def said(rows: list[RationaleRow], piece: Slice = COT_IN) -> dict[str, float | None]:
    return values(text_overlap(rows, keep_stop_words=False)[piece].results(TEXT))


def test_a_chain_of_thought_has_any_all_or_the_whole_of_the_answer_and_random_options_stand_beside() -> None:
    assert said([cot("A Bakery is a shop by the river.")]) == {
        "cot_any": 1,
        "cot_any_chance": 1,
        "cot_all": 1,
        "cot_all_chance": 0.5,
        "cot_whole": 0,
        "cot_whole_chance": 0,
    }
    whole = said([cot("Bread comes from the BAKERY SHOP.")])
    assert (whole["cot_whole"], whole["cot_whole_chance"], whole["cot_any_chance"]) == (1, 0.5, 0.5)


def test_a_chain_of_thought_is_held_against_its_authors_own_answer_too() -> None:
    rows = [cot("It is the river bank.", "river bank"), cot("The bakery shop.", uid="right"), cot(" ", uid="silent")]
    predicted = Slice("llm", "predicted", "in")
    assert said(rows[:1])["cot_any"] == 0
    assert said(rows[:1], predicted)["cot_whole"] == 1
    everyone = by_name(text_overlap(rows, keep_stop_words=False)[predicted].results(TEXT))["cot_any"]
    assert (everyone.n, everyone.left_out) == (2, {Why.NO_TEXT: 1})


def test_a_chain_of_thought_may_name_an_answer_that_is_no_part_of_the_input() -> None:
    texts = ("Who sleeps does not run: a Contradiction.", "A girl is a person.")
    rows = [
        dataclasses.replace(rationale_row(("premise", "A girl sleeps."), target="contradiction", llm=(text, None)), label_set=NLI)
        for text in texts
    ]
    assert said(rows[:1]) == pytest.approx(
        {f"cot_{which}{chance}": 1 / 3 if chance else 1 for which in ("any", "all", "whole") for chance in ("", "_chance")}
    )
    assert set(said(rows[1:]).values()) == {0}


NLI = ["entailment", "neutral", "contradiction"]


def test_an_answer_of_stop_words_alone_says_nothing_unless_they_are_kept() -> None:
    row = dataclasses.replace(cot("It is so."), target="so", label_set=["so", "not so"])
    (first, *_) = text_overlap([row], keep_stop_words=False)[COT_IN].results(TEXT)
    assert (first.value, first.left_out) == (None, {Why.ANSWER_SAYS_NOTHING: 1})
    kept = values(text_overlap([row], keep_stop_words=True)[COT_IN].results(TEXT))
    assert (kept["cot_all"], kept["cot_all_chance"], kept["cot_whole"]) == (1, 0.5, 1)


def test_words_are_the_same_with_either_apostrophe() -> None:
    assert said([cot("It is the baker’s shop.", target="baker's shop")])["cot_whole"] == 1
