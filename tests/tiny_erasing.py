"""A linear teacher, whose probability of the answer is the sum of the weights of the words that it reads, and rows for it."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from kd.audit_rows import Erasure
from kd.evaluation.erasing import Eraser
from kd.evaluation.faithfulness import measure
from kd.rationales import AttributionSource, RationalesConfig, Rationalise, SourceConfig, TopK
from kd.rows import Example, RationaleRow, RowError, Segment
from kd.spans import words
from tests.test_rationales import attributed

WEIGHTS = {"alpha": 0.4, "beta": 0.2, "gamma": 0.1, "delta": 0.05, "bank": 0.01}
BASE = 0.125
FRACTIONS = (0.25, 0.5)


def linear(rows: Sequence[Example], tally: Counter[str]) -> list[float | RowError]:
    """The toy teacher."""
    tally["asked"] += len(rows)
    texts = [[row.segments[word.segment].text[word.start : word.end] for word in words(row.segments)] for row in rows]
    return [BASE + sum(WEIGHTS.get(word, 0.0) for word in text) for text in texts]


def rationalised(
    question: str = "alpha beta gamma delta?",
    k: int = 1,
    uid: str = "r1",
    scores: dict[str, float] | Callable[[str], float] = WEIGHTS,
    source: SourceConfig | None = None,
    **changes: object,
) -> RationaleRow:
    """A question with two options, of which the best k words of the question are the rationale.

    `scores` gives the score of every occurrence of a word; a dictionary gives those that it lacks zero.
    """
    segments = [Segment("question", question), Segment("prompt", "\n(a) "), Segment("choice", "bank"), Segment("choice", "park")]
    found = [segments[word.segment].text[word.start : word.end] for word in words(segments)]
    given = [scores(word) if callable(scores) else scores.get(word, 0.0) for word in found]
    row = attributed(segments, given, uid=uid)
    config = RationalesConfig(selection=TopK(k=k))
    changed = dataclasses.replace(row, **changes)  # type: ignore[arg-type]
    (made,) = Rationalise(config, source or AttributionSource()).open()([changed], Counter())
    assert isinstance(made, RationaleRow)
    return made


def eraser(config: RationalesConfig | None = None, fractions: tuple[float, ...] = FRACTIONS, **changes: object) -> Eraser:
    config = config or RationalesConfig()
    unmerged = config.model_copy(update={"merge_duplicates": False})
    made = Eraser(unmerged.units, config.units, config.control, config.roles, fractions, 0)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def measured(row: RationaleRow, by: Eraser | None = None) -> dict[tuple[str, str, float], float]:
    (made,) = measure([row], by or eraser(), linear, Counter())
    assert isinstance(made, Erasure)
    return {
        (name, order, frac): fall for name, order, frac, fall in zip(made.measure, made.order, made.frac, made.fall, strict=True)
    }
