"""The gate before students are trained: do the words of a rationale decide the teacher's answer more than a control's do?"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from kd.evaluation.auditing import AuditConfig
from kd.evaluation.metrics import is_near_chance
from kd.rows import MetricRow

GAINS = {
    "comprehensiveness_gain:rationale_random": "random words",
    "comprehensiveness_gain:rationale_shuffled": "words by its shuffled scores",
}
"""The metrics that are judged, and what each is a gain over. Every source has the first, an attribution the second too."""


@dataclass(frozen=True)
class GateVerdict:
    """Whether a source passed, and the sentence that says so."""

    source: str
    passed: bool
    text: str


def over_strongest(metrics: Iterable[MetricRow]) -> MetricRow | None:
    """Of one source's metrics the gain over its strongest control, the smallest of `GAINS`; None where none was measured."""
    found = [(row.value, row) for row in metrics if row.metric in GAINS and row.value is not None]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def judged(
    config: AuditConfig,
    gains: Mapping[str, MetricRow | None],
    teacher: MetricRow | None,
    level: float | None,
    in_sample: bool = False,
) -> list[GateVerdict]:
    """A verdict on every gated source; none without a gate.

    Args:
        gains: by source its gain over the strongest control, None where it was not measured. It passes if it is large enough
            and, as far as its interval tells, no accident. teacher: its accuracy on the measured rows, or on validation where it
            was taught on those (`in_sample`); None where no row has a label, or it was not validated. level: the chance level of
            that. A teacher near chance voids the measure, and what is void passes nothing.
    """
    least = config.min_faithfulness_gain
    if least is None:
        return []
    near = teacher.split if teacher is not None and is_near_chance(teacher, level) else None
    verdicts = [_verdict(source, gains.get(source), least, near) for source in config.gated]
    where = "on rows that it has not seen" if in_sample else "there"
    unknown = "" if teacher else f"; how often the teacher is right {where} is not known"
    return [replace(verdict, text=verdict.text + unknown) for verdict in verdicts]


def _verdict(source: str, gain: MetricRow | None, least: float, near: str | None) -> GateVerdict:
    """`near`: the split on which the teacher is near chance."""
    asked = f"audit.min_faithfulness_gain asks for {least:.3f}"
    if gain is None or gain.value is None:
        return GateVerdict(source, False, f"{source}: {asked}, and no row could be measured")
    interval = "" if gain.ci_low is None else f" (95% interval over rows {gain.ci_low:.3f} to {gain.ci_high:.3f})"
    found = f"{gain.value:.3f}{interval} on {gain.n:,} rows of {gain.split}"
    if near is not None:
        text = f"{source}: {asked}; what was found, {found}, is void: on {near} the teacher is near chance"
        return GateVerdict(source, False, text)
    control = GAINS[gain.metric]
    passed = gain.value >= least and gain.ci_low is not None and gain.ci_low >= min(least, 0.0)
    said = "passes" if passed else "does not pass"
    return GateVerdict(
        source, passed, f"{source} {said}: above {control}, its words make the answer's probability fall {found}; {asked}"
    )
