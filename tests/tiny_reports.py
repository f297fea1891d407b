"""Reports over made-up metrics, rows with rationales, and what students answered to them."""

import dataclasses
from collections import Counter

from kd.evaluation.metrics import About, Counts, Mean, chance_metrics
from kd.evaluation.plausibility import HARD
from kd.evaluation.sizes import SIZE
from kd.evaluation.sums import Sums, Tally
from kd.manifests import Manifest
from kd.rationales import AttributionSource, RationalesConfig, Rationalise, TopK
from kd.reporting.report import Report
from kd.rows import Attribution, Example, MetricRow, Prediction, RationaleRow, RowError, Segment
from kd.spans import words
from tests import tiny
from tests.test_rationales import attributed


def answers(variant: str, *right: int, rows: int = 100, unparsed: int = 0, subject: str = "student") -> list[MetricRow]:
    """Metrics of a variant that got `right` of `rows` rows right with seeds 0, 1, ..."""
    return [
        metric
        for seed, correct in enumerate(right)
        for metric in Counts(ok=rows - unparsed, unparsed=unparsed, correct=correct).metrics(
            About(subject, "evaluate", variant, seed, "toy", "test")
        )
    ]


def unlabelled(variant: str) -> list[MetricRow]:
    return Counts(ok=50, unlabelled=50).metrics(About("student", "evaluate", variant, 0, "toy", "test"))


def chance_of(level: float) -> list[MetricRow]:
    return chance_metrics(Mean(100 * level, 100), About("task", "evaluate", "chance", None, "toy", "test"))


def rationales(source: str, hits: int, with_evidence: int = 100) -> list[MetricRow]:
    """What the audit says of 200 rows with three words each; of those with evidence `hits` touch it, and 40 % would by chance."""
    tallies = {
        "rationale_words": Tally(600, 1800, 200),
        "empty_rationale_rate": Tally(1, 1, 200),
        "evidence_hit_rate": Tally(hits, hits, with_evidence),
        "evidence_hit_chance": Tally(0.4 * with_evidence, 0.16 * with_evidence, with_evidence),
    }
    about = About("rationales", "audit", source, None, "toy", "train")
    found = Sums(tallies).results([measure for measure in (*SIZE, *HARD) if measure.name in tallies])
    return [about.row(each.measure, each.value, each.n, each.interval) for each in found]


FULL = [
    *answers("teacher", 95, subject="teacher"),
    *answers("plain", 40, 46),
    *answers("words", 56, 60, unparsed=2),
    *answers("noise", 44, 46),
    *chance_of(0.25),
    *rationales("attribution", 90),
]


def manifest(**fields: object) -> Manifest:
    return Manifest(**{"stage": "s", "digest": "d", "config": {}, "inputs": {}, "seconds": 2.0, **fields})  # type: ignore[arg-type]


def row(text: str = "red gold blue", scores: tuple[float, ...] = (1.0, 4.0, -2.0)) -> Attribution:
    segments = [Segment("question", text), Segment("prompt", "\n(a) "), Segment("choice", "bank")]
    blanks = [0.0] * (len(words(segments)) - len(scores))
    return attributed(segments, [*scores, *blanks])


def with_rationale(k: int = 1, **fields: object) -> RationaleRow:
    changed = dataclasses.replace(row(), **fields)  # type: ignore[arg-type]
    (result,) = Rationalise(RationalesConfig(selection=TopK(k=k)), AttributionSource()).open()([changed], Counter())
    assert isinstance(result, RationaleRow)
    return result


def predicted(example: Example, **fields: object) -> Prediction:
    base = {field.name: getattr(example, field.name) for field in dataclasses.fields(Example)}
    made = {"student": "s", "variant": "words", "seed": 1, "answer": "bank", "raw": "bank", "choice_logprobs": []}
    return Prediction(**base | made | {"status": "ok", "correct": True, "truncated_tokens": 0} | fields)


def prediction(uid: str, correct: bool | None, error: RowError | None = None, status: str = "ok") -> Prediction:
    """An answer to a question of yes or no: right, wrong, or (None) to one without a label."""
    row = tiny.example(choices=(), target=None if correct is None else "yes", uid=uid, label_set=["yes", "no"])
    return predicted(row, error=error, answer="yes" if status == "ok" else None, status=status, correct=correct)


def report(metrics: list[MetricRow] | None = None, **fields: object) -> Report:
    stages = {"prepare": manifest(rows=10, rows_per_s=5.0)}
    base = {"name": "run", "metrics": FULL if metrics is None else metrics, "stages": stages, "config": {"k": 1}}
    return Report(**base | {"baseline": "plain"} | fields)  # type: ignore[arg-type]
