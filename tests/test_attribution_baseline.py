"""What stands in for a token in the blank input of integrated gradients and occlusion: stated, by hand, and never the end."""

import copy
import dataclasses
import math
from collections import Counter
from typing import get_args

import pytest
import torch

from jobs.slices import stage_slice
from kd.attribution import methods
from kd.attribution.engine import AttributionConfig, Engine
from kd.attribution.methods import Baseline, IntegratedGradients, MethodConfig, Occlusion, Saliency
from kd.errors import ConfigError
from kd.families import base
from kd.models import Loaded
from kd.rows import Attribution, Segment, Span, text_of
from tests import tiny
from tests.tiny_attribution import attribute
from tests.tiny_known import toy_teacher

# The toy's logits are the sum of its embeddings, all of them zero but for "yes" (entry 3 of the vocabulary). There stand for
# "yes" ln 4, and here for padding ln 3 and for the mask token ln 1/2; "no" and </s> are zero.
AT_YES: dict[Baseline, float] = {
    "pad": math.log(3),
    "mask": math.log(1 / 2),
    "mean": (math.log(3) + math.log(1 / 2) + math.log(4)) / 6,
    "zero": 0.0,
}
BASELINES = sorted(AT_YES)


def toy() -> Loaded:
    loaded = toy_teacher()
    loaded.tokenizer.add_special_tokens({"mask_token": "<mask>"})
    loaded.model.embedding = torch.nn.Embedding(6, 5)
    with torch.no_grad():
        loaded.model.embedding.weight.zero_()
        for id_, value in ((0, AT_YES["pad"]), (3, math.log(4)), (5, AT_YES["mask"])):
            loaded.model.embedding.weight[id_, 3] = value
    return loaded


def explained(method: MethodConfig) -> tuple[dict[str, float], float | None]:
    """Scores of the words of "yes no", for the answer "no"."""
    (found,) = attribute(toy(), [tiny.example("yes no", choices=(), target="no")], method=method)
    assert found.method == method.name
    spans = map(Span, found.token_segment, found.token_start, found.token_end)
    return {text_of(found, span): score for span, score in zip(spans, found.scores, strict=True)}, found.completeness_gap


def log_probability(at_yes: float) -> float:
    """Of the answer's two tokens, neither of them "yes", where the logits are zero but for that."""
    return -2 * math.log(math.exp(at_yes) + 4)


@pytest.mark.parametrize("baseline", BASELINES)
def test_integrated_gradients_by_hand(baseline: Baseline) -> None:
    """From two blanks, 2b, to ln 4 the mean gradient at "yes" is the change of log p over the way, which both words share."""
    blank = AT_YES[baseline]
    slope = (log_probability(math.log(4)) - log_probability(2 * blank)) / (math.log(4) - 2 * blank)
    scores, gap = explained(IntegratedGradients(n_steps=64, baseline=baseline))
    assert scores == pytest.approx({"yes": slope * (math.log(4) - blank), "no": slope * (0 - blank)}, abs=1e-5)
    assert sum(scores.values()) == pytest.approx(log_probability(math.log(4)) - log_probability(2 * blank), abs=1e-5)
    assert gap == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("baseline", BASELINES)
def test_occlusion_by_hand(baseline: Baseline) -> None:
    blank, whole = AT_YES[baseline], log_probability(math.log(4))
    scores, _ = explained(Occlusion(baseline=baseline))
    without = {"yes": log_probability(blank), "no": log_probability(math.log(4) + blank)}
    assert scores == pytest.approx({word: whole - number for word, number in without.items()}, abs=1e-5)


@pytest.mark.parametrize("baseline", ["pad", "mean", "zero"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_completeness_holds_from_every_baseline(models: dict[str, Loaded], kind: str, baseline: Baseline) -> None:
    row, method = tiny.rows_for(kind)[0], IntegratedGradients(n_steps=400, baseline=baseline)
    (found,) = attribute(models[kind], [row], method=method)
    family = tiny.family(models[kind])
    what = family.read([family.encode(row.segments)]).explained([family.encode_answer(row.target or "")])
    real, blank = (what.forward(embeds, what.rows).item() for embeds in (what.embeds, what.blank(baseline)))
    assert found.completeness_gap == pytest.approx(sum(found.scores) - (real - blank), abs=1e-4)
    if family.baseline(baseline).any():  # what is normalised jumps where it leaves zero, which takes more steps than these
        assert abs(found.completeness_gap or 0) < 0.02 * max(1.0, abs(real - blank))


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_blank_input_has_the_baseline_for_text_and_keeps_the_rest(models: dict[str, Loaded], kind: str) -> None:
    family, row = tiny.family(models[kind]), tiny.rows_for(kind)[0]
    what = family.read([family.encode(row.segments)]).explained([family.encode_answer(row.target or "")])
    is_text = what.is_text().bool()
    weight = family.model.get_encoder().get_input_embeddings().weight if family.loaded.family == "encoder_decoder" else None
    for baseline in ("pad", "mean", "zero"):
        blank = what.blank(baseline)
        assert torch.equal(blank[~is_text], what.embeds[~is_text])
        assert torch.equal(blank[is_text], family.baseline(baseline).expand_as(blank[is_text]))
    assert torch.equal(family.baseline("pad"), family.embed(torch.tensor([family.tokenizer.pad_token_id]))[0])
    ids = torch.arange(len(family.tokenizer))
    assert torch.allclose(family.baseline("mean"), family.embed(ids).mean(0), atol=1e-6)
    assert weight is None or len(weight) >= len(ids)


# --- a token that is not there ----------------------------------------------------------------------------------------------


def without_padding(loaded: Loaded, pad: str | None) -> Loaded:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.pad_token = pad
    return dataclasses.replace(loaded, tokenizer=tokenizer)


@pytest.mark.parametrize("method", [IntegratedGradients(n_steps=2), Occlusion()], ids=lambda method: method.type)
@pytest.mark.parametrize(("pad", "got"), [(None, "got none"), ("</s>", "got '</s>', which ends a text")])
def test_a_padding_token_that_is_none_or_the_end_is_refused_on_opening(
    models: dict[str, Loaded], method: MethodConfig, pad: str | None, got: str
) -> None:
    family = tiny.family(without_padding(models["llama"], pad))
    with pytest.raises(ConfigError, match=rf"baseline = pad .* padding token: .*, {got}; set baseline to mean or zero"):
        Engine(AttributionConfig(method=method), family)
    for baseline in ("mean", "zero"):
        engine = Engine(AttributionConfig(method=method.model_copy(update={"baseline": baseline})), family)
        (found,) = engine.attribute([tiny.example()], Counter())
        assert isinstance(found, Attribution)
    assert Engine(AttributionConfig(method=Saliency()), family)


def test_a_mask_token_that_is_not_there_is_refused(models: dict[str, Loaded]) -> None:
    with pytest.raises(ConfigError, match="baseline = mask .* mask token: .* got none"):
        Engine(AttributionConfig(method=Occlusion(baseline="mask")), tiny.family(models["t5"]))


def test_the_baseline_is_part_of_what_identifies_the_attributions() -> None:
    slices = [stage_slice(AttributionConfig(method=IntegratedGradients(baseline=baseline))) for baseline in BASELINES]
    assert [each["method"] for each in slices] == [
        {"type": "integrated_gradients", "n_steps": 50, "baseline": baseline} for baseline in BASELINES
    ]
    assert get_args(methods.Baseline) == get_args(base.Baseline)


def test_text_alone_is_blanked(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["pair"])
    encoded = family.encode([Segment("text", "river bank")])
    blank = family.read([encoded]).explained([[2]]).blank("zero")
    assert [not bool(vector.any()) for vector in blank[0]] == [False, True, True, False]
