"""The configs of the repository cut their corpora finely enough: no actor stands idle, and training still shuffles well."""

from pathlib import Path

import pytest

from kd.config import Config, read_config
from kd.planning.plan import SHARDS_PER_ACTOR, cut_in_shards
from kd.tasks.planted import ROWS

ROOT = Path(__file__).parents[1]
PUBLISHED = {
    "anli": {"train": 16_946, "validation": 1_000, "test": 1_000},
    "commonsense_qa": {"train": 8_766, "validation": 975, "test": 1_221},
    "esnli": {"train": 549_367, "validation": 9_842, "test": 9_824},
    "svamp": {"train": 720, "validation": 80, "test": 200},
}
"""Rows of each split: table 3 of Distilling step-by-step (arXiv 2305.02301), whose hold-outs the tasks take."""
SIZES = {
    **PUBLISHED,
    **{f"dss_{name}": rows for name, rows in PUBLISHED.items()},
    "cqa_local": PUBLISHED["commonsense_qa"],
    "quickstart": ROWS,
}
"""The same for each config; the quickstart's rows are made by `kd.tasks.planted`."""
SHUFFLED_AT_LEAST = 4_000
"""Rows of a window of training, where the corpus has as many."""


def test_the_sizes_of_all_corpora_are_known() -> None:
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == {*SIZES, "prices"}


def config_of(name: str) -> Config:
    return read_config("x", "", [str(ROOT / "configs" / f"{name}.yaml")])


@pytest.mark.parametrize("name", SIZES)
def test_there_are_four_shards_to_explain_for_every_actor(name: str) -> None:
    """Without a teacher rationales are made of the rows of train, which are those that `attribution.splits` has by default."""
    config = config_of(name)
    explained = [min(SIZES[name][split], rows or SIZES[name][split]) for split, rows in config.attribution.splits.items()]
    shards = [shard for rows in explained for shard in cut_in_shards(rows, config.prepare.rows_per_shard)]
    assert len(shards) >= SHARDS_PER_ACTOR * config.cluster.max_actors


@pytest.mark.parametrize("name", SIZES)
def test_small_shards_do_not_make_small_windows_to_shuffle_in(name: str) -> None:
    config = config_of(name)
    train = SIZES[name]["train"]
    learnt_from = {config.teach: train, config.training: config.attribution.splits["train"] or train}
    for loop, rows in learnt_from.items():
        if loop is not None:
            assert loop.window_shards * config.prepare.rows_per_shard >= min(SHUFFLED_AT_LEAST, rows)
