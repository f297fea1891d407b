"""Whether `jobs.plan` is right: the time it plans for the attribution stage, and what the stage then takes.

`make bench-plan`. The model is that of `bench/attribution.py`. Planning, preparing and attributing are the jobs themselves,
one after the other, each in a process of its own as a user starts them.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from bench.record import Record
from bench.setting import LIMITS, arguments, make_model
from bench.texts import questions
from kd.store import Store
from kd.tasks.planted import generate

ACTORS = 2
FOLDER = "attributions/saliency"


def main() -> None:
    """Plan, run, compare, and leave with the bar's status."""
    given = arguments(__doc__, rows=3000)
    record = Record("plan", given.out)
    record.machine(text="CommonsenseQA" if given.data else "planted", rows=given.rows, budget_tokens=given.budget, actors=ACTORS)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        config = written_config(Path(scratch), given)
        store = Store.at(f"{scratch}/runs/plan")
        job("plan", config)
        planned = store.read_json("plan.json")["attribution"]["seconds"]
        job("prepare", config)
        started = time.perf_counter()
        job("attribute", config)
        wall = time.perf_counter() - started
        manifest = store.manifest(FOLDER)
    assert manifest is not None, "the job has ended well, so its stage is complete"
    record.figure("attribute", "rows", manifest.rows, "rows")
    record.figure("attribute", "planned", planned, "s")
    record.figure("attribute", "taken, from the first actor's start to the last one's end", manifest.seconds, "s")
    record.figure("attribute", "the whole job, start of Ray included", wall, "s")
    record.bar("planned time off by (share of the time taken)", abs(planned / manifest.seconds - 1), "at_most", 0.30)
    record.end()


def written_config(scratch: Path, given: argparse.Namespace) -> Path:
    """A config file of a run that attributes so many rows with the benchmarks' model; the student is never trained.

    Some real options are longer than the limit of an answer; in a run such rows have an error, so a few are allowed.
    """
    model = scratch / "model"
    make_model(questions(given.data, 4096), model)
    if given.data is None:
        generate(scratch / "planted", {"train": given.rows, "validation": 20, "test": 20})
    task = (
        {"type": "commonsense_qa", "path": str(given.data)} if given.data else {"type": "planted", "path": f"{scratch}/planted"}
    )
    tiny = {"type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 500}
    config: dict[str, Any] = {
        "name": "plan",
        "root": str(scratch / "runs"),
        "task": task,
        "prepare": {"rows_per_shard": max(1, given.rows // (4 * ACTORS))},
        "teacher": LIMITS.model_copy(update={"name": str(model)}).model_dump(mode="json", exclude_unset=True),
        "attribution": {"splits": {"train": given.rows}, "batch_tokens": given.budget, "max_error_frac": 0.05},
        "student": {"spec": tiny},
        "training": {"steps": 1, "variants": [{"name": "label-only", "source": "none", "objective": {"type": "label_only"}}]},
        "rationales": {"sources": [{"type": "none"}]},
        "cluster": {"min_actors": ACTORS, "max_actors": ACTORS},
    }
    path = scratch / "plan.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def job(name: str, config: Path) -> None:
    """One job as a user starts it; what it says goes to stderr. It ends the benchmark where it fails."""
    subprocess.run([sys.executable, "-m", f"jobs.{name}", str(config)], stdout=sys.stderr, check=True)


if __name__ == "__main__":
    main()
