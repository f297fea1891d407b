"""What a plan says of the run on this machine, by hand from what a probe would have measured."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kd.planning.here import GROUP_S, JOB_S, POOL_S, SPREAD, Measured, _learning, groups_here, learners_here, run_here
from kd.planning.learning_probe import LearningProbe, measure_learning
from kd.planning.lengths import openable
from kd.planning.plan import HerePlan, StagePlan
from kd.planning.planner import lesson_of_students
from kd.planning.probe import Probe
from kd.planning.sample import of_corpus
from kd.planning.sampled import Sampled
from kd.planning.tables import here_table
from kd.training.config import LoopConfig
from tests.mini import alone, mini_config, write_mini

TEACHER = LearningProbe(at_once=1, load_s=3.0, open_s=0.5, step_s=2.0, answered_rows_per_s=10.0)
STUDENT = LearningProbe(at_once=1, load_s=2.0, open_s=0.25, step_s=1.0, answered_rows_per_s=20.0)
EXPLAINED = Probe("cpu", 2, 1, 4.0, 100, 0, rows_per_s=5.0, tokens_per_s=0.0, padding_frac=0.0, bytes_per_row=1.0)
ASKED = {
    "attribute": StagePlan(rows=60, flops=60e9, memory_gib=1.0),
    "audit": StagePlan(rows=40, flops=30e9, memory_gib=1.0),
    "agreement": StagePlan(rows=20, flops=0.0, memory_gib=1.0),
}


@pytest.fixture
def sampled(tmp_path: Path) -> Iterator[Sampled]:
    config = mini_config(write_mini(tmp_path), training=alone(parallel_runs=1))
    samples = of_corpus(config.task)
    rows = samples["train"].examples
    assert config.teacher is not None
    with openable(config.teacher, rows, []) as teacher, openable(config.student, rows, []) as student:
        yield Sampled(config, samples, teacher, student)


def middle(plan: HerePlan) -> dict[str, float]:
    return {title: (best + worst) / 2 for title, (best, worst) in plan.seconds.items()}


def test_every_stage_takes_its_starts_and_what_was_measured(sampled: Sampled) -> None:
    plan = run_here(sampled, ASKED, Measured(explained=EXPLAINED, teacher=TEACHER, student=STUDENT))
    found = middle(plan)
    assert found["teach"] == pytest.approx(POOL_S + GROUP_S + 3.0 + 0.5 + 2 * 2.0 + 10 / 10.0), "2 steps, one validation"
    assert found["attribute"] == pytest.approx(POOL_S + 4.0 + 30 / 5.0), "shards of 20, 20, 10 and 10 rows on two actors"
    assert found["audit"] == pytest.approx(POOL_S + 4.0 + 30e9 / (1e9 * 5.0) / 2)
    assert plan.total == pytest.approx((sum(found.values()) * (1 - SPREAD), sum(found.values()) * (1 + SPREAD)))
    assert found["start"] == JOB_S


def test_variants_take_as_long_as_they_compute(sampled: Sampled) -> None:
    """The variant that learns rationales too costs more than the first one, which was probed."""
    found = middle(run_here(sampled, ASKED, Measured(explained=EXPLAINED, teacher=TEACHER, student=STUDENT)))["train"]
    least = POOL_S + GROUP_S + 2.0 + 2 * (0.25 + 4 * 1.0 + 2 * 10 / 20.0)
    assert least < found < least + 4 * 2.0


def test_as_many_groups_train_as_have_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert groups_here(LoopConfig(num_workers=2), 10, "cpu") == 4
    assert groups_here(LoopConfig(num_workers=2), 3, "cpu") == 3
    assert groups_here(LoopConfig(num_workers=2, threads_per_worker=4), 10, "cpu") == 1
    assert groups_here(LoopConfig(num_workers=16), 10, "cpu") == 1
    assert groups_here(LoopConfig(parallel_runs=3), 10, "cpu") == 3
    assert learners_here(LoopConfig(num_workers=2), 3, "cpu") == 6


def test_every_worker_has_a_gpu_of_its_own_so_one_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    for gpus, groups in ((1, 1), (4, 2), (0, 1)):
        monkeypatch.setattr("kd.planning.here.gpus_here", lambda gpus=gpus: gpus)
        assert groups_here(LoopConfig(num_workers=2), 20, "cuda") == groups
    assert learners_here(LoopConfig(num_workers=2), 20, "cuda") == 1


def test_runs_are_not_split_between_groups(sampled: Sampled) -> None:
    """Three students on two groups take as long as four."""
    loop = sampled.config.training.model_copy(update={"parallel_runs": 2})
    three, four = (_learning(sampled, loop, STUDENT, [1.0] * count, runs=1) for count in (3, 4))
    assert three == four > GROUP_S + STUDENT.load_s


def test_a_teacher_that_nobody_teaches_answers_too(sampled: Sampled) -> None:
    assert sampled.teacher_family is not None
    taught = middle(run_here(sampled, ASKED, Measured(explained=EXPLAINED, teacher=TEACHER, student=STUDENT)))["evaluate"]
    asis = middle(run_here(sampled, ASKED, Measured(explained=EXPLAINED, teacher=None, student=STUDENT)))["evaluate"]
    none = middle(run_here(sampled, ASKED, Measured(explained=None, teacher=None, student=STUDENT)))["evaluate"]
    assert asis > none + EXPLAINED.load_s
    assert taught > none


def test_learning_and_answering_are_measured(sampled: Sampled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd.planning.learning_probe.LEARN_SECONDS", 0.1)
    found = measure_learning(lesson_of_students(sampled))
    assert found.step_s > 0
    assert found.answered_rows_per_s > 0
    assert found.load_s > found.open_s > 0


def test_both_ends_of_a_span_are_in_one_unit() -> None:
    plan = HerePlan(seconds={"teach": (456.0, 760.0), "train": (30_000.0, 50_000.0), "audit": (57.0, 96.0)}, total=(0.0, 0.0))
    rows = here_table(SimpleNamespace(here=plan)).rows
    assert rows[:3] == [("teach", "8 min", "13 min"), ("train", "8.3 h", "13.9 h"), ("audit", "57 s", "96 s")]
