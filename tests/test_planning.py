"""What a plan reckons, by hand; what it reads of a corpus; and the job, with a probe and without."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import Float, Int
from torch import Tensor

from kd.attribution.engine import Attribute, AttributionConfig
from kd.attribution.methods import Case, InputXGradient, IntegratedGradients, MethodConfig, Occlusion, Saliency
from kd.config import Config
from kd.corpus import SourceFile, find_splits
from kd.cost import Shape, answered_row, explained_row, learned_row, written_row
from kd.errors import ConfigError, InputError
from kd.models import save
from kd.planning import sample
from kd.planning.compute import attributed, trained
from kd.planning.lengths import Length, histogram, measured
from kd.planning.plan import Plan, StagePlan, cut_in_shards, makespan, on_actors, on_gpu, suggested_shard
from kd.planning.planner import make_plan
from kd.planning.price import Gpu, Prices, read_prices
from kd.planning.probe import Probe, measure, probe, spread
from kd.planning.rows import attributions, rationales
from kd.planning.sample import SplitSample, bytes_per_record, of_corpus, of_examples
from kd.planning.tables import to_text
from kd.rationales import AttributionSource, NoSource, RationalesConfig, TopK
from kd.rows import Features
from kd.tasks.columns import Columns
from kd.training.config import LoopConfig
from tests.mini import TINY, mini_config, prepared, write_mini
from tests.tiny import example, examples, family, tiny_source, tiny_t5

ROOT = Path(__file__).parents[1]
PRICES = Prices(share_of_peak=0.5, gpus=(Gpu(type="G", peak_tflops=100, memory_gib=10, usd_per_hour=2),))
SHAPE = Shape(reader=1000, crossed=100, writer=500, head=50, reads=64, writes=32, crosses=16)
ROW = Length(encoded=None, words=7, target=3, answers=[3, 5], size=(10, 5))  # type: ignore[arg-type]


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_gpu_hours_are_operations_over_the_share_of_the_peak_and_price_is_hours_times_the_rate() -> None:
    stages = {"attribute": StagePlan(1, 50e12 * 3600, 1.0), "train": StagePlan(1, 25e12 * 3600, 11.0)}
    found = on_gpu(PRICES.gpus[0], PRICES, stages)
    assert found.hours == {"attribute": pytest.approx(1.0), "train": pytest.approx(0.5)}
    assert (found.total_hours, found.usd, found.too_small) == (pytest.approx(1.5), pytest.approx(3.0), ["train"])
    twice = {"attribute": StagePlan(1, 110e12 * 3600, 1.0)}
    assert (found.to_attribute_in_an_hour, on_gpu(PRICES.gpus[0], PRICES, twice).to_attribute_in_an_hour) == (1, 3)


def test_a_million_rows_of_a_three_billion_teacher_take_half_an_hour_of_an_h100() -> None:
    """0.78 TFLOP a row at 40 % of 989 TFLOP/s."""
    prices = read_prices()
    hours = {gpu.type: prices.hours(gpu, 0.78e12 * 1e6) for gpu in prices.gpus}
    assert hours == {
        "H200": pytest.approx(0.55, abs=0.01),
        "H100": pytest.approx(0.55, abs=0.01),
        "A100": pytest.approx(1.74, abs=0.01),
        "L4": pytest.approx(4.48, abs=0.01),
    }


def test_a_table_of_prices_with_an_unknown_key_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("share_of_peak: 0.4\ngpus:\n  - {type: X, peak_tflops: 1, memory_gib: 1, eur: 1}\n")
    with pytest.raises(ConfigError, match=r"prices.yaml is no table of prices: gpus.0.usd_per_hour: .*; gpus.0.eur: "):
        read_prices(tmp_path / "prices.yaml")


def test_an_explained_row_costs_its_passes_and_the_answers_that_are_wanted() -> None:
    gold, longest = explained_row(SHAPE, 10, 3), explained_row(SHAPE, 10, 5)
    answers = sum(written_row(SHAPE, 10, tokens) for tokens in (5, 3, 5))  # generated, then each candidate ranked
    cheap = AttributionConfig(answers=False)
    assert attributed(SHAPE, cheap, ROW) == gold.both
    assert attributed(SHAPE, AttributionConfig(), ROW) == gold.both + answers
    assert attributed(SHAPE, cheap.model_copy(update={"explained": "predicted"}), ROW) == longest.both + answers
    assert attributed(SHAPE, cheap, replace(ROW, target=None)) == longest.both + answers
    steps = AttributionConfig(answers=False, method=IntegratedGradients(n_steps=20))
    assert attributed(SHAPE, steps, ROW) == pytest.approx(22 * gold.forward + 20 * gold.backward)
    words = AttributionConfig(answers=False, method=Occlusion())
    assert attributed(SHAPE, words, ROW) == 8 * gold.forward


def test_training_costs_six_flop_per_weight_and_token_and_the_validations_their_answers() -> None:
    weights = Shape(reader=1000, crossed=0, writer=500, head=0, reads=0, writes=0, crosses=0)
    assert learned_row(weights, 10, 4) == 6 * (10 * 1000 + 4 * 500)
    assert answered_row(weights, 10, 4) == 2 * (10 * 1000 + 4 * 500)
    row = Features(
        uid="r", error=None, term=[0, 1], input_ids=[[1] * 10, [1] * 12], target_ids=[[1] * 4, [1] * 6], truncated=False
    )
    loop = LoopConfig(steps=100, batch_rows=8, eval_every_steps=40, eval_rows=50)
    updates = 100 * 8 * 6 * (10 * 1000 + 4 * 500 + 12 * 1000 + 6 * 500)
    assert trained(weights, loop, [row], eval_rows=30) == pytest.approx(updates + 2 * 30 * 2 * (10 * 1000 + 4 * 500))


def test_the_busiest_actor_decides_the_time() -> None:
    assert cut_in_shards(25, 10) == [10, 10, 5]
    assert cut_in_shards(20, 10) == [10, 10]
    assert makespan([10, 10, 10], 2) == 20
    assert makespan([5, 10, 5], 2) == 10
    assert makespan([], 2) == 0
    measured_here = Probe("cpu", 2, 1, 5.0, 100, 0, rows_per_s=2.0, tokens_per_s=0.0, padding_frac=0.0, bytes_per_row=1.0)
    found = on_actors(measured_here, 2, [10, 10, 10])
    assert (found.seconds, found.actors_for_an_hour) == (15.0, 1)
    assert on_actors(measured_here, 2, [1000] * 20).actors_for_an_hour == 3  # 20,000 rows at 7,190 an hour


@pytest.mark.parametrize(
    ("rows", "actors", "configured", "rate", "suggested"),
    [
        (6000, 2, 1000, 100.0, 750),  # four shards for each actor
        (10_000_000, 2, 1000, 100.0, 6000),  # a minute of work
        (10_000_000, 2, 1000, None, 1000),  # nothing is known of the work
        (1_239_000, 1, 1_000_000, None, 300_000),
        (3, 2, 1000, 1e9, 1),
    ],
)
def test_a_shard_is_a_minute_of_work_at_most_and_there_are_four_per_actor(
    rows: int, actors: int, configured: int, rate: float | None, suggested: int
) -> None:
    assert suggested_shard(rows, actors, configured, rate) == suggested


def test_a_histogram_has_a_bin_for_every_length_up_to_the_longest() -> None:
    assert histogram([0, 1, 1, 3]) == [(0, 1), (1, 2), (2, 0), (3, 1)]
    assert histogram([100]) == [(0, 0), (16, 0), (32, 0), (48, 0), (64, 0), (80, 0), (96, 1)]
    assert histogram([]) == []


METHODS: Sequence[MethodConfig] = (Saliency(), InputXGradient(), IntegratedGradients(n_steps=6), Occlusion())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.type)
def test_a_method_takes_the_passes_that_it_says(method: MethodConfig, tmp_path: Path) -> None:
    """Counted in rows that enter the model; the reading is one of them, and what uses it takes no other."""
    teacher = family(tiny_t5(tmp_path))
    reading = teacher.read([teacher.encode(example().segments)], differentiable=method.at_the_input)
    what = reading.explained([teacher.encode_answer("money")])
    passed: Counter[str] = Counter()

    def counted(embeds: Float[Tensor, "n t d"], rows: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        passed["forward"] += len(embeds)
        out = what.forward(embeds, rows)
        if out.requires_grad:
            out.register_hook(lambda _: passed.update(backward=len(embeds)))
        return out

    words = what.laid_out([[place // 2 for place in range(len(row.ids))] for row in what.encoded])
    method.explain(Case(replace(what, forward=counted), lambda: words, rows_at_once=4))
    assert method.passes(int(words.max()) + 1) == (passed["forward"], passed["backward"])


# --- the sample -------------------------------------------------------------------------------------------------------


def reviews(folder: Path, **changes: Any) -> Columns:
    lines = [json.dumps({"id": f"r{n}", "review": f"number {n} is fine", "stars": n % 2}) for n in range(50)]
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines))
    given = {"path": str(folder), "files": {"train": "train*"}, "id": "id", "target": "stars", "labels": {0: "bad", 1: "good"}}
    return Columns.model_validate({"type": "columns", "prompt": [{"column": "review", "role": "text"}]} | given | changes)


def test_a_small_corpus_is_counted_and_a_hold_out_and_limits_have_their_share(tmp_path: Path) -> None:
    found = of_corpus(reviews(tmp_path))
    assert [(split.rows, split.counted, len(split.examples), split.bad) for split in found.values()] == [(50, "counted", 50, 0)]
    held = of_corpus(reviews(tmp_path, holdout={"fraction": 0.1}, limit_rows={"train": 20}))
    assert {name: split.rows for name, split in held.items()} == {"train": 20, "validation": 5}


def test_a_large_corpus_is_estimated_from_the_size_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "COUNTED_BYTES", 10)
    (split,) = of_corpus(reviews(tmp_path)).values()
    assert (split.rows, split.counted) == (50, "estimated from file sizes")


def test_a_record_takes_what_it_takes_in_its_file(tmp_path: Path) -> None:
    task = reviews(tmp_path)
    records = list(find_splits(task)["train"].all_records())
    size = (tmp_path / "train.jsonl").stat().st_size
    assert bytes_per_record(SourceFile("a.jsonl", "a", 0, "jsonl"), records) == size / 50
    packed = len(gzip.compress((tmp_path / "train.jsonl").read_bytes()))
    assert bytes_per_record(SourceFile("a.jsonl.gz", "a", 0, "jsonl"), records) == pytest.approx(packed / 50)
    cells = "".join(f"r{n},number {n} is fine,{n % 2}\n" for n in range(50))
    assert bytes_per_record(SourceFile("a.csv", "a", 0, "csv"), records) == pytest.approx(len(cells) / 50, rel=0.05)


def test_a_corpus_of_bad_rows_only_is_refused(tmp_path: Path) -> None:
    task = reviews(tmp_path, labels={0: "bad"})
    assert of_corpus(task)["train"].bad == 25
    (tmp_path / "train.jsonl").write_text('{"id": "a", "review": "fine", "stars": 7}\n')
    with pytest.raises(InputError, match="the train split: none of the 1 sampled rows can be read: "):
        of_corpus(task)


def test_a_prepared_corpus_is_taken_from_its_shards(tmp_path: Path) -> None:
    works = prepared(mini_config(write_mini(tmp_path)))
    found = of_examples(works.store, "examples", works.examples)
    assert {name: (split.rows, split.counted, len(split.examples)) for name, split in found.items()} == {
        "train": (60, "prepared", 60),
        "validation": (20, "prepared", 20),
        "test": (20, "prepared", 20),
    }


def test_rows_are_taken_at_even_distances() -> None:
    rows = examples()
    assert [row.uid for row in spread(rows, 3)] == [rows[place].uid for place in (0, 2, 4)]
    assert spread(rows, len(rows)) == rows


def test_rows_that_stand_for_later_stages_have_the_size_of_real_ones(tmp_path: Path) -> None:
    lengths = measured(family(tiny_t5(tmp_path)), examples())
    made = attributions(lengths, "saliency")
    assert [len(row.tokens) for row in made] == [sum(span is not None for span in one.encoded.spans) for one in lengths.of_rows]
    config = RationalesConfig(selection=TopK(k=2), sources=(AttributionSource(), NoSource()))
    found = rationales(config, made)
    assert [len(row.rationale_text.split()) for row in found["attribution"]][:3] == [2, 2, 2]
    assert {row.rationale_text for row in found["none"]} == {""}


# --- the probe --------------------------------------------------------------------------------------------------------


def test_a_gpu_that_is_not_there_leaves_the_plan_without_a_probe(tmp_path: Path) -> None:
    recipe = Attribute(AttributionConfig(), tiny_source(tmp_path), "cuda", 1)
    with pytest.raises(ConfigError, match="sees no GPU; .*; or plan without measuring, with --no-probe"):
        probe(recipe, examples(), 1)


def test_a_probe_explains_every_row_and_says_how_fast(tmp_path: Path) -> None:
    found = measure(
        Attribute(AttributionConfig(), tiny_source(tmp_path, max_input_tokens=64, max_answer_tokens=16), "cpu", 1), examples()
    )
    assert (found.rows, found.errors) == (6, 0)
    assert found.rows_per_s > 0
    assert found.tokens_per_s > found.rows_per_s
    assert found.bytes_per_row > 100


# --- the whole --------------------------------------------------------------------------------------------------------


def planned(config: Config, samples: dict[str, SplitSample]) -> Plan:
    return make_plan(config, samples, PRICES, None, probing=False)


def test_a_plan_without_a_probe_reads_no_weights(tmp_path: Path) -> None:
    """The teacher's folder has none."""
    save(tiny_t5(tmp_path), tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").unlink()
    teacher = {"name": str(tmp_path / "teacher"), "max_input_tokens": 128, "max_answer_tokens": 64}
    config = mini_config(write_mini(tmp_path), teacher=teacher, teach=None)
    plan = planned(config, of_corpus(config.task))
    assert (plan.probe, plan.attribution) == (None, None)
    assert list(plan.stages) == ["attribute", "train", "evaluate"]
    assert plan.stages["attribute"].rows == 60
    assert plan.stages["train"].rows == 4 * 8 * 2
    assert plan.stages["evaluate"].rows == 20 * 3
    assert all(size > 0 for size in plan.output_bytes.values())
    assert sum(count for _, count in plan.splits["train"].histogram) == 60


def test_a_teacher_that_can_take_no_row_is_refused(tmp_path: Path) -> None:
    config = mini_config(write_mini(tmp_path), teacher={"spec": TINY, "max_input_tokens": 128, "max_answer_tokens": 1})
    with pytest.raises(InputError, match="the train split: .* can take none of the 60 sampled rows, for too_long"):
        planned(config, of_corpus(config.task))


def run_plan(path: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "jobs.plan", str(path), *options]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=240)


def test_the_job_prints_a_plan_with_a_probe_and_writes_it(tmp_path: Path) -> None:
    done = run_plan(write_mini(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads((tmp_path / "runs" / "mini" / "plan.json").read_text())
    assert plan["probe"]["rows"] == 20  # a shard
    assert plan["attribution"]["seconds"] > plan["probe"]["load_s"] > 0
    for part in ("Rows, and input tokens of the teacher", "GPU-hours at 40% of the peak", "prepare.rows_per_shard: ", "rows/s"):
        assert part in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if "plan.json" not in line) <= 130


def test_only_the_plan_takes_no_probe(tmp_path: Path) -> None:
    path = write_mini(tmp_path)
    done = run_plan(path, "--no-probe")
    assert (done.returncode, done.stderr) == (0, "")
    assert "not measured" in done.stdout
    refused = run_plan(path, "--retry-errors")
    assert (refused.returncode, "unknown key" in refused.stderr) == (2, True)


def test_a_plan_as_text_says_what_does_not_fit(tmp_path: Path) -> None:
    config = mini_config(write_mini(tmp_path))
    small = Prices(share_of_peak=0.5, gpus=(Gpu(type="tiny", peak_tflops=1, memory_gib=1e-9, usd_per_hour=1),))
    text = to_text(make_plan(config, of_corpus(config.task), small, None, probing=False))
    assert "Does not fit on one tiny: teach, attribute, train, evaluate." in text
    assert "starting weights" not in text
