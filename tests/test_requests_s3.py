"""How many requests a whole run makes of an object store, and how many it takes to find that it is complete."""

import io
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import ray

from jobs import pipeline
from jobs.cli import Session
from jobs.console import Console
from kd.config import Config, validate
from kd.manifests import MANIFEST
from kd.store import CLAIM, Store
from tests.conftest import connect
from tests.s3_server import S3Server

MOST_REQUESTS = 1500
"""Of the run below: 400 rows of train in 8 shards, a teacher, 6 students; about 190 shards are made, and 47 models and manifests."""
MOST_TO_FIND = 5
"""To find one complete stage or run again."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def model(width: int) -> dict[str, Any]:
    spec = {
        "type": "t5",
        "d_model": width,
        "d_kv": width // 4,
        "d_ff": 2 * width,
        "num_layers": 1,
        "num_heads": 4,
        "vocab_size": 200,
    }
    return {"spec": spec, "max_input_tokens": 48}


LOOP = {"steps": 60, "batch_rows": 16, "learning_rate": 3.0e-3, "eval_every_steps": 60, "save_every_steps": 20}
FILES = {split: f"{split}*" for split in ("train", "validation", "test")}
SMALL: dict[str, Any] = {
    "name": "small",
    "root": "s3://requests/runs",
    "task": {
        "type": "columns",
        "path": "s3://requests/data",
        "files": FILES,
        "id": "id",
        "prompt": [{"column": "text"}],
        "target": "label",
        "labels": {0: "neg", 1: "pos"},
    },
    "prepare": {"rows_per_shard": 50},
    "teacher": model(64) | {"max_answer_tokens": 8},
    "teach": LOOP,
    "attribution": {"splits": {"train": 400}},
    "rationales": {
        "selection": {"type": "top_k", "k": 1},
        "sources": [{"type": "attribution"}, {"type": "random"}, {"type": "none"}],
    },
    "audit": {"rows": 100, "faithfulness": {"rows": 20}},
    "student": model(32) | {"max_answer_tokens": 12},
    "training": LOOP
    | {
        "seeds": [0, 1],
        "variants": [
            {"name": "label-only", "source": "none", "objective": {"type": "label_only"}},
            {"name": "attribution", "source": "attribution", "objective": {"type": "multi_task", "alpha": 0.6}},
            {"name": "random", "source": "random", "objective": {"type": "multi_task", "alpha": 0.6}},
        ],
    },
}


def corpus(draw: random.Random, split: str, rows: int) -> Iterator[str]:
    """Records with one word that tells the label among others that do not."""
    others = [
        "the",
        "a",
        "film",
        "was",
        "very",
        "plot",
        "actor",
        "scene",
        "music",
        "long",
        "short",
        "odd",
        "calm",
        "slow",
        "bright",
        "dark",
        "city",
        "train",
        "river",
        "story",
        "tale",
    ]
    cues = {0: ["bad", "poor", "dull"], 1: ["good", "great", "fine"]}
    for number in range(rows):
        label, words = draw.randint(0, 1), [draw.choice(others) for _ in range(draw.randint(6, 12))]
        words.insert(draw.randrange(len(words)), draw.choice(cues[label]))
        yield json.dumps({"id": f"{split}-{number}", "text": " ".join(words), "label": label}) + "\n"


@dataclass(frozen=True)
class Ran:
    """A start of the pipeline: what it asked for, by verb and by key, and what a person saw."""

    requests: Counter[str]
    keys: Counter[tuple[str, str]]
    printed: str


def start(config: Config, s3: S3Server) -> Ran:
    stream = io.StringIO()
    s3.reset()
    pipeline.run(Session(config, Store.at(config.directory), Console(stream), ExitStack()))
    return Ran(Counter(s3.requests), Counter(s3.keys), stream.getvalue())


@pytest.fixture(scope="module")
def config(s3: S3Server) -> Config:
    s3.make_bucket("requests")
    draw = random.Random(0)
    for split, rows in (("train", 400), ("validation", 100), ("test", 100)):
        with s3.filesystem().open_output_stream(f"requests/data/{split}.jsonl") as stream:
            stream.write("".join(corpus(draw, split, rows)).encode())
    return validate(SMALL, "the test")


@pytest.fixture(scope="module")
def first(s3: S3Server, config: Config) -> Iterator[Ran]:
    """With a Ray whose workers know the server."""
    ray.shutdown()
    connect(cpus=4)
    yield start(config, s3)
    ray.shutdown()


def test_a_small_run_with_six_students_makes_so_many_requests(first: Ran) -> None:
    assert "6 of 6 models" in first.printed
    assert first.requests.total() <= MOST_REQUESTS, first.keys.most_common(40)


def test_a_complete_run_is_found_again_with_a_few_requests_for_each_stage(first: Ran, config: Config, s3: S3Server) -> None:
    again = start(config, s3)
    assert again.printed.count("complete already") >= 8
    found = Counter[str]()
    for (_, path), times in again.keys.items():
        folder, _, name = path.rpartition("/")
        if name in (CLAIM, MANIFEST):
            found[folder] += times
    assert len(found) >= 6 * 3 + 6 + 3 + 3 + 4, "predictions, runs and agreement, the audit, rationales, features and others"
    assert max(found.values()) <= MOST_TO_FIND, found.most_common(5)
    assert again.requests.total() < first.requests.total() / 2
