"""Spans of text: the words of a text, and token scores pooled to words.

A word is the unit that teacher and student share, since their tokenizers differ. Offsets are code points of one
segment's text, half-open, so they hold for every script.

Thai, Khmer, Lao and Burmese have no spaces between words. ICU finds them by its dictionaries where the extra `segmenter`
(icu4py) is installed; without it a run of such text, often a sentence, is one word, and `prepare` says in how many rows.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Literal

import regex

from kd.errors import ConfigError
from kd.rows import Segment, Span

_UNSPACED = r"\p{Thai}\p{Khmer}\p{Lao}\p{Myanmar}"
_LETTERS = rf"[[\w\p{{M}}]--[\p{{Han}}{_UNSPACED}]]"

# A Han character is a word of its own. Text of scripts without spaces is cut further. Elsewhere a run of letters, digits and
# their marks is one, with an inner apostrophe, hyphen or decimal mark. Any other visible character (punctuation, an emoji with
# its modifiers) stands alone.
_WORD = regex.compile(
    rf"""(?V1)
      \p{{Han}}\p{{M}}*
    | (?P<unspaced> [[{_UNSPACED}]&&[\w\p{{M}}]] [[{_UNSPACED}\p{{M}}]&&[\w\p{{M}}]]* )
    | {_LETTERS}+ (?: ['’\-.,] (?<=[\p{{L}}\p{{N}}][^.,]|\p{{N}}[.,]) {_LETTERS}+ )*
    | (?!\s)\X
    """,
    regex.VERBOSE,
)


def words(segments: Sequence[Segment], roles: Sequence[str] | None = None) -> list[Span]:
    """The words of the segments with one of `roles` (default: all), in reading order."""
    return [
        Span(index, start, end)
        for index, segment in enumerate(segments)
        if roles is None or segment.role in roles
        for match in _WORD.finditer(segment.text)
        for start, end in _cut(match)
    ]


def _cut(match: "regex.Match[str]") -> Iterator[tuple[int, int]]:
    """Where the words of a match begin and end: several only of a script without spaces."""
    pieces = _icu() if match.lastgroup else None
    if pieces is None:
        return iter([match.span()])
    lengths = map(len, pieces(match.group()))  # its own offsets count UTF-16 units
    return itertools.pairwise(itertools.accumulate(lengths, initial=match.start()))


def is_unspaced(text: str) -> bool:
    """Whether a text has words of a script that puts no spaces between them."""
    return any(match.lastgroup for match in _WORD.finditer(text))


def segmenter() -> str:
    """What finds the words of such scripts, with its version; `none` where nothing does."""
    if _icu() is None:
        return "none"
    from icu4py import icu_version

    return f"ICU {icu_version}"


def check_segmenter(expected: str) -> None:
    """Raise ConfigError where this machine cuts words otherwise than the one that planned the work."""
    if segmenter() != expected:
        raise ConfigError(
            f"words of Thai, Khmer, Lao or Burmese: expected the segmenter {expected}, as on the driver, got {segmenter()} on"
            " this worker; install the same on both (the extra `segmenter`)"
        )


@cache
def _icu() -> Callable[[str], Iterable[str]] | None:
    """A text's words by ICU, which together are the text; None where it is not installed."""
    try:
        from icu4py.breakers import WordBreaker
    except ModuleNotFoundError:
        return None
    return lambda text: WordBreaker(text, "und")


def overlap(a: Span, b: Span) -> int:
    """How many code points two spans share."""
    return max(0, min(a.end, b.end) - max(a.start, b.start)) if a.segment == b.segment else 0


Pooling = Literal["sum", "mean", "max"]
"""How several scores become one. `max` is the score of the largest magnitude, with its sign, the first of equals."""


def pool(
    tokens: Sequence[Span], scores: Sequence[float], onto: Sequence[Span], how: Pooling = "sum"
) -> tuple[list[float], float]:
    """Token scores as word scores: a token is a piece of every word that it touches, to the share of its code points there.

    `sum` conserves mass: the word scores and what fell on no word sum to `sum(scores)`. So do `mean`'s, each times the number
    of its word's pieces, a shared one counted by its share; they lie between the smallest and the largest of the pieces'
    scores. `max` takes the score of one piece as it is. A word without a piece has the score zero.

    Args:
        tokens: spans in reading order; scores: one each, signed or not; onto: the words, in reading order, not overlapping.

    Returns:
        One score per word, and the sum of what fell on no word.
    """
    pieces: list[list[tuple[float, float]]] = [[] for _ in onto]
    unassigned = 0.0
    for found, score in zip(touched(tokens, onto), scores, strict=True):
        total = sum(shared for _, shared in found)
        if not total:
            unassigned += score
        for index, shared in found:
            pieces[index].append((score, shared / total))
    return [pooled(own, how) for own in pieces], unassigned


def pooled(weighed: Iterable[tuple[float, float]], how: Pooling) -> float:
    """One score of several, each with its weight, which `max` does not look at; zero of none."""
    own = list(weighed)
    if how == "max":
        return max((score for score, _ in own), key=abs, default=0.0)
    total = sum(score * weight for score, weight in own)
    return total / sum(weight for _, weight in own) if how == "mean" and own else total


def touched(tokens: Sequence[Span], onto: Sequence[Span]) -> Iterator[list[tuple[int, int]]]:
    """For each token, the places of the words that it touches, each with the code points in common.

    Args:
        tokens: spans in reading order; onto: the words, in reading order, not overlapping.
    """
    first = 0
    for token in tokens:
        while first < len(onto) and _before(onto[first], token):
            first += 1
        yield _touched(token, onto, first)


def _before(word: Span, token: Span) -> bool:
    """The word ends before the token starts, so no later token touches it either."""
    return (word.segment, word.end) <= (token.segment, token.start)


def _touched(token: Span, onto: Sequence[Span], first: int) -> list[tuple[int, int]]:
    found = []
    for index in range(first, len(onto)):
        if (onto[index].segment, onto[index].start) >= (token.segment, token.end):
            break
        shared = overlap(token, onto[index])
        if shared:
            found.append((index, shared))
    return found
