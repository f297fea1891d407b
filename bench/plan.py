"""Whether `jobs.plan` is right: the time it plans for a whole run on this machine, and what the run then takes.

`make bench-plan`. The teacher is the model of `bench/attribution.py`, fine-tuned for a few steps; the students are a small T5
with two variants and two seeds. Plan and pipeline are the jobs themselves, one after the other, as a user starts them.
"""

import argparse
import re
import statistics
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
    """Plan, run, compare, and leave with the bars' status."""
    given = arguments(__doc__, rows=1200)
    record = Record("plan", given.out)
    record.machine(text="CommonsenseQA" if given.data else "planted", rows=given.rows, budget_tokens=given.budget, actors=ACTORS)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        config = written_config(Path(scratch), given)
        store = Store.at(f"{scratch}/runs/plan")
        job("plan", config)
        plan = store.read_json("plan.json")
        started = time.perf_counter()
        taken = stage_seconds(job("pipeline", config))
        taken["in all"] = time.perf_counter() - started
        manifest = store.manifest(FOLDER)
    assert manifest is not None, "the job has ended well, so its stage is complete"
    planned = {title: statistics.fmean(span) for title, span in plan["here"]["seconds"].items()}
    planned["in all"] = statistics.fmean(plan["here"]["total"])
    record.figure("attribute", "rows", manifest.rows, "rows")
    record.figure("attribute", "planned, from the first actor's start to the last one's end", plan["attribution"]["seconds"], "s")
    record.figure("attribute", "taken, likewise", manifest.seconds, "s")
    for title, seconds in planned.items():
        record.figure(title, "planned", seconds, "s")
        if title in taken:
            record.figure(title, "taken", taken[title], "s")
    off = {"attribution": plan["attribution"]["seconds"] / manifest.seconds}
    off |= {title: planned[title] / taken[title] for title in ("teach", "train", "in all")}
    for title, ratio in off.items():
        record.bar(f"planned time of {title}, off by (share of the time taken)", abs(ratio - 1), "at_most", 0.30)
    record.end()


def stage_seconds(said: str) -> dict[str, float]:
    """What each stage took, from the line that it ends with: `title  outcome  (m:ss)`. A run's own line comes before it."""
    found = re.findall(r"^(\S+) .*\((?:(\d+):)?(\d+):(\d\d)\)$", said, re.MULTILINE)
    return {title: int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) for title, hours, minutes, seconds in found}


def written_config(scratch: Path, given: argparse.Namespace) -> Path:
    """A config file of a whole run that attributes so many rows with the benchmarks' model.

    Some real options are longer than the limit of an answer; in a run such rows have an error, so a few are allowed.
    """
    model = scratch / "model"
    make_model(questions(given.data, 4096), model)
    if given.data is None:
        generate(scratch / "planted", {"train": given.rows, "validation": 20, "test": 20})
    task = (
        {"type": "commonsense_qa", "path": str(given.data)} if given.data else {"type": "planted", "path": f"{scratch}/planted"}
    )
    small = {"type": "t5", "d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 2, "num_heads": 4}
    small |= {"vocab_size": 2000, "tokenizer": "unigram"}  # of whole words, 2,000 would leave rows with options that read alike
    limits = {"max_input_tokens": 128, "max_answer_tokens": 32}
    loop = {"batch_rows": 32, "micro_batch_tokens": 2048, "eval_rows": 100, "save_every_steps": 0}
    variants = [
        {"name": "label-only", "source": "none", "objective": {"type": "label_only"}},
        {"name": "attribution", "source": "attribution", "objective": {"type": "multi_task"}},
    ]
    config: dict[str, Any] = {
        "name": "plan",
        "root": str(scratch / "runs"),
        "task": task,
        "prepare": {"rows_per_shard": max(1, given.rows // (4 * ACTORS))},
        "teacher": LIMITS.model_copy(update={"name": str(model)}).model_dump(mode="json", exclude_unset=True),
        "teach": {"steps": 20, "eval_every_steps": 20, **loop},
        "attribution": {"splits": {"train": given.rows}, "batch_tokens": given.budget, "max_error_frac": 0.05},
        "rationales": {"roles": ["question"], "sources": [{"type": "attribution"}, {"type": "random"}, {"type": "none"}]},
        "audit": {"rows": 200, "faithfulness": {"rows": 20}},
        "student": {"spec": small, **limits},
        "training": {"steps": 150, "eval_every_steps": 75, "seeds": [0, 1], "variants": variants, "max_error_frac": 0.05, **loop},
        "evaluation": {"split": "validation", "limit_rows": 300, "agreement_rows": 50, "max_error_frac": 0.05},
        "cluster": {"min_actors": ACTORS, "max_actors": ACTORS},
    }
    config["teach"]["max_error_frac"] = 0.05
    path = scratch / "plan.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def job(name: str, config: Path) -> str:
    """One job as a user starts it; what it says, which goes to stderr too. It ends the benchmark where it fails."""
    done = subprocess.run([sys.executable, "-m", f"jobs.{name}", str(config)], stdout=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(done.stdout)
    done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    main()
