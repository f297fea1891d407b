"""A whole run in miniature: a planted corpus, a tiny teacher, tiny students; with a plain loop in place of the cluster."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from jobs.audit_wiring import AuditWiring
from jobs.teacher_wiring import EXAMPLES
from jobs.wiring import Wiring
from kd.config import Config, validate
from kd.corpus import find_splits
from kd.examples import Stream, plan
from kd.loading import load, save
from kd.manifests import Manifest
from kd.planning.price import Case, Gpu, Prices
from kd.shards import Work, claim, finish, run_shard
from kd.sources import freeze
from kd.store import Store
from kd.tasks.planted import generate
from kd.training.session import train_here
from tests.tiny import SPEC, tiny_source

TINY = {"type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 600}
MINI: dict[str, Any] = {
    "name": "mini",
    "task": {"type": "planted"},
    "prepare": {"rows_per_shard": 20},
    "teacher": {"spec": TINY, "max_input_tokens": 128, "max_answer_tokens": 16},
    "teach": {
        "steps": 2,
        "batch_rows": 8,
        "learning_rate": 1e-3,
        "eval_every_steps": 2,
        "eval_rows": 10,
        "save_every_steps": 0,
    },
    "attribution": {"splits": {"train": 50, "test": 10}},
    "rationales": {
        "roles": ["question"],
        "selection": {"type": "top_k", "k": 2},
        "sources": [{"type": "attribution"}, {"type": "random"}, {"type": "llm"}, {"type": "none"}],
    },
    "audit": {"rows": 30, "top_k": 2, "faithfulness": {"rows": 10, "fractions": [0.2, 0.5]}},
    "student": {"spec": TINY, "max_input_tokens": 96, "max_answer_tokens": 16},
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
BEST = Case(share_of_peak=0.5, kernel_us=1, update_ms=1, exchange_gb_per_s=10, process_s=10, load_gb_per_s=1, node_s=36)
PRICES = Prices(
    best=BEST,
    worst=BEST.model_copy(update={"share_of_peak": 0.25, "kernel_us": 10, "node_s": 360}),
    gpus=(Gpu(type="G", peak_tflops=100, memory_gib=10, memory_gb_per_s=1000, usd_per_hour=2),),
)
"""What a plan of it is priced by: round numbers."""


def write_mini(folder: Path) -> Path:
    """A corpus and a config below `folder`; the config's path comes back. Runs go to `folder`/runs."""
    generate(folder / "corpus", {"train": 60, "validation": 20, "test": 20}, seed=7)
    config = MINI | {"root": str(folder / "runs"), "task": {"type": "planted", "path": str(folder / "corpus")}}
    path = folder / "mini.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def mini_config(path: Path, **changes: Any) -> Config:
    """The config in the file, with sections replaced."""
    return validate(yaml.safe_load(path.read_text()) | changes, str(path))


def alone(**changes: Any) -> dict[str, Any]:
    """The section `training` for one process, with keys replaced."""
    return MINI["training"] | {"num_workers": 1} | changes


def prepared(config: Config) -> Wiring:
    """The run with its examples and tokenizers, made in this process."""
    store, size, written = Store.at(config.directory), config.prepare.rows_per_shard, []
    sources = find_splits(config.task)
    for split, source in sources.items():
        stream = Stream(config.task, source, split, split, store, EXAMPLES, size, [])
        records = list(source.all_records())
        for start in range(0, len(records), size):
            block = records[start : start + size]
            written.append(stream.write([(0, start + row) for row in range(len(block))], block))
    freeze(store, EXAMPLES, sources)
    done = plan(config.task, config.prepare, sources)
    counted: Counter[str] = sum((Counter(each.counts) for each in written), Counter())
    counts = {key: rows for key, rows in counted.items() if key != "rows" and not key.startswith("error.")}
    shards, rows = [each.shard for each in written], counted["rows"]
    store.publish_manifest(EXAMPLES, replace(done, shards=shards, rows=rows, counts=counts))
    wiring = Wiring(config, store)
    wiring.make_tokenizers()
    return wiring


def plain(store: Store, works: Sequence[Work]) -> None:
    """Do the works in this process, without Ray."""
    for work in works:
        claimed = claim(store, work)
        if isinstance(claimed, Manifest):
            continue
        apply = work.recipe.open()
        for shard in claimed.todo:
            run_shard(store, claimed, shard, apply)
        finish(store, claimed, 1.0, "cpu")


def taught(wiring: Wiring) -> Wiring:
    """The run with its teacher and its rationales, made in this process."""
    if wiring.config.teach is not None:
        plain(wiring.store, [wiring.teaching_features()])
        train_here(wiring.teaching_queue())
    if wiring.config.teacher is not None:
        plain(wiring.store, [wiring.attributions()])
    plain(wiring.store, list(wiring.rationales().values()))
    return wiring


def audited(wiring: Wiring) -> Wiring:
    """The run with the audit of its rationales, made in this process."""
    for works in AuditWiring(wiring).works():
        plain(wiring.store, works)
    return wiring


def studied(wiring: Wiring) -> Wiring:
    """The run with its students and all predictions, made in this process."""
    plain(wiring.store, wiring.student_features())
    train_here(wiring.training_queue())
    plain(wiring.store, wiring.predictions())
    return wiring


def without_teacher(path: Path, **changes: Any) -> Config:
    """The config in the file for students that learn from labels and an LLM's rationales; sections are replaced."""
    data = yaml.safe_load(path.read_text())
    for section in ("teacher", "teach", "attribution"):
        del data[section]
    variants = [
        {"name": "label-only", "source": "none", "objective": {"type": "label_only"}},
        {"name": "llm", "source": "llm"},
    ]
    data["rationales"] |= {"sources": [{"type": "llm"}, {"type": "none"}]}
    return validate(data | {"training": data["training"] | {"variants": variants}} | changes, str(path))


def save_teacher(folder: Path, seed: int = 0) -> None:
    """A random T5 that can read the corpus below `folder`: no two options are the same to it."""
    texts = (folder / "corpus" / "train.jsonl").read_text().splitlines()
    spec = SPEC.model_copy(update={"vocab_size": TINY["vocab_size"]})
    save(load(tiny_source(folder, spec, seed, texts), "cpu"), folder / "teacher")
