"""Splits without a row, or with errored ones alone: the numbers that remain come out, the rest is null with its reason."""

import io
from pathlib import Path

import pytest

from jobs import plan, prepare
from jobs.agreements import agreement_works
from jobs.cli import Session
from jobs.console import Console
from jobs.findings import Findings
from jobs.wiring import Wiring
from kd.errors import InputError
from kd.reporting.report import to_html, to_json, to_markdown
from tests.mini import MINI, alone, audited, mini_config, plain, prepared, studied, taught, write_mini

NO_ROW = {"nothing": "", "errors": "".join(f'{{"half": {number}\n' for number in range(3))}
"""What a file may hold that gives no row without an error."""
VARIANTS = ["teacher", "label-only", "attribution"]


def run_of(folder: Path, empty: str, left: str) -> Wiring:
    """A finished run over a corpus with such a split."""
    path = write_mini(folder)
    (folder / "corpus" / f"{empty}.jsonl").write_text(NO_ROW[left])
    lenient = MINI["prepare"] | {"max_error_frac": 1.0}
    significance = {"primary": {"variant": "label-only", "against": "attribution"}}
    config = mini_config(path, training=alone(), significance=significance, prepare=lenient)
    run = studied(audited(taught(prepared(config))))
    plain(run.store, agreement_works(run))
    return run


@pytest.mark.parametrize("left", NO_ROW)
def test_without_a_row_to_test_on_there_is_a_report_without_accuracies(tmp_path: Path, left: str) -> None:
    run = run_of(tmp_path, "test", left)
    report = Findings(run).report()
    assert all(report.stages.values())
    answers = [row for row in report.metrics if row.stage == "evaluate" and row.variant in VARIANTS]
    assert {row.variant for row in answers} == set(VARIANTS)
    assert {(row.value, row.n) for row in answers} == {(None, 0)}
    hits = {row.variant: row.value for row in report.metrics if row.metric == "evidence_hit_rate"}
    assert hits["llm"] == 1.0, "of train, which is all there"
    assert len(to_json(report)["metrics"]) > len(answers)
    for text in (to_markdown(report), to_html(report)):
        for name in VARIANTS:
            assert name in text
        assert "every row has an error, or there is none" in text


def test_without_a_row_to_validate_on_the_last_step_is_kept(tmp_path: Path) -> None:
    run = run_of(tmp_path, "validation", "nothing")
    assert Findings(run).teacher_verdict() == "the teacher was not validated: there was no row to do it on"
    report = Findings(run).report()
    assert all(report.stages.values())
    for name in ("teach", "train label-only/0", "train attribution/0"):
        found = report.stages[name]
        assert found is not None
        assert (found.figures["validation_accuracy"], found.figures["best_step"]) == (None, found.figures["last_step"])
    accuracies = {row.variant: row.n for row in report.metrics if row.metric == "accuracy" and row.stage == "evaluate"}
    assert accuracies == dict.fromkeys(VARIANTS, 20)


def test_prepare_says_which_split_has_no_rows(tmp_path: Path) -> None:
    path, stream = write_mini(tmp_path), io.StringIO()
    (tmp_path / "corpus" / "validation.jsonl").write_text("")
    run = prepared(mini_config(path, training=alone()))
    prepare.run(Session(run.config, run.store, Console(stream)))
    assert [line.strip() for line in stream.getvalue().splitlines()][1:] == [
        "WARNING: the validation split has no rows: nothing will be measured on it"
    ]


def test_a_plan_refuses_a_split_without_rows_that_is_evaluated(tmp_path: Path) -> None:
    path = write_mini(tmp_path)
    (tmp_path / "corpus" / "test.jsonl").write_text("")
    config = mini_config(path, training=alone())
    for run in (
        Wiring(config, prepared(config).store),
        Wiring(config.model_copy(update={"name": "anew"}), prepared(config).store),
    ):
        with pytest.raises(InputError, match=r"the test split of .*corpus has no rows, so what they will take cannot be said"):
            plan.run(Session(run.config, run.store, Console(io.StringIO()), probe=False))
