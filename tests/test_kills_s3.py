"""The chain in buckets, killed in two of its stages and started again each time, ends with the students of an undisturbed one."""

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd.config import Config, validate
from kd.store import Store
from kd.training.runs import MODEL
from tests.s3_server import S3Server
from tests.test_requests_s3 import SMALL, corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[1]
DEADLINE_S = 1200
STUDENTS = ("label-only", "attribution")
LOOK_S = 0.02


def config(name: str) -> dict[str, Any]:
    """A small run with two students, whose checkpoints are a third of the training apart."""
    variants = [variant for variant in SMALL["training"]["variants"] if variant["name"] in STUDENTS]
    return SMALL | {
        "name": name,
        "root": "s3://kills/runs",
        "task": SMALL["task"] | {"path": "s3://kills/data"},
        "rationales": SMALL["rationales"] | {"sources": [{"type": "attribution"}, {"type": "none"}]},
        "training": SMALL["training"] | {"seeds": [0], "variants": variants, "parallel_runs": 1},
        "cluster": {"min_actors": 1, "max_actors": 1, "local_object_store_bytes": 100_000_000},
    }


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> S3Server:
    s3.make_bucket("kills")
    draw, store = random.Random(0), Store.at("s3://kills/data")
    for split, rows in (("train", 400), ("validation", 100), ("test", 100)):
        store.publish(f"{split}.jsonl", "".join(corpus(draw, split, rows)).encode())
    return s3


@contextmanager
def started(name: str, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The pipeline as a person starts it; what it says goes to a file in `folder`."""
    path, said = folder / f"{name}.yaml", folder / f"{name}.txt"
    path.write_text(yaml.safe_dump(config(name)))
    command = [sys.executable, "-m", "jobs.pipeline", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with said.open("ab") as stream, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(name: str, folder: Path) -> str:
    """Run it to its end; what this start said."""
    said = folder / f"{name}.txt"
    before = said.stat().st_size if said.exists() else 0
    with started(name, folder) as process:
        code = process.wait(DEADLINE_S)
    text = said.read_bytes()[before:].decode()
    assert code == 0, text
    return text


def killed_behind(published: str, s3: S3Server, name: str, folder: Path) -> None:
    """Start it, and kill it as soon as it has published a file whose path matches."""
    s3.reset()
    deadline = time.monotonic() + DEADLINE_S
    with started(name, folder) as process:
        while not any(verb == "PUT" and re.search(published, path) for verb, path in list(s3.keys)):
            assert process.poll() is None, (folder / f"{name}.txt").read_text()
            assert time.monotonic() < deadline, f"{published} was not published"
            time.sleep(LOOK_S)
        process.kill()
        assert process.wait() == -9


def store_of(name: str) -> Store:
    made: Config = validate(config(name), "the test")
    return Store.at(made.directory)


def test_a_chain_that_is_killed_twice_ends_with_the_students_of_an_undisturbed_one(bucket: S3Server, tmp_path: Path) -> None:
    finished("whole", tmp_path)
    killed_behind(r"/killed/attributions/saliency/train-", bucket, "killed", tmp_path)
    assert store_of("killed").manifest("attributions/saliency") is None
    killed_behind(r"/killed/students/label-only/0/checkpoints/\d+-\w+/manifest\.json", bucket, "killed", tmp_path)
    assert store_of("killed").manifest("students/label-only/0") is None
    said = finished("killed", tmp_path)
    assert said.count("complete already") >= 5, said
    for student in STUDENTS:
        weights = [store_of(name).read(f"students/{student}/0/{MODEL}/model.safetensors") for name in ("whole", "killed")]
        histories = [store_of(name).read_json(f"students/{student}/0/history.json")["history"] for name in ("whole", "killed")]
        assert weights[0] == weights[1]
        assert histories[0] == histories[1]
    assert all(store_of("killed").read_json("report.json")["stages"].values())
    assert "complete already" in finished("killed", tmp_path)
