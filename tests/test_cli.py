"""How a job begins: with a run directory that all of its machines can write, or with a clear word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import check_root, cluster_address
from kd.cluster_config import ClusterConfig
from kd.config import Config
from kd.errors import ConfigError
from tests.mini import mini_config, write_mini

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return mini_config(write_mini(tmp_path), root="runs")


def rooted(config: Config, root: str, address: str | None = None) -> Config:
    return config.model_copy(update={"root": root, "cluster": ClusterConfig(address=address)})


def test_a_job_works_on_the_cluster_that_is_named_or_that_it_was_submitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address(ClusterConfig()) is None
    assert cluster_address(ClusterConfig(address="auto")) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address(ClusterConfig()) == "10.0.0.1:6379"
    assert cluster_address(ClusterConfig(address="local")) is None


def test_a_relative_root_is_refused_on_a_running_cluster_and_fine_on_ones_own(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_root(rooted(config, "runs"))
    for root in ("/mnt/shared/runs", "s3://bucket/runs", "gs://bucket/runs"):
        check_root(rooted(config, root, address="auto"))
    with pytest.raises(ConfigError, match=r"root: 'runs' is relative .* expected s3://BUCKET/PREFIX, .* absolute path"):
        check_root(rooted(config, "runs", address="auto"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match="root: './runs' is relative"):
        check_root(rooted(config, "./runs"))


def prepare(tmp_path: Path, root: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "jobs.prepare", str(write_mini(tmp_path)), f"--root={root}"]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_submitted_job_with_a_relative_root_ends_before_it_connects(tmp_path: Path) -> None:
    done = prepare(tmp_path, "runs", RAY_ADDRESS="127.0.0.1:1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: root: 'runs' is relative")


def test_a_root_that_cannot_be_written_ends_a_job_with_a_message_and_no_traceback(tmp_path: Path) -> None:
    done = prepare(tmp_path, "/proc/nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: cannot write the log /proc/nowhere/mini/logs/prepare-")
    assert "Traceback" not in done.stderr
