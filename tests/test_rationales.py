"""Rationales of a hand-made row: every expected word and number below was worked out by hand."""

import dataclasses
import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kd.rationales import (
    AttributionSource,
    Fraction,
    LlmSource,
    NoSource,
    PoolConfig,
    RandomSource,
    RationalesConfig,
    Rationalise,
    SourceConfig,
    Threshold,
    TopK,
)
from kd.rows import Attribution, RationaleRow, RowError, Segment, Span, text_of
from kd.spans import words

QUESTION = "Where does the money sleep, in a vault or not?"
SCORES = {"Where": 9, "money": 4, "sleep": 1, ",": 8, "a": 7, "vault": 3, "not": 2, "?": 6, "bank": 10, "Choices": 20}


def attributed(segments: list[Segment], scores: list[float], uid: str = "r1", llm: str | None = None) -> Attribution:
    """A row whose tokens are its words, with these scores."""
    spans = words(segments)
    return Attribution(
        uid=uid,
        error=None,
        task="toy",
        split="train",
        segments=segments,
        target="bank",
        label_set=["bank", "park"],
        evidence=[],
        llm_rationale=llm,
        llm_label=None,
        model="toy@1",
        method="saliency",
        explained="gold",
        explained_answer="bank",
        generated="bank",
        generated_cut=False,
        ranked="bank",
        choice_logprobs=[-0.1, -2.0],
        target_logprob=-0.1,
        tokens=[segments[span.segment].text[span.start : span.end] for span in spans],
        token_segment=[span.segment for span in spans],
        token_start=[span.start for span in spans],
        token_end=[span.end for span in spans],
        scores=scores,
        completeness_gap=None,
        truncated_tokens=0,
        fold=0,
    )


def of_text(text: str, scores: list[float], **more: str) -> Attribution:
    return attributed([Segment("question", text)], scores, **more)


def money_row(**more: str) -> Attribution:
    segments = [Segment("question", QUESTION), Segment("prompt", "\nChoices: (a) "), Segment("choice", "bank")]
    spans = words(segments)
    found = [segments[span.segment].text[span.start : span.end] for span in spans]
    return attributed(segments, [float(SCORES.get(word, 0)) for word in found], **more)


def rationalised(row: Attribution, config: RationalesConfig | None = None, source: SourceConfig | None = None) -> RationaleRow:
    (result,) = Rationalise(config or RationalesConfig(), source or AttributionSource()).open()([row], Counter())
    assert isinstance(result, RationaleRow)
    return result


def marked(row: RationaleRow) -> list[str]:
    spans = map(Span, row.word_segment, row.word_start, row.word_end)
    return [text_of(row, span) for span, hard in zip(spans, row.rationale, strict=True) if hard]


# --- which words ----------------------------------------------------------------------------------------------------------


def test_prompt_words_options_punctuation_and_stop_words_are_never_chosen() -> None:
    row = rationalised(money_row())
    assert row.rationale_text == "money sleep vault not"
    assert marked(row) == ["money", "sleep", "vault", "not"]


def test_stop_words_may_be_chosen_where_the_config_says_so_and_punctuation_still_not() -> None:
    row = rationalised(money_row(), RationalesConfig(keep_stop_words=True, selection=TopK(k=3)))
    assert row.rationale_text == "Where money a"


def test_the_roles_decide_where_a_rationale_comes_from() -> None:
    assert rationalised(money_row(), RationalesConfig(roles=("choice",))).rationale_text == "bank"


def test_prompt_is_no_role_to_draw_from() -> None:
    with pytest.raises(ValidationError, match="'question'"):
        RationalesConfig.model_validate({"roles": ["prompt"]})


def test_order_by_score_writes_the_heaviest_word_first() -> None:
    row = rationalised(money_row(), RationalesConfig(order="score"))
    assert row.rationale_text == "money vault not sleep"


def test_equal_scores_go_to_the_earlier_word() -> None:
    row = rationalised(of_text("red blue green", [1.0, 1.0, 1.0]), RationalesConfig(selection=TopK(k=2), order="score"))
    assert row.rationale_text == "red blue"


def test_a_fraction_is_rounded_up() -> None:
    row = of_text("red blue green grey", [1.0, 2.0, 3.0, 4.0])
    assert rationalised(row, RationalesConfig(selection=Fraction(frac=0.3))).rationale_text == "green grey"


def test_a_threshold_is_a_share_of_the_largest_weight_and_includes_its_own_value() -> None:
    row = of_text("red blue green grey", [1.9, 2.0, 3.0, 4.0])
    assert rationalised(row, RationalesConfig(selection=Threshold(share=0.5))).rationale_text == "blue green grey"


def test_a_word_without_weight_is_not_chosen_though_k_leaves_room() -> None:
    assert rationalised(of_text("red blue green", [0.0, 1.0, 0.0])).rationale_text == "blue"


def test_magnitude_ranks_by_influence_and_signed_by_support() -> None:
    row = of_text("red blue green", [-5.0, 1.0, 2.0])
    assert rationalised(row, RationalesConfig(selection=TopK(k=2))).rationale_text == "red green"
    assert rationalised(row, RationalesConfig(selection=TopK(k=3), rank_by="signed")).rationale_text == "blue green"


@pytest.mark.parametrize("selection", [TopK(), Fraction(), Threshold()])
def test_a_row_without_candidates_has_an_empty_rationale(selection: TopK | Fraction | Threshold) -> None:
    row = rationalised(of_text("?!", [1.0, 2.0]), RationalesConfig(selection=selection))
    assert (row.rationale_text, row.rationale) == ("", [False, False])


def test_an_emoji_may_be_chosen_and_a_mathematical_sign_not() -> None:
    assert rationalised(of_text("2 + x = 😀 $", [1.0] * 6)).rationale_text == "2 x 😀"


def test_a_curly_apostrophe_is_a_stop_word_too() -> None:
    assert rationalised(of_text("It’s gold", [2.0, 1.0])).rationale_text == "gold"


# --- duplicates -----------------------------------------------------------------------------------------------------------


def test_the_same_word_is_written_once_as_it_stands_first_and_marked_everywhere() -> None:
    config = RationalesConfig(selection=TopK(k=1), pool=PoolConfig(occurrences="sum"))
    row = rationalised(of_text("Gold or silver or gold", [2.0, 9.0, 3.0, 9.0, 2.0]), config)
    assert row.rationale_text == "Gold"
    assert row.rationale == [True, False, False, False, True]


def test_duplicates_stay_apart_where_the_config_says_so() -> None:
    config = RationalesConfig(selection=TopK(k=2), merge_duplicates=False)
    row = rationalised(of_text("gold silver gold", [2.0, 1.0, 3.0]), config)
    assert row.rationale_text == "gold gold"


# --- importance -----------------------------------------------------------------------------------------------------------


def test_importance_covers_every_word_and_conserves_the_mass_of_the_scores() -> None:
    row = rationalised(money_row())
    assert len(row.importance) == len(words(row.segments))
    assert sum(row.importance) == sum(row.scores) > 0
    assert row.importance[-1] == SCORES["bank"]


def test_tokens_are_pooled_to_words_by_the_characters_they_share() -> None:
    row = of_text("gold mine", [0.0, 0.0])
    cut = dataclasses.replace(
        row,
        tokens=["gol", "d mi", "ne"],
        token_segment=[0, 0, 0],
        token_start=[0, 3, 7],
        token_end=[3, 7, 9],
        scores=[1.0, 3.0, 5.0],
    )
    summed = RationalesConfig(pool=PoolConfig(pieces="sum"))
    assert rationalised(cut, summed).importance == pytest.approx([1.0 + 3.0 * 1 / 3, 3.0 * 2 / 3 + 5.0])
    assert rationalised(cut).importance == [3.0, 5.0], "the largest piece"


def test_what_falls_between_words_is_no_loss() -> None:
    row = of_text("gold  mine", [1.0, 1.0])
    cut = dataclasses.replace(
        row,
        tokens=["gold", " ", "mine"],
        token_segment=[0] * 3,
        token_start=[0, 4, 6],
        token_end=[4, 5, 10],
        scores=[1.0, 7.0, 2.0],
    )
    assert rationalised(cut).importance == [1.0, 2.0]


def test_a_word_that_the_teacher_did_not_read_is_no_candidate_of_any_source() -> None:
    row = of_text("red blue green", [1.0, 2.0, 3.0], llm="red green")
    cut = dataclasses.replace(row, tokens=["red"], token_segment=[0], token_start=[0], token_end=[3], scores=[1.0])
    for source in (AttributionSource(), RandomSource(), LlmSource()):
        assert marked(rationalised(cut, source=source)) == ["red"]


def test_a_score_that_is_no_number_is_a_row_error() -> None:
    (result,) = Rationalise(RationalesConfig(), AttributionSource()).open()([of_text("red", [math.nan])], Counter())
    assert isinstance(result, RowError)
    assert result.reason == "not_finite"


# --- sources --------------------------------------------------------------------------------------------------------------


def test_the_llm_source_writes_the_chain_of_thought_and_marks_the_candidates_in_it() -> None:
    row = rationalised(money_row(llm="  The vault holds MONEY, where it is safe. "), source=LlmSource())
    assert row.rationale_text == "The vault holds MONEY, where it is safe."
    assert marked(row) == ["money", "vault"]


def test_a_row_without_chain_of_thought_has_an_empty_llm_rationale() -> None:
    row = rationalised(money_row(), source=LlmSource())
    assert (row.rationale_text, any(row.rationale)) == ("", False)
    assert "empty_rationale" in row.tally()


def test_no_source_means_no_rationale_but_the_importance_stays() -> None:
    row = rationalised(money_row(), source=NoSource())
    assert (row.rationale_text, any(row.rationale)) == ("", False)
    assert sum(row.importance) > 0


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 99))
def test_the_random_control_draws_as_many_words_from_the_same_candidates(scores: list[int], k: int, seed: int) -> None:
    text = " ".join(f"w{index % 7}" for index in range(len(scores)))
    config = RationalesConfig(selection=TopK(k=k), rank_by="signed")
    row = of_text(text, [float(score) for score in scores])
    wanted, control = rationalised(row, config), rationalised(row, config, RandomSource(seed=seed))
    assert len(control.rationale_text.split()) == len(wanted.rationale_text.split())
    candidates = config.units(control, control.importance)
    indices = {index for candidate in candidates for index in candidate.occurrences}
    assert {index for index, hard in enumerate(control.rationale) if hard} <= indices
    assert candidates == config.units(wanted, wanted.importance)


def test_the_random_control_depends_on_the_uid_and_the_seed_and_on_nothing_else() -> None:
    text = " ".join(f"w{index}" for index in range(40))

    def drawn(uid: str, seed: int, scores: list[float]) -> str:
        return rationalised(of_text(text, scores, uid=uid), source=RandomSource(seed=seed)).rationale_text

    rising, falling = [float(i + 1) for i in range(40)], [float(40 - i) for i in range(40)]
    assert drawn("a", 0, rising) == drawn("a", 0, falling)
    assert len({drawn("a", 0, rising), drawn("b", 0, rising), drawn("a", 1, rising)}) == 3


def test_the_random_control_draws_evenly() -> None:
    config = RationalesConfig(selection=TopK(k=1))
    drawn = Counter(
        rationalised(of_text("red blue green red", [9.0, 1.0, 1.0, 9.0], uid=f"u{i}"), config, RandomSource()).rationale_text
        for i in range(3000)
    )
    assert all(abs(count - 1000) < 5 * math.sqrt(3000 * 1 / 3 * 2 / 3) for count in drawn.values())
    assert set(drawn) == {"red", "blue", "green"}


def test_a_row_says_where_its_rationale_comes_from() -> None:
    row = rationalised(money_row(), RationalesConfig(selection=TopK(k=2)), RandomSource(seed=3))
    assert row.source == "random-3"
    settings = json.loads(row.provenance)
    assert settings["source"] == {"type": "random", "seed": 3}
    assert settings["selection"] == {"type": "top_k", "k": 2}


def test_names_of_sources_are_names_of_folders_and_differ() -> None:
    config = RationalesConfig(sources=(AttributionSource(), RandomSource(), RandomSource(seed=1), LlmSource(), NoSource()))
    assert [source.name for source in config.sources] == ["attribution", "random", "random-1", "llm", "none"]
    with pytest.raises(ValidationError, match="different seeds"):
        RationalesConfig(sources=(RandomSource(), RandomSource()))


def test_rows_keep_their_order_and_everything_they_had() -> None:
    rows = [money_row(uid="a"), money_row(uid="b")]
    results = Rationalise(RationalesConfig(), AttributionSource()).open()(rows, Counter())
    for row, result in zip(rows, results, strict=True):
        assert all(getattr(result, field.name) == getattr(row, field.name) for field in dataclasses.fields(Attribution))
