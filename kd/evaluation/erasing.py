"""Words are erased from a row's text: which ones, in which order, and what is left.

The unit is the single occurrence of a word, also where a rationale counts the same word once. So a control erases as many words
of the text as what it controls: `rationale_random` draws as many occurrences as the rationale marks. Merged words would not do:
the scores of one that is repeated are summed, so that it comes first whatever the scores say, and all of it goes at once, where
most of the control's words occur once: an importance that knows nothing would have a gain. `rationale_shuffled` takes as many
words as the rationale, counted as it counts them, by the same scores permuted: that is favoured as the rationale is.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from kd.evaluation.units import Shuffled, Units, as_many, ranked
from kd.families.text import NEVER_CUT
from kd.portions import portion
from kd.rows import RationaleRow, Segment, Span, text_of
from kd.spans import pool
from kd.stop_words import folded

Measure = Literal["comprehensiveness", "sufficiency"]


@dataclass(frozen=True)
class Trial:
    """A text to ask the model about. `frac` is the share of the words that may be erased which were taken, in `order`."""

    measure: Measure
    order: str
    frac: float
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Eraser:
    """How rows are erased.

    `units` are the words that may be erased, each occurrence by itself, the heaviest first in order of importance, `merged` the
    same as a rationale counts them; `roles` says which segments hold them, `fractions` how many of them are taken, rounded up,
    `seed` what the random order is drawn from, `shuffled` the importance that the row's token scores give when they are
    permuted. Without `by_importance` only the row's own rationale is measured, as is right for a source that does not follow
    the importance. Options are never erased: the answer that is asked about is one of them.
    """

    units: Units
    merged: Units
    shuffled: Shuffled
    roles: tuple[str, ...]
    fractions: tuple[float, ...]
    seed: int
    by_importance: bool = True

    def whole(self, row: RationaleRow) -> tuple[str, ...]:
        """The row's text as far as the model has read it: a shorter text must not bring in what had been cut off."""
        return erased(row.segments, self._unread(row))

    def trials(self, row: RationaleRow) -> list[Trial]:
        """Every text to ask about.

        Orders over `fractions`: `importance`, `random`, `shuffled`, and `lexical`, where words come first that stand in
        several segments, as in question and option, or in premise and hypothesis (of equals the random order decides); a row
        without such a word has no lexical order. Then the words that the row's `rationale` marks, as many of the random order,
        `rationale_random`, and as many as it holds by the shuffled importance, `rationale_shuffled`.

        Raises:
            ValueError: a unit has several occurrences.
        """
        heaviest = self._ranked(row, row.importance)
        # The source `random` draws by seed and uid: by the same key it would be measured against itself.
        drawn = random.Random(f"erased/{self.seed}/{row.uid}").sample(sorted(heaviest), len(heaviest))
        marked = [index for index in heaviest if row.rationale[index]]
        made = []
        if heaviest:
            made += self._pair(row, "rationale", len(marked) / len(heaviest), marked)
            made += self._pair(row, "rationale_random", len(marked) / len(heaviest), drawn[: len(marked)])
        if heaviest and self.by_importance:
            mixed = self.shuffled(row)
            likewise = [index for unit in as_many(row, self.merged, mixed) for index in unit.occurrences if index in heaviest]
            made += self._pair(row, "rationale_shuffled", len(likewise) / len(heaviest), likewise)
            echoes, orders = _echoes(row), {"importance": heaviest, "random": drawn, "shuffled": self._ranked(row, mixed)}
            if any(echoes[_word(row, index)] > 1 for index in heaviest):
                orders["lexical"] = sorted(drawn, key=lambda index: -echoes[_word(row, index)])
            for name, order in orders.items():
                for frac in self.fractions:
                    made += self._pair(row, name, frac, order[: portion(frac, len(order))])
        return made

    def _ranked(self, row: RationaleRow, importance: Sequence[float]) -> list[int]:
        """Which of the row's words may be erased, the heaviest first by an importance, ties to the earlier."""
        by_weight = ranked(self.units(row, importance))
        if any(len(unit.occurrences) > 1 for unit in by_weight):
            raise ValueError("expected every occurrence of a word as a unit of its own, got merged ones")
        indices = (index for unit in by_weight for index in unit.occurrences)
        return [index for index in indices if row.segments[row.word_segment[index]].role != "choice"]

    def _pair(self, row: RationaleRow, order: str, frac: float, taken: Sequence[int]) -> list[Trial]:
        """The text without the words taken, and with no others of their roles."""
        words, unread, gone = _spans(row), self._unread(row), set(taken)
        chosen = [words[index] for index in taken]
        roles = [role for role in self.roles if role != "choice"]
        others = [word for index, word in enumerate(words) if index not in gone and row.segments[word.segment].role in roles]
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
    return folded(text_of(row, Span(row.word_segment[index], row.word_start[index], row.word_end[index])))


def _echoes(row: RationaleRow) -> Counter[str]:
    """For each word, in how many segments other than prompts it stands."""
    held = {(segment, _word(row, index)) for index, segment in enumerate(row.word_segment)}
    return Counter(word for segment, word in held if row.segments[segment].role != "prompt")
