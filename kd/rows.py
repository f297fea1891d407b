"""The row types of the project, each declared once, as a frozen dataclass; `kd/arrow.py` derives the Arrow schema from it.

Those that the audit writes are in `kd/audit_rows.py`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from kd.contract import blank, check_parallel, hints, require

Role = Literal["context", "question", "premise", "hypothesis", "text", "choice", "prompt"]
Split = Literal["train", "validation", "test"]
Reason = Literal[
    "unparsable",
    "missing_field",
    "empty_text",
    "unknown_label",
    "answer_not_in_choices",
    "too_long",
    "tokenizer_error",
    "not_finite",
    "out_of_memory",
]
ROLES: tuple[str, ...] = get_args(Role)
SPLITS: tuple[str, ...] = get_args(Split)
REASONS: tuple[str, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True)
class Segment:
    """One string that the model reads, and what it is. The model's input is the segments' texts, joined as they are."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open code-point offsets into the text of one segment."""

    segment: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no result: one of `REASONS`, and a detail for a person."""

    reason: str
    detail: str

    def __post_init__(self) -> None:
        require(self.reason in REASONS, "error.reason", f"one of {', '.join(REASONS)}", self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What every row has: an id that is unique, stable and derived from the source, and a place for its error."""

    uid: str
    error: RowError | None

    def __post_init__(self) -> None:
        require(bool(self.uid), "uid", "a non-empty string", self.uid)

    def tally(self) -> tuple[str, ...]:
        """What the manifest counts about this row."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(Row):
    """One record of the corpus. `target` is null where it has no label; `label_set` are the answers to choose from.

    For multiple choice the label set holds the options, which are segments of role `choice` too; for free text it is
    empty. `evidence` are human highlights; `llm_rationale` and `llm_label` another model's chain of thought and answer.
    """

    task: str
    split: str
    segments: list[Segment]
    target: str | None
    label_set: list[str]
    evidence: list[Span]
    llm_rationale: str | None
    llm_label: str | None

    def __post_init__(self) -> None:
        Row.__post_init__(self)
        require(self.split in SPLITS, "split", f"one of {', '.join(SPLITS)}", self.split)
        for segment in self.segments:
            require(segment.role in ROLES, "role", f"one of {', '.join(ROLES)}", segment.role)
        _check_spans(
            self.segments,
            [span.segment for span in self.evidence],
            [span.start for span in self.evidence],
            [span.end for span in self.evidence],
        )

    def tally(self) -> tuple[str, ...]:
        return ("unlabelled",) if self.target is None and self.error is None else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution(Example):
    """An example with the teacher's answers and one raw score per input token of a segment.

    `explained` says which answer was explained; `explained_answer` is its text. `generated` is the teacher's greedy
    answer, `generated_cut` whether it met the length limit; `ranked` is the most probable entry of the label set (null where
    there is none), `choice_logprobs` the log-probability of every entry in nats: the sum over the tokens that the model would
    write for it behind its prompt. The end behind them is one of these tokens for encoder-decoders, and for causal models that
    a run here trained; for other causal models it is left out, so an entry with which another one begins is never less
    probable than that one. `target_logprob` is the same number of the explained answer: of a model that writes, the number
    that `scores` are about; of a classifier they are about the logit.
    `completeness_gap` is the error of methods that claim completeness, else null. `scores` are as the method gave them. `fold`
    names the teacher's fold, 0 where there is one teacher.
    """

    model: str
    method: str
    explained: str
    explained_answer: str | None
    generated: str | None
    generated_cut: bool | None
    ranked: str | None
    choice_logprobs: list[float]
    target_logprob: float | None
    tokens: list[str]
    token_segment: list[int]
    token_start: list[int]
    token_end: list[int]
    scores: list[float]
    completeness_gap: float | None
    truncated_tokens: int
    fold: int

    def __post_init__(self) -> None:
        Example.__post_init__(self)
        check_parallel(self, "tokens", "token_segment", "token_start", "token_end", "scores")
        _check_spans(self.segments, self.token_segment, self.token_start, self.token_end)

    def tally(self) -> tuple[str, ...]:
        if self.error is not None:
            return ()
        # Of free text only the task can say whether it is right; a label is one or is not.
        own = (self.ranked, None if self.generated_cut else self.generated)
        right = [self.target in self.label_set and self.target == answer for answer in own]
        said = ("ranked_right",) * right[0] + ("generated_right",) * right[1]
        return Example.tally(self) + ("input_truncated",) * (self.truncated_tokens > 0) + said


@dataclass(frozen=True, slots=True, kw_only=True)
class RationaleRow(Attribution):
    """An attribution in the shared unit, the word, with the words that became the rationale.

    `importance` is soft: the raw scores of the word's tokens, pooled as `provenance` says (`rationales.pool.pieces`). `rationale`
    is hard. `rationale_text` is what a student learns to write, empty for none. `source` names where it came from, `provenance`
    the settings that made it.
    """

    word_segment: list[int]
    word_start: list[int]
    word_end: list[int]
    importance: list[float]
    rationale: list[bool]
    rationale_text: str
    source: str
    provenance: str

    def __post_init__(self) -> None:
        Attribution.__post_init__(self)
        check_parallel(self, "word_segment", "word_start", "word_end", "importance", "rationale")
        _check_spans(self.segments, self.word_segment, self.word_start, self.word_end)

    def tally(self) -> tuple[str, ...]:
        return ("empty_rationale",) if self.error is None and not self.rationale_text else ()


Status = Literal["ok", "unparsed", "truncated"]
COUNTED_AS = {"ok": "ok", "unparsed": "unparsed", "truncated": "answer_truncated"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction(Example):
    """One model's answer to one example.

    `raw` is the text as generated, `answer` what it was read as (null unless `status` is ok). Unparsed is not wrong:
    `correct` is false for both, and the report prints both. `correct` is null where the example has no target.
    `choice_logprobs` are the log-probabilities in nats of the whole entries of the label set, also where these were ranked by
    their mean over tokens (`evaluation.length_normalised`); none where the answer was generated. `student` is the model,
    `variant` and `seed` the run that made it ("teacher", 0 for the teacher).
    """

    student: str
    variant: str
    seed: int
    answer: str | None
    raw: str
    choice_logprobs: list[float]
    status: str
    correct: bool | None
    truncated_tokens: int

    def __post_init__(self) -> None:
        Example.__post_init__(self)
        require(
            self.error is not None or self.status in get_args(Status),
            "status",
            f"one of {', '.join(get_args(Status))}",
            self.status,
        )

    def tally(self) -> tuple[str, ...]:
        if self.error is not None:
            return ()
        cut = ("input_truncated",) * (self.truncated_tokens > 0)
        return Example.tally(self) + cut + (COUNTED_AS[self.status],) + ("correct",) * bool(self.correct)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features(Row):
    """What one row teaches a student: parallel sequences, each of one term of the objective.

    `term` indexes the objective's terms; `input_ids` and `target_ids` are the student's token ids, without padding.
    `truncated` says that an input or a rationale was cut to the student's limits. A row without target has no sequence.
    """

    term: list[int]
    input_ids: list[list[int]]
    target_ids: list[list[int]]
    truncated: bool

    def __post_init__(self) -> None:
        Row.__post_init__(self)
        check_parallel(self, "term", "input_ids", "target_ids")

    def tally(self) -> tuple[str, ...]:
        if self.error is not None:
            return ()
        return ("truncated",) * self.truncated + ("teaches_nothing",) * (not self.term)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One number of the report. Every table is a view of these rows. The headline metric is called `accuracy`."""

    subject: str
    stage: str
    variant: str
    seed: int | None
    task: str
    split: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    against: str | None
    p_value: float | None
    higher_is_better: bool


R = TypeVar("R", bound=Row)


def extended(row: Row, row_type: type[R], **added: Any) -> R:
    """A row of a wider type: all that `row` has, and `added`."""
    return row_type(**{field.name: getattr(row, field.name) for field in dataclasses.fields(row)}, **added)


def widened(row: Row, row_type: type[R], **given: Any) -> R:
    """A row of another type: what `row` has, `given`, and blanks in the rest of what `row_type` has.

    What is null in `row` is blank too: `row_type` may have a field of that name which is never null.
    """
    had = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    known = {name: value for name, value in had.items() if value is not None}
    blanks = {name: blank(hint) for name, hint in hints(row_type).items()}
    return row_type(**{name: known.get(name, empty) for name, empty in blanks.items()} | given)


def as_errored(row: Row, row_type: type[R], error: RowError) -> R:
    """A row without its result: what it had so far, the error, and blanks in what `row_type` adds."""
    return widened(row, row_type, error=error)


def as_question(row: Attribution, segments: Sequence[Segment], label_set: Sequence[str]) -> Example:
    """What a model is asked about a row: these texts and answers to choose from, and as target the answer that was explained."""
    asked = {"segments": list(segments), "target": row.explained_answer, "label_set": list(label_set)}
    return widened(row, Example, **asked, evidence=[], llm_rationale=None, llm_label=None)


def text_of(row: Example, span: Span) -> str:
    """The text that a span covers."""
    return row.segments[span.segment].text[span.start : span.end]


def _check_spans(segments: Sequence[Segment], which: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> None:
    sizes = [len(segment.text) for segment in segments]
    for segment, start, end in zip(which, starts, ends, strict=True):
        if not (0 <= segment < len(sizes) and 0 <= start <= end <= sizes[segment]):
            raise ValueError(f"span ({segment}, {start}, {end}): expected offsets inside one of the texts of lengths {sizes}")
