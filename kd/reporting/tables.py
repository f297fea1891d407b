"""Tables of the report, each a view of the metric rows or of the manifests, and their plain-text and Markdown forms.

What is missing is a dash, and a note below the table says why.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kd.evaluation.metrics import is_near_chance, over_seeds
from kd.manifests import Manifest
from kd.rows import MetricRow

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """Cells as text. Columns named in `left` hold words, the others numbers; `notes` stand below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    left: frozenset[str] = field(default=frozenset())


@dataclass(frozen=True)
class Score:
    """One model of the evaluation: its accuracy rows by seed (none where there are no labels), means over its seeds."""

    subject: str
    variant: str
    seeds: Sequence[MetricRow]
    mean: float | None
    spread: float | None
    rows: int
    parse_rate: float | None
    truncation_rate: float | None


def scores(metrics: Sequence[MetricRow]) -> list[Score]:
    """The teacher and the variants in the order of their metrics, from the rows of stage `evaluate` that have a seed."""
    groups: dict[tuple[str, str], list[MetricRow]] = {}
    for row in metrics:
        if row.stage == "evaluate" and row.subject in ("teacher", "student") and row.seed is not None:
            groups.setdefault((row.subject, row.variant), []).append(row)
    return [_score(subject, variant, rows) for (subject, variant), rows in groups.items()]


def _score(subject: str, variant: str, rows: Sequence[MetricRow]) -> Score:
    summary = {row.metric: row.value for row in over_seeds(rows)}
    answered = [row.n for row in rows if row.metric == "parse_rate"]
    judged = [row for row in rows if row.metric == "accuracy" and row.value is not None]
    return Score(
        subject=subject,
        variant=variant,
        seeds=sorted(judged, key=lambda row: row.seed or 0),
        mean=summary.get("accuracy"),
        spread=summary.get("accuracy_spread"),
        rows=max(answered, default=0),
        parse_rate=summary.get("parse_rate"),
        truncation_rate=summary.get("truncation_rate"),
    )


def chance_level(metrics: Iterable[MetricRow], beside: MetricRow | None = None) -> float | None:
    """The accuracy of guessing on the evaluated rows, or on those that another accuracy is of, which its stage and split say.

    None where there is nothing to guess from.
    """
    levels = [row for row in metrics if row.metric == "accuracy_chance"]
    if beside is None:
        return next((row.value for row in levels if row.stage == "evaluate"), None)
    return next((row.value for row in levels if (row.stage, row.split) == (beside.stage, beside.split)), None)


def teacher_near_chance(metrics: Sequence[MetricRow]) -> MetricRow | None:
    """The teacher's accuracy if it is near the chance level of the same rows, audited or evaluated, else None.

    Rows that it was taught on are none of these (`IN_SAMPLE`). Its validation stands for the evaluated split as long as that has
    not been answered, or has no labels.
    """
    teachers = [row for row in metrics if row.subject == "teacher" and row.metric == "accuracy" and row.seed is not None]
    if any(row.stage == "evaluate" and row.value is not None for row in teachers):
        teachers = [row for row in teachers if row.stage != "teach"]
    return next((row for row in teachers if is_near_chance(row, chance_level(metrics, row))), None)


def with_rates(accuracy: MetricRow, metrics: Iterable[MetricRow]) -> str:
    """An accuracy in percent, and how many of the same answers could be read and were cut at the length limit."""
    of = (accuracy.subject, accuracy.stage, accuracy.variant, accuracy.seed, accuracy.split)
    rates = {row.metric: row.value for row in metrics if (row.subject, row.stage, row.variant, row.seed, row.split) == of}
    parsed, cut = (percent(rates.get(name)) for name in ("parse_rate", "truncation_rate"))
    return f"{percent(accuracy.value)}% ({parsed}% parsed, {cut}% cut)"


# --- the tables ---------------------------------------------------------------------------------------------------------


def accuracy_table(metrics: Sequence[MetricRow]) -> Table:
    """The teacher and every variant, and what guessing gives."""
    found = scores(metrics)
    level = chance_level(metrics)
    lines = [
        (
            score.variant,
            percent(score.mean),
            percent(score.spread),
            " ".join(percent(row.value) for row in score.seeds) or MISSING,
            f"{score.rows:,}",
            percent(score.parse_rate),
            percent(score.truncation_rate),
        )
        for score in found
    ]
    return Table(
        title="Accuracy",
        columns=("model", "mean %", "spread", "each seed %", "rows", "parsed %", "cut %"),
        rows=[*lines, ("chance", percent(level), *[""] * 5)],
        notes=_accuracy_notes(found, level),
        left=frozenset({"model"}),
    )


def _accuracy_notes(found: Sequence[Score], level: float | None) -> list[str]:
    unanswered = [score.variant for score in found if score.mean is None and not score.rows]
    unlabelled = [score.variant for score in found if score.mean is None and score.rows]
    single = [score.variant for score in found if score.mean is not None and score.spread is None]
    reasons = {
        "Nothing has been evaluated: run evaluate.": not found,
        f"No accuracy for {', '.join(unanswered)}: every row has an error, or there is none.": unanswered,
        f"No accuracy for {', '.join(unlabelled)}: the rows have no labels; the predictions are kept.": unlabelled,
        f"No spread for {', '.join(single)}: a single seed has none.": single,
        "No chance level: no labelled row has a set of answers to guess from.": found and level is None,
    }
    return [reason for reason, applies in reasons.items() if applies]


def training_table(stages: Mapping[str, Manifest | None]) -> Table:
    """What was trained: how the best step validates, which is the one that is evaluated, and how the last one does."""
    runs = {title: manifest.figures for title, manifest in stages.items() if manifest and "best_step" in manifest.figures}
    unscored = [title for title, figures in runs.items() if figures["validation_accuracy"] is None]
    reasons = {
        "Nothing has been trained.": not runs,
        f"Not validated, so the last step is kept: {', '.join(unscored)}.": unscored,
    }
    return Table(
        title="Training",
        columns=("run", "step", "which", "%", "parsed %", "cut %", "loss", "rows", "trained parameters"),
        rows=[line for title, figures in runs.items() for line in _training_lines(title, figures)],
        notes=[reason for reason, applies in reasons.items() if applies],
        left=frozenset({"run", "which"}),
    )


def _training_lines(title: str, figures: Mapping[str, float | str | None]) -> Iterator[tuple[str, ...]]:
    """A line on the best step and one on the last; a single one where both are the same."""
    is_one = figures["best_step"] == figures["last_step"]
    for which, prefix in [("best, last", "")] if is_one else [("best", ""), ("last", "last_")]:
        accuracy, parsed, cut, loss = (
            figures.get(f"{prefix}validation_{name}") for name in ("accuracy", "parse_rate", "truncation_rate", "loss")
        )
        shares = [MISSING if share is None else percent(float(share)) for share in (accuracy, parsed, cut)]
        step = _short(figures[f"{which.partition(',')[0]}_step"])
        sizes = [_short(figures.get(name)) for name in ("validation_rows", "trained_parameters")]
        yield (title, step, which, *shares, _short(loss), *sizes)


_IN_THE_TRAINING_TABLE = ("best_step", "last_step", "validation_", "last_validation_", "trained_parameters")
"""How the figures begin that are not said twice."""


def stage_table(stages: Mapping[str, Manifest | None]) -> Table:
    """What each stage did, from its manifest; None stands for a stage that is not complete."""
    absent = [title for title, manifest in stages.items() if manifest is None]
    idle = [title for title, manifest in stages.items() if manifest and not (manifest.rows and manifest.rows_per_s)]
    reasons = {
        f"Not complete: {', '.join(absent)}.": absent,
        f"No rate for {', '.join(idle)}: not a stage of rows, or nothing was left to do in its last start.": idle,
    }
    return Table(
        title="Stages",
        columns=("stage", "rows", "errors", "seconds", "rows/s", "device", "counted"),
        rows=[_stage_line(title, manifest) for title, manifest in stages.items()],
        notes=[reason for reason, applies in reasons.items() if applies],
        left=frozenset({"stage", "errors", "device", "counted"}),
    )


def _stage_line(title: str, manifest: Manifest | None) -> tuple[str, ...]:
    if manifest is None:
        return (title, *[MISSING] * 6)
    counted = {**manifest.counts, **manifest.figures}
    return (
        title,
        f"{manifest.rows:,}" if manifest.rows else MISSING,
        ", ".join(f"{n:,} {reason}" for reason, n in sorted(manifest.errors.items())) or "none",
        f"{manifest.seconds:,.1f}",
        MISSING if manifest.rows_per_s is None else f"{manifest.rows_per_s:,.1f}",
        manifest.device,
        ", ".join(f"{name} {_short(value)}" for name, value in counted.items() if not name.startswith(_IN_THE_TRAINING_TABLE)),
    )


def _short(value: float | str | None) -> str:
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(share: float | None) -> str:
    """A share in percent with one decimal; a dash for None."""
    return MISSING if share is None else f"{hundredfold(share):.1f}"


def hundredfold(share: float) -> float:
    """A share, or the difference of two, in percent or points with one decimal.

    Rounded twice, so that the same difference, summed up in another order, is not 7.4 in one place and 7.5 in another.
    """
    return round(round(100 * share, 9), 1)


# --- their forms --------------------------------------------------------------------------------------------------------


def terminal_table(metrics: Sequence[MetricRow]) -> str:
    """The accuracies for a console, at most 100 columns wide."""
    return as_text(accuracy_table(metrics))


def as_text(table: Table, width: int = 100) -> str:
    """Aligned plain text. The widest columns are clipped where a line would be longer than `width`."""
    lines = [tuple(table.columns), *map(tuple, table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        widths[widths.index(max(widths))] -= 1
    is_left = [column in table.left for column in table.columns]
    body = ["  ".join(map(_fit, line, widths, is_left)).rstrip() for line in lines]
    return "\n".join([body[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *body[1:], *_wrapped(table.notes, width)])


def _fit(cell: str, width: int, is_left: bool) -> str:
    clipped = cell if len(cell) <= width else f"{cell[: width - 1]}…"
    return clipped.ljust(width) if is_left else clipped.rjust(width)


def _wrapped(notes: Iterable[str], width: int) -> list[str]:
    return [line for note in notes for line in textwrap.wrap(note, width)]


def as_markdown(table: Table) -> str:
    """A Markdown table with its title and notes."""
    rule = ["---" if column in table.left else "---:" for column in table.columns]
    lines = [table.columns, rule, *([_escaped(cell) for cell in row] for row in table.rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([f"## {table.title}", body, *table.notes])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
