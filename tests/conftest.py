"""What holds for every test: one torch thread, no token for the cluster of a test, short waits. A local Ray and tiny models for
those that ask.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from kd.loading import set_threads
from kd.models import Loaded, ModelSource
from kd.store import Store
from tests.gs_server import serving_gs
from tests.s3_server import S3Server, environment_of, serving

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")  # how soon the end of a group is seen; Ray's own is 2
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """One tiny model of each kind; built anew for every module, as attribution freezes their weights."""
    from tests import tiny  # here, as most tests need no model

    return tiny.tiny_models(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A small T5 that knows six questions by heart; see `tests/tiny_answers.py`."""
    from tests.tiny_answers import learnt

    return learnt(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread while the tests of a module run, whatever stages before them have set."""
    with set_threads(1):
        yield


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """A real S3 server without buckets, in this process's environment; see `tests/s3_server.py`."""
    with serving() as server, environment_of(server):
        yield server


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    """The endpoint of an emulator of Google's object store, in this process's environment; see `tests/gs_server.py`."""
    with serving_gs() as endpoint:
        yield endpoint


STORES = ("local", "s3", "gs")
"""The kinds of store that are supported."""


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty run directory on each kind of store in turn."""
    if request.param == "local":
        return Store.at(str(tmp_path / "run"))
    if request.param == "s3":
        request.getfixturevalue("s3").make_bucket("runs")
    else:
        request.getfixturevalue("gs")
    return Store.at(f"{request.param}://runs/{tmp_path.name}-{uuid.uuid4().hex[:8]}")


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
