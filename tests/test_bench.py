"""Benchmarks: what they say, and when they say that a bar does not hold. Their timings are no business of the tests."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from bench.attribution import CAPTUM, INSEQ, answer_tokens, compare, in_turn, padding
from bench.competitors import Floor, Inseq
from bench.processes import Watch, is_worker
from bench.record import Record, ratio
from bench.texts import questions
from bench.trivial import SHARD_ROWS, Trivial, corpus, work
from bench.whole_rows import Clock
from kd.rows import Attribution
from kd.shards import Claimed, claim, finish, run_shard
from kd.store import Store
from tests import tiny
from tests.tiny_attribution import attribute


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


@pytest.mark.parametrize("holds", [True, False])
def test_a_record_replaces_the_one_before_when_it_is_whole(tmp_path: Path, holds: bool) -> None:
    kept = tmp_path / "out.jsonl"
    kept.write_text("the record of the run before")
    record = Record("toy", kept)
    record.figure("a", "rate", 1.0, "rows/s")
    record.bar("fast", 1.0 if holds else 0.0, "at_least", 0.9)
    assert kept.read_text() == "the record of the run before"
    with pytest.raises(SystemExit):
        record.end()
    assert len(kept.read_text().splitlines()) == 2
    assert list(tmp_path.iterdir()) == [kept]


def test_an_interrupted_run_leaves_the_record_and_the_next_one_begins_anew(tmp_path: Path) -> None:
    kept = tmp_path / "out.jsonl"
    kept.write_text("the record of the run before")
    Record("toy", kept).figure("never ended", "rate", 1.0, "rows/s")
    assert kept.read_text() == "the record of the run before"
    record = Record("toy", kept)
    record.figure("a", "rate", 1.0, "rows/s")
    with pytest.raises(SystemExit):
        record.end()
    assert [json.loads(line)["case"] for line in kept.read_text().splitlines()] == ["a"]


def test_a_ratio_compares_rates_of_the_same_round() -> None:
    assert ratio({"a": [10.0, 2.0, 9.0], "b": [5.0, 1.0, 3.0]}, "a", "b") == 2.0


def test_inseq_takes_turns_with_the_others_in_a_process_that_loads_once(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho loaded >> {tmp_path}/said\necho \'{{"inseq": "0.7"}}\'\n'
        f'while read mode; do echo "$mode" >> {tmp_path}/said; echo 2.5; done\n'
    )
    python.chmod(0o755)
    with Inseq(python, tmp_path / "model", questions(None, 3)) as inseq:
        found = in_turn({"a": lambda: 1.0}, inseq, rounds=3)
    fast, quickstart, information = Inseq.MODES
    asked = ["loaded", fast, quickstart, information, fast, quickstart, fast, quickstart]
    assert (tmp_path / "said").read_text().splitlines() == asked
    assert inseq.versions == {"inseq": "0.7"}
    assert {case: len(each) for case, each in found.items()} == {
        "a": 3,
        INSEQ[fast]: 3,
        INSEQ[quickstart]: 3,
        INSEQ[information]: 1,
    }
    assert found[INSEQ[fast]] == [2.5, 2.5, 2.5]


def test_the_bar_beside_inseq_is_about_its_fast_mode_and_its_quickstart_is_a_figure(capsys: pytest.CaptureFixture[str]) -> None:
    fast, quickstart, _ = (INSEQ[mode] for mode in Inseq.MODES)
    record = Record("toy")
    compare(record, {"a": [8.0], CAPTUM: [4.0], fast: [2.0], quickstart: [1.0]}, "a", "fp32", captum=2, times=4)
    assert [(bar["value"], bar["holds"]) for bar in record.bars] == [(2.0, True), (4.0, True)]
    (said,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert said["metric"] == "rate over that of d: inseq, one text a call, its defaults"
    assert (said["value"], said["unit"]) == (8.0, "times")


@pytest.mark.parametrize("python", [None, Path(sys.executable)], ids=["none", "one that has no inseq"])
def test_without_inseq_its_bar_does_not_hold_and_the_others_are_judged(python: Path | None, tmp_path: Path) -> None:
    with Inseq(python, tmp_path / "model", questions(None, 3)) as inseq:
        found = in_turn({"a": lambda: 1.0, CAPTUM: lambda: 1.0}, inseq, rounds=2)
    record = Record("toy")
    compare(record, found, "a", "fp32", captum=0, times=0)
    assert [(bar["value"] is None, bar["holds"]) for bar in record.bars] == [(False, True), (True, False)]


def test_the_floor_takes_the_gradients_whose_sizes_are_the_engine_s_scores(tmp_path: Path) -> None:
    """So it does the same work, with nothing beside it."""
    rows = [row for row in tiny.examples() if row.target]
    loaded = tiny.tiny_t5(tmp_path)
    floor, taken = Floor(tiny.family(loaded), rows, budget=120), list[torch.Tensor]()
    for embeds, *_ in floor.batches:
        embeds.requires_grad_().register_hook(taken.append)
    assert floor.run() == len(rows)
    assert len(taken) == len(floor.batches) > 1
    sizes = [
        row[own.bool()][:-1].tolist()  # without the end-of-sequence token
        for gradient, (_, mask, *_) in zip(taken, floor.batches, strict=True)
        for row, own in zip(gradient.abs().sum(-1), mask, strict=True)
    ]
    found = [row.scores for row in attribute(loaded, rows, answers=False)]
    for one, other in zip(sorted(sizes), sorted(found), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_padding_is_counted_of_scores_alone_and_of_whole_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, rows = tiny.saved_t5(tmp_path), tiny.examples()
    capsys.readouterr()
    record = Record("toy")
    answer_tokens(record, folder, rows[:3])
    padding(record, folder, rows, rows[:2], budget=60)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (said[0]["value"], said[0]["unit"]) == (2.0, "tokens")  # "money" or "no", and the end
    shares = {line["case"]: line["value"] for line in said if line["metric"] == "padding_frac"}
    assert list(shares) == ["padding, shard", "padding, shard, whole rows", "padding, bench", "padding, bench, whole rows"]
    assert [bar["value"] for bar in record.bars] == [shares["padding, shard"]]


def test_the_parts_of_a_run_make_up_the_whole_and_what_goes_on_beside_it_is_no_part() -> None:
    clock = Clock()
    inner = clock.timed("inner", lambda: time.sleep(0.02))
    outer = clock.timed("outer", inner)
    started = time.perf_counter()
    with clock.part("rest"):
        other = threading.Thread(target=clock.timed("other", lambda: time.sleep(0.05)))
        other.start()
        outer()
        other.join()
    whole = time.perf_counter() - started
    assert set(clock.spent) == {"rest", "outer", "inner"}
    assert set(clock.beside) == {"other"}
    assert sum(clock.spent.values()) <= whole


def test_made_up_questions_are_the_same_every_time_and_spread_in_length() -> None:
    rows = questions(None, 200)
    assert rows == questions(None, 200)
    lengths = {len(row.segments[0].text.split()) for row in rows}
    assert (min(lengths), max(lengths)) == (5, 40)
    assert all(row.target in row.label_set for row in rows)


def test_the_trivial_teacher_gives_valid_attributions_with_every_uid_once(tmp_path: Path) -> None:
    store, stage = Store.at(str(tmp_path)), work(2 * SHARD_ROWS)
    corpus(store, 2 * SHARD_ROWS)
    claimed = claim(store, stage)
    assert isinstance(claimed, Claimed)
    for shard in stage.shards:
        run_shard(store, claimed, shard, Trivial().open())
    assert finish(store, claimed, 1.0, "cpu").rows == 2 * SHARD_ROWS
    found = [row for shard in stage.shards for row in store.read_rows(f"{stage.target}/{shard.file}", Attribution)]
    assert len({row.uid for row in found}) == len(stage.shards) * SHARD_ROWS == 2 * SHARD_ROWS
    row = found[-1]
    words = [row.segments[0].text[start:end] for start, end in zip(row.token_start, row.token_end, strict=True)]
    assert words == row.tokens
    assert len(row.scores) == len(row.tokens)


def test_processor_time_of_a_process_that_has_ended_still_counts() -> None:
    watch = Watch()
    watch.start()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        while watch.cpu_s < 0.3:
            time.sleep(0.02)
            watch.sample()
        seen = watch.cpu_s
        assert not is_worker(psutil.Process(child.pid))
        child.kill()
    watch.sample()
    assert watch.cpu_s >= seen
    assert watch.peaks_mib["all processes"] > watch.peaks_mib["the driver"] > 0


def test_a_worker_is_known_by_the_name_that_ray_gives_it() -> None:
    watch = Watch()
    with subprocess.Popen(
        ["ray::Sleeper", "-c", "import sys; sys.stdin.read()"], executable=sys.executable, stdin=subprocess.PIPE
    ) as child:
        watch.sample()
        assert is_worker(psutil.Process(child.pid))
        assert watch.peaks_mib["the largest worker"] > 0
