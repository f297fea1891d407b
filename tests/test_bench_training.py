"""The benchmarks on training: that all that is compared does the same work. How fast it does it is no business of the tests."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bench import seq2seq
from bench.learning import TINY, Classroom, loop_config, steady_rate, taught_rows
from bench.training import Bench, bare_loop, readying_ms, real_tokens, variables
from kd.loading import load
from kd.training.session import train_here


@pytest.fixture
def room(tmp_path: Path) -> Classroom:
    """A run directory with made-up rows and a tiny model without dropout."""
    return Classroom.furnished(tmp_path, taught_rows(None, 24), TINY | {"dropout_rate": 0.0})


def test_made_up_rows_are_the_same_every_time_and_of_both_kinds() -> None:
    rows = taught_rows(None, 40)
    assert rows == taught_rows(None, 40)
    assert {len(row.label_set) for row in rows} == {5, 3}
    assert len({row.uid for row in rows}) == 40
    assert all(row.target in row.label_set and row.llm_rationale for row in rows)


def test_a_question_lies_beside_the_pair_of_sentences_of_its_folder_s_neighbour(tmp_path: Path) -> None:
    asked = {"question": "Which?", "choices": ["a", "b", "c", "d", "e"], "answer": "b", "llm_rationale": "since b"}
    paired = {"premise": "A dog runs.", "hypothesis": "It runs.", "label": "entailment", "llm_rationale": "as said"}
    for folder, record in (("cqa", asked), ("esnli", paired)):
        (tmp_path / folder).mkdir()
        lines = [json.dumps(record | {"id": f"{number}.jpg#{number}r1n"}) + "\n" for number in range(4)]
        for split in ("train", "dev", "test"):
            (tmp_path / folder / f"{split}.jsonl").write_text("".join(lines))
    rows = taught_rows(tmp_path / "cqa", 4)
    assert [row.llm_rationale for row in rows] == ["since b", "as said"] * 2
    assert [row.target for row in rows] == ["b", "entailment"] * 2


def test_the_usual_trainer_computes_the_losses_of_our_loop(room: Classroom, tmp_path: Path) -> None:
    bench = Bench(room, batch_rows=8, steps=3, threads=1, scratch=tmp_path)
    assert bench.ours() > 0
    assert bench.usual() > 0
    ours, usual = bench.first_losses.values()
    assert usual == pytest.approx(ours, rel=1e-4)
    assert {name: len(found) for name, found in bench.shares["a: our loop"].items()} == {"waiting": 1, "padding": 1, "step": 1}


def test_both_tasks_weigh_alike_and_see_their_own_prefix(room: Classroom, tmp_path: Path) -> None:
    row = room.rows[0]
    sides = seq2seq.two_sides(row)
    assert [sides[task]["labels"] for task in ("predict", "explain")] == row.target_ids
    assert sides["predict"]["input_ids"][:2] != sides["explain"]["input_ids"][:2]
    loaded = load(room.source, "cpu")
    only = replace(row, input_ids=row.input_ids, target_ids=[row.target_ids[0]] * 2)
    both, alone = (seq2seq.train(loaded, [each], 1, 1, tmp_path, threads=1).losses[0] for each in (row, only))
    assert both != alone


def test_the_bare_loop_learns_the_tokens_that_the_loop_counts(room: Classroom) -> None:
    queue = room.queue("counted", loop_config(3, 8, threads=1))
    train_here(queue)
    timings = room.timings(queue)
    assert sum(step["tokens"] for step in timings) == sum(real_tokens(row.input_ids, row.target_ids) for row in room.rows)
    assert steady_rate(timings, 1) == sum(step["tokens"] for step in timings[1:]) / sum(step["seconds"] for step in timings[1:])
    assert bare_loop(queue) > 0
    assert readying_ms(queue) > 0


def test_variables_are_there_inside_and_as_before_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_BENCH_OLD", "before")
    with variables({"KD_BENCH_OLD": "inside", "KD_BENCH_NEW": "1"}):
        assert (os.environ["KD_BENCH_OLD"], os.environ["KD_BENCH_NEW"]) == ("inside", "1")
    assert os.environ["KD_BENCH_OLD"] == "before"
    assert "KD_BENCH_NEW" not in os.environ
