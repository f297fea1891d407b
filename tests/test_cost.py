"""The arithmetic of cost, against torch's own count of matrix products."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kd.architectures import FamilyName
from kd.cost import Shape, answered_row, explained_row, shape_of, written_row
from kd.errors import ConfigError
from kd.families.base import Family
from kd.loading import load
from kd.models import Loaded, ModelConfig, ModelSource
from tests import tiny

T = TypeVar("T")
KINDS = ["t5", "bart", "pair", "llama", "gpt2", "classifier"]
IDS, ANSWER = list(range(3, 43)), [5, 6, 7, 8, 9, 1]


def test_a_row_costs_two_flop_per_weight_and_token_forward_and_as_much_backward() -> None:
    shape = Shape(reader=1000, crossed=100, writer=500, head=50, reads=0, writes=0, crosses=0, starts=1)
    cost = explained_row(shape, input_tokens=10, answer_tokens=4)
    assert cost.forward == 2 * (10 * 1100 + 4 * 550)
    assert cost.both == 2 * cost.forward
    assert explained_row(shape, 10, 4, frozen=False).both == 3 * cost.forward
    assert written_row(shape, 10, 4, answers=3) == 3 * 2 * 3 * 550


def test_without_a_start_token_an_answer_is_fed_but_for_its_last_token() -> None:
    shape = Shape(reader=500, crossed=0, writer=500, head=50, reads=0, writes=0, crosses=0, starts=0)
    assert explained_row(shape, input_tokens=10, answer_tokens=4).forward == 2 * (10 * 500 + 3 * 500 + 4 * 50)
    assert explained_row(shape, input_tokens=10, answer_tokens=1).forward == 2 * (10 * 500 + 50)
    assert written_row(shape, 10, 4) == 2 * 3 * 550
    assert written_row(shape, 10, 1) == 0


def test_attention_costs_four_flop_per_width_and_pair_forward_and_twice_that_backward() -> None:
    shape = Shape(0, 0, 0, 0, reads=64, writes=32, crosses=16, starts=1)
    cost = explained_row(shape, input_tokens=10, answer_tokens=4)
    assert cost.forward == 4 * (64 * 100 + 32 * 16 + 16 * 40)
    assert cost.backward == 2 * cost.forward


def counted(work: Callable[[], T]) -> tuple[T, int]:
    """What the work gives, and torch's count of its operations."""
    with FlopCounterMode(display=False) as counter:
        found = work()
    return found, counter.get_total_flops()


def written_out(loaded: Loaded) -> Family:
    """Frozen, and with attention as matrix products that torch counts."""
    loaded.model.requires_grad_(False)
    loaded.model.set_attn_implementation("eager")
    return tiny.family(loaded)


@pytest.mark.parametrize("kind", KINDS)
def test_an_explained_row_costs_what_torch_counts_in_the_engine_s_own_passes(models: dict[str, Loaded], kind: str) -> None:
    """A whole row, from the reading to the gradient at the input. Torch counts a little less backward: what of the answer
    the input has not reached yet, in a decoder's first layer, gets no gradient, and these models have two layers."""
    family = written_out(models[kind])
    answer = ANSWER if kind in tiny.WRITERS else [0]
    reading, read = counted(lambda: family.read(tiny.of_ids(IDS), differentiable=True))
    what = reading.explained([answer])
    number, explained = counted(lambda: what.forward(what.embeds, what.rows))
    _, backward = counted(lambda: torch.autograd.grad(number.sum(), [what.embeds]))
    cost = explained_row(shape_of(models[kind]), len(IDS), len(answer))
    assert read + explained == pytest.approx(cost.forward, rel=0.002)
    assert backward == pytest.approx(cost.backward, rel=0.04)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in tiny.WRITERS])
def test_a_ranked_and_a_generated_answer_cost_what_torch_counts(models: dict[str, Loaded], kind: str) -> None:
    """Token by token, an answer's tokens look back only, so torch counts a little less for a generated one."""
    family, shape = written_out(models[kind]), shape_of(models[kind])
    reading = family.read(tiny.of_ids(IDS))
    _, ranked = counted(lambda: reading.logprobs([[ANSWER, ANSWER]]))
    assert ranked == written_row(shape, len(IDS), len(ANSWER), answers=2)
    (said,), generated = counted(reading.generate)
    assert generated == pytest.approx(written_row(shape, len(IDS), len(said.ids)), rel=0.03)
    assert answered_row(shape, len(IDS), 6) == explained_row(shape, len(IDS), 6).forward


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


# --- models that are not one layer after the other ---------------------------------------------------------------------


def outline(model_type: str, auto: type, family: FamilyName, device: str = "meta", **config: Any) -> Loaded:
    """A model of this architecture, without weights unless they are asked for; no tokenizer is asked."""
    from transformers import AutoConfig

    with torch.device(device):
        model = auto.from_config(AutoConfig.for_model(model_type, **config)).eval()  # type: ignore[attr-defined]
    return Loaded(model, None, model_type, family)  # type: ignore[arg-type]


def classifier(model_type: str, **config: Any) -> Loaded:
    from transformers import AutoModelForSequenceClassification

    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100}
    return outline(model_type, AutoModelForSequenceClassification, "encoder_classifier", **sizes | config)


def causal(model_type: str, **config: Any) -> Loaded:
    from transformers import AutoModelForCausalLM

    return outline(model_type, AutoModelForCausalLM, "decoder_only", **config)


def test_of_a_mixture_s_experts_those_count_that_a_token_is_sent_to() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "vocab_size": 100}
    shape = shape_of(causal("qwen3_moe", **sizes | experts))
    attention, router, expert = 32 * (32 + 16 + 16) + 32 * 32, 32 * 8, 3 * 32 * 24
    assert shape.reader == shape.writer == 3 * (attention + router + 2 * expert)
    assert (shape.head, shape.reads, shape.once) == (100 * 32, 3 * 32, 0)


def test_thirty_billion_parameters_of_which_three_are_active_cost_three() -> None:
    """The shape of Qwen/Qwen3-30B-A3B, whose card says 30.5 billion parameters in all and 3.3 active, embeddings included."""
    sizes = {"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128}
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "vocab_size": 151936}
    loaded = causal("qwen3_moe", **sizes | experts)
    shape = shape_of(loaded)
    assert sum(weight.numel() for weight in loaded.model.parameters()) == pytest.approx(30.5e9, rel=0.01)
    assert shape.reader + shape.head + 151936 * 2048 == pytest.approx(3.3e9, rel=0.02)


def test_layers_that_share_their_weights_count_as_often_as_they_run() -> None:
    once, often = (shape_of(classifier("albert", num_hidden_layers=layers, embedding_size=16)) for layers in (1, 12))
    layer = 4 * 32 * 32 + 2 * 32 * 64
    assert (once.reader, often.reader) == (16 * 32 + layer, 16 * 32 + 12 * layer)
    assert (once.reads, often.reads) == (32, 12 * 32)


def test_relative_positions_count_by_row_and_by_pass() -> None:
    """DeBERTa v3 compares each token with 2 x 8 positions, from content and to it, whose projections all rows share."""
    asked = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "share_att_key": True}
    shape = shape_of(classifier("deberta-v2", num_hidden_layers=2, **asked))
    plain = shape_of(classifier("bert", num_hidden_layers=2))
    assert shape.reader - plain.reader == 2 * 2 * 16 * 32, "two layers, two ways, sixteen positions"
    assert shape.pass_flops == 2 * 2 * 2 * 16 * 32 * 32, "keys and queries of sixteen positions in two layers"
    assert (shape.reads, shape.once) == (plain.reads, plain.once)


@pytest.mark.parametrize("model_type", ["deberta", "deberta-v2", "albert", "modernbert", "nystromformer"])
def test_a_batch_costs_an_encoder_what_torch_counts(model_type: str) -> None:
    """Three rows of 40 tokens, none of the sizes that the shape was found with; on real tensors."""
    asked = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]} if model_type.startswith("deberta") else {}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = {"num_hidden_layers": 2} | asked | (ids if model_type == "modernbert" else {})
    shape = shape_of(classifier(model_type, **config))
    loaded = classifier(model_type, **config, device="cpu")
    loaded.model.set_attn_implementation("eager")
    embedded = torch.ones(3, 40, loaded.model.get_input_embeddings().weight.shape[1])
    _, count = counted(lambda: loaded.model(inputs_embeds=embedded))
    shared = shape.pass_flops + 2 * shape.pass_weights * 40
    assert 3 * explained_row(shape, 40, 1).forward + shared == count


@pytest.mark.parametrize("model_type", ["longt5", "switch_transformers"])
def test_a_model_whose_cost_is_not_known_is_refused_by_name(model_type: str) -> None:
    from transformers import AutoModelForSeq2SeqLM

    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 100}
    with pytest.raises(ConfigError, match=f"{model_type}: what a row costs a .*ForConditionalGeneration is not known: "):
        shape_of(outline(model_type, AutoModelForSeq2SeqLM, "encoder_decoder", **sizes))


def test_counting_leaves_a_model_as_it_was(models: dict[str, Loaded]) -> None:
    before = models["llama"].model.config._attn_implementation
    shape_of(models["llama"])
    assert models["llama"].model.config._attn_implementation == before
