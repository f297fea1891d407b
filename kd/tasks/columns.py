"""Anybody's columns, from YAML alone: multiple choice, classification of one text or several, free text; labelled or not.

The prompt is a list of parts, written one after the other. Three shapes:

    prompt:                                      prompt:                                    prompt:
      - {column: question, role: question}         - {text: "Premise: "}                      - {column: review}
      - {choices: [opt_a, opt_b, opt_c]}           - {column: sentence1, role: premise}     target: stars
    target: answer                                 - {text: "\\nHypothesis: "}               labels: {1: bad, 5: good}
    target_is: letter                              - {column: sentence2, role: hypothesis}
                                                 target: label
                                                 target_is: index
                                                 labels: [entailment, neutral, contradiction]

Options make it multiple choice, `labels` classification; with neither it is free text. Without a target it is unlabelled.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kd.errors import RowFault
from kd.frozen import Frozen
from kd.rows import Segment, Span
from kd.tasks.base import TaskConfig
from kd.tasks.fields import Record, as_label, optional_at, optional_text_at, spans_at, text_at, texts_at
from kd.tasks.parsed import Need, Parsed

TextRole = Literal["context", "question", "premise", "hypothesis", "text", "prompt"]

SAMPLE: list[dict[str, Any]] = [
    {"id": 1, "review": "A quiet, lovely film.", "stars": 5, "highlights": [[9, 15]], "why": "It is called lovely."},
    {"id": 2, "review": "Two hours I want back.", "stars": 1, "highlights": [[12, 21]], "why": "They regret the time."},
    {"id": 3, "review": "Bad sound, worse plot.", "stars": 1, "highlights": None, "why": None},
]


class Part(Frozen):
    """One piece of the prompt: exactly one of `text`, `column` and `choices`."""

    text: str | None = None
    """Words that are the same in every row."""
    column: str | None = None
    """Column whose text is written; `a.b` is field b of column a."""
    choices: str | list[str] | None = None
    """The options: one column that holds a list, or a list of columns that hold one option each."""
    role: TextRole | None = None
    """What the text is, which decides whether a rationale may quote it. Default: `prompt` for `text`, `text` for `column`."""
    before: str = "\n({letter}) "
    """What is written before each option; {letter} becomes a, b, c, and {number} 1, 2, 3."""
    evidence: str | None = None
    """Column with human highlights of this column's text: `[[start, end], ...]`, half-open, in code points."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        given = [name for name in ("text", "column", "choices") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a part of the prompt has exactly one of text, column and choices, got {' and '.join(given) or 'none'}"
            )
        if self.evidence and not self.column:
            raise ValueError("evidence are highlights of a column's text; give it to a part with `column`")
        if self.role and self.choices:
            raise ValueError("options have a role of their own; leave role out")
        return self

    def columns(self) -> list[str]:
        """The columns that this part reads."""
        choices = [self.choices] if isinstance(self.choices, str) else self.choices or []
        return [*choices, *([self.column] if self.column else [])]

    def options(self, record: Record) -> list[str]:
        """The options of a record."""
        if isinstance(self.choices, str):
            return texts_at(record, self.choices)
        return [text_at(record, column) for column in self.choices or []]

    def segments(self, record: Record) -> list[Segment]:
        """What this part writes."""
        if self.text is not None:
            return [Segment(self.role or "prompt", self.text)]
        if self.column is not None:
            return [Segment(self.role or "text", text_at(record, self.column))]
        lead = [self.before.replace("{letter}", _letter(n)).replace("{number}", str(n + 1)) for n in range(26)]
        options = self.options(record)
        if not 1 <= len(options) <= len(lead):
            raise RowFault("unparsable", f"{self.choices}: expected 1 to {len(lead)} options, got {len(options)}")
        pairs = zip(lead, options, strict=False)
        return [segment for before, option in pairs for segment in (Segment("prompt", before), Segment("choice", option))]


class Columns(TaskConfig):
    """A corpus of any columns, described here."""

    type: Literal["columns"] = "columns"
    prompt: list[Part] = Field(min_length=1)
    """What the model reads, part by part."""
    target: str | None = None
    """Column with the right answer; null = the corpus has no labels. Where a record of validation or test has none, that
    record is unlabelled; in train it is an error."""
    target_is: Literal["text", "index", "letter"] = "text"
    """How the column gives the answer: as its text, as an index from 0 into the options or labels, or as a letter (A or 1 is
    the first)."""
    labels: list[str] | dict[str, str | None] | None = None
    """The classes, or from what the column calls them (a text, a number, true or false) to their names; null = the options,
    or free text. A value that marks records without a label has null for a name: `{0: neg, 1: pos, -1: null}`. `target_is: index`
    counts in the list as it is written; classes that stand there twice, or under several values, are one."""
    llm_rationale: str | None = None
    """Column with another model's rationale; null = none."""
    llm_label: str | None = None
    """Column with that model's answer; null = none."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        choices = sum(part.choices is not None for part in self.prompt)
        if choices > 1:
            raise ValueError("prompt: at most one part may hold the choices")
        if choices and self.labels:
            raise ValueError("the options in the prompt are the answers to choose from; set labels to null")
        if not any(part.column for part in self.prompt):
            raise ValueError("prompt: expected a part with `column`, or the model reads the same in every row")
        if self.target_is != "text" and not choices and not isinstance(self.labels, list):
            raise ValueError(f"target_is: {self.target_is} counts options or a list of labels; there is neither")
        if self.labels is not None and not self.fixed_labels:
            raise ValueError("labels: expected at least one name of a class; set labels to null for free text")
        return self

    @field_validator("labels", mode="before")
    @classmethod
    def _read_like_the_column(cls, given: Any) -> Any:
        """What a column calls its labels, as text; true, 1 and 1.0 are other values in YAML than in a column."""
        if not isinstance(given, Mapping):
            return given
        values = [as_label(value) if isinstance(value, str | int | float) else value for value in given]
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ValueError(f"labels: {twice[0]!r} is there twice, as a text and as another value, which are read alike")
        return dict(zip(values, given.values(), strict=True))

    def needs(self) -> Sequence[Need]:
        read = [Need("task.prompt", (column,)) for part in self.prompt for column in part.columns()]
        marked = [Need("task.prompt", (part.evidence,), where="some split") for part in self.prompt if part.evidence]
        target = [Need("task.target", (self.target,), where="train")] if self.target else []
        named = (("task.llm_rationale", self.llm_rationale), ("task.llm_label", self.llm_label))
        return [*read, *target, *marked, *(Need(key, (column,), where="some split") for key, column in named if column)]

    @property
    def brings_choices(self) -> bool:
        return any(part.choices is not None for part in self.prompt)

    @property
    def fixed_labels(self) -> list[str]:
        """The classes, in order and once each."""
        names = self.labels.values() if isinstance(self.labels, dict) else self.labels
        return list(dict.fromkeys(name for name in names or () if name is not None))

    def parse(self, record: Record) -> Parsed:
        segments: list[Segment] = []
        evidence: list[Span] = []
        for part in self.prompt:
            evidence += spans_at(record, part.evidence, segment=len(segments))
            segments += part.segments(record)
        label_set = self._label_set(segments)
        return Parsed(
            segments=segments,
            target=self._answer(record, label_set),
            label_set=label_set,
            evidence=evidence,
            llm_rationale=optional_text_at(record, self.llm_rationale),
            llm_label=optional_text_at(record, self.llm_label),
        )

    def _label_set(self, segments: Sequence[Segment]) -> list[str]:
        """The answers to choose from: the classes, or the options."""
        return self.fixed_labels or [segment.text for segment in segments if segment.role == "choice"]

    def _answer(self, record: Record, label_set: Sequence[str]) -> str | None:
        given = optional_at(record, self.target)
        if given is None:
            return None
        value = as_label(given)
        if self.target_is != "text":
            listed = self.labels if isinstance(self.labels, list) else label_set
            position = _position(value.strip(), self.target_is)
            if 0 <= position < len(listed):
                return listed[position]
            raise self._unknown(f"the {self.target_is} of one of {len(listed)} answers, got {value!a:.60}")
        if not self.labels or (isinstance(self.labels, list) and value in self.labels):
            return value
        if isinstance(self.labels, dict) and value in self.labels:
            return self.labels[value]
        raise self._unknown(f"one of {', '.join(self.labels)}; got {value!a:.60}")

    def _unknown(self, expected: str) -> RowFault:
        if not self.labels:
            return RowFault("answer_not_in_choices", f"{self.target}: expected {expected}")
        hint = "a value that marks records without a label is mapped to null in task.labels"
        return RowFault("unknown_label", f"{self.target}: expected {expected}; {hint}")


def _position(value: str, target_is: str) -> int:
    """Where an index or a letter points to, from 0; -1 for something else."""
    if target_is == "letter" and len(value) == 1 and value.isalpha() and value.isascii():
        return ord(value.lower()) - ord("a")
    if value.isdecimal():
        return int(value) - (1 if target_is == "letter" else 0)
    return -1


def _letter(number: int) -> str:
    return chr(ord("a") + number)
