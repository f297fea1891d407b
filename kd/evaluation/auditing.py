"""Are rationales any good? Plausibility and label overlap row by row, as a stage, and what its rows add up to.

A row's findings are those of `kd/evaluation/sizes.py`, `kd/evaluation/plausibility.py` and `kd/evaluation/overlap.py`, word for
word. Findings of label overlap belong to a *part*: `explained/answer/options`, as in `kd.evaluation.overlap.Slice`: which answer
was explained, whose words are looked for, and whether the options' own words count, as in `gold/predicted/out`. In sums `/all`,
`/right` or `/wrong` follows: which rows, by whether the model that gave the rationale was right.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from kd.audit_rows import Measured
from kd.evaluation.faithfulness import FaithfulnessConfig
from kd.evaluation.metrics import About, Counts, Mean, chance_of
from kd.evaluation.overlap import TEXT, WORDS, BySlice, label_overlap, teachers_answer, text_overlap
from kd.evaluation.plausibility import HARD, SHUFFLED, SOFT, hard_plausibility, shuffled_plausibility, soft_plausibility
from kd.evaluation.sizes import GAP, SIZE, gaps, sizes
from kd.evaluation.sums import Finding, Measure, Result, Sums, Tally, Why
from kd.evaluation.units import Shuffled, Units
from kd.frozen import Frozen
from kd.rows import COUNTED_AS, MetricRow, RationaleRow, Split, Status
from kd.shards import Apply
from kd.tasks.base import is_read

Judge = Callable[[str, str], bool]
"""Whether an answer is right, from it and the label: `TaskConfig.judge`."""
WHOLE = ""
"""The part of findings that are about the row as a whole."""
CHAIN_OF_THOUGHT = "llm/"
"""What parts begin with that are about an LLM's text, and not about words that were chosen."""


class AuditConfig(Frozen):
    """How it is measured whether rationales are any good, before students learn from them."""

    split: Split = "train"
    """The split whose rationales are measured."""
    rows: PositiveInt | None = 10_000
    """On how many rows plausibility and label overlap are measured, some of each of evenly spaced shards; null for all."""
    top_k: PositiveInt = 5
    """How many of the teacher's heaviest words, the options' among them, are looked for in the answer (label overlap). Of
    sources that rank nothing all words of the rationale are."""
    faithfulness: FaithfulnessConfig | None = FaithfulnessConfig()
    """How the teacher is asked again without the words. Null: it is not asked."""
    min_faithfulness_gain: float | None = Field(default=None, ge=-2, le=2)
    """The gate: by how much erasing a source's words must make the probability of the explained answer fall more than erasing
    the words of the strongest control does, on average over rows: as many random words
    (`comprehensiveness_gain:rationale_random`), and of an attribution those that its token scores pick when they are permuted
    (`comprehensiveness_gain:rationale_shuffled`). Null: no gate."""
    gated: tuple[str, ...] = ("attribution",)
    """Sources that must pass the gate. A control cannot, and is not meant to."""
    on_fail: Literal["warn", "stop"] = "warn"
    """What happens where a source does not pass: a warning, or the end of the run before students are trained."""

    @model_validator(mode="after")
    def _a_gate_has_something_to_measure(self) -> "AuditConfig":
        if self.min_faithfulness_gain is not None and self.faithfulness is None:
            raise ValueError("min_faithfulness_gain is a gate on faithfulness, which is null; measure it, or have no gate")
        return self


# --- the stage ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasureRationales:
    """The stage: rows of one source of rationales in, what measures say of each out. Nothing is loaded.

    `units` are the words that a rationale may hold, `unmerged` the same, each occurrence by itself, `with_options` those and the
    options' words. `k` of the heaviest of these are taken for label overlap, so hand them in unmerged too; None where the source
    ranks nothing. `shuffled` and `shuffled_with_options` are the importance that the permuted token scores give to the former
    and to the latter. `is_text`: whether its rationales are a chain of thought, in which stop words of an answer count where
    `keep_stop_words` is set. `judge`: whether an answer is right, as the task says.
    """

    units: Units
    unmerged: Units
    with_options: Units
    shuffled: Shuffled
    shuffled_with_options: Shuffled
    k: int | None
    is_text: bool
    keep_stop_words: bool
    judge: Judge

    def open(self) -> Apply:
        """The function from rows to rows."""
        return lambda rows, _: [self._measured(row) for row in rows]

    def _measured(self, row: RationaleRow) -> Measured:
        found, status = list(self._found(row)), self._status(row)
        values = [(name, part, tally.total) for part, name, tally in found if tally.count]
        silent = [(name, part, why) for part, name, tally in found for why in tally.left_out]
        return Measured(
            uid=row.uid,
            error=None,
            metric=[name for name, _, _ in values],
            part=[part for _, part, _ in values],
            value=[value for _, _, value in values],
            silent_metric=[name for name, _, _ in silent],
            silent_part=[part for _, part, _ in silent],
            why=[why.value for _, _, why in silent],
            teacher_right=self._is_right(teachers_answer(row), row.target) and status == "ok",
            teacher_status=status,
            llm_right=self._is_right(row.llm_label, row.target),
            chance=chance_of(row),
        )

    def _is_right(self, answer: str | None, target: str | None) -> bool | None:
        return None if answer is None or target is None else self.judge(answer, target)

    def _status(self, row: RationaleRow) -> Status | None:
        """How the teacher's own answer (`teachers_answer`) came out: one that is ranked is an answer, one that it wrote may be
        none.
        """
        if row.ranked is not None:
            return "ok"
        if row.generated is None:
            return None
        if row.generated_cut:
            return "truncated"
        return "ok" if is_read(row.generated, self.judge) else "unparsed"

    def _found(self, row: RationaleRow) -> Iterator[tuple[str, str, Tally]]:
        """Part, metric, and the tally of this one row."""
        parts = {WHOLE: sizes([row], self.units) + hard_plausibility([row], self.units)}
        if self.k is not None:
            parts[WHOLE] += gaps([row]) + soft_plausibility([row], self.unmerged)
            parts[WHOLE] += shuffled_plausibility([row], self.units, self.unmerged, self.shuffled)
        drawn_from, shuffled = (self.units, None) if self.k is None else (None, self.shuffled_with_options)
        parts |= _parts(label_overlap([row], self.with_options, self.k, drawn_from, shuffled))
        if self.is_text:
            parts |= _parts(text_overlap([row], self.keep_stop_words))
        return ((part, name, tally) for part, sums in parts.items() for name, tally in sums.tallies.items())


def _parts(found: BySlice) -> dict[str, Sums]:
    """Sums by part; which rows the model was right in follows from the row."""
    return {f"{piece.explained}/{piece.answer}/{piece.options}": sums for piece, sums in found.items()}


# --- what the rows add up to --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reported:
    """What is reported of a source, whatever its rows say.

    `ranked`: whether it ranks words; `is_text`: whether its rationales are a chain of thought; `explained`: which answer its rows
    explain, where no row says so itself.
    """

    ranked: bool
    is_text: bool
    explained: str

    def measures(self, part: str) -> Sequence[Measure]:
        """What is reported of a part."""
        if part == WHOLE:
            return (*SIZE, *HARD, *GAP, *SOFT, *SHUFFLED) if self.ranked else (*SIZE, *HARD)
        return TEXT if part.startswith(CHAIN_OF_THOUGHT) else WORDS

    @property
    def every(self) -> Sequence[Measure]:
        """All that is reported of it."""
        return (*self.measures(WHOLE), *WORDS, *(TEXT if self.is_text else ()))

    def parts(self) -> list[str]:
        """The parts over all rows, where there is no row to say of which it is."""
        words = [f"{self.explained}/{answer}/{options}/all" for options in ("in", "out") for answer in ("gold", "predicted")]
        texts = [f"{CHAIN_OF_THOUGHT}{answer}/in/all" for answer in ("gold", "predicted")]
        return [WHOLE, *words, *(texts if self.is_text else [])]


@dataclass(frozen=True)
class AuditSums:
    """What is added up over the measured rows of one source.

    Findings by part, how the teacher's own answers to labelled rows came out, how often it would be right by guessing, and how
    many rows have an error.
    """

    parts: Mapping[str, Sums] = field(default_factory=dict)
    answers: Counts = field(default_factory=Counts)
    chance: Mean = field(default_factory=Mean)
    errors: int = 0

    def __add__(self, other: "AuditSums") -> "AuditSums":
        names = dict.fromkeys([*self.parts, *other.parts])
        parts = {name: self.parts.get(name, Sums()) + other.parts.get(name, Sums()) for name in names}
        return AuditSums(parts, self.answers + other.answers, self.chance + other.chance, self.errors + other.errors)

    def metrics(self, about: About, reported: Reported) -> list[MetricRow]:
        """Every measure with its interval over rows; behind the colon stands the part. Null where no row says anything."""
        return [
            about.row(result.measure, result.value, result.n, result.interval, of=part or None)
            for part, result in self._results(reported)
        ]

    def nulls(self, reported: Reported) -> dict[str, str]:
        """Why a measure has no value, by its metric."""
        return {_named(result.measure, part): result.why_null for part, result in self._results(reported) if result.why_null}

    def left_out(self, reported: Reported) -> dict[str, Mapping[Why, int]]:
        """How many rows say nothing about a measure, by its metric and by reason; a measure of which all do is not in it."""
        return {_named(result.measure, part): result.left_out for part, result in self._results(reported) if result.left_out}

    def teacher(self, about: About) -> list[MetricRow]:
        """How often the teacher's own answer is the label, on the measured rows, and how often it is none; none of no rows."""
        return self.answers.metrics(about) if self.answers.answered else []

    def _results(self, reported: Reported) -> Iterator[tuple[str, Result]]:
        """Part and result. A row with an error is left out of all that is about all rows."""
        errored = Tally(left_out={Why.ERRORED: self.errors} if self.errors else {})
        measured = [reported.measures(part) for part in self.parts]
        blanks = {part: Sums() for part in reported.parts() if reported.measures(part) not in measured}
        for part, sums in (blanks | dict(self.parts)).items():
            measures = reported.measures(part)
            without = Sums({measure.name: errored for measure in measures if part == WHOLE or part.endswith("/all")})
            yield from ((part, result) for result in (sums + without).results(measures))


def audit_sums(rows: Iterable[Measured]) -> AuditSums:
    """The sums over a shard's rows."""
    found: dict[str, dict[str, list[Finding]]] = {}
    answers, chances, errors = Counter[str](), list[float](), 0
    for row in rows:
        errors += row.error is not None
        for part, name, finding in _findings(row):
            found.setdefault(part, {}).setdefault(name, []).append(finding)
        if row.teacher_right is not None and row.teacher_status is not None:
            answers.update((COUNTED_AS[row.teacher_status],) + ("correct",) * row.teacher_right)
        chances += [] if row.chance is None else [row.chance]
    parts = {part: Sums({name: Tally.of(each) for name, each in inside.items()}) for part, inside in found.items()}
    return AuditSums(parts, Counts.of(answers), Mean(sum(chances), len(chances)), errors)


def _findings(row: Measured) -> Iterator[tuple[str, str, Finding]]:
    """Part, metric and finding; none of a row with an error."""
    said: list[tuple[str, str, Finding]] = list(zip(row.part, row.metric, row.value, strict=True))
    said += zip(row.silent_part, row.silent_metric, map(Why, row.why), strict=True)
    for part, name, finding in said:
        if part == WHOLE:
            yield part, name, finding
            continue
        yield f"{part}/all", name, finding
        is_right = row.llm_right if part.startswith(CHAIN_OF_THOUGHT) else row.teacher_right
        if is_right is not None:
            yield f"{part}/{'right' if is_right else 'wrong'}", name, finding


def _named(measure: Measure, part: str) -> str:
    return f"{measure.name}:{part}" if part else measure.name
