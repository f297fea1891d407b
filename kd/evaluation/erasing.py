"""Words are erased from a row's text: which ones, in which order, and what is left.

The unit is the candidate, a word with all its occurrences, as rationales have it: so a control draws from the same words.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from kd.families.text import NEVER_CUT
from kd.rows import RationaleRow, Segment, Span, text_of
from kd.spans import pool

Group = tuple[int, ...]
"""A candidate: the indices of its occurrences among the row's words."""

Ranked = Callable[[RationaleRow], Sequence[Group]]
"""The candidates of a row, the most important first."""

Measure = Literal["comprehensiveness", "sufficiency"]


@dataclass(frozen=True)
class Trial:
    """A text to ask the model about. `frac` is the share of the candidates that were taken, in `order`."""

    measure: Measure
    order: str
    frac: float
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Eraser:
    """How rows are erased.

    `ranked` says which words may be erased and which come first, `roles` which segments hold them, `fractions` how many of
    them are taken, rounded up, `seed` what the random order is drawn from. Without `by_importance` only the row's own
    rationale is measured, as is right for a source that does not follow the importance. Options are never erased: the
    answer that is asked about is one of them.
    """

    ranked: Ranked
    roles: tuple[str, ...]
    fractions: tuple[float, ...]
    seed: int
    by_importance: bool = True

    def whole(self, row: RationaleRow) -> tuple[str, ...]:
        """The row's text as far as the model has read it: a shorter text must not bring in what had been cut off."""
        return erased(row.segments, self._unread(row))

    def trials(self, row: RationaleRow) -> list[Trial]:
        """Every text to ask about.

        Orders over `fractions`: `importance`, `random`, and `lexical`, where words come first that stand in several
        segments, as in question and option, or in premise and hypothesis (of equals the random order decides); a row
        without such a word has no lexical order. Then the words of the row's `rationale`, and as many of the random order,
        `rationale_random`.
        """
        ranked = self._candidates(row)
        # The source `random` draws by seed and uid: by the same key it would be measured against itself.
        drawn = random.Random(f"erased/{self.seed}/{row.uid}").sample(sorted(ranked), len(ranked))
        marked = [group for group in ranked if any(row.rationale[index] for index in group)]
        made = []
        if ranked:
            made += self._pair(row, "rationale", len(marked) / len(ranked), marked)
            made += self._pair(row, "rationale_random", len(marked) / len(ranked), drawn[: len(marked)])
        if ranked and self.by_importance:
            echoes, orders = _echoes(row), {"importance": ranked, "random": drawn}
            if any(echoes[_word(row, group[0])] > 1 for group in ranked):
                orders["lexical"] = sorted(drawn, key=lambda group: -echoes[_word(row, group[0])])
            for name, order in orders.items():
                for frac in self.fractions:
                    made += self._pair(row, name, frac, order[: count_of(frac, len(order))])
        return made

    def _candidates(self, row: RationaleRow) -> list[Group]:
        """The ranked words without their occurrences in options."""
        options = {index for index, segment in enumerate(row.word_segment) if row.segments[segment].role == "choice"}
        outside = (tuple(index for index in group if index not in options) for group in self.ranked(row))
        return [group for group in outside if group]

    def _pair(self, row: RationaleRow, order: str, frac: float, taken: Sequence[Group]) -> list[Trial]:
        """The text without the words taken, and with no others of their roles."""
        words, unread = _spans(row), self._unread(row)
        indices = {index for group in taken for index in group}
        chosen = [words[index] for index in indices]
        roles = [role for role in self.roles if role != "choice"]
        others = [word for index, word in enumerate(words) if index not in indices and row.segments[word.segment].role in roles]
        return [
            Trial("comprehensiveness", order, frac, erased(row.segments, {*chosen, *unread})),
            Trial("sufficiency", order, frac, erased(row.segments, {*others, *unread})),
        ]

    def _unread(self, row: RationaleRow) -> list[Span]:
        """Words that were cut off, all of segments that may be cut: one who reads options one by one has tokens of one only."""
        if not row.truncated_tokens:
            return []
        words, tokens = _spans(row), list(map(Span, row.token_segment, row.token_start, row.token_end))
        read, _ = pool(tokens, [1.0] * len(tokens), words)
        return [
            word for word, mass in zip(words, read, strict=True) if not mass and row.segments[word.segment].role not in NEVER_CUT
        ]


def count_of(frac: float, candidates: int) -> int:
    """How many words a share of them is, rounded up; a hair above a whole number is not."""
    return math.ceil(frac * candidates - 1e-9)


def erased(segments: Sequence[Segment], gone: Collection[Span]) -> tuple[str, ...]:
    """The segments' texts without these words.

    Segments stay where they are, and one may become empty. A word takes the white space behind it along where white space
    or the start of the segment stands before it, so that no gap is left; a word that stood between two others without any
    leaves a space, so that they do not become one. Everything else, punctuation too, stays.
    """
    by_segment: dict[int, list[Span]] = {}
    for word in sorted(gone, key=lambda span: (span.segment, span.start)):
        by_segment.setdefault(word.segment, []).append(word)
    return tuple(_without(segment.text, by_segment.get(index, ())) for index, segment in enumerate(segments))


def _without(text: str, gone: Iterable[Span]) -> str:
    kept, place = "", 0
    for word in gone:
        kept += text[place : word.start]
        place = word.end
        behind = text[place:]
        if not kept or kept[-1].isspace():
            place += len(behind) - len(behind.lstrip())
        elif behind and not behind[0].isspace():
            kept += " "
    return kept + text[place:]


def _spans(row: RationaleRow) -> list[Span]:
    return list(map(Span, row.word_segment, row.word_start, row.word_end))


def _word(row: RationaleRow, index: int) -> str:
    return text_of(row, Span(row.word_segment[index], row.word_start[index], row.word_end[index])).casefold()


def _echoes(row: RationaleRow) -> Counter[str]:
    """For each word, in how many segments other than prompts it stands."""
    held = {(segment, _word(row, index)) for index, segment in enumerate(row.word_segment)}
    return Counter(word for segment, word in held if row.segments[segment].role != "prompt")
