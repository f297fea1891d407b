"""Students of a run compared: their answers to the same rows are paired shard by shard, and then it is tested.

Of every file of predictions two columns are read, of one shard at a time: no process holds the answers to a split.
"""

from collections.abc import Mapping

from kd.evaluation.pairing import Marked, Paired, paired_marks
from kd.evaluation.significance import Comparison, SignificanceConfig, Verdict, verdicts
from kd.manifests import Manifest, Shard
from kd.store import Store

Predictions = Mapping[tuple[str, int], tuple[str, Manifest] | None]
"""Folder and manifest of what each model answered, by variant and seed; None where there are no predictions."""


def compared(store: Store, predictions: Predictions, config: SignificanceConfig) -> list[Verdict]:
    """A verdict for each comparison of the config, the primary first, over the seeds that both variants were evaluated with."""
    named = {name for each in config.comparisons for name in (each.variant, each.against)}
    answered = {model: found for model, found in predictions.items() if found is not None and model[0] in named}
    sums = {each: Paired(_seeds(answered, each), {}) for each in config.comparisons}
    for shard in _shards(answered):
        marks = {model: _marks(store, folder, shard) for model, (folder, _) in answered.items()}
        sums = {each: so_far + _paired(marks, each, so_far.seeds) for each, so_far in sums.items()}
    return verdicts(sums, config)


def _seeds(models: Mapping[tuple[str, int], object], comparison: Comparison) -> tuple[int, ...]:
    """The seeds of both variants."""
    of = {name: {seed for variant, seed in models if variant == name} for name in (comparison.variant, comparison.against)}
    return tuple(sorted(of[comparison.variant] & of[comparison.against]))


def _shards(answered: Mapping[tuple[str, int], tuple[str, Manifest]]) -> list[Shard]:
    """The shards of the evaluated split, which are the same for all models."""
    return next((list(manifest.shards) for _, manifest in answered.values()), [])


def _marks(store: Store, folder: str, shard: Shard) -> Marked:
    return dict(store.read_columns(f"{folder}/{shard.file}", ("uid", "correct")))


def _paired(marks: Mapping[tuple[str, int], Marked], comparison: Comparison, seeds: tuple[int, ...]) -> Paired:
    if not seeds:
        return Paired((), {})
    variant, against = ({seed: marks[name, seed] for seed in seeds} for name in (comparison.variant, comparison.against))
    return paired_marks(variant, against)
