"""The report of a run: its headline in plain words, and the same content as JSON, Markdown and one HTML page.

It is made from plain data and may be made at any time: what is missing is a dash with its reason.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kd.evaluation.agreement import AGREEMENT
from kd.evaluation.metric_names import METRICS, Metric
from kd.evaluation.metrics import over_seeds
from kd.evaluation.significance import COMPARED
from kd.manifests import Manifest
from kd.rationales import UNEXPLAINED
from kd.reporting.agreement_table import Looked, agreement_table
from kd.reporting.answer_table import answer_table
from kd.reporting.audit_table import AUDITED, audit_table, overlap_table
from kd.reporting.comparison_table import Comparisons, as_json, comparison_table, sentences
from kd.reporting.cost_table import COSTS, Cost, cost_table
from kd.reporting.heatmap import drawn
from kd.reporting.plots import dot_plot
from kd.reporting.rationale_table import LeftOut, rationale_table
from kd.reporting.tables import (
    MISSING,
    Score,
    Table,
    accuracy_table,
    as_markdown,
    chance_level,
    hundredfold,
    percent,
    scores,
    stage_table,
    teacher_near_chance,
    training_table,
    with_rates,
)
from kd.rows import Attribution, MetricRow, Prediction, RationaleRow


@dataclass(frozen=True)
class Shown:
    """An example of the report: an attributed row, best with its rationale, and what models answered to it."""

    row: Attribution
    predictions: Sequence[Prediction] = ()


@dataclass(frozen=True)
class Report:
    """What a report is made from.

    Args:
        name: the run's name.
        metrics: a row per model, seed and metric (`Counts.metrics`), per source of rationales (`AuditSums.metrics`), and the
            chance level of each stage that has an accuracy. Means over seeds are added here.
        stages: title to manifest in the order of the run; None for a stage that is not complete.
        config: the resolved config.
        examples: rows to draw.
        baseline: the variant that learns from labels only, which the headline compares with; None where there is none.
        audit: why measures of the audit have no value, and what its gate says, in sentences.
        ranked: the sources of rationales that rank words, as the teacher's attribution does.
        left_out: how many rows say nothing about a measure of the audit.
        notes: sentences that a reader should know first, such as what kind of task this is.
        comparisons: what tests say of the differences between students; None where the config declares none.
        agreement: how far students look where their teacher looked.
        costs: what the models cost.
        taught_on: the split that the teacher was taught on; None where there is none, or it is used as it is.
    """

    name: str
    metrics: Sequence[MetricRow]
    stages: Mapping[str, Manifest | None]
    config: Mapping[str, Any]
    examples: Sequence[Shown] = ()
    baseline: str | None = None
    notes: Sequence[str] = ()
    audit: Sequence[str] = ()
    ranked: frozenset[str] = frozenset()
    left_out: LeftOut = field(default_factory=dict)
    comparisons: Comparisons | None = None
    agreement: Sequence[Looked] = ()
    costs: Sequence[Cost] = ()
    taught_on: str | None = None

    @cached_property
    def all_metrics(self) -> list[MetricRow]:
        """The metrics with the means and spreads over seeds."""
        return list(dict.fromkeys([*self.metrics, *over_seeds(self.metrics)]))

    @cached_property
    def beside_accuracy(self) -> list[Table]:
        """What belongs to the accuracies: comparisons of students, agreement with the teacher, cost."""
        is_void = teacher_near_chance(self.metrics) is not None
        return [
            comparison_table(self.comparisons),
            agreement_table(self.agreement, is_void, self.taught_on),
            cost_table(self.costs),
        ]

    @cached_property
    def rationales(self) -> Table:
        """How often each source of rationales touches the human evidence."""
        return self._in_sample(rationale_table(self.metrics, self.ranked, self.left_out))

    @cached_property
    def tables(self) -> list[Table]:
        """Accuracy, answers, rationales, audit, label overlap, training, stages."""
        of_rows = [accuracy_table(self.metrics), answer_table(self.metrics), self.rationales]
        of_rows += [audit_table(self.metrics, self.audit, self.ranked, self.taught_on)]
        of_rows += [self._in_sample(overlap_table(self.metrics, self.ranked))]
        return [*of_rows, training_table(self.stages), stage_table(self.stages)]

    def _in_sample(self, table: Table) -> Table:
        """The table of audited rows, with a note where the teacher was taught on these."""
        audited = {row.split for row in self.metrics if (row.subject, row.stage) == ("rationales", "audit")}
        if not table.rows or self.taught_on not in audited:
            return table
        note = f"In-sample: the teacher was taught on {self.taught_on}, whose rows these are, and may explain what it memorised."
        return replace(table, notes=[*table.notes, note])

    @cached_property
    def table_notes(self) -> dict[str, list[str]]:
        """What stands below each table, by its title: why a number is missing, and how others are to be read."""
        return {table.title: list(table.notes) for table in (*self.tables, *self.beside_accuracy) if table.notes}


# --- in words -----------------------------------------------------------------------------------------------------------


def headline(report: Report) -> str:
    """Which variant has the highest mean accuracy, and by how much, in one or two sentences."""
    students = [score for score in scores(report.metrics) if score.subject == "student"]
    judged = sorted((score for score in students if score.mean is not None), key=lambda score: -(score.mean or 0.0))
    if not students:
        return "No student has been evaluated yet."
    answered = max(score.rows for score in students)
    if not judged and not answered:
        return "No accuracy: no student has answered a row; every row has an error, or there is none."
    if not judged:
        return f"No accuracy: the {answered:,} evaluated rows have no labels. The predictions are kept."
    best, others = judged[0], judged[1:]
    if not others:
        return f"{best.variant} has a mean accuracy of {percent(best.mean)}% over {_seeds(judged)}; no other variant has one."
    return (
        f"{best.variant} has the highest mean accuracy of {len(judged)} variants, {percent(best.mean)}% over {_seeds(judged)}:"
        f" {_distances(best, others, report.baseline)}. {_tested(report, students, judged)}"
    )


def _tested(report: Report, students: Sequence[Score], judged: Sequence[Score]) -> str:
    """Whether the difference is shown."""
    if report.comparisons is not None:
        return sentences(report.comparisons, students)
    return f"A difference over {_seeds(judged)} proves nothing by itself, and no test of significance was made."


def _distances(best: Score, others: Sequence[Score], baseline: str | None) -> str:
    """How far the best is above label only, and above the next best of the others."""
    base = next((score for score in others if score.variant == baseline), None)
    named = [base, *[score for score in others if score is not base][:1]] if base else others[:1]
    return " and ".join(_distance(best, score, "label only" if score is base else "the next best") for score in named)


def _distance(best: Score, other: Score, called: str) -> str:
    points = hundredfold((best.mean or 0.0) - (other.mean or 0.0))
    far = f"{points:.1f} points above" if points else "level with"
    return f"{far} {called} ({other.variant}, {percent(other.mean)}%)"


def _seeds(judged: Sequence[Score]) -> str:
    fewest, most = min(len(score.seeds) for score in judged), max(len(score.seeds) for score in judged)
    return f"{fewest} to {most} seeds" if fewest < most else "a single seed" if most == 1 else f"{most} seeds"


def warnings(report: Report) -> list[str]:
    """What makes the numbers worth less, said first and loudly."""
    teacher = teacher_near_chance(report.metrics)
    if teacher is None:
        return []
    level = chance_level(report.metrics, teacher)
    guessing = (
        "where guessing gives " + percent(level) + "%" if level is not None else "whose answers are text that nobody guesses"
    )
    return [
        f"The teacher is near chance: {with_rates(teacher, report.metrics)} of {teacher.n:,} rows of {teacher.split}, {guessing}."
        " Its attributions explain answers that it does not know, so measures of them are void, and so is a comparison of"
        " students that learn from them."
    ]


# --- as files -----------------------------------------------------------------------------------------------------------


def to_json(report: Report) -> dict[str, Any]:
    """The content of report.json: `metrics` is a list of `MetricRow`; `measures` says of each what it means, by its name; why a
    value is null stands in `audit`, in `comparisons` and, for the rest, in `table_notes`, by the title of the table."""
    return {
        "name": report.name,
        "headline": headline(report),
        "warnings": warnings(report),
        "notes": list(report.notes),
        "audit": list(report.audit),
        "left_out": report.left_out,
        "table_notes": report.table_notes,
        "metrics": [asdict(row) for row in report.all_metrics],
        "measures": {each.name: _explained(each) for each in (*METRICS.values(), *COMPARED, *AGREEMENT, *COSTS, *AUDITED)},
        "comparisons": as_json(report.comparisons),
        "stages": {title: None if manifest is None else asdict(manifest) for title, manifest in report.stages.items()},
        "config": dict(report.config),
        "examples": [_example_json(shown) for shown in report.examples],
    }


def _explained(metric: Metric) -> dict[str, Any]:
    """A metric as JSON, which knows no infinity: an end of its range is null where it has none."""
    ends = {name: end if math.isfinite(end) else None for name, end in (("low", metric.low), ("high", metric.high))}
    return asdict(metric) | ends


def to_html(report: Report) -> str:
    """The content of report.html: one page that needs no other file, no network and no script."""
    page = Environment(
        loader=PackageLoader("kd.reporting", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.j2")
    accuracy, answers, rationales, audit, overlap, training, stages = report.tables
    return page.render(
        report=report,
        headline=headline(report),
        warnings=warnings(report),
        accuracy=accuracy,
        beside_accuracy=report.beside_accuracy,
        answers=answers,
        rationales=rationales,
        audit=audit,
        overlap=overlap,
        training=training,
        stages=stages,
        plot=dot_plot(scores(report.metrics), chance_level(report.metrics)),
        examples=[_example_page(shown) for shown in report.examples],
        config=json.dumps(report.config, indent=2, ensure_ascii=False),
    )


def to_markdown(report: Report) -> str:
    """The content of report.md."""
    parts = [f"# {report.name}", headline(report), *[f"**{warning}**" for warning in warnings(report)], *report.notes]
    first, *others = report.tables
    parts += [as_markdown(table) for table in (first, *report.beside_accuracy, *others)]
    parts += [
        "## Examples",
        "Words of the rationale are in bold." if report.examples else f"{MISSING} No attributed row was given.",
    ]
    parts += [_example_text(shown) for shown in report.examples]
    parts += ["## Config", f"```json\n{json.dumps(report.config, indent=2, ensure_ascii=False)}\n```"]
    return "\n\n".join(parts) + "\n"


# --- examples -----------------------------------------------------------------------------------------------------------


def _facts(row: Attribution) -> dict[str, str]:
    """What stands beside an example, in words."""
    options = [] if any(segment.role == "choice" for segment in row.segments) else row.label_set
    facts = {"gold answer": MISSING + " (no label)" if row.target is None else row.target}
    if row.method != UNEXPLAINED:
        facts |= {
            "teacher wrote": (row.generated or MISSING) + " (cut at the length limit)" * bool(row.generated_cut),
            "teacher ranks first": row.ranked or MISSING + " (no set of answers)",
            "explained": f"{row.explained_answer or MISSING} ({row.explained})",
        }
    facts |= {"answers to choose from": ", ".join(options)} if options else {}
    return facts | ({"rationale": row.rationale_text or MISSING + " (empty)"} if isinstance(row, RationaleRow) else {})


def _verdict(prediction: Prediction) -> str:
    """How an answer came out, in one word."""
    if prediction.error is not None:
        return prediction.error.reason
    if prediction.status != "ok":
        return prediction.status
    return {True: "right", False: "wrong", None: "no label"}[prediction.correct]


def _answers(shown: Shown) -> list[dict[str, str]]:
    return [
        {"model": f"{p.variant}, seed {p.seed}", "answer": p.answer or p.raw or MISSING, "verdict": _verdict(p)}
        for p in shown.predictions
    ]


def _example_page(shown: Shown) -> dict[str, Any]:
    return {"uid": shown.row.uid, "segments": drawn(shown.row), "facts": _facts(shown.row), "answers": _answers(shown)}


def _example_json(shown: Shown) -> dict[str, Any]:
    segments = [asdict(segment) for segment in drawn(shown.row)]
    return {"uid": shown.row.uid, "facts": _facts(shown.row), "segments": segments, "answers": _answers(shown)}


def _example_text(shown: Shown) -> str:
    pieces = [piece for segment in drawn(shown.row) for piece in segment.pieces]
    text = "".join(f"**{piece.text}**" if piece.is_rationale else piece.text for piece in pieces)
    facts = [f"- {name}: {value}" for name, value in _facts(shown.row).items()]
    answers = [f"- {answer['model']}: {answer['answer']} ({answer['verdict']})" for answer in _answers(shown)]
    quoted = "\n".join(f"> {line}".rstrip() for line in text.splitlines())
    return f"### {shown.row.uid}\n\n{quoted}\n\n" + "\n".join([*facts, *answers])
