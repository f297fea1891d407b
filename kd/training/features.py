"""Rows become token ids: what each row teaches, as the student reads and writes it. Runs as a stage, on the cluster."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from kd.errors import RowFault
from kd.families.base import Family
from kd.families.opening import open_family
from kd.loading import load
from kd.models import ModelSource
from kd.rows import Example, Features, RowError, Segment
from kd.shards import Apply
from kd.training.objectives import Answers, AnyObjective, Target, taught


@dataclass(frozen=True)
class Featurise:
    """The recipe: `Example` rows (for the teacher) or `RationaleRow` rows (for a student) to `Features`.

    A row's fault is "empty_text" or "too_long" as the model's family finds it (an answer is never cut), or that of its labels
    (`Family.check_labels`). `answers` says which answer is learned.
    """

    objective: AnyObjective
    source: ModelSource
    answers: Answers = "gold"

    def open(self) -> Apply:
        family = open_family(load(self.source, "meta"), self.source.config)
        return lambda rows, _: [_featurise(taught(row, self.answers), self.objective, family) for row in rows]


def _featurise(row: Example, objective: AnyObjective, family: Family) -> Features | RowError:
    try:
        family.check_labels(row.label_set)
        sequences = [_sequence(row.segments, target, family) for target in objective.targets(row)]
    except RowFault as fault:
        return RowError(fault.reason, fault.detail)
    return Features(
        uid=row.uid,
        error=None,
        term=[sequence.term for sequence in sequences],
        input_ids=[sequence.input_ids for sequence in sequences],
        target_ids=[sequence.target_ids for sequence in sequences],
        truncated=any(sequence.truncated for sequence in sequences),
    )


@dataclass(frozen=True)
class _Sequence:
    term: int
    input_ids: list[int]
    target_ids: list[int]
    truncated: bool


def _sequence(segments: Sequence[Segment], target: Target, family: Family) -> _Sequence:
    encoded = family.encode([Segment("prompt", target.prefix), *segments] if target.prefix else segments)
    text = _fitting(target.text, family) if target.may_be_cut else target.text
    truncated = bool(encoded.truncated_tokens) or text != target.text
    return _Sequence(target.term, encoded.ids, family.encode_target(text), truncated)


def _fitting(text: str, family: Family) -> str:
    """The text itself, or as many of its first words as the model may write."""
    if _fits(text, family):
        return text
    words = text.split()
    most = bisect_right(range(1, len(words)), False, key=lambda count: not _fits(" ".join(words[:count]), family))
    return " ".join(words[:most])


def _fits(text: str, family: Family) -> bool:
    try:
        family.encode_target(text)
    except RowFault as fault:
        if fault.reason != "too_long":
            raise
        return False
    return True
