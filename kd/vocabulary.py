"""Tokenizers for models that have none: trained once per run on a bounded sample of the corpus, kept in the run directory."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kd.models import ModelConfig, needs_tokenizer, train_tokenizer
from kd.rows import Example
from kd.specs import T5Spec
from kd.store import Manifest, Store, digest

SAMPLE_ROWS = 100_000
"""Rows of the training split that a tokenizer is trained on, at most: the first ones."""
_DONE = "tokenizer.json"


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


def make_tokenizer(store: Store, folder: str, examples: Manifest, config: ModelConfig, phrases: Sequence[str]) -> None:
    """Train the tokenizer of a model from a spec on the examples in `folder`, unless it is there or there is none to train."""
    target = tokenizer_folder(examples, config, phrases)
    if target is None or not isinstance(config.spec, T5Spec) or store.exists(f"{target}/{_DONE}"):
        return
    trained = train_tokenizer(config.spec, _texts(store, folder, examples, phrases))
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
            yield from _strings(row)
        left -= shard.rows
        if left <= 0:
            return


def _strings(row: Example) -> Iterator[str]:
    yield "".join(segment.text for segment in row.segments)
    yield from (text for text in (row.target, row.llm_rationale) if text)
    yield from row.label_set
