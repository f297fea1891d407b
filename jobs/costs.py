"""What the models of a run cost, from the manifests of their training and of their predictions, and from their files."""

from contextlib import suppress

from jobs.comparisons import Predictions
from jobs.teacher_wiring import TEACHER
from jobs.wiring import Wiring
from kd.errors import StageError, UserError
from kd.evaluation.answers import ANSWERING_MS
from kd.loading import count_parameters
from kd.manifests import Manifest
from kd.origins import files_here, size_of
from kd.reporting.cost_table import Cost
from kd.training.runs import MODEL, trained

Trained = tuple[str, Manifest]
"""The folder and the manifest of a finished run."""
_WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}


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
    parameters, size_bytes, weights_only = _size(wiring, run)
    return Cost(
        subject=TEACHER if model[0] == TEACHER else "student",
        variant=model[0],
        seed=model[1],
        parameters=parameters,
        size_bytes=size_bytes,
        rows=rows,
        rows_per_s=1000 * rows / took_ms if took_ms else None,
        device=manifest.device if manifest else None,
        weights_only=weights_only,
    )


def _size(wiring: Wiring, run: Trained | None) -> tuple[int | None, int | None, bool]:
    """Parameters, bytes of the files, and whether these are of the weights only, as there are no files on this machine.

    A teacher that was not taught is counted in its architecture; None where that cannot be opened.
    """
    if run is not None:
        folder, manifest = run
        counted, sizes = manifest.figures["parameters"], wiring.store.sizes(f"{folder}/{MODEL}")
        return None if counted is None else int(counted), sum(sizes.values()), False
    config = wiring.teacher.config
    try:
        parameters = count_parameters(wiring.teacher)
    except UserError:
        return None, None, False
    files = files_here(config.name, config.revision) if config.name else None
    size_bytes = size_of(files) if files else None
    return parameters, size_bytes or parameters * _WEIGHT_BYTES[config.dtype], size_bytes is None
