"""Tiny random models of each family for tests, and rows for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kd.families.base import Family
from kd.families.opening import open_family
from kd.families.text import Encoded
from kd.loading import load, save, seeded
from kd.models import Loaded, ModelConfig, ModelSource
from kd.rows import Example, Segment
from kd.specs import T5Spec
from kd.store import Store
from kd.vocabulary import train_tokenizer

TEXTS = [
    "Where would you find a river bank, or money in the bank?",
    "The café by the river-side is open: it serves coffee and cake.",
    "\nAnswer choices:\n(a) river\n(b) money\n(c) coffee cake\n(d) the café",
    "entailment neutral contradiction yes no 1 2 3 4 5",
]

CLASSES = ("yes", "no", "maybe")

WRITERS = ["t5", "bart", "pair", "llama", "gpt2"]
KINDS = [*WRITERS, "classifier", "pooled", "scorer"]
"""What `tiny_models` makes; the writers generate their answers token by token."""

SPEC = T5Spec(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=120)


def example(
    question: str = "Where would you find a bank?",
    choices: tuple[str, ...] = ("river", "money", "coffee cake"),
    target: str | None = "money",
    uid: str = "r1",
    **changes: Any,
) -> Example:
    """A multiple-choice question; free text where there are no choices."""
    options = [part for choice in choices for part in (Segment("prompt", " ( ) "), Segment("choice", choice))]
    fields = {
        "uid": uid,
        "error": None,
        "task": "tiny",
        "split": "train",
        "segments": [Segment("question", question), *options],
        "target": target,
        "label_set": list(choices),
        "evidence": [],
        "llm_rationale": None,
        "llm_label": None,
    }
    return Example(**fields | changes)


def examples() -> list[Example]:
    """Rows of different length, labelled or not, with more and fewer choices, and without."""
    return [
        example(uid="short"),
        example("Where would you find a river bank, or money in the bank, or coffee and cake by the river-side?", uid="long"),
        example(choices=("yes", "no"), target="no", uid="two"),
        example(target=None, uid="unlabelled"),
        example(choices=(), target="coffee and cake", uid="free"),
        example("The café is open.", choices=("the café", "river", "money", "coffee cake"), target="the café", uid="four"),
    ]


def tiny_source(folder: Path, spec: T5Spec = SPEC, seed: int = 0, texts: Sequence[str] = TEXTS, **limits: Any) -> ModelSource:
    """A source that builds a random T5; its tokenizer learns the texts and is written into a run directory at `folder`."""
    train_tokenizer(spec, texts).save_pretrained(folder / "tokenizers" / "tiny")
    return ModelSource(ModelConfig(spec=spec, **limits), Store.at(str(folder)), tokenizer_folder="tokenizers/tiny", seed=seed)


def tiny_t5(folder: Path, seed: int = 0) -> Loaded:
    """A random T5 in float32."""
    return load(tiny_source(folder, seed=seed), "cpu")


def saved_t5(folder: Path) -> Path:
    """A tiny T5 as save_pretrained leaves it, below `folder`."""
    save(tiny_t5(folder / "run"), folder / "model")
    return folder / "model"


def tiny_bart(seed: int = 0) -> Loaded:
    """A random BART with scaled embeddings, whose answers start with the end-of-sequence token."""
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = train_tokenizer(SPEC, TEXTS)
    sizes = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in _BART_HALF.items()}
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        max_position_embeddings=64,
        scale_embedding=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
        init_std=0.1,
        **sizes,
    )
    with seeded(seed):
        return Loaded(BartForConditionalGeneration(config).eval(), tokenizer, f"bart@{seed}")


def tiny_pair(seed: int = 0) -> Loaded:
    """A random pair of BERTs as encoder and decoder; inputs and answers are framed by [CLS] and [SEP]."""
    from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

    tokenizer = bert_like_tokenizer()
    half = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.1, **_BERT_HALF)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(half, BertConfig(**half.to_dict()))
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    with seeded(seed):
        return Loaded(EncoderDecoderModel(config).eval(), tokenizer, f"pair@{seed}")


def tiny_llama(seed: int = 0) -> Loaded:
    """A random Llama: rotary positions, keys and values shared between heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(SPEC, TEXTS)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.1,
        **_CAUSAL_IDS,
    )
    with seeded(seed):
        return Loaded(LlamaForCausalLM(config).eval(), tokenizer, f"llama@{seed}", "decoder_only")


def tiny_gpt2(seed: int = 0) -> Loaded:
    """A random GPT-2: learned positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = train_tokenizer(SPEC, TEXTS)
    sizes = {"n_positions": 80, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(vocab_size=len(tokenizer), initializer_range=0.1, **sizes, **_CAUSAL_IDS)
    with seeded(seed):
        return Loaded(GPT2LMHeadModel(config).eval(), tokenizer, f"gpt2@{seed}", "decoder_only")


def tiny_classifier(labels: tuple[str, ...] = CLASSES, seed: int = 0) -> Loaded:
    """A random BERT with a head; one label makes it a model that scores one choice at a time."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = bert_like_tokenizer()
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.2, **_BERT_HALF, **named)
    with seeded(seed):
        return Loaded(BertForSequenceClassification(config).eval(), tokenizer, f"bert@{seed}", "encoder_classifier")


def tiny_pooled(seed: int = 0) -> Loaded:
    """A random BERT with learned attention pooling."""
    from transformers import BertConfig

    from kd.pooling import AttentionPoolingClassifier, AttentionPoolingConfig

    tokenizer = bert_like_tokenizer()
    encoder = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.2, **_BERT_HALF)
    config = AttentionPoolingConfig(encoder.to_dict(), id2label=dict(enumerate(CLASSES)))
    with seeded(seed):
        return Loaded(AttentionPoolingClassifier(config).eval(), tokenizer, f"pooled@{seed}", "encoder_classifier")


def tiny_models(folder: Path) -> dict[str, Loaded]:
    """One of each kind."""
    return {
        "t5": tiny_t5(folder),
        "bart": tiny_bart(),
        "pair": tiny_pair(),
        "llama": tiny_llama(),
        "gpt2": tiny_gpt2(),
        "classifier": tiny_classifier(),
        "pooled": tiny_pooled(),
        "scorer": tiny_classifier(("good",)),
    }


def same_weights(one: Loaded, other: Loaded) -> bool:
    """Whether two models have the same parameters, bit by bit."""
    first, second = one.model.state_dict(), other.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def rows_for(kind: str) -> list[Example]:
    """Rows of different length that a model of this kind can answer."""
    if kind == "scorer":
        return [row for row in examples() if row.label_set]
    if kind in ("classifier", "pooled"):
        return [
            example(row.segments[0].text, (), target=target, uid=row.uid, label_set=list(CLASSES))
            for row, target in zip(examples(), ("yes", "no", "maybe", None, "yes", "no"), strict=True)
        ]
    return examples()


def family(loaded: Loaded, max_input_tokens: int = 64, max_answer_tokens: int = 8) -> Family:
    """The model with limits that all tiny models can bear."""
    return open_family(loaded, ModelConfig(name="tiny", max_input_tokens=max_input_tokens, max_answer_tokens=max_answer_tokens))


def of_ids(*rows: list[int]) -> list[Encoded]:
    """Inputs of which only the ids matter."""
    return [Encoded(ids, [None] * len(ids), [""] * len(ids), 0) for ids in rows]


_CAUSAL_IDS = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
_BART_HALF = {"layers": 2, "attention_heads": 2, "ffn_dim": 32}
_BERT_HALF = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def bert_like_tokenizer(special: tuple[str, ...] = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")) -> Any:
    """Whole words between [CLS] and [SEP]; special tokens have the first ids, in this order."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=list(special), show_progress=False))
    ids = [(name, special.index(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def cached(folder: Path, cache: Path, commit: str) -> None:
    """Move a model folder to where the hub's client keeps the commit of `acme/tiny-t5` that its branch `main` names."""
    model = cache / "models--acme--tiny-t5"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "snapshots").mkdir()
    folder.rename(model / "snapshots" / commit)
