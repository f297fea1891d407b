"""What a run will leave behind: bytes by folder of the run directory, from sampled rows written as the stages write them."""

from collections.abc import Mapping

from kd.agreement_rows import StudentAttribution
from kd.audit_rows import Erasure, Measured
from kd.families.base import Family
from kd.planning.plan import StagePlan
from kd.planning.probe import Probe
from kd.planning.rows import agreements, bytes_per_row, erasures, findings
from kd.planning.sampled import Sampled
from kd.rows import Attribution, Example, Features, RationaleRow
from kd.training.config import LoopConfig

MEASURED_ROWS = 200
"""Rows that are measured and written as the audit does, at most."""


def output_bytes(sampled: Sampled, stages: Mapping[str, StagePlan], found: Probe | None) -> dict[str, int]:
    """By folder of the run directory. Models are counted as their weights."""
    exported = _exported(sampled.student_family, sampled.config.training)
    example = bytes_per_row(sampled.lengths["train"].rows, Example)
    rationale = sum(bytes_per_row(rows, RationaleRow) for rows in sampled.rationales.values())
    features = sum(bytes_per_row(rows, Features) for rows in sampled.learned.values())
    sizes = {
        "examples": sum(sample.rows for sample in sampled.samples.values()) * example,
        **_of_the_teacher(sampled, found),
        "rationales": sampled.rationalised * rationale,
        "audit": _of_the_audit(sampled),
        "students": sampled.learnt_from * features + sampled.students * exported,
        "predictions": stages["evaluate"].rows * example,
        **_of_agreement(sampled, stages),
    }
    return {folder: round(size) for folder, size in sizes.items()}


def weight_count(family: Family) -> int:
    """A model's weights, tied ones once."""
    return sum(weight.numel() for weight in family.model.parameters())


def weight_bytes(family: Family, each: int | None = None) -> float:
    """A model's weights, with so many bytes each; as they are unless given."""
    return float(weight_count(family) * (each or family.model.dtype.itemsize))


def _exported(family: Family, loop: LoopConfig) -> float:
    """The best model of a run, and at most the last one beside it, in the precision of training."""
    return weight_bytes(family, 4 if loop.precision == "float32" else 2) * (2 if loop.keep_last else 1)


def _of_the_teacher(sampled: Sampled, found: Probe | None) -> dict[str, float]:
    """The teacher and its attributions; nothing in a run without one."""
    if sampled.teacher is None:
        return {}
    attribution = found.bytes_per_row if found and found.bytes_per_row else bytes_per_row(sampled.attributed, Attribution)
    taught = {}
    if loop := sampled.config.teach:
        inputs = sampled.samples["train"].rows * bytes_per_row(sampled.taught, Features)
        taught = {"teacher": inputs + _exported(sampled.reader, loop)}
    return taught | {"attributions": sum(sampled.explained.values()) * attribution}


def _of_the_audit(sampled: Sampled) -> float:
    """What measures say of the rows of each source, and what the teacher does where it is asked again."""
    config, audit = sampled.config.rationales, sampled.config.audit
    there = sampled.explained[audit.split] if sampled.teacher else sampled.rationalised
    size = 0.0
    for source in config.sources:
        rows = sampled.rationales[source.name][:MEASURED_ROWS]
        size += min(there, audit.rows or there) * bytes_per_row(findings(config, source, audit.top_k, rows), Measured)
        if sampled.teacher and audit.faithfulness:
            size += min(there, audit.faithfulness.rows) * bytes_per_row(erasures(audit.faithfulness, source, rows), Erasure)
    return size


def _of_agreement(sampled: Sampled, stages: Mapping[str, StagePlan]) -> dict[str, float]:
    """Students explained; nothing where none is. Every source's rows are as large."""
    if "agreement" not in stages:
        return {}
    rows = next(iter(sampled.rationales.values()))[:MEASURED_ROWS]
    return {"agreement": stages["agreement"].rows * bytes_per_row(agreements(rows), StudentAttribution)}
