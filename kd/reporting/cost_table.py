"""What the models of a run cost: parameters, size on disk, and how many rows they answer per second."""

from collections.abc import Sequence
from dataclasses import dataclass

from kd.evaluation.metric_names import Metric
from kd.evaluation.metrics import About
from kd.reporting.tables import MISSING, Table
from kd.rows import MetricRow

INFINITY = float("inf")
_COUNTED = "by definition"
COSTS = (
    Metric("parameters", 0, INFINITY, False, "rows", "parameters of the model, tied ones once", _COUNTED),
    Metric("model_bytes", 0, INFINITY, False, "rows", "bytes of the model's files, or of its weights alone", _COUNTED),
    Metric(
        "answers_per_s", 0, INFINITY, True, "rows", "rows answered per second by one actor, once the model is loaded", _COUNTED
    ),
)
"""What is said of a model's cost; `n` is the number of rows that it answered."""


@dataclass(frozen=True)
class Cost:
    """One model's cost; null where it is not known.

    Args:
        subject, variant, seed: whose. parameters: of the model, tied ones once. size_bytes: of its files, tokenizer
            included. rows: that it answered. rows_per_s: of them, by one actor that has it loaded. device: what it answered on,
            several parted by commas. weights_only: whether size_bytes is that of the weights in the precision they are used in,
            for want of files.
    """

    subject: str
    variant: str
    seed: int
    parameters: int | None
    size_bytes: int | None
    rows: int
    rows_per_s: float | None
    device: str | None
    weights_only: bool = False

    def metrics(self, task: str, split: str) -> list[MetricRow]:
        """The cost as rows of the report."""
        about = About(self.subject, "cost", self.variant, self.seed, task, split)
        values = (self.parameters, self.size_bytes, self.rows_per_s)
        return [
            about.row(metric, None if value is None else float(value), self.rows)
            for metric, value in zip(COSTS, values, strict=True)
        ]


def cost_table(found: Sequence[Cost]) -> Table:
    """The teacher and every variant; a variant's students share an architecture, and their rates are averaged by time."""
    models: dict[str, list[Cost]] = {}
    for each in found:
        models.setdefault(each.variant, []).append(each)
    teacher = next((each for each in found if each.subject == "teacher"), None)
    devices = _devices(found)
    unsized = [name for name, own in models.items() if all(each.size_bytes is None for each in own)]
    weighed = [name for name, own in models.items() if any(each.weights_only for each in own)]
    untimed = [name for name, own in models.items() if all(each.rows_per_s is None for each in own)]
    reasons = {
        "No model is there yet.": not found,
        f"On different devices ({', '.join(devices)}): their rates are not to be compared.": len(devices) > 1,
        f"No size for {', '.join(unsized)}: not trained in this run, and its architecture could not be opened.": unsized,
        f"The size of {', '.join(weighed)} is that of its weights only: its files are not on this machine.": weighed,
        f"No rate for {', '.join(untimed)}: no row was answered.": untimed,
        "Rows per second: of one actor that has the model loaded.": found,
    }
    return Table(
        title="Cost",
        columns=("model", "parameters", "MB on disk", "rows/s", "times the teacher's", "device"),
        rows=[_line(name, own, teacher) for name, own in models.items()],
        notes=[reason for reason, applies in reasons.items() if applies],
        left=frozenset({"model", "device"}),
    )


def _line(name: str, own: Sequence[Cost], teacher: Cost | None) -> tuple[str, ...]:
    parameters = next((each.parameters for each in own if each.parameters is not None), None)
    size = next((each.size_bytes for each in own if each.size_bytes is not None), None)
    rate = _rate(own)
    against = _rate([teacher]) if teacher else None
    return (
        name,
        MISSING if parameters is None else f"{parameters:,}",
        MISSING if size is None else f"{size / 1e6:,.1f}",
        MISSING if rate is None else f"{rate:,.1f}",
        MISSING if rate is None or against is None else f"{rate / against:,.1f}",
        ", ".join(_devices(own)) or MISSING,
    )


def _devices(found: Sequence[Cost]) -> list[str]:
    return sorted({name for each in found if each.device for name in each.device.split(", ")})


def _rate(own: Sequence[Cost]) -> float | None:
    """Rows by the time that they took."""
    timed = [(each.rows, each.rows_per_s) for each in own if each.rows_per_s]
    seconds = sum(rows / rate for rows, rate in timed)
    return sum(rows for rows, _ in timed) / seconds if seconds else None
