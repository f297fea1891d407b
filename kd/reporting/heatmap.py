"""A row's scores drawn over its text: which piece of the text gets how much colour, and what a person reads on it.

Only the data of the drawing; the template turns it into HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kd.rationales import pool_to_words
from kd.rows import Attribution, RationaleRow, Span
from kd.spans import overlap, words


@dataclass(frozen=True)
class Piece:
    """A run of text. `heat` is None between words, else the word's importance over the row's largest, in [-1, 1]."""

    text: str
    heat: float | None = None
    is_rationale: bool = False
    is_evidence: bool = False
    title: str = ""


@dataclass(frozen=True)
class Drawn:
    """One segment of the input in pieces."""

    role: str
    pieces: Sequence[Piece]


def drawn(row: Attribution) -> list[Drawn]:
    """The row's segments in reading order; their texts, joined, are what the model read.

    A row without rationale shows its importance alone.
    """
    if isinstance(row, RationaleRow):
        found = list(map(Span, row.word_segment, row.word_start, row.word_end))
        importance, chosen = row.importance, row.rationale
    else:
        found = words(row.segments)
        importance, chosen = pool_to_words(row, found), [False] * len(found)
    largest = max(map(abs, importance), default=0.0) or 1.0
    mass = sum(map(abs, importance)) or 1.0
    pieces = [
        _word(row, span, value / largest, value, abs(value) / mass, hard)
        for span, value, hard in zip(found, importance, chosen, strict=True)
    ]
    return [
        Drawn(segment.role, _with_gaps(segment.text, [(s, p) for s, p in zip(found, pieces, strict=True) if s.segment == index]))
        for index, segment in enumerate(row.segments)
    ]


def _word(row: Attribution, span: Span, heat: float, importance: float, share: float, is_rationale: bool) -> Piece:
    is_evidence = any(overlap(span, evidence) for evidence in row.evidence)
    title = f"importance {importance:.3g}, {share:.1%} of the row"
    title += ", in the rationale" * is_rationale + ", human evidence" * is_evidence
    text = row.segments[span.segment].text[span.start : span.end]
    return Piece(text, heat, is_rationale, is_evidence, title)


def _with_gaps(text: str, found: Sequence[tuple[Span, Piece]]) -> list[Piece]:
    """The words of one segment with the text between them."""
    pieces, at = [], 0
    for span, piece in found:
        pieces += [Piece(text[at : span.start]), piece]
        at = span.end
    return [piece for piece in [*pieces, Piece(text[at:])] if piece.text]
