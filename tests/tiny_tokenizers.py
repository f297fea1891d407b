"""Small fast tokenizers of the kinds that causal models come with, each trained on a few lines."""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|turn|>", "<|done|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(lines: list[str], prefix: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2, Qwen and Llama 3 have it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        made, lines, trainers.BpeTrainer(vocab_size=2000, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet)
    )


def metaspace(lines: list[str], prepend: str = "always", split: bool = True) -> PreTrainedTokenizerFast:
    """As Mistral and Llama are saved without the legacy way."""
    made = _metaspaced(lines)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=split)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prepend, split=split)])
    return _wrapped(made)


def prepended(lines: list[str]) -> PreTrainedTokenizerFast:
    """As Llama 2, Mistral, Mixtral, Phi-3 and StableLM are saved: a normalizer puts the space before every string."""
    made = _metaspaced(lines)
    made.pre_tokenizer = None
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(made)


def unigram(lines: list[str]) -> PreTrainedTokenizerFast:
    """As XGLM and other models with a sentencepiece vocabulary."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return _trained(
        made, lines, trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False, unk_token="<unk>")
    )


def wordpiece(lines: list[str]) -> PreTrainedTokenizerFast:
    """As a BERT that is used as a decoder; a token closes what it reads."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    wrapped = _trained(made, lines, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False))
    ends = [(token, wrapped.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    wrapped.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return wrapped


def joining(lines: list[str]) -> PreTrainedTokenizerFast:
    """One that knows nothing of words, so that frequent letters on both sides of a space are one token."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _trained(made, lines, trainers.BpeTrainer(vocab_size=250, special_tokens=SPECIAL, show_progress=False))


KINDS: dict[str, Callable[[list[str]], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "byte_level_prefix": lambda lines: byte_level(lines, prefix=True),
    "prepended": prepended,
    "unigram": unigram,
    "wordpiece": wordpiece,
    **{
        f"metaspace_{prepend}{'' if split else '_whole'}": lambda lines, prepend=prepend, split=split: metaspace(
            lines, prepend, split
        )
        for prepend in ("always", "first", "never")
        for split in (True, False)
    },
}


def _metaspaced(lines: list[str]) -> Tokenizer:
    """Byte-pair encoding of words with the space before them; letters that it does not know are bytes."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=2000, special_tokens=[*SPECIAL, *BYTES], show_progress=False))
    return made


def _trained(made: Tokenizer, lines: list[str], trainer: Any) -> PreTrainedTokenizerFast:
    made.train_from_iterator(lines, trainer)
    return _wrapped(made)


def _wrapped(made: Tokenizer) -> PreTrainedTokenizerFast:
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)
