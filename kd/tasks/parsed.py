"""What a task makes of one record, what it needs for that, and what holds of it whatever the task."""

from dataclasses import dataclass, field
from typing import Literal

from kd.errors import RowFault
from kd.rows import Segment, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What a task reads from one record; see `Example` for the fields. `target` is None where the record has no label."""

    segments: list[Segment]
    target: str | None
    label_set: list[str]
    evidence: list[Span] = field(default_factory=list)
    llm_rationale: str | None = None
    llm_label: str | None = None


@dataclass(frozen=True)
class Need:
    """A column that a task reads: the config key that names it, its names (one is enough), and where it must be.

    The label alone is needed in `train`: a record without it is an error there, and unlabelled in the other splits. What is
    `optional` is read where it is there.
    """

    key: str
    any_of: tuple[str, ...]
    where: Literal["every split", "some split", "train", "optional"] = "every split"


def optional(*columns: str) -> list[Need]:
    """Columns that a task reads where they are there."""
    return [Need("task.type", (column,), where="optional") for column in columns]


def check(parsed: Parsed) -> None:
    """What holds for every task. Raises RowFault."""
    for segment in parsed.segments:
        if segment.role != "prompt" and not segment.text.strip():
            raise RowFault("empty_text", f"the {segment.role} is empty")
    if parsed.target is not None and not parsed.target.strip():
        raise RowFault("missing_field", "the label is empty")
    if parsed.target is not None and parsed.label_set and parsed.target not in parsed.label_set:
        has_options = any(segment.role == "choice" for segment in parsed.segments)
        reason = "answer_not_in_choices" if has_options else "unknown_label"
        raise RowFault(reason, f"expected one of {', '.join(parsed.label_set)}; got {parsed.target}")
    for span in parsed.evidence:
        length = len(parsed.segments[span.segment].text)
        if not 0 <= span.start <= span.end <= length:
            raise RowFault("unparsable", f"evidence {span.start}..{span.end} lies outside a text of {length} characters")
