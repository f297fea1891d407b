"""Families: texts to ids and spans, what is cut, and what a causal model reads around the text."""

import copy
import dataclasses
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError, RowFault
from kd.families.base import Family
from kd.families.opening import open_family
from kd.families.text import Encoded
from kd.loading import load, save
from kd.models import Loaded, ModelConfig, ModelSource
from kd.rows import Segment, Span
from kd.vocabulary import train_tokenizer
from tests import tiny


def covered(encoded: Encoded, segments: list[Segment]) -> list[str | None]:
    """The text under each token's span."""
    return [span and segments[span.segment].text[span.start : span.end] for span in encoded.spans]


QUESTION = [
    Segment("question", "Where is  the bank?"),
    Segment("prompt", "\n(a) "),
    Segment("choice", "river-side"),
    Segment("prompt", "\n(b) "),
    Segment("choice", "money"),
]
OPTIONS = ["(", "a", ")", "river", "-", "side", "(", "b", ")", "money"]


# --- texts to ids and spans -------------------------------------------------------------------------------------------


def test_every_token_has_the_span_of_its_text_and_special_tokens_have_none(models: dict[str, Loaded]) -> None:
    encoded = tiny.family(models["t5"]).encode(QUESTION)
    assert encoded.tokens[:3] == ["▁Where", "▁is", "▁the"]
    assert covered(encoded, QUESTION) == ["Where", "is", "the", "bank", "?", *OPTIONS, None]
    assert [span.segment for span in encoded.spans if span] == [0] * 5 + [1] * 3 + [2] * 3 + [3] * 3 + [4]
    assert encoded.truncated_tokens == 0
    assert covered(tiny.family(models["pair"]).encode(QUESTION), QUESTION)[:: len(encoded.ids)] == [None, None]


def test_the_texts_are_joined_as_they_are(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["t5"])
    parts = [Segment("text", "mon"), Segment("text", "ey")]
    encoded = family.encode(parts)
    assert encoded.ids == family.encode([Segment("text", "money")]).ids
    assert covered(encoded, parts) == ["mon", None]


@pytest.mark.parametrize(
    ("parts", "owner"), [(["m", "oney"], 1), (["mon", "ey"], 0), (["co", "ff", "ee"], 0), (["c", "o", "ffee"], 2)]
)
def test_a_token_over_two_segments_belongs_to_the_one_with_more_of_it(
    models: dict[str, Loaded], parts: list[str], owner: int
) -> None:
    segments = [Segment("text", part) for part in parts]
    (span, _) = tiny.family(models["t5"]).encode(segments).spans
    assert span is not None
    assert (span.segment, span.start, span.end) == (owner, 0, len(parts[owner]))


def test_empty_segments_own_no_token(models: dict[str, Loaded]) -> None:
    segments = [Segment("text", ""), Segment("text", "money"), Segment("text", ""), Segment("text", " bank"), Segment("text", "")]
    spans = tiny.family(models["t5"]).encode(segments).spans
    assert [span and (span.segment, span.start, span.end) for span in spans] == [(1, 0, 5), (3, 1, 5), None]


def test_unknown_words_keep_their_span_and_special_tokens_in_the_text_have_none(models: dict[str, Loaded]) -> None:
    segments = [Segment("text", "money </s> zebra")]
    encoded = tiny.family(models["t5"]).encode(segments)
    assert "</s>" in encoded.tokens[:-1]
    assert [text for text, token in zip(covered(encoded, segments), encoded.tokens, strict=True) if token == "</s>"] == [
        None,
        None,
    ]
    assert [text for text, token in zip(covered(encoded, segments), encoded.tokens, strict=True) if token == "<unk>"][
        -1
    ] == "zebra"


@pytest.mark.parametrize("segments", [[], [Segment("text", "")], [Segment("text", " \n"), Segment("prompt", "")]])
@pytest.mark.parametrize("kind", [kind for kind in tiny.KINDS if kind != "scorer"])
def test_a_row_without_text_is_an_error(models: dict[str, Loaded], kind: str, segments: list[Segment]) -> None:
    with pytest.raises(RowFault) as caught:
        tiny.family(models[kind]).encode(segments)
    assert caught.value.reason == "empty_text"


TEXT_PARTS = st.lists(st.text(st.sampled_from("abc xyz\n.é❤️👩‍🚀中文ัก́"), max_size=12), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def by_tokenizer() -> dict[str, Family]:
    specs = [
        tiny.SPEC.model_copy(update={"tokenizer": kind, "lowercase": low}) for kind, low in (("word", False), ("unigram", True))
    ]
    built = [(spec, train_tokenizer(spec, tiny.TEXTS)) for spec in specs]
    return {spec.tokenizer: tiny.family(Loaded(spec.build(tok).eval(), tok, "x"), 10_000) for spec, tok in built}


@given(parts=TEXT_PARTS)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", ["word", "unigram"])
def test_spans_are_in_order_inside_the_text_and_cover_what_is_visible(
    by_tokenizer: dict[str, Family], kind: str, parts: list[str]
) -> None:
    segments = [Segment("text", part) for part in parts]
    try:
        encoded = by_tokenizer[kind].encode(segments)
    except RowFault:
        assert not "".join(parts).strip()
        return
    spans = [span for span in encoded.spans if span]
    assert spans == sorted(spans, key=lambda span: (span.segment, span.start))
    assert all(0 <= span.start <= span.end <= len(parts[span.segment]) for span in spans)
    if len(parts) == 1:
        seen = {place for span in spans for place in range(span.start, span.end)}
        assert {place for place, character in enumerate(parts[0]) if visible(character)} <= seen


def visible(character: str) -> bool:
    """Neither white space nor a mark or joiner, which tokenizers may fold into the character before it."""
    return not character.isspace() and unicodedata.category(character) not in ("Mn", "Mc", "Me", "Cf")


def test_the_blank_input_keeps_special_tokens_only(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["pair"])
    encoded = family.encode([Segment("text", "river bank")])
    blank = family.read([encoded]).explained([[2]]).blank("pad")
    assert torch.equal(blank, family.embed(torch.tensor([[1, 0, 0, 2]])))


# --- the limit --------------------------------------------------------------------------------------------------------


def test_over_the_limit_the_longest_segment_loses_its_tail_and_options_stay_whole(models: dict[str, Loaded]) -> None:
    segments = [Segment("context", "yes no yes no"), Segment("question", " 1 2 3 4 5"), *QUESTION[1:]]
    whole = tiny.family(models["t5"]).encode(segments)
    for cut, context, question in [(1, 4, 4), (2, 3, 4), (3, 3, 3), (9, 0, 0)]:
        encoded = tiny.family(models["t5"], len(whole.ids) - cut).encode(segments)
        assert encoded.truncated_tokens == cut
        kept = ["yes", "no", "yes", "no"][:context] + ["1", "2", "3", "4", "5"][:question]
        assert covered(encoded, segments) == [*kept, *OPTIONS, None]


def test_options_that_are_too_long_make_the_row_an_error(models: dict[str, Loaded]) -> None:
    fits = len(tiny.family(models["t5"]).encode(QUESTION).ids) - 5
    assert tiny.family(models["t5"], fits).encode(QUESTION).truncated_tokens == 5
    with pytest.raises(RowFault) as caught:
        tiny.family(models["t5"], fits - 1).encode(QUESTION)
    assert caught.value.reason == "too_long"


def test_a_limit_beyond_the_model_s_positions_is_refused(models: dict[str, Loaded]) -> None:
    with pytest.raises(ConfigError, match="max_input_tokens: the model has 64 positions, got 65"):
        tiny.family(models["bart"], 65)
    with pytest.raises(ConfigError, match="max_answer_tokens: the model has 64 positions, got 65"):
        tiny.family(models["pair"], 64, 65)
    with pytest.raises(ConfigError, match="max_generated_tokens: the model has 64 positions, got 65"):
        open_family(models["pair"], ModelConfig(name="x", max_input_tokens=64, max_generated_tokens=65))
    with pytest.raises(ConfigError, match=r"max_input_tokens \+ max_generated_tokens: the model has 80 positions, got 81"):
        open_family(models["gpt2"], ModelConfig(name="x", max_input_tokens=64, max_answer_tokens=8, max_generated_tokens=17))
    tiny.family(models["t5"], 5000, 5000)
    with pytest.raises(ConfigError, match=r"max_input_tokens \+ max_answer_tokens: the model has 80 positions, got 81"):
        tiny.family(models["gpt2"], 73, 8)


# --- causal models ----------------------------------------------------------------------------------------------------


def test_a_causal_model_reads_the_text_and_a_lead_without_span(models: dict[str, Loaded]) -> None:
    family = tiny.family(models["llama"])
    encoded = family.encode([Segment("question", "Where is the river ?")])
    assert encoded.spans[:5] == [Span(0, 0, 5), Span(0, 6, 8), Span(0, 9, 12), Span(0, 13, 18), Span(0, 19, 20)]
    assert encoded.spans[5:] == [None] * (len(encoded.ids) - 5)
    assert len(encoded.ids) > 5
    assert encoded.ids[-1] != models["llama"].tokenizer.eos_token_id


TEMPLATE = (
    "{% for message in messages %}yes: {{ message.content | trim }} no{% endfor %} {% if add_generation_prompt %}1{% endif %}"
)


def test_a_chat_template_surrounds_the_text_and_has_no_spans(models: dict[str, Loaded]) -> None:
    tokenizer = copy.deepcopy(models["llama"].tokenizer)
    tokenizer.chat_template = TEMPLATE
    family = tiny.family(dataclasses.replace(models["llama"], tokenizer=tokenizer, chat_template=True))
    segments = [Segment("question", " the river "), Segment("choice", "bank ")]
    encoded = family.encode(segments)
    assert covered(encoded, segments) == [None, None, "the", "river", "bank", None, None]
    assert encoded.tokens[0] == "▁yes"
    assert encoded.tokens[-1] == "▁1"


def test_a_model_that_keeps_more_than_keys_and_values_is_refused_when_it_is_opened(
    models: dict[str, Loaded], tmp_path: Path
) -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    sizes = {"vocab_size": 120, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Lfm2Config(**sizes, num_hidden_layers=2, layer_types=["full_attention", "conv"], eos_token_id=1, pad_token_id=0)
    save(Loaded(Lfm2ForCausalLM(config), models["llama"].tokenizer, "lfm2", "decoder_only"), tmp_path)
    outline = load(ModelSource(ModelConfig(name=str(tmp_path))), "meta")
    with pytest.raises(ConfigError, match="the model keeps LinearAttentionLayer of what it reads; expected plain attention"):
        tiny.family(outline)


@pytest.mark.parametrize("kind", ["t5", "classifier"])
def test_a_chat_template_for_a_model_that_is_not_causal_is_refused(models: dict[str, Loaded], kind: str) -> None:
    with pytest.raises(ConfigError, match="is an encoder-.* chat_template = true is for causal models"):
        tiny.family(dataclasses.replace(models[kind], chat_template=True))


def test_a_chat_template_that_is_not_there_is_an_error(models: dict[str, Loaded]) -> None:
    with pytest.raises(ConfigError, match="chat_template = true, but its tokenizer has no chat template"):
        tiny.family(dataclasses.replace(models["llama"], chat_template=True))
