"""What holds for every test: one torch thread, no token for the cluster of a test; a local Ray and tiny models for those that ask."""

import os

import pytest
import ray
import torch

from kd.models import Loaded

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """One tiny model of each kind; built anew for every module, as attribution freezes their weights."""
    from tests import tiny  # here, as most tests need no model

    return tiny.tiny_models(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def cluster() -> None:
    """A local Ray with six CPUs. It stays for the next module, as a start costs seconds, and its workers' imports more.

    A module that needs another one shuts this one down first, and its own afterwards.
    """
    if not ray.is_initialized():
        connect(cpus=6)


def connect(cpus: int) -> None:
    """Start a local Ray."""
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
