"""A row's segments as the tokens that a model reads, each with the span that it came from."""

import itertools
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kd.errors import RowFault
from kd.rows import Segment, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEVER_CUT = ("prompt", "choice")
"""Roles whose segments keep all their tokens when an input is too long."""

PLAIN = "a"
"""A text on which a tokenizer fails only if it fails on every text."""

_Tokens = tuple[list[int], list[int], list[tuple[int, int]]]
"""Ids of a string, which of them are special (1), and the offsets of each."""


@contextmanager
def as_fault(what: str) -> Iterator[None]:
    """An exception inside becomes the fault "tokenizer_error" of the row whose text it was."""
    try:
        yield
    except RowFault:
        raise
    except BaseException as error:
        # The panic of a tokenizer's Rust code is no Exception, and its type cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise RowFault("tokenizer_error", f"{what} fails on this text: {type(error).__name__}: {error!s:.200}") from error


@dataclass(frozen=True)
class Encoded:
    """A tokenised input: parallel ids, spans (None for special tokens) and token strings; and how many were cut off."""

    ids: list[int]
    spans: list[Span | None]
    tokens: list[str]
    truncated_tokens: int


@dataclass(frozen=True)
class Frame:
    """The string that is tokenised, and where in it the row's text stands, without white space at its ends.

    `start` and `end` are its offsets there, `shift` what takes an offset there to one in the row's text.
    """

    string: str
    start: int
    end: int
    shift: int

    @classmethod
    def behind(cls, lead: int, string: str, text: str) -> "Frame | None":
        """The frame of a string that holds the text behind `lead` characters and white space; None if it does not."""
        inner = text.strip()
        start = string.find(inner, lead)
        if start < 0 or string[lead:start].strip():
            return None
        return cls(string, start, start + len(inner), text.index(inner) - start)


@dataclass(frozen=True)
class Reader:
    """Tokenises rows for one model.

    `special_ids` are tokens without text of their own, wherever they stand. `frame` puts a text into its surroundings,
    whose tokens have no span, or raises the RowFault of a text that cannot be put there. `adds_special_tokens` says
    whether the tokenizer's own belong around that; those that are `never_last` are dropped at the end.
    """

    tokenizer: "PreTrainedTokenizerFast"
    special_ids: frozenset[int]
    max_tokens: int
    frame: Callable[[str], Frame] = lambda text: Frame(text, 0, len(text), 0)
    adds_special_tokens: bool = True
    never_last: frozenset[int] = frozenset()

    def read(self, rows: Sequence[Sequence[Segment]]) -> list[Encoded | RowFault]:
        """Each row's segments, joined as they are and tokenised once; all rows in one call, which is what makes it cheap.

        Over the limit, the longest segment that may be cut loses its last token, again and again: options and prompts
        stay whole. Instead of a result a row has its fault: "empty_text" without a token of a segment, "too_long" if what
        must stay is over the limit, "tokenizer_error" where template or tokenizer fail on this text. A tokenizer that
        fails on every text raises what it raises: that is no row's fault.
        """
        texts = ["".join(segment.text for segment in segments) for segments in rows]
        frames = [self._framed(text) for text in texts]
        tokenised = iter(self._tokenised([frame.string for frame in frames if isinstance(frame, Frame)]))
        found = [(frame, next(tokenised)) if isinstance(frame, Frame) else frame for frame in frames]
        return [
            one if isinstance(one, RowFault) else self._encoded(segments, text, *one)
            for segments, text, one in zip(rows, texts, found, strict=True)
        ]

    def _framed(self, text: str) -> Frame | RowFault:
        try:
            return self.frame(text)
        except RowFault as fault:
            return fault

    def _tokenised(self, strings: list[str]) -> list[_Tokens | RowFault]:
        """All in one call; one by one if that fails, so that only those have a fault on which the tokenizer fails."""
        try:
            with as_fault("the tokenizer"):
                return [*self._called(strings)]
        except RowFault:
            self._called([PLAIN])  # where the tokenizer itself is broken, this says so
        return [self._alone(string) for string in strings]

    def _alone(self, string: str) -> _Tokens | RowFault:
        try:
            with as_fault("the tokenizer"):
                return self._called([string])[0]
        except RowFault as fault:
            return fault

    def _called(self, strings: list[str]) -> list[_Tokens]:
        if not strings:
            return []
        found = self.tokenizer(
            strings,
            add_special_tokens=self.adds_special_tokens,
            return_attention_mask=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        return list(zip(found["input_ids"], found["special_tokens_mask"], found["offset_mapping"], strict=True))

    def _encoded(self, segments: Sequence[Segment], text: str, frame: Frame, tokenised: _Tokens | RowFault) -> Encoded | RowFault:
        if isinstance(tokenised, RowFault):
            return tokenised
        ids, special, offsets = tokenised
        while ids and ids[-1] in self.never_last:
            ids.pop()
        starts = list(itertools.accumulate((len(segment.text) for segment in segments), initial=0))
        spans = [
            _span(text, starts, max(start, frame.start) + frame.shift, min(end, frame.end) + frame.shift)
            if not mask and id_ not in self.special_ids and start < frame.end and end > frame.start
            else None
            for id_, mask, (start, end) in zip(ids, special, offsets, strict=False)
        ]
        if not text.strip() or not any(spans):
            return RowFault("empty_text", f"no token in {len(segments)} segments of {len(text)} characters")
        try:
            kept = _kept(spans, segments, self.max_tokens)
        except RowFault as fault:
            return fault
        tokens = self.tokenizer.convert_ids_to_tokens([ids[i] for i in kept])
        return Encoded([ids[i] for i in kept], [spans[i] for i in kept], tokens, len(ids) - len(kept))


def _span(text: str, starts: Sequence[int], start: int, end: int) -> Span:
    """Offsets into the joined text as a span of the segment that they overlap most (of equals, the first).

    White space at the ends is left out: many tokenizers count the space before a word as part of it.
    """
    inner = text[start:end].strip()
    if inner:
        start += text[start:end].index(inner)
        end = start + len(inner)
    first = min(bisect_right(starts, start) - 1, len(starts) - 2)
    candidates = range(first, max(first, bisect_left(starts, end) - 1) + 1)
    best = max(candidates, key=lambda segment: min(end, starts[segment + 1]) - max(start, starts[segment]))
    return Span(best, max(start, starts[best]) - starts[best], min(end, starts[best + 1]) - starts[best])


def _kept(spans: Sequence[Span | None], segments: Sequence[Segment], limit: int) -> list[int]:
    """Indices of the tokens that stay."""
    if len(spans) <= limit:
        return list(range(len(spans)))
    sizes = Counter(span.segment for span in spans if span and segments[span.segment].role not in NEVER_CUT)
    fixed = len(spans) - sizes.total()
    if fixed > limit:
        raise RowFault("too_long", f"{fixed} tokens of options and prompt, limit max_input_tokens = {limit}")
    for _ in range(len(spans) - limit):
        sizes[max(sizes, key=lambda segment: sizes[segment])] -= 1
    kept = []
    for index, span in enumerate(spans):
        if span and span.segment in sizes:
            sizes[span.segment] -= 1
            if sizes[span.segment] < 0:
                continue
        kept.append(index)
    return kept
