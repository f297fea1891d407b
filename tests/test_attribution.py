"""Scores: worked out by hand on a linear teacher, equal to row-by-row Captum, independent of batch mates."""

import dataclasses
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from captum.attr import FeatureAblation
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import Saliency as CaptumSaliency
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from kd.attribution.engine import Attribute, AttributionConfig, Engine
from kd.attribution.methods import InputXGradient, IntegratedGradients, MethodConfig, Occlusion, Saliency
from kd.families.base import Reading
from kd.families.encoder_classifier import Alternatives
from kd.families.text import Encoded
from kd.models import Loaded, load
from kd.rows import Attribution, Example, Row, RowError, Segment, Span, text_of
from kd.spans import overlap, words
from tests import tiny
from tests.tiny_known import steered, toy_teacher

METHODS: list[MethodConfig] = [Saliency(), Saliency(norm="l2"), InputXGradient(), IntegratedGradients(n_steps=8), Occlusion()]


def attribute(loaded: Loaded, rows: list[Example], **config: object) -> list[Attribution]:
    results = Engine(AttributionConfig(**config), tiny.family(loaded)).attribute(rows, Counter())
    assert all(isinstance(result, Attribution) for result in results), results
    return results


def by_word(row: Attribution) -> dict[str, float]:
    spans = map(Span, row.token_segment, row.token_start, row.token_end)
    return {text_of(row, span): score for span, score in zip(spans, row.scores, strict=True)}


# --- a linear teacher, numbers by hand --------------------------------------------------------------------------------
# The input has one "yes", so the answer's tokens have the probabilities yes 1/2, no 1/8, </s> 1/8. The gradient at every
# token is, per vocabulary entry, how often it is in the answer minus the two tokens' summed probability:
#   answer "no </s>":  pad -1/4, </s> 1 - 1/4, unk -1/4, yes -1, no 1 - 1/4

TOY_ROW = tiny.example("yes no", choices=(), target="no")


def toy(method: MethodConfig) -> Attribution:
    return attribute(toy_teacher(), [TOY_ROW], method=method)[0]


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


def test_the_explained_scalar_is_the_log_probability_of_the_whole_answer() -> None:
    found = toy(Saliency())
    assert found.target_logprob == pytest.approx(2 * math.log(1 / 8))
    assert (found.explained, found.explained_answer, found.method, found.model) == ("gold", "no", "saliency", "toy@1")


def test_the_teacher_generates_and_ranks() -> None:
    (found,) = attribute(toy_teacher(), [tiny.example("no no", choices=("no", "yes"), target="no")])
    assert found.choice_logprobs == pytest.approx([2 * math.log(1 / 8), math.log(1 / 2) + math.log(1 / 8)])
    assert found.ranked == "yes"
    assert found.generated == "yes yes yes yes yes yes yes yes"


# --- equal to Captum, row by row --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_batch_mates_padding_budget_and_threads_change_no_score(
    models: dict[str, Loaded], kind: str, method: MethodConfig
) -> None:
    rows = tiny.rows_for(kind)
    together = attribute(models[kind], rows, method=method)
    alone = [attribute(models[kind], [row], method=method)[0] for row in rows]
    small = attribute(models[kind], rows, method=method, batch_tokens=100)
    with threads(2 if torch.get_num_threads() == 1 else 1):
        otherwise = attribute(models[kind], rows, method=method)
    for one, *others in zip(together, alone, small, otherwise, strict=True):
        for other in others:
            assert one.scores == pytest.approx(other.scores, abs=1e-5)
            assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-5)
            assert one.target_logprob == pytest.approx(other.target_logprob, abs=1e-5)
            assert one.generated == other.generated


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_integrated_gradients_say_how_incomplete_they_are(models: dict[str, Loaded], kind: str) -> None:
    row = tiny.rows_for(kind)[0]
    coarse, fine = (attribute(models[kind], [row], method=IntegratedGradients(n_steps=n))[0] for n in (2, 400))
    family = tiny.family(models[kind])
    what = family.read([family.encode(row.segments)]).explained([family.encode_answer(row.target or "")])
    real, blank = (what.forward(embeds, what.rows).item() for embeds in (what.embeds, what.blank()))
    for found in (coarse, fine):
        assert found.completeness_gap == pytest.approx(sum(found.scores) - (real - blank), abs=1e-4)
    assert abs(fine.completeness_gap or 0) < 0.1 * abs(coarse.completeness_gap or 0)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_only_integrated_gradients_claim_completeness(models: dict[str, Loaded], method: MethodConfig) -> None:
    (found,) = attribute(models["t5"], [tiny.example()], method=method)
    assert (found.completeness_gap is None) == (method.type != "integrated_gradients")


# --- what is explained ------------------------------------------------------------------------------------------------


def test_gold_explains_the_target_and_predicted_the_most_probable_choice(models: dict[str, Loaded]) -> None:
    rows = [tiny.example(target=target, uid=target) for target in ("river", "money", "coffee cake")]
    gold = attribute(models["t5"], rows, explained="gold")
    assert [row.explained_answer for row in gold] == ["river", "money", "coffee cake"]
    assert [row.target_logprob for row in gold] == pytest.approx(gold[0].choice_logprobs, abs=1e-5)
    predicted = attribute(models["t5"], rows, explained="predicted")
    assert {row.explained_answer for row in predicted} == {gold[0].ranked}
    assert predicted[0].target_logprob == max(predicted[0].choice_logprobs)


def test_a_row_without_target_has_the_teacher_s_answer_explained(models: dict[str, Loaded]) -> None:
    (row,) = attribute(models["t5"], [tiny.example(target=None)], explained="gold")
    assert (row.explained, row.explained_answer) == ("predicted", row.ranked)


def test_without_label_set_the_generated_answer_is_explained_and_nothing_is_ranked(models: dict[str, Loaded]) -> None:
    (row,) = attribute(models["t5"], [tiny.example(choices=(), target="cake")], explained="predicted")
    assert (row.ranked, row.choice_logprobs, row.explained_answer) == (None, [], row.generated)
    assert row.target_logprob is not None


def test_a_target_outside_the_label_set_is_explained_but_not_ranked(models: dict[str, Loaded]) -> None:
    (row,) = attribute(models["t5"], [tiny.example(choices=("yes", "no"), target="coffee")])
    assert row.explained_answer == "coffee"
    assert row.ranked in ("yes", "no")
    assert len(row.choice_logprobs) == 2


def test_a_generated_label_is_spelt_as_the_label_set_spells_it_unless_two_labels_sound_alike(models: dict[str, Loaded]) -> None:
    said = tiny.family(models["pair"]).encode_answer("coffee cake")
    loaded = steered(models["pair"], said)
    rows = [
        tiny.example(choices=choices, target="money") for choices in (("Coffee Cake", "money"), ("Coffee Cake", "COFFEE cake"))
    ]
    assert [row.generated for row in attribute(loaded, rows)] == ["Coffee Cake", "coffee cake"]


def test_scores_are_of_tokens_of_segments_in_reading_order(models: dict[str, Loaded]) -> None:
    for kind in tiny.KINDS:
        (row,) = attribute(models[kind], tiny.rows_for(kind)[:1])
        spans = list(map(Span, row.token_segment, row.token_start, row.token_end))
        assert spans == sorted(spans, key=lambda span: (span.segment, span.start))
        assert not {"</s>", "[CLS]", "[SEP]", "<pad>"} & set(row.tokens)
        assert [text_of(row, span) for span in spans][:3] == ["Where", "would", "you"]


def test_all_weights_are_frozen(models: dict[str, Loaded]) -> None:
    attribute(models["t5"], [tiny.example()])
    assert not any(weight.requires_grad or weight.grad is not None for weight in models["t5"].model.parameters())


# --- rows with errors -------------------------------------------------------------------------------------------------


def test_bad_rows_become_errors_in_their_place(models: dict[str, Loaded]) -> None:
    rows = [
        tiny.example(uid="good"),
        tiny.example(uid="long option", choices=("river " * 80, "money")),
        tiny.example(uid="long answer", choices=(), target="yes " * 20),
        tiny.example(uid="blank", segments=[Segment("text", " ")], choices=(), target="yes"),
        tiny.example(uid="good too"),
    ]
    results = Engine(AttributionConfig(), tiny.family(models["t5"])).attribute(rows, Counter())
    reasons = [result.reason if isinstance(result, RowError) else result.uid for result in results]
    assert reasons == ["good", "too_long", "too_long", "empty_text", "good too"]


def test_a_long_question_is_cut_and_counted(models: dict[str, Loaded]) -> None:
    (row,) = attribute(models["t5"], [tiny.example("bank " * 100)])
    assert row.truncated_tokens == 100 + 11 - 64
    assert row.token_segment.count(0) == 64 - 11
    assert {text_of(row, Span(s, a, b)) for s, a, b in zip(row.token_segment, row.token_start, row.token_end, strict=True)} >= {
        "river",
        "coffee",
        "cake",
    }


def test_what_is_not_a_number_is_an_error_of_that_row_alone() -> None:
    loaded = tiny.tiny_pair()
    rows = [tiny.example("The café is open.", choices=("yes", "no")), tiny.example("The bank is open.", choices=("yes", "no"))]
    with torch.no_grad():
        loaded.model.get_encoder().get_input_embeddings().weight[loaded.tokenizer.convert_tokens_to_ids("café")] = math.nan
    poisoned, sound = Engine(AttributionConfig(), tiny.family(loaded)).attribute(rows, Counter())
    assert isinstance(poisoned, RowError)
    assert poisoned.reason == "not_finite"
    assert isinstance(sound, Attribution)


# --- the stage --------------------------------------------------------------------------------------------------------


def test_the_stage_loads_on_the_worker_and_gives_the_same_rows_again(tmp_path: Path) -> None:
    source = tiny.tiny_source(tmp_path, max_input_tokens=64, max_answer_tokens=8)
    recipe = pickle.loads(pickle.dumps(Attribute(AttributionConfig(), source, "cpu", threads=1)))
    rows: list[Row] = list(tiny.examples())
    first, second = (recipe.open()(rows, Counter()) for _ in range(2))
    assert first == second
    assert [row.uid for row in first] == [row.uid for row in rows]
    assert {row.model for row in first} == {"spec:" + first[0].model.split(":")[1]}


def test_the_order_of_rows_and_the_budget_change_no_score(models: dict[str, Loaded]) -> None:
    rows = tiny.examples()
    expected = {row.uid: row.scores for row in attribute(models["t5"], rows)}
    for row in attribute(models["t5"], rows[::-1], batch_tokens=60):
        assert row.scores == pytest.approx(expected[row.uid], abs=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_runs_out_of_memory_is_halved_and_gives_the_same_scores(
    models: dict[str, Loaded], method: MethodConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, family = tiny.examples(), tiny.family(models["t5"])
    expected = attribute(models["t5"], rows, method=method)
    sizes: list[int] = []
    read = family.read

    def short_of_memory(batch: Sequence[Encoded], differentiable: bool = False) -> Reading:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(batch, differentiable)

    monkeypatch.setattr(family, "read", short_of_memory)
    found = Engine(AttributionConfig(method=method), family).attribute(rows, Counter())
    assert sizes[0] == 6
    assert sum(size for size in sizes if size <= 2) == 6
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Attribution)
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


@pytest.mark.parametrize("kind", ["t5", "llama", "classifier"])
def test_without_the_teacher_s_answers_scores_are_the_same_and_only_unlabelled_rows_have_an_answer(
    models: dict[str, Loaded], kind: str
) -> None:
    rows = tiny.rows_for(kind)
    for one, other in zip(attribute(models[kind], rows), attribute(models[kind], rows, answers=False), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
        assert one.explained_answer == other.explained_answer
        has_answers = one.uid == "unlabelled"
        assert (other.generated is None, other.ranked is None, other.target_logprob is None) == (not has_answers,) * 3
        assert bool(other.choice_logprobs) == has_answers


def test_the_stage_counts_tokens_and_padding(models: dict[str, Loaded]) -> None:
    tally = Counter[str]()
    family = tiny.family(models["t5"])
    Engine(AttributionConfig(), family).attribute(tiny.examples(), tally)
    sizes = [
        family.size(family.encode(row.segments), [family.encode_answer(text) for text in row.label_set or [row.target or ""]])
        for row in tiny.examples()
    ]
    assert tally["tokens"] == sum(map(sum, sizes))
    widest = max(size[0] for size in sizes) + max(size[1] for size in sizes)
    assert tally["padding_tokens"] == len(sizes) * widest - tally["tokens"]


# --- what one backward for the whole answer changes -------------------------------------------------------------------


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


def test_occlusion_is_what_the_answer_loses_without_a_word() -> None:
    """Without its "yes" the toy's input says nothing: the answer's two tokens go from 1/8 to 1/5 each."""
    assert by_word(toy(Occlusion())) == pytest.approx({"yes": 2 * math.log(1 / 8) - 2 * math.log(1 / 5), "no": 0.0})


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


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match=r"'saliency'.*'input_x_gradient'.*'integrated_gradients'.*'occlusion'"):
        TypeAdapter(AttributionConfig).validate_python({"method": {"type": "lime"}})


def test_all_of_train_is_attributed_unless_said_otherwise() -> None:
    assert AttributionConfig().splits == {"train": None}
    assert AttributionConfig.model_validate({"splits": {"test": 500}}).splits == {"test": 500}
    with pytest.raises(ValidationError, match="splits"):
        AttributionConfig.model_validate({"splits": {"dev": 5}})
