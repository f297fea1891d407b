"""The answers of every model more closely: label by label, and whether a ranking's confidence is to be believed."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from kd.reporting.tables import MISSING, Table, percent
from kd.rows import MetricRow

LABEL = "f1:"

Found = Mapping[str, Sequence[MetricRow]]
"""A model's rows of all its seeds, by metric."""


def answer_table(metrics: Sequence[MetricRow]) -> Table:
    """The teacher and every variant: means over the seeds of macro-F1, of F1 by label, and of the calibration error."""
    models: dict[str, dict[str, list[MetricRow]]] = {}
    for row in metrics:
        if row.stage == "evaluate" and row.subject in ("teacher", "student") and row.seed is not None:
            models.setdefault(row.variant, {}).setdefault(row.metric, []).append(row)
    counted = {name: found for name, found in models.items() if "macro_f1" in found}
    return Table(
        title="Answers",
        columns=("model", "macro-F1 %", "calibration error %", "rows", "F1 of each label %"),
        rows=[_line(name, found) for name, found in counted.items()],
        notes=_notes(counted),
        left=frozenset({"model", "F1 of each label %"}),
    )


def _line(name: str, found: Found) -> tuple[str, ...]:
    labels = [metric for metric in found if metric.startswith(LABEL)]
    return (
        name,
        percent(_mean(found["macro_f1"])),
        percent(_mean(found.get("calibration_error", ()))),
        f"{_rows(found):,}",
        ", ".join(f"{metric.removeprefix(LABEL)} {percent(_mean(found[metric]))}" for metric in labels) or MISSING,
    )


def _notes(models: Mapping[str, Found]) -> list[str]:
    def named(holds: Callable[[Found], bool]) -> str:
        return ", ".join(name for name, found in models.items() if holds(found))

    empty = named(lambda found: not _rows(found))
    differing = named(lambda found: bool(_rows(found)) and _mean(found["macro_f1"]) is None)
    generated = named(lambda found: bool(_rows(found)) and _mean(found.get("calibration_error", ())) is None)
    reasons = {
        "Nothing has been evaluated: run evaluate.": not models,
        f"Nothing for {empty}: no labelled row was answered.": empty,
        f"No macro-F1 for {differing}: the rows have no set of answers in common.": differing,
        f"No calibration error for {generated}: the answers were generated; evaluation.answer = rank has one.": generated,
    }
    return [*(reason for reason, applies in reasons.items() if applies), *_unmet(models)]


_NEVER = {
    "f1": "no row has it as target or as answer",
    "precision": "no row has it as answer",
    "recall": "no row has it as target",
}


def _unmet(models: Mapping[str, Found]) -> list[str]:
    """Which figures of which labels are missing: a sentence for each."""
    missing = dict[str, list[str]]()
    for name, found in models.items():
        for metric, rows in found.items():
            missing.setdefault(metric, []).extend(f"{name}/{row.seed}" for row in rows if row.value is None)
    named = ((*metric.partition(":")[::2], names) for metric, names in missing.items() if names)
    return [f"No {figure} of {label} for {', '.join(names)}: {_NEVER[figure]}." for figure, label, names in named if label]


def _mean(rows: Iterable[MetricRow]) -> float | None:
    values = [row.value for row in rows if row.value is not None]
    return statistics.fmean(values) if values else None


def _rows(found: Found) -> int:
    return max(row.n for row in found["macro_f1"])
