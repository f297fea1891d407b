"""What stands around a causal model's answer: its prompt, plain or in a chat template, and the answer's own tokens in it."""

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kd.errors import ConfigError, RowFault
from kd.families.text import PLAIN, Frame, as_fault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LEAD = "\nAnswer:"
"""What stands between a row's text and its answer where there is no chat template; the answer then follows a space."""

MARK = "\ue000text\ue000"
"""A text that no chat template holds, as its first and last character are for private use: where it stands, texts stand."""

REPLY = "\ue001answer\ue001"
"""The same for the assistant's answer."""


@dataclass(frozen=True)
class Turn:
    """Where an answer stands: `tail` is the end of the prompt, from the row's text on, `gap` the white space between prompt
    and answer, `behind` what follows the answer."""

    tail: str
    gap: str
    behind: str = ""


PLAIN_TURN = Turn(LEAD, " ")


def plain_frame(text: str) -> Frame:
    """A row's text with the lead behind it."""
    return Frame(text + LEAD, 0, len(text), 0)


class ChatTemplate:
    """A tokenizer's chat template: a row's text is the message of a user, and the answer is the assistant's.

    `given` are variables of the template, as `apply_chat_template` takes them. `name` is the model's.

    Raises:
        ConfigError: there is no template, it changes the text of a message, or it has no such variable.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", given: Mapping[str, Any], name: str) -> None:
        self._tokenizer, self._given, self._name = tokenizer, dict(given), name
        if tokenizer.chat_template is None:
            raise ConfigError(f"{name}: chat_template = true, but its tokenizer has no chat template")
        self._check_given()
        try:
            prompt = self._rendered(MARK)
        except RowFault as fault:
            raise ConfigError(f"{name}: {fault.detail}, the message of a user; set chat_template = false") from fault
        self._lead = prompt.find(MARK)
        if self._lead < 0:
            raise ConfigError(f"{name}: its chat template changes the text of a message; set chat_template = false")
        self.turn = self._turn(prompt)

    def frame(self, text: str) -> Frame:
        """The text as one message of a user, up to where the assistant answers. Raises the RowFault of a text that it changes."""
        frame = Frame.behind(self._lead, self._rendered(text), text)
        if frame is None:
            raise RowFault("tokenizer_error", "the chat template changes this text")
        return frame

    def _rendered(self, text: str, *replies: str) -> str:
        """A user's message and what the assistant has replied; without a reply, up to where one begins."""
        messages = [{"role": "user", "content": text}, *({"role": "assistant", "content": reply} for reply in replies)]
        with as_fault("the chat template"):
            whole: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=not replies, **self._given
            )
            return whole

    def _turn(self, prompt: str) -> Turn:
        """What the template writes around an answer. Of a template that takes none, only the prompt is known."""
        tail = prompt[self._lead + len(MARK) :]
        try:
            whole = self._rendered(MARK, REPLY)
        except RowFault:
            return Turn(tail, "")
        before, _, behind = whole.partition(REPLY)
        gap = before.removeprefix(prompt)
        # More than white space is no part of the answer: thoughts, or another channel, which some templates open for it.
        return Turn(tail, gap if before.startswith(prompt) and not gap.strip() else "", behind)

    def _check_given(self) -> None:
        """A variable that the template does not read would change nothing without a word."""
        template = self._tokenizer.get_chat_template()
        own = set(inspect.signature(self._tokenizer.apply_chat_template).parameters) | {"messages"}
        for key in self._given:
            if key in own or not re.search(rf"\b{re.escape(key)}\b", template):
                raise ConfigError(
                    f"{self._name}: chat_template_kwargs has {key!r}, which its chat template does not take;"
                    " expected a variable that the template reads, as enable_thinking is for Qwen3"
                )


def end_of_turn(tokenizer: "PreTrainedTokenizerFast", behind: str, ends: Collection[int]) -> int | None:
    """The token that ends an answer, from what a template writes behind it; None where it writes none.

    That is the first token, if it is a special one (also one that the model's config does not list), else the first of `ends`.
    """
    ids: list[int] = tokenizer(behind, add_special_tokens=False, verbose=False)["input_ids"]
    written = [id_ for id_ in ids if tokenizer.decode([id_]).strip()]
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    if written and written[0] in special:
        return written[0]
    return next((id_ for id_ in written if id_ in ends), None)


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens of answers in their turn: prompt and answer are tokenised together, and cut where the prompt's tokens end.

    So a word has the tokens that it has in running text, whatever the tokenizer does at the start of a string.
    """

    tokenizer: "PreTrainedTokenizerFast"
    turn: Turn
    _prompt_ids: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_prompt_ids", self._tokenised(self._prompt))

    def __call__(self, text: str) -> list[int]:
        """The ids of an answer, without the token that ends it.

        What the model reads is the prompt's own tokens. Where a tokenizer joins the prompt's last letters and the answer's
        first ones in one token, the answer is written behind the prompt's tokens in others that read the same.

        Raises:
            RowFault: "tokenizer_error" where there are none that read the same.
        """
        prompt, answer = self._prompt_ids, self.turn.gap + text
        together = self._tokenised(self._prompt + answer)
        if together[: len(prompt)] == prompt:
            return together[len(prompt) :]
        reads = self.tokenizer.decode(together)
        for alone in map(self._tokenised, (answer, text)):
            if self.tokenizer.decode([*prompt, *alone]) == reads:
                return alone
        raise RowFault("tokenizer_error", f"the tokenizer joins the prompt and the answer {text!r} in one token")

    @property
    def _prompt(self) -> str:
        return PLAIN + self.turn.tail

    def _tokenised(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids
