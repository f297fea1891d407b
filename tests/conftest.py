"""What holds for every test: one torch thread, no token for the cluster of a test, and tiny models for those that ask."""

import os

import pytest
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
