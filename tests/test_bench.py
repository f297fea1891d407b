"""Benchmarks: what they say, and when they say that a bar does not hold. Their timings are no business of the tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.record import Record, ratio
from bench.texts import questions

ROOT = Path(__file__).parents[1]


def test_a_bar_that_does_not_hold_makes_the_benchmark_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record("toy", tmp_path / "out.jsonl")
    record.figure("a", "rate", 12.34567, "rows/s")
    record.bar("fast", 1.0, "at_least", 0.9)
    record.bar("slow", 1.0, "at_most", 0.9)
    record.bar("missing", None, "at_most", 0.9)
    with pytest.raises(SystemExit) as left:
        record.end()
    assert left.value.code == 1
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said == [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert said[0] == {"bench": "toy", "case": "a", "metric": "rate", "value": 12.35, "unit": "rows/s"}
    assert [line["holds"] for line in said[1:]] == [True, False, False]


def test_a_benchmark_whose_bars_hold_ends_well() -> None:
    record = Record("toy")
    record.bar("fast", 1.0, "at_least", 0.9)
    with pytest.raises(SystemExit) as left:
        record.end()
    assert left.value.code == 0


def test_a_ratio_compares_rates_of_the_same_round() -> None:
    assert ratio({"a": [10.0, 2.0, 9.0], "b": [5.0, 1.0, 3.0]}, "a", "b") == 2.0


def test_made_up_questions_are_the_same_every_time_and_spread_in_length() -> None:
    rows = questions(None, 200)
    assert rows == questions(None, 200)
    lengths = {len(row.segments[0].text.split()) for row in rows}
    assert (min(lengths), max(lengths)) == (5, 40)
    assert all(row.target in row.label_set for row in rows)


def test_the_gpu_benchmark_runs_without_ray_on_a_small_model() -> None:
    code = """
import sys
sys.modules["ray"] = sys.modules["deepspeed"] = None
sys.argv = ["bench", "--tiny", "--seconds", "0.01"]
from bench.attribution_gpu import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    bars = [line for line in said if "bar" in line]
    assert len(bars) == 2, done.stderr
    assert done.returncode == (0 if all(line["holds"] for line in bars) else 1)
    shares = [line["value"] for line in said if line.get("metric") == "share of the measured peak"]
    assert len(shares) == 8
    assert all(0 < share < 1 for share in shares)
