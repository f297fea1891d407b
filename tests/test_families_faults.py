"""Families: texts on which a tokenizer or a chat template fails, and templates that hold the very words of a text."""

import copy
import dataclasses
from typing import Any

import pytest

from kd.errors import ConfigError, RowFault
from kd.families.base import Family
from kd.models import Loaded
from kd.rows import Segment
from tests import tiny


class PanicException(BaseException):
    """As the Rust side of tokenizers raises it."""


def picky(loaded: Loaded, refused: str, error: type[BaseException] = ValueError) -> Loaded:
    """The model with a tokenizer that raises where it is to read a certain string."""

    def call(self: Any, *texts: Any, **given: Any) -> Any:
        if refused in str([texts, given.get("text_target")]):
            raise error("cannot read this")
        return super(type(self), self).__call__(*texts, **given)

    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.__class__ = type("Picky", (type(tokenizer),), {"__call__": call})
    return dataclasses.replace(loaded, tokenizer=tokenizer)


def rows_of(*texts: str) -> list[list[Segment]]:
    return [[Segment("question", text)] for text in texts]


def faults(family: Family, *texts: str) -> list[tuple[str, str] | None]:
    found = family.encode_rows(rows_of(*texts))
    return [(one.reason, one.detail) if isinstance(one, RowFault) else None for one in found]


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, PanicException])
@pytest.mark.parametrize("kind", ["t5", "llama", "classifier"])
def test_a_text_on_which_the_tokenizer_fails_is_the_fault_of_its_row(
    models: dict[str, Loaded], kind: str, error: type[BaseException]
) -> None:
    sound, family = tiny.family(models[kind]), tiny.family(picky(models[kind], "money", error))
    fault = ("tokenizer_error", f"the tokenizer fails on this text: {error.__name__}: cannot read this")
    assert faults(family, "the river", "the money", "the bank") == [None, fault, None]
    assert family.encode_rows(rows_of("the river", "the bank")) == sound.encode_rows(rows_of("the river", "the bank"))
    assert faults(family, "the money", "more money") == [fault, fault]


def test_a_choice_on_which_the_tokenizer_fails_is_the_fault_of_its_row(models: dict[str, Loaded]) -> None:
    family = tiny.family(picky(models["scorer"], "('river',)"))  # as an answer; the row's text is longer
    rows = [tiny.example().segments, tiny.example(choices=("money", "cake")).segments]
    first, second = family.encode_rows(rows)
    assert isinstance(first, RowFault)
    assert first.reason == "tokenizer_error"
    assert not isinstance(second, RowFault)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_an_answer_on_which_the_tokenizer_fails_is_a_fault(models: dict[str, Loaded], kind: str) -> None:
    with pytest.raises(RowFault) as caught:
        tiny.family(picky(models[kind], "money")).encode_answer("money")
    assert caught.value.reason == "tokenizer_error"


@pytest.mark.parametrize("texts", [["the river"], ["the river", "the bank"]])
def test_a_tokenizer_that_fails_on_every_text_is_no_row_s_fault(models: dict[str, Loaded], texts: list[str]) -> None:
    with pytest.raises(ValueError, match="cannot read this"):
        tiny.family(picky(models["t5"], "")).encode_rows(rows_of(*texts))


def test_what_ends_the_program_is_no_row_s_fault(models: dict[str, Loaded]) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny.family(picky(models["t5"], "money", KeyboardInterrupt)).encode_rows(rows_of("the river", "the money"))


# --- chat templates ---------------------------------------------------------------------------------------------------

LIKE_QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def templated(loaded: Loaded, template: str) -> Family:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = template
    return tiny.family(dataclasses.replace(loaded, tokenizer=tokenizer, chat_template=True))


@pytest.mark.parametrize("text", ["user", "help", "system", "assistant", "You are a helpful assistant.", "<", "  user\n"])
def test_a_text_that_stands_in_the_template_too_is_found_where_the_message_stands(models: dict[str, Loaded], text: str) -> None:
    family = templated(models["llama"], LIKE_QWEN)
    first = [span is not None for span in family.encode([Segment("question", "river")]).spans].index(True)
    encoded = family.encode([Segment("question", text)])
    spans = [span for span in encoded.spans if span]
    assert [span is not None for span in encoded.spans].index(True) == first
    assert (spans[0].start, spans[-1].end) == (text.index(text.strip()), len(text.rstrip()))


@pytest.mark.parametrize(
    ("template", "detail"),
    [
        ("{{ raise_exception('no such thing') if 'bad' in message.content }}{{ message.content }}", "no such thing"),
        ("{{ message.content | replace('bad', 'good') }}", "the chat template changes this text"),
        ("{{ message.content if 'bad' not in message.content }} not a bad end", "the chat template changes this text"),
    ],
)
def test_a_text_on_which_the_template_fails_is_the_fault_of_its_row(
    models: dict[str, Loaded], template: str, detail: str
) -> None:
    family = templated(models["llama"], "{% for message in messages %}yes: " + template + " no{% endfor %}")
    first, fault, last = faults(family, "the river", "a bad end", "the bank")
    assert fault is not None
    assert (first, fault[0], last) == (None, "tokenizer_error", None)
    assert detail in fault[1]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ messages[0].role }}: yes", "its chat template changes the text of a message"),
        ("{{ messages[0].content | upper }}", "its chat template changes the text of a message"),
        ("{{ raise_exception('needs a system message') }}", "the chat template fails on this text: .*needs a system message"),
        ("{{ messages[", "the chat template fails on this text: TemplateSyntaxError"),
    ],
)
def test_a_template_that_takes_no_message_is_refused_when_the_model_is_opened(
    models: dict[str, Loaded], template: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=f"{says}.*set chat_template = false"):
        templated(models["llama"], template)
