"""A run without a teacher: students learn from labels and from an LLM's rationales, which came with the corpus."""

import io
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs import pipeline
from jobs.cli import Session
from jobs.console import Console
from jobs.findings import Findings
from jobs.wiring import Wiring
from kd.errors import StageError
from kd.reporting.report import to_html, to_markdown
from kd.rows import RationaleRow
from kd.shards import completed
from tests.mini import alone, audited, prepared, studied, taught, without_teacher, write_mini

LEARNING = alone(
    variants=[
        {"name": "label-only", "source": "none", "objective": {"type": "label_only"}},
        {"name": "llm", "source": "llm"},
    ]
)
"""Variants that need no teacher, trained in one process."""


@pytest.fixture
def untaught(tmp_path: Path) -> Wiring:
    """A run of students that learn from labels and an LLM's rationales, and of no teacher."""
    return studied(audited(taught(prepared(without_teacher(write_mini(tmp_path), training=LEARNING)))))


def test_without_a_teacher_rationales_are_made_of_every_row_of_train(untaught: Wiring) -> None:
    works = untaught.rationales()
    folder, manifest = completed(untaught.store, works["llm"])
    rows = [row for shard in manifest.shards for row in untaught.store.read_rows(f"{folder}/{shard.file}", RationaleRow)]
    assert [row.split for row in rows] == ["train"] * 60
    for row in rows:
        assert row.rationale_text == row.llm_rationale
        assert (row.model, row.method, row.explained, row.explained_answer, row.tokens) == ("none", "none", "none", None, [])
        assert len(row.importance) == len(row.rationale) == len(row.word_start) > 0
        assert any(row.rationale), "words of the question that the rationale has are marked"


def test_without_a_teacher_its_stages_say_so(untaught: Wiring) -> None:
    for ask in (untaught.attributions, untaught.teacher_predictions, lambda: untaught.teacher):
        with pytest.raises(StageError, match="the config has no `teacher`, so nothing is explained"):
            ask()


def test_without_a_teacher_the_report_has_students_alone(untaught: Wiring) -> None:
    report = Findings(untaught).report()
    students = ["label-only/0", "llm/0"]
    assert list(report.stages) == [
        "prepare",
        *(f"{stage} {source}" for stage in ("rationalize", "audit") for source in ("llm", "none")),
        *(f"{stage} {student}" for stage in ("train", "evaluate") for student in students),
    ]
    assert None not in report.stages.values()
    assert [row.variant for row in report.metrics if row.metric == "accuracy"] == ["label-only", "llm"]
    hits = {row.variant: row.value for row in report.metrics if row.metric == "evidence_hit_rate"}
    assert hits["llm"] == 1.0
    assert len(report.examples) == 10
    for text in (to_markdown(report), to_html(report)):
        assert "label-only" in text
        assert "teacher wrote" not in text


def test_without_a_teacher_the_pipeline_skips_its_stages(untaught: Wiring) -> None:
    """Everything is there already, so no cluster is asked for."""
    stream = io.StringIO()
    pipeline.run(Session(untaught.config, untaught.store, Console(stream), ExitStack()))
    lines = stream.getvalue().splitlines()
    stages = [line.split()[0] for line in lines if line.endswith(")") and line[0].isalpha()]
    assert stages == ["prepare", "rationalize", "audit", "features", "train", "train", "train", "evaluate", "report"]
    assert stream.getvalue().count("complete already") == 6
