"""Opening: what a model says from ids and from embeddings, beside another row and alone, and whether it can do all it must."""

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    ConvBertConfig,
    FNetConfig,
    FunnelConfig,
    IBertConfig,
    LongformerConfig,
    MobileBertConfig,
    OpenAIGPTConfig,
    PreTrainedConfig,
    SwitchTransformersConfig,
    YosoConfig,
)

from jobs.stages import check_models
from kd.architectures import FamilyName, loader_of
from kd.attribution.engine import AttributionConfig, Engine
from kd.attribution.methods import InputXGradient
from kd.errors import ConfigError
from kd.families.trial import TOLERANCE_NATS
from kd.loading import save, seeded
from kd.models import Loaded
from kd.shrinking import shrunk
from kd.vocabulary import train_tokenizer
from tests import tiny
from tests.mini import mini_config, write_mini

SCALED = ["pegasus", "blenderbot-small", "mvp", "marian"]
"""Models that scale an embedding where they look it up by themselves, and not where it is given."""


def fresh(loaded: Loaded) -> Loaded:
    """The same model, not yet opened."""
    return dataclasses.replace(loaded, model=copy.deepcopy(loaded.model), embedding_scale=None)


def copy_of(config: PreTrainedConfig, family: FamilyName) -> Loaded:
    """A small model of an architecture."""
    word = family != "encoder_classifier"
    tokenizer = train_tokenizer(tiny.SPEC, tiny.TEXTS) if word else tiny.bert_like_tokenizer()
    config.vocab_size, config.pad_token_id = len(tokenizer), 0
    config.eos_token_id = config.decoder_start_token_id = 1
    with torch.device("meta"):
        model = loader_of(family).from_config(config)
    found = shrunk(Loaded(model, tokenizer, config.model_type, family))
    assert found is not None
    return found


def scaled(name: str) -> Loaded:
    from transformers import CONFIG_MAPPING

    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = CONFIG_MAPPING[name](
        scale_embedding=True, max_position_embeddings=64, d_model=32, encoder_layers=2, decoder_layers=2, **heads
    )
    return copy_of(config, "encoder_decoder")


@pytest.mark.parametrize("name", SCALED)
def test_a_model_that_scales_embeddings_of_ids_alone_is_read_as_it_is_trained(name: str) -> None:
    loaded, row = scaled(name), tiny.example()
    family = tiny.family(loaded)
    assert loaded.embedding_scale == math.sqrt(loaded.model.config.d_model)
    encoded, answers = family.encode(row.segments), [family.encode_answer(choice) for choice in row.label_set]
    (found,) = family.read([encoded]).logprobs([answers])
    for answer, logprob in zip(answers, found, strict=True):
        start = loaded.model.config.decoder_start_token_id
        with torch.no_grad():
            logits = loaded.model(
                input_ids=torch.tensor([encoded.ids]), decoder_input_ids=torch.tensor([[start, *answer[:-1]]])
            ).logits
        assert logprob == pytest.approx(logits.log_softmax(-1)[0, range(len(answer)), answer].sum().item(), abs=1e-4)
        nll = family.sequence_nll(loaded.model, [encoded.ids], [answer])
        assert logprob == pytest.approx(-nll.item(), abs=1e-4)


@pytest.mark.parametrize("name", SCALED)
def test_scores_of_such_a_model_are_those_of_a_gradient_taken_where_it_looks_its_ids_up(name: str) -> None:
    """The product of embedding and gradient does not depend on the scale, so it can be taken before or after it."""
    loaded, row = scaled(name), tiny.example()
    family = tiny.family(loaded)
    encoded, answer = family.encode(row.segments), family.encode_answer(row.target or "")
    found = Engine(AttributionConfig(method=InputXGradient()), family).attribute([row], Counter())
    looked_up: list[torch.Tensor] = []

    def keep(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        looked_up.append(out.detach().requires_grad_())
        return looked_up[-1]

    hook = loaded.model.get_encoder().get_input_embeddings().register_forward_hook(keep)
    ids = torch.tensor([[loaded.model.config.decoder_start_token_id, *answer[:-1]]])
    try:
        logits = loaded.model(input_ids=torch.tensor([encoded.ids]), decoder_input_ids=ids).logits
    finally:
        hook.remove()
    number = logits.log_softmax(-1)[0, range(len(answer)), answer].sum()
    (gradient,) = torch.autograd.grad(number, [looked_up[0]])
    expected = (gradient * looked_up[0].detach())[0].sum(-1).tolist()
    assert found[0].scores == pytest.approx([s for s, span in zip(expected, encoded.spans, strict=True) if span], abs=1e-4)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_other_models_have_no_scale_of_their_own(models: dict[str, Loaded], kind: str) -> None:
    loaded = fresh(models[kind])
    assert loaded.embedding_scale is None
    tiny.family(loaded)
    assert loaded.embedding_scale == 1.0


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_model_in_bfloat16_is_opened(models: dict[str, Loaded], kind: str) -> None:
    loaded = fresh(models[kind])
    loaded.model.to(torch.bfloat16)
    tiny.family(loaded)
    assert loaded.embedding_scale == 1.0


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_trying_a_model_out_leaves_it_and_the_random_numbers_as_they_were(models: dict[str, Loaded], kind: str) -> None:
    loaded, other = fresh(models[kind]), models[kind]
    before = torch.random.get_rng_state()
    tiny.family(loaded)
    assert torch.equal(before, torch.random.get_rng_state())
    assert tiny.same_weights(loaded, other)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("config", [FNetConfig, YosoConfig, FunnelConfig, MobileBertConfig, ConvBertConfig])
def test_a_model_that_reads_a_row_otherwise_beside_a_longer_one_is_refused_with_the_numbers(
    config: Callable[[], PreTrainedConfig],
) -> None:
    loaded = copy_of(config(), "encoder_classifier")
    with pytest.raises(ConfigError) as caught:
        tiny.family(loaded)
    with pytest.raises(ConfigError, match="of a row alone"):
        tiny.family(loaded)
    said = str(caught.value)
    assert f"{loaded.name} ({loaded.model.config.model_type}): the log-probabilities of a row alone and" in said
    gap = float(said.split("differ by ")[1].split(" nats")[0])
    assert gap > TOLERANCE_NATS[torch.float32][0] * 10
    # The same by transformers alone: the classes of one row, alone and padded.
    ids, pads = torch.tensor([[1, 4, 5, 6, 7, 8, 2]]), torch.zeros(1, 4, dtype=torch.long)
    with torch.no_grad():
        alone = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        padded = loaded.model(input_ids=torch.cat([ids, pads], 1), attention_mask=torch.cat([ids > 0, pads > 0], 1).long()).logits
    assert (alone - padded).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("config", "family", "says"),
    [
        (lambda: LongformerConfig(attention_window=[8, 8], num_hidden_layers=2), "encoder_classifier", "TypeError"),
        (lambda: IBertConfig(num_hidden_layers=2), "encoder_classifier", "AttributeError"),
        (lambda: OpenAIGPTConfig(n_layer=2), "decoder_only", "has no attribute 'past_key_values'"),
        (lambda: SwitchTransformersConfig(num_layers=2), "encoder_decoder", "has no attribute 'router_logits'"),
    ],
)
def test_a_model_that_cannot_do_what_the_stages_ask_is_refused_with_the_reason(
    config: Callable[[], PreTrainedConfig], family: FamilyName, says: str
) -> None:
    with pytest.raises(ConfigError, match=rf"\): reading a row fails with .*{says}.*docs/architectures.md has those that work"):
        tiny.family(copy_of(config(), family))


def test_a_model_whose_weights_are_no_numbers_is_refused_by_their_name(tmp_path: Path) -> None:
    loaded = tiny.tiny_t5(tmp_path)
    torch.nn.init.constant_(loaded.model.shared.weight, float("nan"))
    with pytest.raises(ConfigError, match=r"is nan; expected a finite number: 1 of its weights .* first shared\.weight\. Take a"):
        tiny.family(loaded)


def test_memory_that_runs_out_is_no_fault_of_the_architecture(tmp_path: Path) -> None:
    loaded = tiny.tiny_t5(tmp_path)

    def runs_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = loaded.model.get_encoder().register_forward_pre_hook(runs_out)
    with pytest.raises(torch.OutOfMemoryError):
        tiny.family(loaded)
    hook.remove()


def test_a_model_is_tried_out_once_and_one_without_weights_never(tmp_path: Path) -> None:
    loaded = tiny.tiny_t5(tmp_path)
    seen: list[int] = []
    hook = loaded.model.get_encoder().register_forward_pre_hook(lambda *_: seen.append(1))
    tiny.family(loaded)
    tried = len(seen)
    assert tried > 0
    tiny.family(loaded)
    tiny.family(dataclasses.replace(loaded, name="the same, later"))
    tiny.family(dataclasses.replace(loaded, embedding_scale=None, model=loaded.model.to("meta")))
    hook.remove()
    assert len(seen) == tried


# --- before anything is paid for --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [FNetConfig, lambda: LongformerConfig(attention_window=8)])
def test_an_architecture_that_does_not_work_is_refused_before_the_corpus_is_read(
    tmp_path: Path, config: Callable[[], PreTrainedConfig]
) -> None:
    """No weights are there: the copy that is tried has its own."""
    tokenizer = tiny.bert_like_tokenizer()
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2}
    named = config().to_dict() | sizes | {"vocab_size": len(tokenizer), "pad_token_id": 0, "id2label": {0: "good"}}
    with seeded(0):
        model = loader_of("encoder_classifier").from_config(type(config()).from_dict(named))
    save(Loaded(model, tokenizer, "odd", "encoder_classifier"), tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"")
    teacher = {"name": str(tmp_path / "teacher"), "max_input_tokens": 32, "max_answer_tokens": 8}
    with pytest.raises(ConfigError, match=r"the teacher: .*docs/architectures.md has those that work"):
        check_models(mini_config(write_mini(tmp_path), teacher=teacher))


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_copy_is_small_of_the_same_kind_and_in_float32_and_the_model_stays_as_it_was(
    models: dict[str, Loaded], kind: str
) -> None:
    loaded, other = fresh(models[kind]), models[kind]
    loaded.model.to(torch.bfloat16)
    small = shrunk(loaded)
    assert small is not None
    assert type(small.model) is type(loaded.model)
    assert {parameter.dtype for parameter in small.model.parameters()} == {torch.float32}
    assert (small.embedding_scale, small.tokenizer) == (None, loaded.tokenizer)
    assert tiny.same_weights(loaded, dataclasses.replace(other, model=copy.deepcopy(other.model).to(torch.bfloat16)))
    tiny.family(small)


def test_a_copy_of_a_large_model_takes_no_more_than_its_vocabulary() -> None:
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, num_key_value_heads=8, eos_token_id=1, **sizes))
    small = shrunk(Loaded(model, train_tokenizer(tiny.SPEC, tiny.TEXTS), "large", "decoder_only"))
    assert small is not None
    assert sum(parameter.numel() for parameter in small.model.parameters()) < 2 * 1000 * 32 + 30_000
    assert (small.model.config.num_attention_heads, small.model.config.num_key_value_heads) == (4, 2)


def test_no_copy_is_made_where_the_sizes_do_not_go_together() -> None:
    class Odd(torch.nn.Module):
        """What no config of its own can build."""

        config = BertConfig(hidden_size=64)

    assert shrunk(Loaded(Odd(), None, "odd")) is None  # type: ignore[arg-type]
