"""Differences between students as a reader should take them: a table of all comparisons, and the sentence of the headline."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kd.evaluation.significance import SignificanceConfig, Verdict
from kd.reporting.tables import MISSING, Score, Table, hundredfold, percent

TITLE = "Comparisons"
COLUMNS = ("comparison", "difference", "interval", "p", "verdict", "smallest", "seeds", "rows")


@dataclass(frozen=True)
class Comparisons:
    """What a run says about the comparisons that its config declares.

    Args:
        verdicts: one per comparison, the primary first. config: how they were tested. missing: students without
            predictions (`variant/seed`), which are in no comparison, and why that is.
    """

    verdicts: Sequence[Verdict]
    config: SignificanceConfig
    missing: Mapping[str, str] = field(default_factory=dict)


def comparison_table(found: Comparisons | None) -> Table:
    """A line for each comparison; differences are in percentage points of accuracy."""
    if found is None:
        note = "No comparison was declared, so no difference was tested: name one in the config, in significance.primary."
        return Table(title=TITLE, columns=COLUMNS, rows=[], notes=[note], left=frozenset({"comparison"}))
    return Table(
        title=TITLE,
        columns=COLUMNS,
        rows=[_line(verdict) for verdict in found.verdicts],
        notes=[*_reasons(found), _method(found.config)],
        left=frozenset({"comparison", "verdict"}),
    )


def _line(verdict: Verdict) -> tuple[str, ...]:
    named = f"{verdict.comparison.variant} against {verdict.comparison.against}" + " (primary)" * verdict.is_primary
    return (
        named,
        points(verdict.difference),
        _interval(verdict),
        p_value(verdict.p_value),
        in_words(verdict),
        _smallest(verdict),
        f"{verdict.seeds:,}",
        f"{verdict.rows:,}",
    )


def _interval(verdict: Verdict) -> str:
    """Both ends, and the coverage where it is not that of the table's note."""
    if verdict.level is None:
        return MISSING
    coverage = "" if verdict.level == verdict.alpha else f" ({percent(1 - verdict.level)} %)"
    return f"{points(verdict.ci_low)} to {points(verdict.ci_high)}{coverage}"


def _smallest(verdict: Verdict) -> str:
    if verdict.detectable is not None:
        return f"{hundredfold(verdict.detectable):.1f}"
    return MISSING if verdict.p_value is None else "none"


def _reasons(found: Comparisons) -> list[str]:
    """Why there is no test or no smallest difference, which rows were left out, and who is in no comparison."""
    of_verdicts = [reason for verdict in found.verdicts for reason in _said_of(verdict, found.config)]
    return [*of_verdicts, *(f"{name} is in no comparison: {why}." for name, why in found.missing.items())]


def _said_of(verdict: Verdict, config: SignificanceConfig) -> Iterator[str]:
    variant, against = verdict.comparison.variant, verdict.comparison.against
    if verdict.why_null is not None:
        yield f"{variant} against {against} was not tested: {verdict.why_null}."
    elif verdict.why_undetectable is not None:
        sure = f"with a probability of {100 * config.power:g} %"
        yield f"{variant} against {against} has no smallest difference: {verdict.why_undetectable} {sure}."
    if verdict.left_out and verdict.rows:
        rows = "1 row is" if verdict.left_out == 1 else f"{verdict.left_out:,} rows are"
        yield f"{rows} in no comparison of {variant} and {against}: an error or no label in one of them."


def _method(config: SignificanceConfig) -> str:
    several = len(config.comparisons) > 1
    corrected = "; the p-values of those that are not primary are corrected for their number (Holm)" if several else ""
    levels = ", or what stands beside it, at which Holm's correction decided" if several else ""
    return (
        "Differences in percentage points of accuracy, the first one's less the other's, over the seeds and rows that both have."
        f" Shown: a paired t test over seeds and a bootstrap over seeds and rows both have a p-value of at most {config.alpha:g},"
        f" the larger one is printed{corrected}. Interval: at each end the wider of both tests', so zero is outside exactly"
        f" where a difference is shown; coverage {percent(1 - config.alpha)} %{levels}. Smallest: the smallest difference that a"
        f" run with seeds and rows that scatter like these shows with a probability of {100 * config.power:g} %."
    )


# --- in words -----------------------------------------------------------------------------------------------------------


def in_words(verdict: Verdict) -> str:
    """Whether a difference is shown, and which way; no difference shown; or not tested."""
    if verdict.p_value is None:
        return "not tested"
    return f"shown: {verdict.in_words}" if verdict.shown else verdict.in_words


def points(difference: float | None) -> str:
    """A difference in percentage points, with its sign; a dash for None."""
    return MISSING if difference is None else f"{hundredfold(difference):+.1f}"


def p_value(value: float | None) -> str:
    """A p-value with three decimals; a dash for None."""
    return MISSING if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def sentences(found: Comparisons, scores: Sequence[Score]) -> str:
    """The verdict on the strongest control, and on the primary comparison where that is another one.

    Controls are what the primary comparison's variant is compared with in the config; the strongest one has the highest mean
    accuracy.
    """
    primary, means = found.verdicts[0], {score.variant: score.mean for score in scores}
    controls = [each for each in found.verdicts if each.comparison.variant == primary.comparison.variant]
    strongest = max(controls, key=lambda each: _or_lowest(means.get(each.comparison.against)))
    called = f"the strongest of {len(controls)} controls" if len(controls) > 1 else "its control"
    said = (
        f"Against {strongest.comparison.against}, {called}, {strongest.comparison.variant} is {_verdict(strongest, found.config)}"
    )
    if strongest is primary:
        return said
    return f"{said} The declared primary comparison, with {primary.comparison.against}: {_verdict(primary, found.config)}"


def _or_lowest(mean: float | None) -> float:
    return -1.0 if mean is None else mean


def _verdict(verdict: Verdict, config: SignificanceConfig) -> str:
    if verdict.p_value is None:
        far = "" if verdict.difference is None else f"{_apart(verdict.difference)}; this was "
        return f"{far}not tested, since {verdict.why_null}."
    told = "shown" if verdict.shown else "no difference shown"
    return (
        f"{_apart(verdict.difference or 0.0)}: {told} (p {_p_in_words(verdict.p_value)}, {verdict.seeds} seeds,"
        f" {verdict.rows:,} rows). {_power_in_words(verdict, config)}"
    )


def _power_in_words(verdict: Verdict, config: SignificanceConfig) -> str:
    sure = f"with a probability of {100 * config.power:g}%"
    if verdict.detectable is None:
        return f"There is no smallest difference to be shown: {verdict.why_undetectable} {sure}."
    return f"The smallest difference that this run would have shown {sure} is {hundredfold(verdict.detectable):.1f} points."


def _apart(difference: float) -> str:
    size = f"{abs(hundredfold(difference)):.1f}"
    return "level with it" if size == "0.0" else f"{size} points {'better' if difference > 0 else 'worse'}"


def _p_in_words(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"= {value:.3f}"


def as_json(found: Comparisons | None) -> dict[str, Any]:
    """What report.json says: every verdict with its reason where there is no test, and how they were tested."""
    if found is None:
        return {"config": None, "verdicts": [], "missing": {}}
    verdicts = [_verdict_json(each) for each in found.verdicts]
    return {"config": found.config.model_dump(mode="json"), "verdicts": verdicts, "missing": dict(found.missing)}


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    named = {"comparison": verdict.comparison.model_dump(), "verdict": in_words(verdict)}
    return asdict(verdict) | named | {"shown": verdict.shown, "why_undetectable": verdict.why_undetectable}
