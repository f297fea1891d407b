"""What the models of a run cost, from the manifests of their training and of their predictions, and from their files."""

from contextlib import suppress

from jobs.comparisons import Predictions
from jobs.wiring import TEACHER, Wiring
from kd.errors import StageError, UserError
from kd.evaluation.answers import ANSWERING_MS
from kd.manifests import Manifest
from kd.models import count_parameters
from kd.reporting.cost_table import Cost
from kd.training.runs import MODEL, trained

Trained = tuple[str, Manifest]
"""The folder and the manifest of a finished run."""


def costs(wiring: Wiring, predictions: Predictions) -> list[Cost]:
    """The teacher, if there is one, and every student; those that were neither trained nor evaluated are left out."""
    runs = _runs(wiring)
    there = {model: found for model, found in predictions.items() if found is not None or model in runs}
    return [_cost(wiring, model, runs.get(model), found) for model, found in there.items()]


def _runs(wiring: Wiring) -> dict[tuple[str, int], Trained]:
    """The finished runs by variant and seed, the teacher's among them if it was taught."""
    config, found = wiring.config, dict[tuple[str, int], Trained]()
    for variant, seed in wiring.pairs:
        with suppress(StageError):
            found[variant.name, seed] = trained(wiring.store, wiring.student(variant, seed), config.training)
    if config.teach is not None:
        with suppress(StageError):
            found[TEACHER, 0] = trained(wiring.store, wiring.teaching(), config.teach)
    return found


def _cost(wiring: Wiring, model: tuple[str, int], run: Trained | None, answered: tuple[str, Manifest] | None) -> Cost:
    manifest = answered[1] if answered else None
    rows = manifest.rows - sum(manifest.errors.values()) if manifest else 0
    took_ms = manifest.counts.get(ANSWERING_MS, 0) if manifest else 0
    return Cost(
        subject=TEACHER if model[0] == TEACHER else "student",
        variant=model[0],
        seed=model[1],
        parameters=int(run[1].figures["parameters"] or 0) if run else _of_an_untaught_teacher(wiring),
        size_bytes=sum(wiring.store.sizes(f"{run[0]}/{MODEL}").values()) if run else None,
        rows=rows,
        rows_per_s=1000 * rows / took_ms if took_ms else None,
        device=manifest.device if manifest else None,
    )


def _of_an_untaught_teacher(wiring: Wiring) -> int | None:
    """Counted in its architecture, as it was not trained here; None where that cannot be opened."""
    try:
        return count_parameters(wiring.teacher)
    except UserError:
        return None
