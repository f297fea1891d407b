"""A teacher that was taught here explains rows that it has seen: that is said, and it is judged on rows that it has not."""

import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from jobs import audit, stages
from jobs.audit_findings import AuditFindings
from jobs.cli import Session
from jobs.console import Console
from jobs.findings import Findings
from jobs.wiring import Wiring
from kd.config import validate
from kd.evaluation.metrics import wilson
from kd.reporting.report import to_html, to_json, to_markdown, warnings
from kd.reporting.tables import teacher_near_chance
from tests.mini import MINI, TINY, alone, audited, plain, prepared, taught

WORDS = [
    "river",
    "bank",
    "money",
    "coffee",
    "cake",
    "open",
    "stone",
    "cloud",
    "table",
    "green",
    "seven",
    "light",
    "paper",
    "horse",
    "yes",
    "no",
]
GATE = {"min_faithfulness_gain": -2.0}
"""Which everything passes but what is void."""


def memoriser(folder: Path, **teach: Any) -> Wiring:
    """An audited run whose teacher has learned by heart 40 rows of train that were labelled at random."""
    draw = random.Random(0)
    for split, rows in (("train", 40), ("validation", 60), ("test", 60)):
        lines = [{"text": " ".join(draw.sample(WORDS, 4)), "label": draw.randrange(2)} for _ in range(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = {
        "type": "columns",
        "path": str(folder),
        "files": {split: f"{split}.*" for split in ("train", "validation", "test")},
        "prompt": [{"column": "text"}],
        "target": "label",
        "target_is": "index",
        "labels": ["no", "yes"],
    }
    loop = {"steps": 90, "batch_rows": 40, "learning_rate": 5e-3, "eval_every_steps": 45, "eval_rows": 60}
    changed: dict[str, Any] = {
        "root": str(folder / "runs"),
        "task": task,
        "teacher": {**MINI["teacher"], "spec": TINY | {"d_model": 64, "d_ff": 128, "num_heads": 8}},
        "teach": MINI["teach"] | loop | teach,
        "attribution": {"splits": {"train": None, "test": 20}},
        "rationales": MINI["rationales"] | {"roles": ["text"], "sources": [{"type": "attribution"}, {"type": "none"}]},
        "audit": MINI["audit"] | {"rows": None} | GATE,
        "training": alone(),
    }
    return audited(taught(prepared(validate(MINI | changed, "test"))))


@pytest.fixture(scope="module")
def learned_by_heart(tmp_path_factory: pytest.TempPathFactory) -> Wiring:
    return memoriser(tmp_path_factory.mktemp("heart"))


def changed(wiring: Wiring, **sections: Mapping[str, Any]) -> Wiring:
    data = wiring.config.model_dump(mode="json")
    return Wiring(validate(data | {name: data[name] | dict(values) for name, values in sections.items()}, "test"), wiring.store)


def accuracies(wiring: Wiring) -> dict[tuple[str, str, str], float | None]:
    rows = [row for row in Findings(wiring).report().metrics if row.subject == "teacher"]
    return {(row.stage, row.split, row.metric): row.value for row in rows if row.metric.startswith("accuracy")}


def test_a_teacher_that_knows_random_labels_by_heart_is_near_chance(learned_by_heart: Wiring) -> None:
    found = accuracies(learned_by_heart)
    assert found["audit", "train", "accuracy:in_sample"] == 1.0, "it knows every row that it was taught on"
    assert found.keys() == {("audit", "train", "accuracy:in_sample"), ("teach", "validation", "accuracy")}
    report = Findings(learned_by_heart).report()
    near = teacher_near_chance(report.metrics)
    assert near is not None
    assert (near.stage, near.split, near.n) == ("teach", "validation", 60)
    (warning,) = warnings(report)
    assert warning.startswith("The teacher is near chance: ")
    assert " of 60 rows of validation, where guessing gives 50.0%." in warning
    (verdict,) = AuditFindings(learned_by_heart).verdicts()
    assert not verdict.passed
    assert verdict.text.endswith("is void: on validation the teacher is near chance")


def test_it_is_said_on_the_terminal_and_in_every_form_of_the_report(
    learned_by_heart: Wiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "run_works", lambda session, title, works, pool: None)
    session = Session(learned_by_heart.config, learned_by_heart.store, Console(io.StringIO()))
    audit.run(session)
    assert isinstance(session.console.stream, io.StringIO)
    report = Findings(learned_by_heart).report()
    said = "In-sample: the teacher was taught on train, whose rows are measured, and may explain what it memorised."
    seen = "The teacher's own answers to the 40 measured rows with a label are right in 100.0%"
    unseen = "Its answers to 60 rows of validation, which it has not seen, are right in "
    for told in (session.console.stream.getvalue(), to_markdown(report), json.dumps(to_json(report), ensure_ascii=False)):
        assert all(sentence in told for sentence in (said, seen, unseen))
    assert said in to_html(report)
    assert any(note.startswith("In-sample: the teacher was taught on train; its attributions of train") for note in report.notes)
    noted = {title for title, notes in report.table_notes.items() if any(note.startswith("In-sample") for note in notes)}
    assert noted == {"Rationales", "Audit of the rationales", "Label overlap"}


def test_a_teacher_that_was_not_validated_is_not_judged_on_what_it_memorised(tmp_path: Path) -> None:
    run = memoriser(tmp_path, eval_rows=0, steps=2)
    assert accuracies(run).keys() == {("audit", "train", "accuracy:in_sample")}
    assert teacher_near_chance(Findings(run).report().metrics) is None
    (verdict,) = AuditFindings(run).verdicts()
    assert verdict.text.endswith("; how often the teacher is right on rows that it has not seen is not known")
    notes = Findings(run).report().table_notes["Audit of the rationales"]
    assert "How often it is right on rows that it has not seen is not known: it was not validated." in notes


def test_rows_of_a_split_that_it_was_not_taught_on_judge_it_themselves(learned_by_heart: Wiring) -> None:
    other = audited(changed(learned_by_heart, audit={"split": "test"}))
    assert accuracies(other).keys() == {("audit", "test", "accuracy")}
    (verdict,) = AuditFindings(other).verdicts()
    assert verdict.text.endswith("is void: on test the teacher is near chance")
    assert not any("In-sample" in note for note in Findings(other).report().table_notes["Audit of the rationales"])


def test_once_the_evaluated_split_is_answered_validation_judges_no_more(learned_by_heart: Wiring) -> None:
    plain(learned_by_heart.store, [learned_by_heart.teacher_predictions()])
    near = teacher_near_chance(Findings(learned_by_heart).report().metrics)
    assert near is not None
    assert (near.stage, near.split) == ("evaluate", "test")


@pytest.mark.parametrize("looks", [1, 5, 40])
def test_the_best_of_several_validations_of_a_teacher_that_guesses_reaches_down_to_chance(looks: int) -> None:
    """Forty validations of 500 guessed rows: the best one is right in 55 %, and its own interval would leave chance out."""
    right = np.random.default_rng(looks).binomial(500, 0.5, (2000, looks)).max(axis=1)
    above = sum(wilson(int(number), 500, looks)[0] > 0.5 for number in right)
    assert above <= binom.ppf(0.999, 2000, 0.025)
    assert looks == 1 or sum(wilson(int(number), 500)[0] > 0.5 for number in right) > 2 * above
