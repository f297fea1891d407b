"""Does a student look where its teacher looked? The works that explain students, and what comes out of them."""

from collections.abc import Sequence

from jobs.audit_wiring import AuditWiring
from jobs.slices import model_slice, spread_rows
from jobs.wiring import Wiring
from kd.agreement_rows import StudentAttribution
from kd.attribution.students import ExplainStudent
from kd.errors import StageError
from kd.evaluation.agreement import AGREEMENT, agreement
from kd.evaluation.sums import Sums
from kd.manifests import Manifest
from kd.models import ModelSource
from kd.reporting.agreement_table import Looked
from kd.rows import RationaleRow
from kd.shards import Work, completed
from kd.training.config import Variant
from kd.training.runs import MODEL, trained


def agreement_works(wiring: Wiring) -> list[Work]:
    """Every student that did not fail, explained on rows that carry the teacher's importance; none where that is not wanted."""
    if not is_wanted(wiring):
        return []
    failed = wiring.failed_students()
    return [student_work(wiring, *pair) for pair in wiring.pairs if f"{pair[0].name}/{pair[1]}" not in failed]


def check_students(wiring: Wiring) -> None:
    """Raise ConfigError, before students are trained, where one cannot be explained by the teacher's method."""
    method = wiring.config.attribution.method
    if method.at_the_input or not is_wanted(wiring):
        return
    from kd.families.opening import open_family
    from kd.loading import load

    source = wiring.untrained(wiring.config.student, 0)
    method.check(open_family(load(source, "meta"), source.config))


def is_wanted(wiring: Wiring) -> bool:
    """Whether there is a teacher to agree with, and a row to do it on."""
    return wiring.config.teacher is not None and wiring.config.evaluation.agreement_rows > 0


def student_work(wiring: Wiring, variant: Variant, seed: int) -> Work:
    """One student explained on the sample. Raises StageError where it, or the rows, are not complete."""
    config = wiring.config
    folder, rows = _explained(wiring)
    home, student = trained(wiring.store, wiring.student(variant, seed), config.training)
    source, prefix = ModelSource(config.student, wiring.store, f"{home}/{MODEL}"), variant.objective.answer_prefix
    pieces, cluster = config.rationales.pool.pieces, config.cluster
    return Work(
        title="evaluate",
        recipe=ExplainStudent(config.attribution, source, prefix, pieces, cluster.model_device, cluster.threads_per_actor),
        source=folder,
        target=f"agreement/{variant.name}/{seed}",
        reads=RationaleRow,
        writes=StudentAttribution,
        shards=spread_rows(rows.shards_of(_split(wiring, rows)), config.evaluation.agreement_rows),
        config={
            "method": config.attribution.method.model_dump(mode="json"),
            "prefix": prefix,
            "pieces": pieces,
            "model": model_slice(config.student),
        },
        inputs={"rationales": rows.digest, "model": student.digest},
        max_error_frac=1.0,  # a diagnostic ends no run; its results count the rows that a student cannot be explained on
        max_error_key="evaluation.agreement_rows",
    )


def _explained(wiring: Wiring) -> tuple[str, Manifest]:
    """Rows with the teacher's importance: every source's have it."""
    return completed(wiring.store, wiring.rationales()[AuditWiring(wiring).explained])


def _split(wiring: Wiring, rows: Manifest) -> str:
    """The evaluated split where the teacher explained it, else train."""
    split = wiring.config.evaluation.split
    return split if rows.shards_of(split) else "train"


# --- what comes out of them ---------------------------------------------------------------------------------------------


def looked(wiring: Wiring) -> list[Looked]:
    """How far each student agrees with the teacher, of those that were explained."""
    return [found for pair in wiring.pairs if (found := _looked(wiring, *pair))] if is_wanted(wiring) else []


def _looked(wiring: Wiring, variant: Variant, seed: int) -> Looked | None:
    try:
        folder, manifest = completed(wiring.store, student_work(wiring, variant, seed))
    except StageError:
        return None
    sums = Sums()
    for shard in manifest.shards:
        sums += _sums(wiring, wiring.store.read_rows(f"{folder}/{shard.file}", StudentAttribution))
    split = manifest.shards[0].split if manifest.shards else wiring.config.evaluation.split
    return Looked(variant.name, seed, split, sums.results(AGREEMENT))


def _sums(wiring: Wiring, rows: Sequence[StudentAttribution]) -> Sums:
    # Not merged: two sums over the same occurrences agree by themselves.
    rationales = wiring.config.rationales.model_copy(update={"merge_duplicates": False})
    theirs = [row.student_importance for row in rows]
    return agreement(rows, theirs, rationales.units, wiring.config.evaluation.agreement_words)
