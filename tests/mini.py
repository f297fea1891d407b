"""A whole run in miniature: a planted corpus, a tiny teacher from a folder, tiny students. For tests of the chain."""

from pathlib import Path
from typing import Any

import yaml

from kd.config import Config, validate
from kd.models import save
from kd.tasks.planted import generate
from tests.tiny import tiny_t5

MINI = {
    "name": "mini",
    "task": {"type": "planted"},
    "prepare": {"rows_per_shard": 20},
    "attribution": {"splits": {"train": 50, "test": 10}},
    "rationales": {
        "roles": ["question"],
        "selection": {"type": "top_k", "k": 2},
        "sources": [{"type": "attribution"}, {"type": "random"}, {"type": "llm"}, {"type": "none"}],
    },
    "student": {
        "spec": {"type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 600},
        "max_input_tokens": 96,
        "max_answer_tokens": 16,
    },
    "training": {
        "steps": 4,
        "batch_rows": 8,
        "learning_rate": 1e-3,
        "eval_every_steps": 2,
        "eval_rows": 10,
        "save_every_steps": 0,
        "log_every_steps": 1,
        "num_workers": 2,
        "variants": [
            {"name": "label-only", "source": "none", "objective": {"type": "label_only"}},
            {"name": "attribution", "source": "attribution"},
        ],
    },
    "cluster": {"min_actors": 2, "max_actors": 2, "local_object_store_bytes": 100_000_000},
}


def write_mini(folder: Path) -> Path:
    """A corpus, a teacher and a config below `folder`; the config's path comes back. Runs go to `folder`/runs."""
    generate(folder / "corpus", {"train": 60, "validation": 20, "test": 20}, seed=7)
    save(tiny_t5(folder), folder / "teacher")
    limits = {"max_input_tokens": 128, "max_answer_tokens": 16}
    changes: dict[str, Any] = {"root": str(folder / "runs"), "teacher": {"name": str(folder / "teacher"), **limits}}
    config = MINI | changes | {"task": {"type": "planted", "path": str(folder / "corpus")}}
    path = folder / "mini.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def mini_config(path: Path, **changes: Any) -> Config:
    """The config in the file, with sections replaced."""
    return validate(yaml.safe_load(path.read_text()) | changes, str(path))
