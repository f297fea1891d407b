"""The slice of a corpus that a stage takes, and the slice of a config that decides what it makes of it."""

from collections.abc import Sequence

from kd.attribution.engine import AttributionConfig
from kd.evaluation.answers import EvaluationConfig
from kd.manifests import Shard
from kd.models import ModelConfig
from kd.training.features import Featurise


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
