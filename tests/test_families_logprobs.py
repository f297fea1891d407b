"""Families: log-probabilities that depend on nothing but the row, from one reading, in float32, and trainable."""

import copy
import dataclasses

import pytest
import torch

from kd.attribution.methods import Case, MethodConfig
from kd.families.encoder_classifier import Alternatives
from kd.models import Loaded
from tests import tiny
from tests.tiny_attribution import METHODS


def plain_logprob(loaded: Loaded, ids: list[int], answer: list[int]) -> float:
    """One row, one answer, no padding, from the model's own call."""
    model = loaded.model
    with torch.no_grad():
        if loaded.family == "decoder_only":
            logits = model(input_ids=torch.tensor([[*ids, *answer[:-1]]])).logits[:, len(ids) - 1 :]
        elif loaded.family == "encoder_decoder":
            start = model.config.decoder_start_token_id
            logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[start, *answer[:-1]]])).logits
        else:
            logits = model(input_ids=torch.tensor([ids])).logits.unsqueeze(1)
    return logits.log_softmax(-1)[0, range(len(answer)), answer].sum().item()


@pytest.mark.parametrize("kind", [kind for kind in tiny.KINDS if kind != "scorer"])
def test_log_probabilities_of_answers_are_the_sums_over_their_tokens(models: dict[str, Loaded], kind: str) -> None:
    family, rows = tiny.family(models[kind]), tiny.rows_for(kind)
    batch = family.encode_rows([row.segments for row in rows])
    answers = [[family.encode_answer(choice) for choice in row.label_set] for row in rows]
    found = family.read(batch).logprobs(answers)
    assert [len(own) for own in found] == [len(row.label_set) for row in rows]
    for encoded, own, scores in zip(batch, answers, found, strict=True):
        assert scores == pytest.approx([plain_logprob(models[kind], encoded.ids, answer) for answer in own], abs=1e-5)


def test_a_scorer_shares_out_the_probability_over_the_choices_of_a_row(models: dict[str, Loaded]) -> None:
    loaded, family, row = models["scorer"], tiny.family(models["scorer"]), tiny.example()
    encoded = family.encode(row.segments)
    assert isinstance(encoded, Alternatives)
    texts = ["Where would you find a bank? ( ) river", "Where would you find a bank? ( ) money"]
    ids = [list(encoded.inputs.values())[place].ids for place in range(2)]
    assert ids == [loaded.tokenizer(text)["input_ids"] for text in texts]
    with torch.no_grad():
        logits = [loaded.model(input_ids=torch.tensor([one.ids])).logits.item() for one in encoded.inputs.values()]
    expected = torch.tensor(logits).log_softmax(0).tolist()
    (found,) = family.read([encoded]).logprobs([[family.encode_answer(choice) for choice in row.label_set]])
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", [*tiny.WRITERS, "classifier", "pooled"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_input_is_read_once_for_answer_ranking_and_explanation(
    models: dict[str, Loaded], kind: str, method: MethodConfig
) -> None:
    """So a method reads as often as it says, the reading included; those at the input never again."""
    family, rows, model = tiny.family(models[kind]), tiny.rows_for(kind), models[kind].model
    batch = family.encode_rows([row.segments for row in rows])
    widths: list[int] = []
    reader = model.get_encoder() if models[kind].family == "encoder_decoder" else model
    hook = reader.register_forward_pre_hook(
        lambda _, args, given: (
            widths.append(given["attention_mask"].shape[1]) if given.get("inputs_embeds") is not None else None
        ),
        with_kwargs=True,
    )
    try:
        reading = family.read(batch, differentiable=method.at_the_input)
        reading.generate()
        reading.logprobs([[family.encode_answer(label) for label in row.label_set] for row in rows])
        what = reading.explained([family.encode_answer(row.target or row.label_set[0]) for row in rows])
        words = what.laid_out([[place % 3 for place in range(len(row.ids))] for row in batch])
        found = method.explain(Case(what, lambda: words, rows_at_once=len(rows)))
    finally:
        hook.remove()
    assert widths == [max(len(row.ids) for row in batch)] * method.passes(words=3).forward
    assert found.scores.abs().sum() > 0


@pytest.mark.parametrize("kind", tiny.WRITERS)
def test_the_head_sees_only_what_is_asked_of_a_given_answer(models: dict[str, Loaded], kind: str) -> None:
    """Neither padding nor the answer's first token, of which the reading knows."""
    family, head = tiny.family(models[kind]), models[kind].model.get_output_embeddings()
    answers = [family.encode_answer(text) for text in ("river", "coffee cake", "money in the bank")]
    what = family.read(family.encode_rows([row.segments for row in tiny.examples()[:3]])).explained(answers)
    seen: list[torch.Size] = []
    hook = head.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:-1]))
    try:
        with torch.no_grad():
            what.forward(what.embeds, what.rows)
    finally:
        hook.remove()
    assert seen == [(sum(len(answer) - 1 for answer in answers),)]
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("kind", [*tiny.WRITERS, "classifier", "pooled"])
def test_sequence_nll_is_the_summed_loss_of_each_sequence_and_trains(models: dict[str, Loaded], kind: str) -> None:
    family, model = tiny.family(models[kind]), models[kind].model
    batch = [family.encode(row.segments).ids for row in tiny.rows_for(kind)[:3]]
    answers = ("river", "coffee cake", "money in the bank") if kind in tiny.WRITERS else tiny.CLASSES
    targets = [family.encode_answer(text) for text in answers]
    nll = family.sequence_nll(model, batch, targets)
    expected = [-plain_logprob(models[kind], ids, target) for ids, target in zip(batch, targets, strict=True)]
    assert nll.tolist() == pytest.approx(expected, abs=1e-4)
    assert nll.dtype == torch.float32
    (gradient,) = torch.autograd.grad(nll.sum(), [model.get_input_embeddings().weight])
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("kind", [*tiny.WRITERS, "classifier", "pooled"])
def test_what_is_explained_is_float32_whatever_the_weights_are(models: dict[str, Loaded], kind: str) -> None:
    loaded = dataclasses.replace(models[kind], model=copy.deepcopy(models[kind].model).to(torch.bfloat16))
    family, row = tiny.family(loaded), tiny.rows_for(kind)[0]
    what = family.read([family.encode(row.segments)], differentiable=True).explained([family.encode_answer(row.target or "")])
    number = what.forward(what.embeds, what.rows)
    assert what.embeds.dtype == number.dtype == torch.float32
    (gradient,) = torch.autograd.grad(number.sum(), [what.embeds])
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
