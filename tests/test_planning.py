"""What a plan reads of a corpus and measures with a probe; and the job, with a probe and without."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kd.attribution.engine import Attribute, AttributionConfig
from kd.config import Config
from kd.corpus import SourceFile, find_splits
from kd.errors import ConfigError, InputError, StageError
from kd.evaluation.faithfulness import FaithfulnessConfig
from kd.manifests import Manifest, Shard
from kd.planning import sample
from kd.planning.lengths import measured
from kd.planning.plan import Plan
from kd.planning.planner import make_plan
from kd.planning.probe import measure, probe_processes, spread
from kd.planning.rows import agreements, attributions, erasures, findings, rationales
from kd.planning.sample import SplitSample, bytes_per_record, of_corpus, of_examples
from kd.planning.tables import to_text
from kd.rationales import AttributionSource, NoSource, RationalesConfig, TopK
from kd.rows import Example
from kd.store import Store
from kd.tasks.columns import Columns
from tests.mini import MINI, PRICES, TINY, alone, mini_config, prepared, save_teacher, without_teacher, write_mini
from tests.test_rows import example
from tests.tiny import examples, family, tiny_source, tiny_t5

ROOT = Path(__file__).parents[1]


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


def test_of_many_shards_rows_are_taken_from_some_at_even_distances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, shards = Store.at(str(tmp_path)), []
    for number in range(8):
        shards.append(Shard(f"train-{number}", "train", 3))
        rows = [example(f"{number}-{row}") for row in range(3)]
        store.publish_rows(f"examples/{shards[-1].file}", rows, Example, {})
    manifest = Manifest(stage="prepare", digest="", config={}, inputs={}, shards=shards)

    def sampled(most: int) -> list[str]:
        monkeypatch.setattr(sample, "SAMPLED_ROWS", most)
        return [row.uid for row in of_examples(store, "examples", manifest)["train"].examples]

    assert sampled(8) == [f"{number}-{row}" for number in (0, 2, 4, 6) for row in (0, 1)]
    assert sampled(18) == [f"{number}-{row}" for number in (0, 1, 2, 4, 5, 6) for row in range(3)]
    assert len(sampled(1000)) == 24


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


def test_rows_of_the_audit_and_of_agreement_hold_as_much_as_real_ones(tmp_path: Path) -> None:
    config, asked = RationalesConfig(sources=(AttributionSource(), NoSource())), FaithfulnessConfig()
    found = rationales(config, attributions(measured(family(tiny_t5(tmp_path)), examples()), "saliency"))
    for source, is_ranked in zip(config.sources, (True, False), strict=True):
        rows = found[source.name]
        assert {len(row.fall) for row in erasures(asked, source, rows)} == {asked.texts(is_ranked) - 1}, "all but the whole text"
        said = findings(config, source, 5, rows)
        assert [row.uid for row in said] == [row.uid for row in rows]
        assert all(len(row.metric) + len(row.silent_metric) >= 40 for row in said)
    assert [len(row.student_importance) for row in agreements(rows)] == [len(row.importance) for row in rows]


# --- the probe --------------------------------------------------------------------------------------------------------


def test_a_gpu_that_is_not_there_leaves_the_plan_without_a_probe() -> None:
    with (
        pytest.raises(ConfigError, match="sees no GPU; .*; or plan without measuring, with --no-probe"),
        probe_processes("cuda", 1),
    ):
        pass


def no_memory(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")])
def test_a_probe_without_memory_says_what_to_set(error: Exception) -> None:
    with probe_processes("cpu", 1) as processes, pytest.raises(StageError, match="for lack of memory; set cluster.max_actors"):
        processes.side_by_side(no_memory, error, at_once=1)


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
    return make_plan(config, samples, PRICES, None, probing=False, local=True)


def test_a_plan_without_a_probe_reads_no_weights(tmp_path: Path) -> None:
    """The teacher's folder has none."""
    path = write_mini(tmp_path)
    save_teacher(tmp_path)
    (tmp_path / "teacher" / "model.safetensors").unlink()
    teacher = {"name": str(tmp_path / "teacher"), "max_input_tokens": 128, "max_answer_tokens": 64}
    config = mini_config(path, teacher=teacher, teach=None)
    plan = planned(config, of_corpus(config.task))
    assert (plan.probe, plan.attribution) == (None, None)
    assert list(plan.stages) == ["attribute", "audit", "train", "evaluate", "agreement"]
    assert plan.stages["attribute"].rows == 60
    assert plan.stages["audit"].rows == 10 * 4
    assert plan.stages["train"].rows == 4 * 8 * 2
    assert plan.stages["evaluate"].rows == 20 * 3
    assert plan.stages["agreement"].rows == 10 * 2
    assert {"audit", "agreement"} <= set(plan.output_bytes)
    assert all(size > 0 for size in plan.output_bytes.values())
    assert sum(count for _, count in plan.splits["train"].histogram) == 60


def test_a_run_takes_room_for_its_best_model_and_its_last_in_the_precision_of_training(tmp_path: Path) -> None:
    path = write_mini(tmp_path)

    def students(**changes: object) -> int:
        config = mini_config(path, training=alone(**changes))
        return planned(config, of_corpus(config.task)).output_bytes["students"]

    both, best = students(), students(keep_last=False)
    halved = students(keep_last=False, precision="bfloat16", zero_stage=1)
    assert both > best > halved
    assert both - best == pytest.approx(2 * (best - halved), abs=2)


def test_the_audit_takes_room_for_each_measured_row_of_each_source_and_for_the_rows_that_are_asked_about(tmp_path: Path) -> None:
    path = write_mini(tmp_path)

    def audit(rows: int | None, faithfulness: object = None) -> int:
        config = mini_config(path, audit={"rows": rows, "top_k": 2, "faithfulness": faithfulness})
        return planned(config, of_corpus(config.task)).output_bytes["audit"]

    few, all_of_them, asked = audit(10), audit(None), audit(10, MINI["audit"]["faithfulness"])
    assert all_of_them == pytest.approx(5 * few, rel=0.01), "50 rows are explained"
    assert asked > few > 0


def test_agreement_on_rows_without_a_label_generates_and_ranks_nothing(tmp_path: Path) -> None:
    config = mini_config(write_mini(tmp_path))
    labelled = planned(config, of_corpus(config.task)).stages["agreement"].flops
    rows = [json.loads(line) | {"answer": None} for line in (tmp_path / "corpus" / "test.jsonl").read_text().splitlines()]
    (tmp_path / "corpus" / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    # An answer is explained that is as long as the longest option, and nothing else.
    assert planned(config, of_corpus(config.task)).stages["agreement"].flops == pytest.approx(labelled, rel=0.1)


def test_a_plan_without_a_teacher_counts_the_students_tokens_and_explains_nothing(tmp_path: Path) -> None:
    config = without_teacher(write_mini(tmp_path))
    plan = make_plan(config, of_corpus(config.task), PRICES, None, probing=True, local=True)
    assert (plan.probe, plan.attribution, plan.batches) == (None, None, None)
    assert list(plan.stages) == ["train", "evaluate"]
    assert (plan.stages["train"].rows, plan.stages["evaluate"].rows) == (4 * 8 * 2, 20 * 2)
    assert set(plan.output_bytes) == {"examples", "rationales", "audit", "students", "predictions"}
    assert all(size > 0 for size in plan.output_bytes.values())
    text = to_text(plan)
    assert "Rows, and input tokens of the student" in text
    assert "nothing (no teacher)" in text
    assert "attribution.batch_tokens" not in text


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
    for part in (
        "Rows, and input tokens of the teacher",
        "GPU-hours",
        "prepare.rows_per_shard: ",
        "rows/s",
        "this machine",
    ):
        assert part in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if str(tmp_path) not in line) <= 100


def test_only_the_plan_takes_no_probe(tmp_path: Path) -> None:
    path = write_mini(tmp_path)
    done = run_plan(path, "--no-probe")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing (--no-probe)" in done.stdout
    refused = run_plan(path, "--retry-errors")
    assert (refused.returncode, "unknown key" in refused.stderr) == (2, True)


def test_a_plan_as_text_says_what_does_not_fit(tmp_path: Path) -> None:
    config = mini_config(write_mini(tmp_path))
    tiny = PRICES.gpus[0].model_copy(update={"type": "tiny", "memory_gib": 1e-9})
    small = PRICES.model_copy(update={"gpus": (tiny,)})
    text = to_text(make_plan(config, of_corpus(config.task), small, None, probing=False, local=True))
    assert "Does not fit on one tiny: teach, attribute, audit, train, evaluate, agreement." in text
    assert "starting weights" not in text
