"""The cluster definition passes Ray's own validation, and the checks that Ray does not make."""

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount
from ray.core.generated.common_pb2 import LabelSelectorOperator

from kd.config import read_config

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


def submitted() -> str:
    """The command in the file's first lines."""
    lines = [line.removeprefix("#").strip() for line in CLUSTER.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    (command,) = re.findall(r"^ray job submit .*$", "\n".join(lines).replace("\\\n", ""), re.MULTILINE)
    return str(command)


def test_the_command_that_submits_is_the_readmes() -> None:
    readme = (CLUSTER.parent / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    assert submitted().split() in [line.split() for line in readme.splitlines()]


def test_what_git_does_not_track_is_not_shipped_either() -> None:
    ignored = (CLUSTER.parent / ".gitignore").read_text(encoding="utf-8").split()
    shipped = definition()["rsync_exclude"]
    for name in [".git", ".venv", ".venv-inseq", *(line.strip("/") for line in ignored)]:
        assert any(fnmatch(name, pattern) for pattern in shipped), name


def test_both_say_how_the_address_of_the_dashboard_comes_about() -> None:
    for file in ("README.md", "cluster.yaml"):
        text = (CLUSTER.parent / file).read_text(encoding="utf-8")
        assert text.index("ray up cluster.yaml") < text.index("ray dashboard cluster.yaml") < text.index("ray job submit"), file


def started(resources: dict[str, float], labels: dict[str, str]) -> set[str]:
    """The node types that Ray's autoscaler starts on an idle cluster for two bundles of these."""
    types = {
        name: NodeTypeConfig(
            name, 0, node.get("max_workers", 0), None, node.get("priority", 0), node["resources"], node.get("labels", {}), "hash"
        )
        for name, node in definition()["available_node_types"].items()
    }
    constraints = [(key, LabelSelectorOperator.LABEL_OPERATOR_IN, [value]) for key, value in labels.items()]
    bundle = ResourceRequestUtil.make(resources, label_selectors=[constraints] if labels else None)
    asked = [ResourceRequestByCount(request=bundle, count=2)]
    request = SchedulingRequest(False, types, definition()["max_workers"], resource_requests=asked)
    return {launch.instance_type for launch in ResourceDemandScheduler(None).schedule(request).to_launch}


def test_the_submitted_job_attributes_on_spot_gpus_and_trains_on_others() -> None:
    job, config, *overrides = shlex.split(submitted().partition(" python -m ")[2])
    cluster = read_config(job, "", [str(CLUSTER.parent / config), *overrides]).cluster
    assert cluster.device == "cuda"
    assert started({"GPU": 1}, cluster.actor_labels) == {"gpu_spot"}
    assert started({"GPU": 1, "CPU": 4}, cluster.training_labels) == {"gpu_on_demand"}
    assert started({"GPU": 1}, {}) == {"gpu_spot"}
    assert started({"CPU": 1}, {}) == {"cpu"}


def test_spot_nodes_are_spot_and_the_others_are_not() -> None:
    nodes = definition()["available_node_types"]
    assert "InstanceMarketOptions" in nodes["gpu_spot"]["node_config"]
    assert "InstanceMarketOptions" not in nodes["gpu_on_demand"]["node_config"]


def test_the_dashboard_is_not_open_to_the_world_and_ray_is_the_tested_one() -> None:
    text = CLUSTER.read_text(encoding="utf-8")
    assert "--dashboard-host=127.0.0.1" in text
    pinned = next(line for line in (CLUSTER.parent / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert f"rayproject/ray:{pinned.removeprefix('ray==')}-" in definition()["docker"]["image"]
