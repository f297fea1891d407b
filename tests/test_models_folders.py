"""Models from folders: the same weights and tokenizer as were saved, and clear refusals."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from kd.errors import ConfigError, InputError
from kd.loading import load, save
from kd.models import ModelConfig, ModelSource
from kd.store import Store
from tests import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.saved_t5(tmp_path)


# --- what is there ----------------------------------------------------------------------------------------------------


def test_what_is_saved_loads_with_the_same_weights_and_tokenizer(tmp_path: Path) -> None:
    for kind, loaded in tiny.tiny_models(tmp_path / "run").items():
        save(loaded, tmp_path / kind)
        again = load(ModelSource(ModelConfig(name=str(tmp_path / kind))), "cpu")
        assert tiny.same_weights(loaded, again)
        assert again.tokenizer("river bank")["input_ids"] == loaded.tokenizer("river bank")["input_ids"]


def test_what_is_saved_loads_with_plain_transformers(folder: Path) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (folder / "model.safetensors").exists()
    assert model.generate(**tokenizer("river bank", return_tensors="pt"), max_new_tokens=2).shape == (1, 3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "classifier", "pooled"])
def test_a_model_of_another_family_is_loaded_as_what_it_is(tmp_path: Path, kind: str) -> None:
    made = tiny.tiny_models(tmp_path / "run")[kind]
    save(made, tmp_path / "model")
    loaded = load(ModelSource(ModelConfig(name=str(tmp_path / "model"))), "cpu")
    assert loaded.family == made.family
    assert tiny.same_weights(loaded, made)
    outline = load(ModelSource(ModelConfig(name=str(tmp_path / "model"))), "meta")
    assert (outline.family, outline.model.device.type) == (made.family, "meta")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_outline_of_a_model_has_the_dtype_that_is_asked_for_whatever_its_files_have(tmp_path: Path, dtype: str) -> None:
    made = tiny.tiny_models(tmp_path / "run")["llama"]
    made.model.to(torch.bfloat16)
    save(made, tmp_path / "model")
    source = ModelSource(ModelConfig(name=str(tmp_path / "model"), dtype=dtype))
    assert load(source, "meta").model.dtype == load(source, "cpu").model.dtype == getattr(torch, dtype)


def test_a_t5_in_float32_has_fused_attention(folder: Path) -> None:
    assert load(ModelSource(ModelConfig(name=str(folder))), "cpu").model.config._attn_implementation == "sdpa"


def test_a_model_of_a_folder_is_spread_as_it_is_loaded_and_not_moved_afterwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is needed to see what transformers is asked for."""
    asked: list[str | None] = []
    places: list[object] = []
    from_pretrained = AutoModelForSeq2SeqLM.from_pretrained

    def noted(*args: object, device_map: str | None, **given: object) -> object:
        asked.append(device_map)
        return from_pretrained(*args, **given)

    monkeypatch.setattr(AutoModelForSeq2SeqLM, "from_pretrained", noted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.random, "fork_rng", nullcontext)
    monkeypatch.setattr(PreTrainedModel, "to", lambda model, *_, device=None, **__: places.append(device) or model)
    for device in ("spread", "cuda"):
        load(ModelSource(ModelConfig(name=str(folder))), device)
    assert (asked, places) == (["auto", None], ["cuda"])


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(ModelSource(ModelConfig(name=str(folder))), "cpu")
    assert capfd.readouterr() == ("", "")


# --- what is not there, or not what it should be ----------------------------------------------------------------------


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


def test_a_causal_model_with_a_head_for_classes_is_refused(tmp_path: Path) -> None:
    """It looks at the last token of a row, which padding moves."""
    llama = tiny.tiny_llama()
    llama.model.config.architectures = ["LlamaForSequenceClassification"]
    llama.model.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"llama model \(LlamaForSequenceClassification\); expected an encoder-decoder"):
        load(ModelSource(ModelConfig(name=str(tmp_path))), "cpu")


def test_weights_that_are_missing_are_not_drawn_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.block.0.layer.0.SelfAttention.q.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"no weights for \['encoder.block.0.layer.0.SelfAttention.q.weight'\]"):
        load(ModelSource(ModelConfig(name=str(folder))), "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "spread"])
def test_a_gpu_that_is_not_there_is_an_error_before_anything_is_loaded(device: str) -> None:
    with pytest.raises(ConfigError, match=r"sees no GPU.*cluster.device = cpu"):
        load(ModelSource(ModelConfig(name="no/such-model")), device)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"holds no tokenizer; expected a tokenizer.json"):
        load(ModelSource(ModelConfig(name=str(folder))), "cpu")


def test_a_tokenizer_without_offsets_is_refused(folder: Path) -> None:
    from transformers.models.byt5 import ByT5Tokenizer

    for path in folder.glob("tokenizer*"):
        path.unlink()
    ByT5Tokenizer().save_pretrained(folder)
    assert not AutoTokenizer.from_pretrained(folder).is_fast
    with pytest.raises(InputError, match="no character offsets"):
        load(ModelSource(ModelConfig(name=str(folder))), "cpu")


# --- pickles, SentencePiece, code of the model ------------------------------------------------------------------------


def test_a_pickle_is_loaded_only_where_it_is_allowed(folder: Path) -> None:
    before = load(ModelSource(ModelConfig(name=str(folder))), "cpu")
    torch.save(before.model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for device in ("cpu", "meta"):
        with pytest.raises(InputError, match=r"its weights are a pickle .*Set allow_pickle = true"):
            load(ModelSource(ModelConfig(name=str(folder))), device)
    load(ModelSource(ModelConfig(name=str(folder), allow_pickle=True)), "meta")
    assert tiny.same_weights(before, load(ModelSource(ModelConfig(name=str(folder), allow_pickle=True)), "cpu"))


@pytest.fixture
def as_published(folder: Path) -> Path:
    """A model as the T5 v1.1 are published: weights as a pickle, the tokenizer a spiece.model, nothing else."""
    import sentencepiece

    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    model.resize_token_embeddings(60)
    model.save_pretrained(folder)
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


@pytest.fixture
def own_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with code beside the model that leaves the program when it runs; nobody is there to be asked whether it may."""
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("a question on the terminal"))
    (folder / "own.py").write_text("raise SystemExit('code of the model ran')")
    return folder


def named_in_config(folder: Path, **changes: object) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return str(folder)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("named", ["AutoConfig", "AutoModelForSeq2SeqLM"])
def test_code_of_a_model_runs_only_where_it_is_allowed(own_code: Path, named: str, device: str) -> None:
    name = named_in_config(own_code, auto_map={named: "own.Own"})
    assert load(ModelSource(ModelConfig(name=name)), device).family == "encoder_decoder"  # transformers knows the type itself
    with pytest.raises(SystemExit, match="code of the model ran"):
        load(ModelSource(ModelConfig(name=name, trust_remote_code=True)), device)


def test_a_model_that_needs_code_of_its_own_is_refused_without_leave(own_code: Path) -> None:
    name = named_in_config(own_code, model_type="own", auto_map={"AutoConfig": "own.Own"})
    with pytest.raises(InputError, match=r"contains custom code which must be executed .*trust_remote_code = true"):
        load(ModelSource(ModelConfig(name=name)), "cpu")
    with pytest.raises(SystemExit, match="code of the model ran"):
        load(ModelSource(ModelConfig(name=name, trust_remote_code=True)), "cpu")
