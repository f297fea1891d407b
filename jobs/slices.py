"""The rows of a corpus that a stage takes, the first or a sample, and the slice of a config that decides what it makes of it."""

import math
from collections.abc import Sequence
from dataclasses import replace

from kd.attribution.engine import AttributionConfig
from kd.evaluation.answers import EvaluationConfig
from kd.manifests import Shard
from kd.models import ModelConfig
from kd.training.features import Featurise

SPREAD_OVER = 32
"""Shards that a sample is taken from, if they hold enough rows: many enough to meet every part of a sorted corpus, and few
enough that each has some rows to work on."""


def first_rows(shards: Sequence[Shard], rows: int | None) -> list[Shard]:
    """The shards that hold the first `rows` rows, the last of them cut; all where there is no limit."""
    if rows is None:
        return list(shards)
    taken, left = list[Shard](), rows
    for shard in shards:
        if left <= 0:
            break
        taken.append(Shard(shard.name, shard.split, min(shard.rows, left)))
        left -= shard.rows
    return taken


def spread_rows(shards: Sequence[Shard], rows: int | None) -> list[Shard]:
    """A sample of `rows` rows: of evenly spaced shards the first ones, as many of each; all where there is no limit.

    The first rows of a split would not do: a corpus that is sorted by its label has a single label there.
    """
    there = [shard for shard in shards if shard.rows]
    held = sum(shard.rows for shard in there)
    if rows is None or rows >= held:
        return list(shards)
    count = max(min(SPREAD_OVER, rows, len(there)), math.ceil(rows * len(there) / held))
    while sum(shard.rows for shard in _spaced(there, count)) < rows:
        count += 1
    chosen, taken, left = _spaced(there, count), dict[str, int](), rows
    for place, shard in enumerate(sorted(chosen, key=lambda shard: shard.rows)):  # what a small one lacks, larger ones have
        taken[shard.name] = min(shard.rows, left // (count - place))
        left -= taken[shard.name]
    return [replace(shard, rows=taken[shard.name]) for shard in chosen]


def _spaced(shards: Sequence[Shard], count: int) -> list[Shard]:
    """So many of them at even distances, the first among them."""
    return [shards[place * len(shards) // count] for place in range(count)]


def stage_slice(config: AttributionConfig | EvaluationConfig) -> dict[str, object]:
    """A stage's config without what changes no row."""
    return config.model_dump(mode="json", exclude={"max_error_frac", "batch_tokens", "agreement_rows", "agreement_words"})


def features_slice(recipe: Featurise, model: str) -> dict[str, object]:
    """What decides how a row is written for a model, which `model` identifies."""
    objective = recipe.objective.model_dump(mode="json")
    return {"objective": objective, "answers": recipe.answers, "model": model, **model_slice(recipe.source.config)}


def model_slice(config: ModelConfig) -> dict[str, object]:
    """What of a model's config changes the rows that it makes, its origin apart."""
    return config.model_dump(mode="json", exclude={"name", "revision", "spec", "trust_remote_code", "allow_pickle"})
