"""Answers of causal models: their tokens behind a prompt, whatever the tokenizer does at the start of a string."""

import dataclasses
from functools import lru_cache
from typing import Any

import pytest
import torch

from kd.errors import ConfigError, RowFault
from kd.families.prompts import LEAD, AnswerTokens, Turn
from kd.models import Loaded, ModelConfig
from kd.rows import Segment
from kd.training.features import _sequence
from kd.training.objectives import Target
from tests import tiny_tokenizers
from tests.tiny_causal import CHAT, cue_on_top, lines, opened, questions, train_on, untrained

LOSSLESS = [kind for kind in tiny_tokenizers.KINDS if kind not in ("unigram", "wordpiece")]
TEXTS = ["Where would you find a river bank ?", "stone: gavel", "  two  spaces ", "\nAnswer: no\n", "Ende gut 7"]
ANSWERS = ["judge", "baker teacher", "river", "Café 7", "two  spaces", "no."]


@lru_cache
def made(kind: str, **changes: Any) -> Loaded:
    """A random model with such a tokenizer, whose template is the usual one."""
    tokenizer = (tiny_tokenizers.KINDS | {"joining": tiny_tokenizers.joining})[kind](lines())
    tokenizer.chat_template = CHAT
    return untrained(tokenizer, tokenizer.eos_token_id, **changes)


def bare(ids: list[int], tokenizer: Any) -> list[int]:
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


# --- behind a plain prompt --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_an_answer_has_the_tokens_that_it_has_in_running_text(kind: str, answer: str) -> None:
    loaded = made(kind)
    family, tokenizer = opened(loaded, max_answer_tokens=32), loaded.tokenizer
    for text in TEXTS:
        prompt, target = family.encode([Segment("question", text)]).ids, family.encode_answer(answer)
        assert [*prompt, *target] == bare(tokenizer(f"{text}{LEAD} {answer}")["input_ids"], tokenizer)


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_prompt_and_answer_read_as_text_lead_and_answer(kind: str, answer: str) -> None:
    loaded = made(kind)
    family = opened(loaded, max_answer_tokens=32)
    ids = [*family.encode([Segment("question", "stone: gavel")]).ids, *family.encode_answer(answer)]
    assert loaded.tokenizer.decode(ids).lstrip() == f"stone: gavel{LEAD} {answer}"


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_what_is_learned_is_what_is_ranked_and_the_end(kind: str) -> None:
    loaded = made(kind)
    family = opened(loaded)
    found = _sequence([Segment("question", "stone")], Target(0, "", "judge"), family)
    assert found.target_ids == [*family.encode_answer("judge"), loaded.tokenizer.eos_token_id]
    assert opened(dataclasses.replace(loaded, trained_here=True)).encode_answer("judge") == found.target_ids


@pytest.mark.parametrize("answer", ["judge", "baker teacher", "chalk"])
def test_where_a_tokenizer_joins_prompt_and_answer_the_prompt_stays_as_it_is_read(answer: str) -> None:
    loaded = made("joining")
    tokenizer = loaded.tokenizer
    prompt, together = (tokenizer(f"gavel stone{LEAD}{behind}")["input_ids"] for behind in ("", f" {answer}"))
    assert together[: len(prompt)] != prompt, "this tokenizer joins them"
    family = opened(loaded, max_answer_tokens=32)
    assert family.encode([Segment("question", "gavel stone")]).ids == prompt
    assert tokenizer.decode([*prompt, *family.encode_answer(answer)]) == f"gavel stone{LEAD} {answer}"


def test_an_answer_that_cannot_be_written_behind_the_prompt_s_tokens_is_a_fault() -> None:
    """Letters that are known in one token with the prompt's only, and no others."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = {"<unk>": 0, "a": 1, "##:": 2, "##:x": 3}
    made = Tokenizer(models.WordPiece(pieces, unk_token="<unk>"))
    made.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    with pytest.raises(RowFault, match="the tokenizer joins the prompt and the answer 'x' in one token"):
        AnswerTokens(tokenizer, Turn(":", ""))("x")


def test_an_answer_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, asked = made("prepended"), list[str]()
    family = opened(loaded)
    call = type(loaded.tokenizer).__call__
    monkeypatch.setattr(
        type(loaded.tokenizer), "__call__", lambda self, text, **given: asked.append(text) or call(self, text, **given)
    )
    for _ in range(3):
        family.encode_answer("judge")
    assert asked == [f"a{LEAD} judge"]


def test_the_gold_answer_of_a_model_that_writes_it_has_a_log_probability_near_zero() -> None:
    """A tokenizer that puts a space before every string; the model was trained on running text, by transformers alone."""
    tokenizer = tiny_tokenizers.prepended(lines())
    loaded = untrained(tokenizer, tokenizer.eos_token_id)
    train_on(loaded, [(row.segments[0].text + LEAD, f" {row.target}\n") for row in questions(800, seed=3)])
    rows = questions(40, seed=2)
    family = opened(loaded)
    reading = family.read(family.encode_rows([row.segments for row in rows]))
    gold = [family.encode_answer(row.target or "") for row in rows]
    logprobs = torch.tensor(reading.logprobs([[ids] for ids in gold])).flatten()
    written = [said.ids[: len(ids)] == ids for said, ids in zip(reading.generate(), gold, strict=True)]
    assert sum(written) >= 38
    assert logprobs[torch.tensor(written)].mean() > -0.1
    assert cue_on_top(loaded, rows) > 0.6


# --- in a chat template -----------------------------------------------------------------------------------------------

SPACED = (  # as Llama 2 and Mistral have it
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # as Qwen3 has it
    "{% for m in messages %}<|turn|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|done|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
NO_THOUGHTS = {"enable_thinking": False}


def chatting(kind: str, template: str, **changes: Any) -> Loaded:
    loaded = dataclasses.replace(made(kind), chat_template=True, **changes)
    loaded.tokenizer = tiny_tokenizers.KINDS[kind](lines())
    loaded.tokenizer.chat_template = template
    return loaded


def rendered(loaded: Loaded, text: str, *replies: str) -> str:
    messages = [{"role": "user", "content": text}, *({"role": "assistant", "content": reply} for reply in replies)]
    whole: str = loaded.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=not replies, **loaded.chat_template_kwargs
    )
    return whole


@pytest.mark.parametrize(
    ("template", "gap", "given"), [(CHAT, "", {}), (SPACED, " ", {}), (THINKING, "", NO_THOUGHTS), (THINKING, "", {})]
)
@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_an_answer_in_a_template_has_the_tokens_that_the_template_gives_it(
    kind: str, template: str, gap: str, given: dict[str, bool]
) -> None:
    loaded = chatting(kind, template, chat_template_kwargs=given)
    family, tokenizer = opened(loaded, max_answer_tokens=32, max_input_tokens=90), loaded.tokenizer
    for answer in ANSWERS:
        ids = [*family.encode([Segment("question", "stone: gavel")]).ids, *family.encode_answer(answer)]
        assert ids == tokenizer(rendered(loaded, "stone: gavel") + gap + answer, add_special_tokens=False)["input_ids"]


def test_a_variable_of_the_template_switches_thinking_off() -> None:
    """The empty thoughts are read, and the answer stands where the template puts it."""
    loaded = chatting("byte_level", THINKING, chat_template_kwargs=NO_THOUGHTS)
    family, tokenizer = opened(loaded, max_input_tokens=90), loaded.tokenizer
    prompt = family.encode([Segment("question", "stone: gavel")]).ids
    assert tokenizer.decode(prompt).endswith("<|turn|>assistant\n<think>\n\n</think>\n\n")
    whole = tokenizer(rendered(loaded, "stone: gavel", "judge"), add_special_tokens=False)["input_ids"]
    target = family.encode_target("judge")
    assert whole[: len(prompt) + len(target)] == [*prompt, *target]
    thinks = opened(chatting("byte_level", THINKING)).encode([Segment("question", "stone: gavel")]).ids
    assert tokenizer.decode(thinks).endswith("<|turn|>assistant\n")


@pytest.mark.parametrize("key", ["enable_thinkin", "thinking", "messages", "add_generation_prompt", "tokenize"])
def test_a_variable_that_the_template_does_not_take_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"chat_template_kwargs has '{key}', which its chat template does not take"):
        opened(chatting("byte_level", THINKING, chat_template_kwargs={key: False}))


def test_variables_of_a_template_are_given_with_one_and_are_closed() -> None:
    given = ModelConfig.model_validate({"name": "x", "chat_template": True, "chat_template_kwargs": NO_THOUGHTS})
    assert given.chat_template_kwargs == NO_THOUGHTS
    for spelt, value in (("false", False), ("true", True), ("26 July", "26 July"), (26, 26)):
        (found,) = ModelConfig(name="x", chat_template=True, chat_template_kwargs={"x": spelt}).chat_template_kwargs.values()
        assert (found, type(found)) == (value, type(value)), "a command line gives text"
    with pytest.raises(ValueError, match="chat_template_kwargs are for a chat template; set chat_template: true"):
        ModelConfig.model_validate({"name": "x", "chat_template_kwargs": NO_THOUGHTS})
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        ModelConfig.model_validate({"name": "x", "chat_template": True, "chat_template_kwargs": {"tools": [1]}})
