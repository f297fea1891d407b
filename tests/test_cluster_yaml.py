"""The cluster definition passes Ray's own validation, and the checks that Ray does not make."""

from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[1] / "cluster.yaml"


def definition() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))


def test_ray_accepts_the_definition() -> None:
    validate_config(prepare_config(definition()))


def test_the_head_runs_no_work() -> None:
    config = definition()
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}


def test_workers_start_at_zero_and_fit_under_the_limit() -> None:
    config = definition()
    workers = {name: node for name, node in config["available_node_types"].items() if name != config["head_node_type"]}
    assert all(node["min_workers"] == 0 < node["max_workers"] <= config["max_workers"] for node in workers.values())


def test_attribution_has_spot_gpus_and_training_has_others() -> None:
    gpus = [node for node in definition()["available_node_types"].values() if node["resources"].get("GPU")]
    markets = {"InstanceMarketOptions" in node["node_config"] for node in gpus}
    assert markets == {True, False}


def test_the_dashboard_is_not_open_to_the_world_and_ray_is_the_tested_one() -> None:
    text = CLUSTER.read_text(encoding="utf-8")
    assert "--dashboard-host=127.0.0.1" in text
    pinned = next(line for line in (CLUSTER.parent / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert f"rayproject/ray:{pinned.removeprefix('ray==')}-" in definition()["docker"]["image"]
