"""Scores worked out by hand: on a linear teacher, and what each method promises of its numbers."""

import math
from pathlib import Path

import pytest

from kd.attribution.engine import _words_of
from kd.attribution.methods import InputXGradient, IntegratedGradients, MethodConfig, Occlusion, Saliency
from kd.loading import load
from kd.models import Loaded
from kd.rows import Attribution, Span, text_of
from kd.spans import overlap, words
from tests import tiny
from tests.tiny_attribution import METHODS, attribute
from tests.tiny_known import toy_teacher

# The input has one "yes", so the answer's tokens have the probabilities yes 1/2, no 1/8, </s> 1/8. The gradient at every
# token is, per vocabulary entry, how often it is in the answer minus the two tokens' summed probability:
#   answer "no </s>":  pad -1/4, </s> 1 - 1/4, unk -1/4, yes -1, no 1 - 1/4
TOY_ROW = tiny.example("yes no", choices=(), target="no")


def toy(method: MethodConfig) -> Attribution:
    return attribute(toy_teacher(), [TOY_ROW], method=method)[0]


def by_word(row: Attribution) -> dict[str, float]:
    spans = map(Span, row.token_segment, row.token_start, row.token_end)
    return {text_of(row, span): score for span, score in zip(spans, row.scores, strict=True)}


def test_saliency_is_the_norm_of_the_gradient() -> None:
    assert by_word(toy(Saliency())) == pytest.approx({"yes": 3.0, "no": 3.0})
    l2 = math.sqrt(2 / 16 + 2 * 9 / 16 + 1)
    assert by_word(toy(Saliency(norm="l2"))) == pytest.approx({"yes": l2, "no": l2})


def test_saliency_of_an_answer_is_the_norm_of_the_summed_gradient_not_the_sum_of_norms() -> None:
    summed_norms = 2 * (7 / 8 + 1 / 2 + 3 / 8)
    assert summed_norms == 3.5
    assert toy(Saliency()).scores[0] == pytest.approx(3.0)


def test_input_x_gradient_is_signed_and_zero_where_the_embedding_is() -> None:
    assert by_word(toy(InputXGradient())) == pytest.approx({"yes": -math.log(4), "no": 0.0})


def test_integrated_gradients_share_out_what_the_input_changed() -> None:
    found = toy(IntegratedGradients())
    assert by_word(found) == pytest.approx({"yes": -2 * math.log(8 / 5), "no": 0.0}, abs=1e-5)
    assert found.completeness_gap == pytest.approx(0.0, abs=1e-5)


def test_one_step_of_integrated_gradients_is_off_by_a_known_gap() -> None:
    """Half-way to three times "yes" its probability is 8/12; along the whole way the answer loses 2 ln(68/5)."""
    row = tiny.example("yes yes yes", choices=(), target="no")
    (found,) = attribute(toy_teacher(), [row], method=IntegratedGradients(n_steps=1))
    assert found.scores == pytest.approx([-2 * 8 / 12 * math.log(4)] * 3)
    assert found.completeness_gap == pytest.approx(-4 * math.log(4) + 2 * math.log(68 / 5))


def test_occlusion_is_what_the_answer_loses_without_a_word() -> None:
    """Without its "yes" the toy's input says nothing: the answer's two tokens go from 1/8 to 1/5 each."""
    assert by_word(toy(Occlusion())) == pytest.approx({"yes": 2 * math.log(1 / 8) - 2 * math.log(1 / 5), "no": 0.0})


def test_the_explained_scalar_is_the_log_probability_of_the_whole_answer() -> None:
    found = toy(Saliency())
    assert found.target_logprob == pytest.approx(2 * math.log(1 / 8))
    assert (found.explained, found.explained_answer, found.method, found.model) == ("gold", "no", "saliency", "toy@1")


def test_the_teacher_generates_and_ranks() -> None:
    (found,) = attribute(toy_teacher(), [tiny.example("no no", choices=("no", "yes"), target="no")])
    assert found.choice_logprobs == pytest.approx([2 * math.log(1 / 8), math.log(1 / 2) + math.log(1 / 8)])
    assert found.ranked == "yes"
    assert (found.generated, found.generated_cut) == ("yes yes yes yes yes yes yes yes", True)


def test_a_token_is_part_of_the_word_that_has_most_of_it_or_a_word_by_itself() -> None:
    found = [Span(0, 0, 4), Span(0, 5, 7)]
    tokens = [None, Span(0, 0, 2), Span(0, 2, 4), Span(0, 3, 6), Span(0, 3, 7), Span(0, 4, 5), Span(1, 0, 3), None]
    assert _words_of(tokens, found) == [0, 0, 0, 0, 1, 2, 3, 0]
    assert _words_of(tokens[1:3], []) == [0, 1]


# --- what a method promises, on random models ------------------------------------------------------------------------


def test_the_tokens_of_a_word_share_its_loss_equally(tmp_path: Path) -> None:
    loaded = load(tiny.tiny_source(tmp_path, tiny.SPEC.model_copy(update={"tokenizer": "unigram", "vocab_size": 60})), "cpu")
    (row,) = attribute(loaded, [tiny.example(choices=("money", "bank"))], method=Occlusion())
    spans = list(map(Span, row.token_segment, row.token_start, row.token_end))
    several = 0
    for word in words(row.segments):
        own = [score for span, score in zip(spans, row.scores, strict=True) if overlap(span, word)]
        several += len(own) > 1
        assert own == pytest.approx([own[0]] * len(own))
    assert several > 3


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_integrated_gradients_say_how_incomplete_they_are(models: dict[str, Loaded], kind: str) -> None:
    row = tiny.rows_for(kind)[0]
    coarse, fine = (attribute(models[kind], [row], method=IntegratedGradients(n_steps=n))[0] for n in (2, 1600))
    family = tiny.family(models[kind])
    what = family.read([family.encode(row.segments)]).explained([family.encode_answer(row.target or "")])
    real, blank = (what.forward(embeds, what.rows).item() for embeds in (what.embeds, what.blank("pad")))
    for found in (coarse, fine):
        assert found.completeness_gap == pytest.approx(sum(found.scores) - (real - blank), abs=1e-4)
    assert abs(fine.completeness_gap or 0) < 0.1 * abs(coarse.completeness_gap or 0)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_only_integrated_gradients_claim_completeness(models: dict[str, Loaded], method: MethodConfig) -> None:
    (found,) = attribute(models["t5"], [tiny.example()], method=method)
    assert (found.completeness_gap is None) == (method.type != "integrated_gradients")
