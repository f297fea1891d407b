"""The audit as tables: are the rationales any good, and whose words are they?"""

from collections.abc import Collection, Iterator, Sequence

from kd.evaluation.overlap import TEXT, WORDS
from kd.evaluation.plausibility import HARD, SHUFFLED, SOFT
from kd.evaluation.sizes import GAP, SIZE
from kd.reporting.rationale_table import Found, by_source
from kd.reporting.tables import MISSING, Table, chance_level, percent, teacher_near_chance, with_rates
from kd.rows import MetricRow

AUDITED = (*SIZE, *HARD, *GAP, *SOFT, *SHUFFLED, *WORDS, *TEXT)
"""The audit's measures over words; the others are in `kd.evaluation.metric_names`."""

VOID = "void"
_SOURCE = "source"
_COLUMNS = (
    _SOURCE,
    "erased / random / shuffled",
    "kept / random / shuffled",
    "asked",
    "token F1 / chance / shuffled",
    "IOU F1 / chance / shuffled",
    "AUPRC / chance / shuffled",
    "rows",
)
_PARTS = (_SOURCE, "explained", "words of", "options", "model")


def audit_table(
    metrics: Sequence[MetricRow], reasons: Sequence[str], ranked: Collection[str] = (), taught_on: str | None = None
) -> Table:
    """Faithfulness and plausibility of every source, in percent. `reasons` are sentences about what has no value, `ranked` the
    sources that rank words, `taught_on` is the split that the teacher was taught on."""
    sources, near = by_source(metrics), teacher_near_chance(metrics)
    lines = [line for source, found in sources.items() for line in _audited(source, found, source in ranked, near is not None)]
    notes = [] if sources else ["The rationales have not been audited: run audit."]
    if sources and near is not None:
        where = f"on {near.split} the teacher is near chance, so what decides its answers says nothing"
        notes += [f"Void: {where}. The numbers are in report.json."]
    notes += [*of_the_teacher(metrics, taught_on), *reasons]
    return Table("Audit of the rationales", _COLUMNS, lines, notes, left=frozenset({_SOURCE}))


def of_the_teacher(metrics: Sequence[MetricRow], taught_on: str | None) -> list[str]:
    """How good the teacher's own answers to the measured rows are, and to others where it was taught on these."""
    of_it = [row for row in metrics if row.subject == "teacher" and row.metric.partition(":")[0] == "accuracy"]
    own = [row for row in of_it if row.stage == "audit"]
    said = [f"The teacher's own answers to the {row.n:,} measured rows with a label are {_right(row, metrics)}." for row in own]
    if not any((row.subject, row.stage, row.split) == ("rationales", "audit", taught_on) for row in metrics):
        return said
    said.append(f"In-sample: the teacher was taught on {taught_on}, whose rows are measured, and may explain what it memorised.")
    unseen = [row for row in of_it if row.stage == "teach"]
    said += [
        f"Its answers to {row.n:,} rows of {row.split}, which it has not seen, are {_right(row, metrics)}." for row in unseen
    ]
    return said if unseen else [*said, "How often it is right on rows that it has not seen is not known: it was not validated."]


def _right(row: MetricRow, metrics: Sequence[MetricRow]) -> str:
    level = chance_level(metrics, row)
    return f"right in {with_rates(row, metrics)}" + ("" if level is None else f"; chance is {percent(level)}%")


def _audited(source: str, found: Found, ranked: bool, is_void: bool) -> Iterator[tuple[str, ...]]:
    """A line on the rationale, and one on the ranking of all words where the source has one."""
    asked = _count(found, "comprehensiveness:rationale")
    also = ("shuffled",) if ranked else ()  # the control of an attribution alone
    orders = ("rationale", "rationale_random", *(f"rationale_{each}" for each in also))
    erased, kept = (_beside(found, *(f"{measure}:{order}" for order in orders)) for measure in _FALLS)
    hard = [_beside(found, name, f"{name}_chance", *(f"{name}_{each}" for each in also)) for name in ("token_f1", "iou_f1")]
    rows = _count(found, "token_f1")
    of_teacher = [VOID, VOID] if is_void else [erased, kept]
    yield (source, *of_teacher, asked, *([VOID, VOID] if is_void and ranked else hard), MISSING, rows)
    if ranked:
        falls = [_beside(found, *(f"{measure}:{order}" for order in _ORDERS)) for measure in _FALLS]
        auprc = _beside(found, "auprc", "auprc_chance", "auprc_shuffled")
        cells = [VOID, VOID] if is_void else falls
        asked = _count(found, "comprehensiveness:importance")
        yield (f"{source}, ranked", *cells, asked, MISSING, MISSING, VOID if is_void else auprc, _count(found, "auprc"))


_FALLS = ("comprehensiveness", "sufficiency")
_ORDERS = ("importance", "random", "shuffled", "lexical")


def overlap_table(metrics: Sequence[MetricRow], ranked: Collection[str] = ()) -> Table:
    """Whose words the rationales are made of, part by part; for sources that are not in `ranked` only over all rows."""
    sources, is_void = by_source(metrics), teacher_near_chance(metrics) is not None
    lines = [
        line
        for source, found in sources.items()
        for line in (*_words(source, found, source in ranked, is_void), *_texts(source, found))
    ]
    shares = (f"{which} / random / option / shuffled" for which in ("any", "first", "all"))
    columns = (*_PARTS, *shares, "whole", "rows")
    notes = [] if lines else ["No row has an answer whose words are part of its input, or nothing was audited."]
    return Table("Label overlap", columns, lines, notes, left=frozenset(_PARTS))


def _words(source: str, found: Found, ranked: bool, is_void: bool) -> Iterator[tuple[str, ...]]:
    """Lines on words that were chosen, in the slices that have rows."""
    beside = ("chance", "option_chance", *(("shuffled",) if ranked else ()))
    for part in _parts(found, "overlap_any"):
        if not ranked and not part.endswith("/all"):
            continue
        cells = [
            VOID if is_void and ranked else _beside(found, f"{name}:{part}", *(f"{name}_{each}:{part}" for each in beside))
            for name in ("overlap_any", "overlap_top1", "overlap_all")
        ]
        yield (source, *part.split("/"), *cells, MISSING, _count(found, f"overlap_any:{part}"))


def _texts(source: str, found: Found) -> Iterator[tuple[str, ...]]:
    """Lines on an LLM's chain of thought."""
    for part in _parts(found, "cot_any"):
        has_any, has_all, whole = (
            _beside(found, f"{name}:{part}", f"{name}_chance:{part}") for name in ("cot_any", "cot_all", "cot_whole")
        )
        yield (f"{source}, text", *part.split("/"), has_any, MISSING, has_all, whole, _count(found, f"cot_any:{part}"))


def _parts(found: Found, name: str) -> list[str]:
    """The slices in which a measure has rows."""
    return [row.metric.removeprefix(f"{name}:") for row in found.values() if row.metric.startswith(f"{name}:") and row.n]


def _beside(found: Found, metric: str, *controls: str) -> str:
    """A value and its controls in percent; one dash where there is no value."""
    if metric not in found or found[metric].value is None:
        return MISSING
    return " / ".join(percent(found[name].value if name in found else None) for name in (metric, *controls))


def _count(found: Found, metric: str) -> str:
    return f"{found[metric].n:,}" if metric in found and found[metric].n else MISSING
