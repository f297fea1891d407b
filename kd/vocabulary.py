"""Tokenizers for models that have none: trained once per run on a bounded sample of the corpus, kept in the run directory."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.manifests import Manifest, digest
from kd.models import ModelConfig, needs_tokenizer
from kd.rows import Example
from kd.specs import T5Spec
from kd.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
"""Special tokens of tokenizers trained here, with the ids that T5 gives them: 0, 1, 2."""
SAMPLE_ROWS = 100_000
"""Rows of the training split that a tokenizer is trained on, at most: the first ones."""
_DONE = "tokenizer.json"
Check = Callable[[ModelConfig, "PreTrainedTokenizerFast"], None]
"""Raises where a new tokenizer is of no use for a model."""


def tokenizer_folder(examples: Manifest, config: ModelConfig, phrases: Sequence[str]) -> str | None:
    """Where the tokenizer of a model from a spec belongs, whether or not it is there; None for a model that brings its own.

    `phrases` is what is put before inputs (`predict: `), so that it is in the vocabulary. The folder is named after all that
    decides what is in it.
    """
    spec = config.spec
    if not needs_tokenizer(config) or not isinstance(spec, T5Spec):
        return None
    wanted = spec.model_dump(include={"vocab_size", "tokenizer", "lowercase"})
    return f"tokenizers/{digest(wanted, examples.digest, sorted(phrases))}"


def make_tokenizer(
    store: Store, folder: str, examples: Manifest, config: ModelConfig, phrases: Sequence[str], check: Check
) -> None:
    """Train the tokenizer of a model from a spec on the examples in `folder`, unless it is there or there is none to train.

    Nothing is kept of one that `check` refuses, whose errors are raised.
    """
    target = tokenizer_folder(examples, config, phrases)
    if target is None or not isinstance(config.spec, T5Spec) or store.exists(f"{target}/{_DONE}"):
        return
    trained = train_tokenizer(config.spec, _texts(store, folder, examples, phrases))
    check(config, trained)
    with tempfile.TemporaryDirectory() as local:
        trained.save_pretrained(local)
        for path in sorted(Path(local).iterdir(), key=lambda path: path.name == _DONE):
            store.publish(f"{target}/{path.name}", path.read_bytes())


def _texts(store: Store, folder: str, examples: Manifest, phrases: Sequence[str]) -> Iterator[str]:
    """Every string that a model reads or writes, shard by shard."""
    yield from phrases
    left = SAMPLE_ROWS
    for shard in examples.shards_of("train"):
        for row in store.read_rows(f"{folder}/{shard.file}", Example)[:left]:
            yield from strings_of(row)
        left -= shard.rows
        if left <= 0:
            return


def strings_of(row: Example) -> Iterator[str]:
    """Every string of a row that a model reads or writes."""
    # A tokenizer begins anew behind its end-of-sequence token, which parts the two texts of inference.
    yield from "".join(segment.text for segment in row.segments).split(END)
    yield from (text for text in (row.target, row.llm_rationale, row.llm_label) if text)
    yield from row.label_set


def train_tokenizer(spec: T5Spec, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """A tokenizer for `spec` from the texts. It gives character offsets and appends the end-of-sequence token.

    A leading space belongs to the word after it, as in T5, so that decoding gives the text back. Runs of white space
    count as one space.
    """
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer, trainer = _untrained(spec)
    lowercase = [normalizers.Lowercase()] if spec.lowercase else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), *lowercase])
    spaces = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    words = pre_tokenizers.Split(Regex(r"▁?(\w+|[^\w\s▁])|▁"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spaces, words])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def _untrained(spec: T5Spec) -> tuple[Any, Any]:
    """An empty tokenizer of the kind that `spec` asks for, and its trainer."""
    from tokenizers import Tokenizer, models, trainers

    common: dict[str, Any] = {"vocab_size": spec.vocab_size, "special_tokens": [PAD, END, UNKNOWN], "show_progress": False}
    if spec.tokenizer == "word":
        return Tokenizer(models.WordLevel(unk_token=UNKNOWN)), trainers.WordLevelTrainer(**common)
    return Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token=UNKNOWN, **common)
