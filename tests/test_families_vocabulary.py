"""A tokenizer with more tokens than its model has embeddings: refused where every row needs such a token, else an error of a row."""

import copy
import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from kd.attribution.engine import AttributionConfig, Engine
from kd.errors import ConfigError, RowFault
from kd.families.text import Encoded
from kd.loading import save
from kd.models import Loaded, ModelConfig, ModelSource
from kd.rows import Attribution, Features, RowError, Segment
from kd.training.features import Featurise
from kd.training.objectives import LabelOnly
from tests import tiny

ADDED = "zyzzyva"


def grown(loaded: Loaded) -> Loaded:
    """The model with a word more in its tokenizer, and no embedding for it."""
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.add_tokens([ADDED])
    return dataclasses.replace(loaded, tokenizer=tokenizer, embedding_scale=None)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_row_with_a_token_that_has_no_embedding_has_its_error_and_the_others_are_read(
    models: dict[str, Loaded], kind: str
) -> None:
    loaded = grown(models[kind])
    family, (row, *_) = tiny.family(loaded), tiny.rows_for(kind)
    strange = [Segment(part.role, part.text + f" {ADDED}") if part.role == "question" else part for part in row.segments]
    first, fault, last = family.encode_rows([row.segments, strange, row.segments])
    assert isinstance(first, Encoded)
    assert first == last
    assert isinstance(fault, RowFault)
    size = len(models[kind].tokenizer)
    assert fault.reason == "tokenizer_error"
    assert fault.detail == f"the token '{ADDED}' has id {size}, and {loaded.name} has {size} embeddings"


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_one_such_row_does_not_end_the_stage(models: dict[str, Loaded], kind: str) -> None:
    family, rows = tiny.family(grown(models[kind])), tiny.rows_for(kind)[:2]
    question, *rest = rows[0].segments
    strange = dataclasses.replace(rows[0], uid="strange", segments=[Segment("question", question.text + f" {ADDED}"), *rest])
    found = Engine(AttributionConfig(), family).attribute([rows[0], strange, rows[1]], Counter())
    assert [type(one) for one in found] == [Attribution, RowError, Attribution]
    assert isinstance(found[1], RowError)
    assert ADDED in found[1].detail


@pytest.mark.parametrize("kind", tiny.WRITERS)
def test_so_has_one_with_such_a_token_in_its_answer_or_in_a_label(models: dict[str, Loaded], kind: str) -> None:
    family = tiny.family(grown(models[kind]))
    for ask in (family.encode_answer, lambda text: family.check_labels(["money", text])):
        with pytest.raises(RowFault, match=f"the token '{ADDED}' has id"):
            ask(ADDED)
    target, label = (
        tiny.example(target=ADDED, uid="target", label_set=[]),
        tiny.example(label_set=["river", ADDED, "money"], uid="label"),
    )
    found = Engine(AttributionConfig(), family).attribute([tiny.example(), target, label], Counter())
    assert [type(one) for one in found] == [Attribution, RowError, RowError]
    assert {one.reason for one in found[1:] if isinstance(one, RowError)} == {"tokenizer_error"}


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_nothing_is_learned_from_such_a_row(models: dict[str, Loaded], kind: str, tmp_path: Path) -> None:
    save(grown(models[kind]), tmp_path / "model")
    config = ModelConfig(name=str(tmp_path / "model"), max_input_tokens=64, max_answer_tokens=8)
    learn = Featurise(LabelOnly(), ModelSource(config)).open()
    rows = [tiny.example(), tiny.example(f"Where is a {ADDED}?"), tiny.example(target=ADDED)]
    found = learn(rows, Counter())
    assert [type(one) for one in found] == [Features, RowError, RowError]
    assert {one.reason for one in found[1:] if isinstance(one, RowError)} == {"tokenizer_error"}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_padding_token_without_an_embedding_is_refused_when_the_model_is_opened(models: dict[str, Loaded], kind: str) -> None:
    loaded = grown(models[kind])
    loaded.tokenizer.add_special_tokens({"pad_token": "[NOTHING]"})
    size = len(models[kind].tokenizer)
    with pytest.raises(
        ConfigError, match=rf"padding token '\[NOTHING\]' has id {size + 1}, and the model has {size} embeddings.*Resize"
    ):
        tiny.family(loaded)
    loaded.model = copy.deepcopy(loaded.model)
    if kind == "pair":
        loaded.model.encoder.resize_token_embeddings(size + 2)
        loaded.model.decoder.resize_token_embeddings(size + 2)
    elif kind == "pooled":
        loaded.model.encoder.resize_token_embeddings(size + 2)
    else:
        loaded.model.resize_token_embeddings(size + 2)
    tiny.family(loaded)


@pytest.mark.parametrize("kind", tiny.WRITERS)
def test_an_end_without_an_embedding_is_refused_when_the_model_is_opened(models: dict[str, Loaded], kind: str) -> None:
    loaded = dataclasses.replace(models[kind], model=copy.deepcopy(models[kind].model), embedding_scale=None)
    beyond = len(loaded.tokenizer)
    loaded.model.config.eos_token_id = loaded.model.generation_config.eos_token_id = beyond
    with pytest.raises(ConfigError, match=rf"end-of-sequence token None has id {beyond}"):
        tiny.family(loaded)
