"""The benchmarks on a GPU: that they run, small, on the CPU and without Ray, and what they say where a GPU is missing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import attribution_gpu, training_gpu

ROOT = Path(__file__).parents[1]


def run_small(bench: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """A benchmark on a small model, and the lines that it said."""
    code = f"""
import sys
sys.modules["ray"] = sys.modules["deepspeed"] = None
sys.argv = ["bench", "--tiny", "--seconds", "0.01"]
from bench.{bench} import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return done, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def shares(said: list[dict[str, Any]]) -> list[float]:
    return [line["value"] for line in said if line.get("metric") == "share of the measured peak"]


def test_that_of_attribution_runs_without_ray_on_a_small_model() -> None:
    done, said = run_small("attribution_gpu")
    bars = [line for line in said if "bar" in line]
    assert len(bars) == 2, done.stderr
    assert done.returncode == (0 if all(line["holds"] for line in bars) else 1)
    assert len(shares(said)) == 10
    assert all(share > 0 for share in shares(said))
    assert any(line.get("case") == "128 tokens, 64 rows, compiled" for line in said)


def test_that_of_training_runs_without_ray_on_a_small_model() -> None:
    done, said = run_small("training_gpu")
    assert done.returncode == 0, done.stderr
    assert len(shares(said)) == 4
    assert all(share > 0 for share in shares(said))
    assert sum(", checkpointing" in line["case"] and line["unit"] == "tokens/s" for line in said) == 2
    left_out = [line["value"] for line in said if line.get("case", "").endswith("precision: bfloat16")]
    assert left_out == ["not applicable: DeepSpeed is not installed"] * 2


SMALL = """
import sys
sys.modules["ray"] = None
from bench.gpu import TINY, Bench
from bench.record import Record
from bench.training_gpu import as_in_a_run, family, group_of_one
record = Record("training_gpu", None)
with group_of_one("cpu"):
    for _ in range(2):
        as_in_a_run(Bench(record, family(TINY, "cpu"), 0.01), "tiny", (12, 4), 64, 1e9)
"""


def test_that_of_training_takes_the_engine_of_a_run_for_its_precision() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SMALL], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {line["case"] for line in said} == {"tiny, 12 + 4 tokens, 4 rows, precision: bfloat16"}
    assert len(shares(said)) == 2
    assert all(share > 0 for share in shares(said))


@pytest.mark.parametrize("bench", [attribution_gpu, training_gpu], ids=["attribution", "training"])
def test_one_line_says_that_there_is_no_gpu(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench"])
    with pytest.raises(SystemExit, match="expected a GPU.*--tiny"):
        bench.main()
