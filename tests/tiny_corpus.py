"""A small corpus of several files, tasks that read it, and what prepare made of it."""

from pathlib import Path
from typing import Any

from kd.manifests import Manifest
from kd.ray_corpus import prepare
from kd.rows import Example
from kd.store import Store
from kd.tasks.base import PrepareConfig, TaskConfig
from kd.tasks.columns import Columns
from tests.test_corpus import WRITERS, write_jsonl

SIZES = {"train-0.jsonl": 7, "train-1.jsonl": 1, "train-2.jsonl.gz": 11, "test-0.parquet": 5, "test-1.csv": 4}


def write_files(folder: Path) -> Path:
    """Files of all formats; a record says its file and its place there."""
    for name, size in SIZES.items():
        WRITERS["x" + name[name.index(".") :]](folder / name, [record(f"{name}-{number}") for number in range(size)])
    return folder


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "q": f"What is {name}?", "a": f"it is {name}", **fields}


def mine(folder: Path, **fields: Any) -> Columns:
    given = {
        "path": str(folder),
        "files": {"train": "train*", "test": "test*"},
        "id": "id",
        "prompt": [{"column": "q"}],
        "target": "a",
    }
    return Columns.model_validate(given | fields)


def only(folder: Path, records: list[dict[str, Any]], **fields: Any) -> Columns:
    """A task whose whole corpus is one file."""
    folder.mkdir()
    write_jsonl(folder / "all.jsonl", records)
    return mine(folder, files={"train": "all.jsonl"}, **fields)


def made(
    task: TaskConfig, store: Store, rows_per_shard: int = 1000, max_error_frac: float = 0.01, retry_errors: bool = False
) -> Manifest:
    config = PrepareConfig(rows_per_shard=rows_per_shard, max_error_frac=max_error_frac)
    return prepare(task, config, store, lambda done, total: None, retry_errors=retry_errors)


def rows(store: Store, manifest: Manifest, split: str) -> list[Example]:
    return [row for shard in manifest.shards_of(split) for row in store.read_rows(f"examples/{shard.file}", Example)]


def names(store: Store, manifest: Manifest, split: str) -> list[str]:
    return [row.uid.partition("/")[2] for row in rows(store, manifest, split)]


def in_order(*files: str) -> list[str]:
    return [f"{file}-{number}" for file in files for number in range(SIZES[file])]
