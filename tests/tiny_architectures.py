"""Every architecture of transformers' lists for the three families, made small and opened: `python -m tests.tiny_architectures`
writes docs/architectures.md.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from kd.architectures import FamilyName, family_of, loader_of
from kd.errors import ConfigError, InputError
from kd.families.opening import open_family
from kd.models import Loaded, ModelConfig
from kd.shrinking import shrunk
from kd.vocabulary import train_tokenizer
from tests import tiny

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"

LISTS: dict[FamilyName, Mapping[str, Any]] = {
    "encoder_decoder": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "decoder_only": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "encoder_classifier": {
        name: made
        for name, made in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.items()
        if name in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    },
}
TITLES: dict[FamilyName, str] = {
    "encoder_decoder": "Encoder-decoders",
    "decoder_only": "Causal models",
    "encoder_classifier": "Encoders with a classification head",
}
WORKS, UNTRIED = "works", "not tried"

_IMPOSSIBLE = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
"""What transformers raises where its default config makes no model."""


def verdict(name: str, family: FamilyName) -> str:
    """`works`, `not tried`, or the reason why the architecture is refused. What is no refusal is raised."""
    try:
        config = _config(name, family)
        if family_of(name, config) != family:
            return UNTRIED
        with torch.device("meta"):
            model = loader_of(family).from_config(config)
        small = shrunk(Loaded(model, _tokenizer(family), name, family))
    except InputError:
        return "is taken for none of the three families"
    except (*_IMPOSSIBLE, StrictDataclassError):
        return UNTRIED
    if small is None:
        return UNTRIED
    try:
        open_family(small, ModelConfig(name=name, max_input_tokens=32, max_answer_tokens=8))
    except ConfigError as error:
        return _reason(str(error))
    return WORKS if small.embedding_scale == 1 else f"{WORKS}; embeddings are scaled as the model scales those of ids"


def _reason(said: str) -> str:
    """A refusal without what differs from machine to machine."""
    if "log-probabilities of a row alone" in said:
        return "refused: what it says of a row depends on the rows beside it"
    if "log-probabilities of rows that are given as ids" in said:
        return "refused: what it says from embeddings is not what it says from ids"
    return f"refused: {said.partition('): ')[2] or said}".partition(". Take another")[0].partition(";")[0].replace("|", "/")


def _config(name: str, family: FamilyName) -> Any:
    """The default config, for a tokenizer of the tests."""
    made = LISTS[family][name]
    changed = {"architectures": [made if isinstance(made, str) else made[0]], "scale_embedding": True, "is_decoder": True}
    given = CONFIG_MAPPING[name]().to_dict()
    ids, size = _ids(family), len(_tokenizer(family))
    for inner in [given, *(value for value in given.values() if isinstance(value, dict) and "vocab_size" in value)]:
        inner.update(ids | ({"vocab_size": size} if "vocab_size" in inner else {}))
    given |= {key: value for key, value in changed.items() if key in given or key == "architectures"}
    if family != "decoder_only":
        given.pop("is_decoder", None)
    elif name in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        given["is_decoder"] = True
    return CONFIG_MAPPING[name].from_dict(given)


def _ids(family: FamilyName) -> dict[str, Any]:
    if family == "encoder_classifier":
        return {"cls_token_id": 0, "bos_token_id": 0, "pad_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
    return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": None}


def _tokenizer(family: FamilyName) -> Any:
    """For an encoder one with RoBERTa's ids, on which some positions hang."""
    if family == "encoder_classifier":
        return tiny.bert_like_tokenizer(("[CLS]", "[PAD]", "[SEP]", "[UNK]"))
    return train_tokenizer(tiny.SPEC, tiny.TEXTS)


def page() -> str:
    """The page as it must be with the libraries that are installed."""
    logging.set_verbosity_error()
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Architectures\n"
    yield (
        f"What opening says of every architecture that transformers {transformers.__version__} lists for the three families. Each is built\n"
        "small from its default config with drawn weights, and reads, ranks, writes and explains two rows. A test makes this page and\n"
        "compares it; `python -m tests.tiny_architectures` writes it. *Not tried* are those whose default config makes no small model;\n"
        "they are tried when a model is opened, as every model is.\n"
    )
    for family, title in TITLES.items():
        found = {name: verdict(name, family) for name in sorted(LISTS[family])}
        yield f"## {title}\n"
        yield "| architecture | verdict |\n|---|---|"
        for said in sorted(set(found.values()), key=lambda said: (said != WORKS, said == UNTRIED, said)):
            yield f"| {', '.join(name for name in found if found[name] == said)} | {said} |"
        yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
