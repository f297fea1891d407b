"""What is explained of a row, what becomes of bad rows, and scores that depend on nothing but the row."""

import math
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from kd.attribution.engine import Attribute, AttributionConfig, Engine
from kd.attribution.methods import Case, Explanation, IntegratedGradients, MethodConfig, Occlusion, Saliency
from kd.loading import load, set_threads
from kd.models import Loaded
from kd.rows import Attribution, Row, RowError, Segment, Span, text_of
from tests import tiny
from tests.tiny_attribution import METHODS, attribute
from tests.tiny_known import steered

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


def test_a_generated_label_is_spelt_as_the_label_set_spells_it(models: dict[str, Loaded]) -> None:
    said = tiny.family(models["pair"]).encode_answer("coffee cake")
    (row,) = attribute(steered(models["pair"], said), [tiny.example(choices=("Coffee Cake", "money"), target="money")])
    assert row.generated == "Coffee Cake"


@pytest.mark.parametrize("label", ["coffee cake", "Coffee Cake"])
def test_a_text_that_met_the_length_limit_is_no_label_whatever_it_reads_like(models: dict[str, Loaded], label: str) -> None:
    said = tiny.family(models["pair"]).encode_answer("coffee cake")
    row = tiny.example(choices=(label, "money"), target=label)
    for answer, generated, right in (
        (said, label, 1),
        ([*said[:-1], *[models["pair"].tokenizer.pad_token_id] * 8], "coffee cake", 0),
    ):
        (found,) = attribute(steered(models["pair"], answer), [row])
        assert (found.generated, found.generated_cut) == (generated, not right)
        assert found.tally().count("generated_right") == right


def test_scores_are_of_tokens_of_segments_in_reading_order(models: dict[str, Loaded]) -> None:
    for kind in tiny.KINDS:
        (row,) = attribute(models[kind], tiny.rows_for(kind)[:1])
        spans = list(map(Span, row.token_segment, row.token_start, row.token_end))
        assert spans == sorted(spans, key=lambda span: (span.segment, span.start))
        assert not {"</s>", "[CLS]", "[SEP]", "<pad>"} & set(row.tokens)
        assert [text_of(row, span) for span in spans][:3] == ["Where", "would", "you"]


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


def test_a_scorer_reads_all_choices_only_where_an_answer_is_asked(models: dict[str, Loaded]) -> None:
    rows, taken = [row for row in tiny.rows_for("scorer") if row.target], list[int]()
    hook = models["scorer"].model.register_forward_pre_hook(
        lambda _, args, given: taken.append(len(given["inputs_embeds"])), with_kwargs=True
    )
    try:
        attribute(models["scorer"], rows, answers=False)
        assert sum(taken) == len(rows)
        attribute(models["scorer"], rows)
        assert sum(taken) == len(rows) + len(rows) + sum(len(row.label_set) for row in rows)
    finally:
        hook.remove()


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


def test_a_completeness_gap_that_is_not_a_number_is_an_error_of_that_row_alone(
    models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = IntegratedGradients.explain

    def with_a_gap_of_nan(method: IntegratedGradients, case: Case) -> Explanation:
        scores, gap = explain(method, case)
        assert gap is not None
        return Explanation(scores, gap * torch.tensor([math.nan, 1.0]))

    monkeypatch.setattr(IntegratedGradients, "explain", with_a_gap_of_nan)
    config = AttributionConfig(method=IntegratedGradients(n_steps=2))
    poisoned, sound = Engine(config, tiny.family(models["t5"])).attribute([tiny.example(), tiny.example(uid="r2")], Counter())
    assert isinstance(poisoned, RowError)
    assert (poisoned.reason, "completeness gap" in poisoned.detail) == ("not_finite", True)
    assert isinstance(sound, Attribution)


# --- nothing but the row ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_batch_mates_padding_budget_and_threads_change_no_score(
    models: dict[str, Loaded], kind: str, method: MethodConfig
) -> None:
    rows = tiny.rows_for(kind)
    together = attribute(models[kind], rows, method=method)
    alone = [attribute(models[kind], [row], method=method)[0] for row in rows]
    small = attribute(models[kind], rows, method=method, batch_tokens=100)
    with set_threads(2 if torch.get_num_threads() == 1 else 1):
        otherwise = attribute(models[kind], rows, method=method)
    for one, *others in zip(together, alone, small, otherwise, strict=True):
        for other in others:
            assert one.scores == pytest.approx(other.scores, abs=1e-5)
            assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-5)
            assert one.target_logprob == pytest.approx(other.target_logprob, abs=1e-5)
            assert one.generated == other.generated


@pytest.mark.parametrize("method", [Saliency(), IntegratedGradients(n_steps=2), Occlusion()], ids=lambda method: method.type)
def test_threads_that_share_a_tensor_change_no_score(tmp_path: Path, method: MethodConfig) -> None:
    """Torch gives a thread of its own to 32,768 elements of a tensor; of the other models every tensor is smaller."""
    spec = tiny.SPEC.model_copy(update={"d_model": 128, "d_kv": 32, "d_ff": 256})
    loaded, rows = load(tiny.tiny_source(tmp_path, spec), "cpu"), tiny.examples() * 4
    elements: list[int] = []
    hook = loaded.model.get_encoder().register_forward_pre_hook(
        lambda _, args, given: elements.append(given["inputs_embeds"].numel()), with_kwargs=True
    )
    found = []
    try:
        for threads in (1, 2, 3):
            with set_threads(threads):
                found.append(attribute(loaded, rows, method=method))
    finally:
        hook.remove()
    assert min(elements) > 2 * 32_768
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert one.scores == pytest.approx(other.scores, abs=1e-5)
            assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-5)


def test_the_order_of_rows_and_the_budget_change_no_score(models: dict[str, Loaded]) -> None:
    rows = tiny.examples()
    expected = {row.uid: row.scores for row in attribute(models["t5"], rows)}
    for row in attribute(models["t5"], rows[::-1], batch_tokens=60):
        assert row.scores == pytest.approx(expected[row.uid], abs=1e-5)


# --- the stage --------------------------------------------------------------------------------------------------------


def test_the_stage_loads_on_the_worker_and_gives_the_same_rows_again(tmp_path: Path) -> None:
    source = tiny.tiny_source(tmp_path, max_input_tokens=64, max_answer_tokens=8)
    recipe = pickle.loads(pickle.dumps(Attribute(AttributionConfig(), source, "cpu", threads=1)))
    rows: list[Row] = list(tiny.examples())
    first, second = (recipe.open()(rows, Counter()) for _ in range(2))
    assert first == second
    assert [row.uid for row in first] == [row.uid for row in rows]
    assert {row.model for row in first} == {"spec:" + first[0].model.split(":")[1]}


def test_all_weights_are_frozen(models: dict[str, Loaded]) -> None:
    attribute(models["t5"], [tiny.example()])
    assert not any(weight.requires_grad or weight.grad is not None for weight in models["t5"].model.parameters())


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


# --- its config -------------------------------------------------------------------------------------------------------


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match=r"'saliency'.*'input_x_gradient'.*'integrated_gradients'.*'occlusion'"):
        TypeAdapter(AttributionConfig).validate_python({"method": {"type": "lime"}})


def test_all_of_train_is_attributed_unless_said_otherwise() -> None:
    assert AttributionConfig().splits == {"train": None}
    assert AttributionConfig.model_validate({"splits": {"test": 500}}).splits == {"test": 500}
    with pytest.raises(ValidationError, match="splits"):
        AttributionConfig.model_validate({"splits": {"dev": 5}})
