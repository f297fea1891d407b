"""The arithmetic of cost, against torch's own count of matrix products."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kd.cost import Shape, explained_row, shape_of, written_row
from kd.models import Loaded, ModelConfig, ModelSource, load

KINDS = ["t5", "bart", "pair", "llama", "gpt2", "classifier"]


def test_a_row_costs_two_flop_per_weight_and_token_forward_and_as_much_backward() -> None:
    shape = Shape(reader=1000, crossed=100, writer=500, head=50, reads=0, writes=0, crosses=0)
    cost = explained_row(shape, input_tokens=10, answer_tokens=4)
    assert cost.forward == 2 * (10 * 1100 + 4 * 550)
    assert cost.both == 2 * cost.forward
    assert explained_row(shape, 10, 4, frozen=False).both == 3 * cost.forward
    assert written_row(shape, 10, 4, answers=3) == 3 * 2 * 4 * 550


def test_attention_costs_four_flop_per_width_and_pair_forward_and_twice_that_backward() -> None:
    shape = Shape(0, 0, 0, 0, reads=64, writes=32, crosses=16)
    cost = explained_row(shape, input_tokens=10, answer_tokens=4)
    assert cost.forward == 4 * (64 * 100 + 32 * 16 + 16 * 40)
    assert cost.backward == 2 * cost.forward


@pytest.mark.parametrize("kind", KINDS)
def test_the_count_is_torch_s_own(models: dict[str, Loaded], kind: str) -> None:
    """Forward and backward of a whole explained row, all weights frozen, with attention written out."""
    loaded = models[kind]
    model = loaded.model.requires_grad_(False)
    model.set_attn_implementation("eager")
    ids, answer = torch.randint(3, 20, (1, 40)), torch.randint(3, 20, (1, 6))
    given = {"decoder_input_ids": answer} if loaded.family == "encoder_decoder" else {}
    if loaded.family == "decoder_only":
        given = {"logits_to_keep": 6}
    embed = (model.get_encoder() if loaded.family == "encoder_decoder" else model).get_input_embeddings()
    width = 40 if loaded.family != "decoder_only" else 46
    embeds = embed(torch.randint(3, 20, (1, width)) if width > 40 else ids).detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        out = model(inputs_embeds=embeds, **({} if loaded.family == "encoder_classifier" else {"use_cache": False}), **given)
        out.logits.sum().backward()
    cost = explained_row(shape_of(loaded), 40, 6)
    assert cost.both == pytest.approx(counter.get_total_flops(), rel=0.08)


def test_a_model_without_weights_has_the_same_shape(models: dict[str, Loaded], tmp_path: Path) -> None:
    outline = load(ModelSource(ModelConfig(name=str(saved(models["t5"], tmp_path)))), "meta")
    assert shape_of(outline) == shape_of(models["t5"])


def saved(loaded: Loaded, folder: Path) -> Path:
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def test_three_billion_parameters_explain_a_row_of_128_tokens_for_four_fifths_of_a_teraflop() -> None:
    """The shape of google-t5/t5-3b: 24 + 24 layers, 32 heads of 128, inner size 16,384."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24, "num_heads": 32, "vocab_size": 32128}
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**sizes))
    shape = shape_of(Loaded(model, None, "t5-3b"))  # type: ignore[arg-type]
    assert shape.reader + shape.crossed + shape.writer == pytest.approx(2.82e9, rel=0.01)
    assert explained_row(shape, 128, 8).both == pytest.approx(0.78e12, rel=0.05)
    assert explained_row(shape, 512, 8).both == pytest.approx(3.14e12, rel=0.05)
