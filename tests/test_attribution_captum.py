"""Scores equal those of Captum, row by row and one answer token at a time."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from captum.attr import FeatureAblation
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import Saliency as CaptumSaliency
from torch import Tensor, nn

from kd.attribution.methods import InputXGradient, IntegratedGradients, MethodConfig, Occlusion, Saliency
from kd.families.encoder_classifier import Alternatives
from kd.families.text import Encoded
from kd.models import Loaded
from kd.rows import Segment
from kd.spans import overlap, words
from tests import tiny
from tests.tiny_attribution import METHODS, attribute


def answer_score(loaded: Loaded, target: list[int]) -> Callable[..., Tensor]:
    """The explained number of one answer, from the model's own call on one row and nothing of ours."""
    model = loaded.model

    def seq2seq(inputs_embeds: Tensor) -> Tensor:
        start = model.config.decoder_start_token_id
        ids = torch.tensor([[start, *target[:-1]]]).expand(len(inputs_embeds), -1)
        logprobs = model(inputs_embeds=inputs_embeds, decoder_input_ids=ids, use_cache=False).logits.log_softmax(-1)
        return torch.stack([logprobs[:, place, token] for place, token in enumerate(target)]).sum(0)

    def causal(inputs_embeds: Tensor) -> Tensor:
        answer = model.get_input_embeddings()(torch.tensor([target[:-1]], dtype=torch.long)).expand(len(inputs_embeds), -1, -1)
        logprobs = model(inputs_embeds=torch.cat([inputs_embeds, answer], 1), use_cache=False).logits.log_softmax(-1)
        first = inputs_embeds.shape[1] - 1
        return torch.stack([logprobs[:, first + place, token] for place, token in enumerate(target)]).sum(0)

    def classifier(inputs_embeds: Tensor) -> Tensor:
        return model(inputs_embeds=inputs_embeds).logits[:, target[0] if model.config.num_labels > 1 else 0]

    return {"encoder_decoder": seq2seq, "decoder_only": causal, "encoder_classifier": classifier}[loaded.family]


def embedding(loaded: Loaded) -> nn.Module:
    model = loaded.model
    return (model.get_encoder() if loaded.family == "encoder_decoder" else model).get_input_embeddings()


def captum_scores(
    loaded: Loaded, method: MethodConfig, segments: list[Segment], encoded: Encoded, target: list[int]
) -> list[float]:
    """One row as Captum's documentation shows it."""
    forward = answer_score(loaded, target)
    layer, ids = embedding(loaded), torch.tensor([encoded.ids])
    special = torch.tensor([[span is None for span in encoded.spans]])
    blank = torch.where(special, ids, loaded.tokenizer.pad_token_id)
    if isinstance(method, IntegratedGradients):
        path = CaptumIntegratedGradients(forward)
        return path.attribute(layer(ids).detach(), layer(blank).detach(), n_steps=method.n_steps).sum(-1)[0].tolist()
    embeds = layer(ids).detach().requires_grad_()
    if isinstance(method, Occlusion):
        found = words(segments)
        word_of = [
            next((place for place, word in enumerate(found) if span and overlap(span, word)), -1) for span in encoded.spans
        ]
        mask = torch.tensor([[place + 1 for place in word_of]]).unsqueeze(-1)
        lost = FeatureAblation(forward).attribute(embeds, layer(blank), feature_mask=mask)[0, :, 0].tolist()
        return [score / word_of.count(place) for score, place in zip(lost, word_of, strict=True)]
    if isinstance(method, InputXGradient):
        return CaptumInputXGradient(forward).attribute(embeds).sum(-1)[0].tolist()
    gradient = CaptumSaliency(forward).attribute(embeds)[0]
    return (gradient.sum(-1) if method.norm == "l1" else gradient.pow(2).sum(-1).sqrt()).tolist()


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_scores_equal_row_by_row_captum(models: dict[str, Loaded], kind: str, method: MethodConfig) -> None:
    loaded = models[kind]
    family = tiny.family(loaded)
    for row in attribute(loaded, tiny.rows_for(kind), method=method):
        target = family.encode_answer(row.explained_answer or "")
        encoded = family.encode(row.segments)
        if isinstance(encoded, Alternatives):
            encoded = encoded.inputs[tuple(target)]
        if row.uid == "unlabelled":
            assert row.explained_answer == row.ranked
        expected = captum_scores(loaded, method, row.segments, encoded, target)
        expected = [score for score, span in zip(expected, encoded.spans, strict=True) if span]
        assert row.scores == pytest.approx(expected, abs=1e-5)
        assert any(abs(score) > 1e-3 for score in row.scores)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_scores_of_a_causal_model_are_those_of_the_model_padded_by_hand_on_either_side(
    models: dict[str, Loaded], kind: str, left: bool
) -> None:
    loaded, family, rows = models[kind], tiny.family(models[kind]), tiny.examples()[:2]
    found, _ = attribute(loaded, rows)  # the second is longer
    encoded, target = family.encode(rows[0].segments), family.encode_answer(rows[0].target or "")
    ids, blank = [*encoded.ids, *target[:-1]], [loaded.tokenizer.pad_token_id] * 7
    ones, zeros = [1] * len(ids), [0] * len(blank)
    mask = torch.tensor([[*zeros, *ones] if left else [*ones, *zeros]])
    padded = torch.tensor([[*blank, *ids] if left else [*ids, *blank]])
    embeds = embedding(loaded)(padded).detach().requires_grad_()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = loaded.model(inputs_embeds=embeds, attention_mask=mask, position_ids=places, use_cache=False).logits
    begin = len(blank) if left else 0
    written = range(begin + len(encoded.ids) - 1, begin + len(ids))
    number = logits.log_softmax(-1)[0, written, target].sum()
    (gradient,) = torch.autograd.grad(number, [embeds])
    expected = gradient[0, begin : begin + len(encoded.ids)].abs().sum(-1).tolist()
    assert found.scores == pytest.approx([score for score, span in zip(expected, encoded.spans, strict=True) if span], abs=1e-5)
    assert found.target_logprob == pytest.approx(number.item(), abs=1e-5)


def test_on_t5_the_encoder_s_tokens_are_attributed(models: dict[str, Loaded]) -> None:
    """A score is what happens to the answer when the encoder's embedding of that token is stretched a little."""
    loaded = models["t5"]
    (row,) = attribute(loaded, [tiny.example()], method=InputXGradient())
    family = tiny.family(loaded)
    encoded, target = family.encode(row.segments), family.encode_answer("money")
    assert len(row.scores) == len(encoded.ids) - 1 != len(target)
    forward = answer_score(dataclasses.replace(loaded, model=loaded.model.double()), target)
    try:
        embeds = loaded.model.get_encoder().get_input_embeddings()(torch.tensor([encoded.ids])).detach()
        for place, score in enumerate(row.scores):
            stretch = torch.ones(1, len(encoded.ids), 1, dtype=torch.float64)
            stretch[0, place] += 1e-4
            change = forward(inputs_embeds=embeds * stretch) - forward(inputs_embeds=embeds / stretch)
            assert score == pytest.approx(change.item() / 2e-4, abs=2e-3)
    finally:
        loaded.model.float()


def test_signed_scores_are_the_sums_over_answer_tokens_and_absolute_ones_are_at_most_that(models: dict[str, Loaded]) -> None:
    """Captum on every answer token by itself: one backward each."""
    loaded, row = models["t5"], tiny.example(choices=(), target="coffee and cake")
    encoded, target = tiny.family(loaded).encode(row.segments), tiny.family(loaded).encode_answer("coffee and cake")
    embeds = embedding(loaded)(torch.tensor([encoded.ids])).detach().requires_grad_()
    start = loaded.model.config.decoder_start_token_id

    def of_token(place: int) -> Callable[[Tensor], Tensor]:
        ids = torch.tensor([[start, *target[:-1]]])
        return lambda embeds: loaded.model(inputs_embeds=embeds, decoder_input_ids=ids).logits.log_softmax(-1)[
            :, place, target[place]
        ]

    kept = [place for place, span in enumerate(encoded.spans) if span]
    products = sum(CaptumInputXGradient(of_token(place)).attribute(embeds).sum(-1)[0] for place in range(len(target)))
    assert attribute(loaded, [row], method=InputXGradient())[0].scores == pytest.approx(products[kept].tolist(), abs=1e-5)
    sizes = sum(CaptumSaliency(of_token(place)).attribute(embeds).sum(-1)[0] for place in range(len(target)))
    found = torch.tensor(attribute(loaded, [row], method=Saliency())[0].scores)
    assert (found <= sizes[kept] + 1e-5).all()
    assert found.sum() < 0.95 * sizes[kept].sum()
