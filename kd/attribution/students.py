"""Students explained by the engine that explained their teacher, over rows that carry the teacher's importance.

A map without a join: the row comes with what the teacher found, and leaves with what the student found beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kd.agreement_rows import StudentAttribution
from kd.attribution.engine import AttributionConfig, Engine
from kd.models import ModelSource
from kd.rows import Attribution, RationaleRow, RowError, Segment, Span, as_question, extended
from kd.spans import Pooling, pool

if TYPE_CHECKING:
    from collections import Counter

    from kd.shards import Apply


@dataclass(frozen=True)
class ExplainStudent:
    """The stage: rows with rationales in, the same with the student's importance out. The student is loaded in `open`.

    `config` is the teacher's: the method and its micro-batches are taken from it. `pieces` is how the scores of a word's tokens
    become its importance, the teacher's way (`rationales.pool.pieces`). `prefix` is what stands before the input
    when the student is asked for its answer, empty for nothing. `device` is "cpu", "cuda" or "spread"; `threads` are torch's.
    """

    config: AttributionConfig
    source: ModelSource
    prefix: str
    pieces: Pooling
    device: str
    threads: int

    def open(self) -> Apply:
        """Load the student and return the function from rows with the teacher's importance to rows with both."""
        from kd.families.opening import load_family

        # The answer is the one that the teacher explained, which is asked of the student as its target.
        config = self.config.model_copy(update={"explained": "gold", "answers": False})
        engine = Engine(config, load_family(self.source, self.device, self.threads))
        return lambda rows, tally: explain(engine, self.prefix, self.pieces, rows, tally)


def explain(
    engine: Engine, prefix: str, pieces: Pooling, rows: Sequence[RationaleRow], tally: Counter[str]
) -> list[StudentAttribution | RowError]:
    """For each row, in order, the student's importance of its words for the answer that the teacher explained, and no other."""
    before = [Segment("prompt", prefix)] if prefix else []
    # The other options are not asked about, and one of them may be too long to be an answer.
    asked = [as_question(row, [*before, *row.segments], label_set=()) for row in rows]
    found = engine.attribute(asked, tally)
    return [
        each if isinstance(each, RowError) else _beside(row, each, len(before), pieces)
        for row, each in zip(rows, found, strict=True)
    ]


def _beside(row: RationaleRow, found: Attribution, before: int, pieces: Pooling) -> StudentAttribution:
    """The student's scores as importance of the row's words; what it gave to the prefix is left out."""
    tokens = zip(found.token_segment, found.token_start, found.token_end, found.scores, strict=True)
    own = [(Span(segment - before, start, end), score) for segment, start, end, score in tokens if segment >= before]
    places = list(map(Span, row.word_segment, row.word_start, row.word_end))
    importance, _ = pool([span for span, _ in own], [score for _, score in own], places, pieces)
    return extended(
        row,
        StudentAttribution,
        student=found.model,
        student_importance=importance,
        student_truncated_tokens=found.truncated_tokens,
    )
