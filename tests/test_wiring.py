"""Which shards a stage takes, and what a change of the config makes a stage do again."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.wiring import EXAMPLES, Wiring, first_rows
from kd.config import Config
from kd.corpus import find_splits
from kd.examples import plan
from kd.store import Shard, Store
from tests.mini import mini_config, write_mini

SHARDS = [Shard("a", "train", 20), Shard("b", "train", 20), Shard("c", "train", 5)]


@pytest.mark.parametrize(
    ("rows", "taken"),
    [(None, [20, 20, 5]), (1, [1]), (20, [20]), (21, [20, 1]), (45, [20, 20, 5]), (99, [20, 20, 5])],
)
def test_the_first_rows_of_a_split_end_inside_a_shard(rows: int | None, taken: list[int]) -> None:
    found = first_rows(SHARDS, rows)
    assert [shard.rows for shard in found] == taken
    assert [shard.name for shard in found] == ["a", "b", "c"][: len(taken)]


@pytest.fixture
def wiring(tmp_path: Path) -> Wiring:
    config = mini_config(write_mini(tmp_path))
    store = Store.at(config.directory)
    store.publish_manifest(EXAMPLES, replace(plan(config.task, config.prepare, find_splits(config.task)), shards=SHARDS))
    return Wiring(config, store)


def changed(wiring: Wiring, section: str, **values: object) -> Wiring:
    config: Config = wiring.config.model_copy(update={section: getattr(wiring.config, section).model_copy(update=values)})
    return Wiring(config, wiring.store)


def test_attribution_depends_on_what_changes_its_rows_and_on_nothing_else(wiring: Wiring) -> None:
    digest = wiring.attributions().digest
    assert changed(wiring, "attribution", explained="predicted").attributions().digest != digest
    assert changed(wiring, "attribution", splits={"train": 7}).attributions().digest != digest
    assert changed(wiring, "teacher", max_input_tokens=64).attributions().digest != digest
    assert changed(wiring, "attribution", batch_tokens=999).attributions().digest == digest
    assert changed(wiring, "attribution", max_error_frac=0.5).attributions().digest == digest
    assert changed(wiring, "cluster", max_actors=9).attributions().digest == digest


def test_methods_have_folders_of_their_own_with_plain_names(wiring: Wiring) -> None:
    from kd.attribution.methods import IntegratedGradients

    assert wiring.attributions().target == "attributions/saliency"
    assert (
        changed(wiring, "attribution", method=IntegratedGradients()).attributions().target == "attributions/integrated-gradients"
    )


def test_a_device_is_an_order_not_a_wish(wiring: Wiring) -> None:
    assert wiring.pool.device == "cpu"
    cuda = changed(wiring, "cluster", device="cuda")
    assert cuda.pool.device == "cuda"
    assert cuda.pool.options()["num_gpus"] == 1
    assert cuda.cpu_pool.device == "cpu"
