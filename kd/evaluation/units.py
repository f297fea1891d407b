"""The words that are compared: those that a rationale may hold, after the same filters for every source and control.

Whoever measures hands in a function that makes them (`RationalesConfig.candidates`), so that what is measured and what is drawn
at random choose from the same words. The same word counted once is one unit with several occurrences; without merging and with
stop words kept, units are the single words.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from kd.rows import RationaleRow, Span
from kd.spans import overlap


class Unit(Protocol):
    """A word, the indices of its occurrences among the row's words, and its weight: larger is more important."""

    @property
    def occurrences(self) -> Sequence[int]:
        """Indices into the row's `word_segment`, `word_start`, `word_end`."""

    @property
    def text(self) -> str:
        """The word as written at its first occurrence."""

    @property
    def weight(self) -> float:
        """What units are ranked by."""


Units = Callable[[RationaleRow, Sequence[float]], Sequence[Unit]]
"""From a row and an importance for each of its words to its units, in reading order."""


Shuffled = Callable[[RationaleRow], Sequence[float]]
"""From a row to the importance of its words after the scores of its tokens were permuted (`RationalesConfig.control`)."""


def word(row: RationaleRow, index: int) -> Span:
    """The span of one of a row's words."""
    return Span(row.word_segment[index], row.word_start[index], row.word_end[index])


def is_held(row: RationaleRow, unit: Unit) -> bool:
    """Whether a word is in the row's rationale."""
    return any(row.rationale[index] for index in unit.occurrences)


def is_evidence(row: RationaleRow, index: int) -> bool:
    """Whether a person marked a word, or a part of it."""
    return any(overlap(word(row, index), span) for span in row.evidence)


def heaviest(units: Sequence[Unit], k: int) -> list[Unit]:
    """The `k` units of the largest weight, best first, ties to the earlier; never one of weight zero or less."""
    return [unit for unit in ranked(units)[:k] if unit.weight > 0]


def as_many(row: RationaleRow, units: Units, importance: Sequence[float]) -> list[Unit]:
    """As many units as the row's rationale holds, the heaviest by another importance, whatever their weight."""
    found = units(row, importance)
    return ranked(found)[: sum(is_held(row, unit) for unit in found)]


def ranked(units: Sequence[Unit]) -> list[Unit]:
    """The units, the heaviest first, ties to the earlier."""
    return sorted(units, key=lambda unit: -unit.weight)
