"""Rows as the stages will write them, made of the sample: as large and as long as the real ones, with scores that are drawn."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from operator import eq
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from kd.agreement_rows import StudentAttribution
from kd.audit_rows import Erasure, Measured
from kd.evaluation.auditing import MeasureRationales
from kd.evaluation.faithfulness import FaithfulnessConfig
from kd.planning.lengths import Length, Lengths
from kd.rationales import AttributionSource, LlmSource, RationalesConfig, Rationalise, SourceConfig
from kd.rows import Attribution, Example, RationaleRow, Row, extended
from kd.shards import Recipe
from kd.spans import words
from kd.store import Store

R = TypeVar("R", bound=Row)

_ORDERS = ("importance", "random", "shuffled", "lexical")


def attributions(sample: Lengths, method: str) -> list[Attribution]:
    """The sampled rows as if they were attributed: which words matter is drawn, how many there are is true."""
    draw = random.Random(0)
    return [_attributed(row, length, method, draw) for row, length in zip(sample.rows, sample.of_rows, strict=True)]


def _attributed(row: Example, length: Length, method: str, draw: random.Random) -> Attribution:
    answer = row.target or next(iter(row.label_set), None)
    scored = [span for span in length.encoded.spans if span] or words(row.segments)
    return extended(
        row,
        Attribution,
        model="a model's name, and the commit or digest of its weights",
        method=method,
        explained="gold",
        explained_answer=answer,
        generated=answer,
        generated_cut=False,
        ranked=answer if row.label_set else None,
        choice_logprobs=[draw.random() for _ in row.label_set],
        target_logprob=draw.random(),
        tokens=[row.segments[span.segment].text[span.start : span.end] for span in scored],
        token_segment=[span.segment for span in scored],
        token_start=[span.start for span in scored],
        token_end=[span.end for span in scored],
        scores=[draw.random() for _ in scored],
        completeness_gap=None,
        truncated_tokens=length.encoded.truncated_tokens,
        fold=0,
    )


def rationales(config: RationalesConfig, rows: Sequence[Example]) -> dict[str, list[RationaleRow]]:
    """What each source of rationales makes of rows, attributed ones where it needs that, by its name."""
    return {source.name: done(Rationalise(config, source), rows, RationaleRow) for source in config.sources}


def findings(config: RationalesConfig, source: SourceConfig, top_k: int, rows: Sequence[RationaleRow]) -> list[Measured]:
    """What the audit's measures say of a source's rows."""
    single = config.model_copy(update={"merge_duplicates": False})
    options = config.model_copy(update={"roles": tuple(dict.fromkeys((*config.roles, "choice")))})
    k = top_k if isinstance(source, AttributionSource) else None
    is_text = isinstance(source, LlmSource)
    words = config.units, single.units, options.units, config.control, options.control
    recipe = MeasureRationales(*words, k, is_text, config.keep_stop_words, eq)
    return done(recipe, rows, Measured)


def erasures(config: FaithfulnessConfig, source: SourceConfig, rows: Sequence[RationaleRow]) -> list[Erasure]:
    """A source's rows as if the teacher had been asked again about each of their texts: the numbers are drawn."""
    draw = random.Random(0)
    taken = [("rationale", 0.2), ("rationale_random", 0.2)]
    if isinstance(source, AttributionSource):
        taken += [("rationale_shuffled", 0.2), *itertools.product(_ORDERS, config.fractions)]
    return [
        Erasure(
            uid=row.uid,
            error=None,
            explained_answer=row.explained_answer or "",
            probability=draw.random(),
            measure=["comprehensiveness", "sufficiency"] * len(taken),
            order=[order for order, _ in taken for _ in range(2)],
            frac=[frac for _, frac in taken for _ in range(2)],
            fall=[draw.random() for _ in range(2 * len(taken))],
        )
        for row in rows
    ]


def agreements(rows: Sequence[RationaleRow]) -> list[StudentAttribution]:
    """Rows as if a student had been explained on them: its importance is drawn."""
    draw = random.Random(0)
    return [
        extended(
            row,
            StudentAttribution,
            student="a model's name, and the digest of its weights",
            student_importance=[draw.random() for _ in row.importance],
            student_truncated_tokens=0,
        )
        for row in rows
    ]


def done(recipe: Recipe, rows: Sequence[Row], row_type: type[R]) -> list[R]:
    """A stage's work on these rows in this process; rows with an error are left out."""
    return [row for row in recipe.open()(list(rows), Counter()) if isinstance(row, row_type)]


def bytes_per_row(rows: Sequence[R], row_type: type[R]) -> float:
    """What a row takes in a shard, in bytes; 0 where there is none."""
    if not rows:
        return 0.0
    with TemporaryDirectory() as folder:
        Store.at(folder).publish_rows("rows.parquet", rows, row_type, {})
        return Path(folder, "rows.parquet").stat().st_size / len(rows)
