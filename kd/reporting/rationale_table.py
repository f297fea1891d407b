"""The sources of rationales side by side: do they touch what people marked, and how long are they?"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from kd.evaluation.sums import Why, in_words
from kd.reporting.tables import MISSING, Table, percent, teacher_near_chance
from kd.rows import MetricRow

LeftOut = Mapping[str, Mapping[str, Mapping[Why, int]]]
"""How many rows say nothing about a measure: by source of rationales, metric and reason."""


Found = Mapping[str, MetricRow]
"""What is known of one source, by metric."""


def by_source(metrics: Iterable[MetricRow]) -> Mapping[str, Found]:
    """What the audit says of each source of rationales, by metric."""
    sources: dict[str, dict[str, MetricRow]] = {}
    for row in metrics:
        if row.stage == "audit" and row.subject == "rationales":
            sources.setdefault(row.variant, {})[row.metric] = row
    return sources


def rationale_table(metrics: Sequence[MetricRow], ranked: Collection[str] = (), left_out: LeftOut | None = None) -> Table:
    """Each source of rationales: how often it touches the human evidence, beside the chance of doing so and what an
    attribution's own token scores reach when they are permuted.

    Of a source in `ranked`, which ranks words by the teacher's attribution, that is void where the teacher is near chance.
    `left_out` says why rows are in no hit rate.
    """
    sources = by_source(metrics)
    void = {source for source in sources if source in ranked} if teacher_near_chance(metrics) else set()
    return Table(
        title="Rationales",
        columns=("source", "hit %", "chance %", "shuffled %", "words", "empty %", "rows", "with evidence"),
        rows=[_line(source, found, source in void) for source, found in sources.items()],
        notes=_notes(sources, bool(void), left_out or {}),
        left=frozenset({"source"}),
    )


def _notes(sources: Mapping[str, Found], is_void: bool, left_out: LeftOut) -> list[str]:
    gaps = [found["completeness_gap_nats"] for found in sources.values() if _value(found, "completeness_gap_nats") is not None]
    notes = [] if sources else ["The rationales have not been measured: run audit."]
    notes += [f"Completeness: scores miss the sum they should have by {row.value:.3g} nats over {row.n:,} rows." for row in gaps]
    notes += [f"{start} {', '.join(names)}{end}." for (start, end), names in _without(sources, left_out).items()]
    void = "Void: the teacher is near chance, so what its attributions hit says nothing. The number is in report.json."
    return [*notes, *([void] if is_void else [])]


def _without(sources: Mapping[str, Found], left_out: LeftOut) -> dict[tuple[str, str], list[str]]:
    """Why there is no hit rate, and which rows with evidence are in none: both ends of a sentence, and the sources between."""
    said = dict[tuple[str, str], list[str]]()
    for source, found in sources.items():
        reasons = left_out.get(source, {}).get("evidence_hit_rate", {})
        if _value(found, "evidence_hit_rate") is None:
            said.setdefault(("No hit rate for", f": {in_words(reasons)}"), []).append(source)
            continue
        for why in sorted(reasons.keys() - {Why.NO_EVIDENCE, Why.ERRORED}):
            ending = f" is without {reasons[why]:,} rows of which each {why}"
            said.setdefault(("The hit rate of", ending), []).append(source)
    return said


def _line(source: str, found: Found, is_void: bool) -> tuple[str, ...]:
    words = _value(found, "rationale_words")
    return (
        source,
        "void" if is_void else percent(_value(found, "evidence_hit_rate")),
        percent(_value(found, "evidence_hit_chance")),
        "void" if is_void else percent(_value(found, "evidence_hit_shuffled")),
        MISSING if words is None else f"{words:.1f}",
        percent(_value(found, "empty_rationale_rate")),
        _count(found, "rationale_words"),
        _count(found, "evidence_hit_rate"),
    )


def _value(found: Found, metric: str) -> float | None:
    return found[metric].value if metric in found else None


def _count(found: Found, metric: str) -> str:
    return f"{found[metric].n:,}" if metric in found else MISSING
