"""Families: answers to ids and back, what a model says greedily, and the labels that are recognised in it."""

from pathlib import Path

import pytest
import torch

from kd.errors import ConfigError, RowFault
from kd.families.base import Generated
from kd.families.opening import open_family
from kd.models import Loaded, ModelConfig
from kd.rows import Segment
from tests import tiny
from tests.tiny_known import steered


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [("t5", ["▁coffee", "▁cake", "</s>"]), ("bart", ["▁coffee", "▁cake", "</s>"]), ("pair", ["coffee", "cake", "[SEP]"])],
)
def test_an_answer_ends_with_end_of_sequence_and_has_no_start_token(
    models: dict[str, Loaded], kind: str, tokens: list[str]
) -> None:
    ids = tiny.family(models[kind]).encode_answer("coffee cake")
    assert models[kind].tokenizer.convert_ids_to_tokens(ids) == tokens


def test_an_answer_is_never_cut(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["t5"], max_answer_tokens=3)
    assert len(family.encode_answer("coffee cake")) == 3
    with pytest.raises(RowFault) as caught:
        family.encode_answer("the coffee cake")
    assert caught.value.reason == "too_long"


def test_a_model_that_does_not_say_how_answers_end_is_refused(tmp_path: Path) -> None:
    loaded = tiny.tiny_t5(tmp_path)
    loaded.model.config.eos_token_id = loaded.model.generation_config.eos_token_id = None
    with pytest.raises(ConfigError, match="eos_token_id"):
        tiny.family(loaded)


@pytest.mark.parametrize("kind", tiny.WRITERS)
def test_greedy_answers_are_those_of_transformers(models: dict[str, Loaded], kind: str) -> None:
    family = tiny.family(models[kind])
    batch = family.encode_rows([row.segments for row in tiny.examples()])
    ids, mask = family.batch([row.ids for row in batch], left=models[kind].family == "decoder_only")
    reference = models[kind].model.generate(input_ids=ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=8)
    begin = ids.shape[1] if models[kind].family == "decoder_only" else 1
    for said, expected in zip(family.read(batch).generate(), reference.tolist(), strict=True):
        assert said.ids == expected[begin : begin + len(said.ids)]
        assert said.finished == (said.ids[-1] in (1, 2) and family.encode_target("")[-1] == said.ids[-1])


def test_an_answer_that_ends_is_finished_and_unknown_words_stay_visible(models: dict[str, Loaded]) -> None:
    loaded = steered(models["t5"], [5, 2, 1])
    (said,) = tiny.family(loaded, max_answer_tokens=3).read(tiny.of_ids([3, 4, 1])).generate()
    word = models["t5"].tokenizer.convert_ids_to_tokens(5).lstrip("▁")
    assert (said.ids, said.finished) == ([5, 2, 1], True)
    assert said.text == f"{word}<unk>"
    (cut,) = tiny.family(loaded, max_answer_tokens=2).read(tiny.of_ids([3, 4, 1])).generate()
    assert (cut.ids, cut.finished) == ([5, 2], False)


@pytest.mark.parametrize("limit", [2, 5, 9])
def test_a_limit_is_one_less_than_the_max_length_of_generate_which_counts_the_start(
    models: dict[str, Loaded], limit: int
) -> None:
    """So gen_max_len = 64 in the code of Distilling step-by-step is max_generated_tokens: 63."""
    family = open_family(models["t5"], ModelConfig(name="x", max_answer_tokens=20, max_generated_tokens=limit))
    (said,) = family.read(tiny.of_ids([3, 4, 1])).generate()
    (ids,) = models["t5"].model.generate(torch.tensor([[3, 4, 1]]), max_length=limit + 1, do_sample=False, num_beams=1).tolist()
    assert (said.ids, said.finished) == (ids[1:], False)
    assert len(said.ids) == limit


def test_rows_that_end_early_wait_for_the_others(models: dict[str, Loaded]) -> None:
    loaded = steered(models["t5"], [5, 6, 1], [1])
    first, second = tiny.family(loaded).read(tiny.of_ids([3, 1], [4, 1])).generate()
    assert (first.ids, second.ids) == ([5, 6, 1], [1])
    assert (second.text, second.finished) == ("", True)


def test_a_label_is_recognised_by_its_tokens_or_its_text_but_never_guessed(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["t5"])
    assert family.label_of(Generated("anything", True, family.encode_answer("money")), ["river", "money"]) == "money"
    assert family.label_of(Generated("  the   RIVER. ", True, []), ["The river", "river"]) == "The river"
    assert family.label_of(Generated("The river bank", True, []), ["The river"]) is None
    assert family.label_of(Generated("yes", True, []), ["Yes", "YES"]) is None
    assert family.label_of(Generated("", True, []), ["a", "b"]) is None


# --- classifiers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classifier", "pooled", "scorer"])
def test_a_classifier_s_answer_is_its_most_probable_label(models: dict[str, Loaded], kind: str) -> None:
    rows, family = tiny.rows_for(kind), tiny.family(models[kind])
    reading = family.read(family.encode_rows([row.segments for row in rows]))
    logprobs = reading.logprobs([[family.encode_answer(label) for label in row.label_set] for row in rows])
    for row, said, own in zip(rows, reading.generate(), logprobs, strict=True):
        assert said.finished
        assert said.text == row.label_set[own.index(max(own))] == family.label_of(said, row.label_set)


def test_a_classifier_with_fixed_classes_refuses_rows_with_choices_of_their_own(models: dict[str, Loaded]) -> None:
    with pytest.raises(ConfigError, match=r"fixed classes yes, no, maybe.*one logit"):
        tiny.family(models["classifier"]).encode_rows([row.segments for row in tiny.examples()])


def test_an_unknown_class_is_the_fault_of_its_row(models: dict[str, Loaded]) -> None:
    assert tiny.family(models["classifier"]).encode_answer(" No") == [1]
    with pytest.raises(RowFault) as caught:
        tiny.family(models["classifier"]).encode_answer("perhaps")
    assert (caught.value.reason, caught.value.detail) == (
        "unknown_label",
        "'perhaps' is no class of bert@0; it has yes, no, maybe",
    )


def test_a_scorer_needs_choices_and_does_not_train(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["scorer"])
    with pytest.raises(RowFault, match="scores the choices of a row, and this one has none"):
        family.encode([Segment("question", "Where?")])
    with pytest.raises(ConfigError, match="one choice at a time"):
        family.sequence_nll(family.model, [[1, 2]], [[0]])
