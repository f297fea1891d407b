"""The chain where something fails: what does not depend on it is done, the report is made, and then the error is told."""

import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from jobs import pipeline
from jobs.cli import Session
from jobs.console import Console
from kd.config import Config
from kd.errors import StageError
from kd.store import Store
from tests import traps
from tests.mini import MINI, alone, audited, mini_config, prepared, taught, write_mini

LABELS = {"source": "none", "objective": {"type": "label_only"}}
TRAINING = alone(max_failures=0, variants=[{"name": "first", **LABELS}, {"name": "second", **LABELS}])
STUDENT = MINI["student"] | {"max_input_tokens": 512}

pytestmark = pytest.mark.timeout(900)


def ready(path: Path, **changes: Any) -> Config:
    """A run that has everything but its students; made in this process, so that a cluster is started for these alone."""
    rationales = MINI["rationales"] | {"sources": [{"type": "attribution"}, {"type": "none"}]}
    return audited(taught(prepared(mini_config(path, teach=None, training=TRAINING, rationales=rationales, **changes)))).config


def session(config: Config) -> Session:
    return Session(config, Store.at(config.directory), Console(io.StringIO()), ExitStack())


def with_a_row_too_long_for_the_teacher(folder: Path) -> Path:
    """A corpus with a question of the test split that students alone can read: it stands behind those that are explained."""
    path = write_mini(folder)
    test = folder / "corpus" / "test.jsonl"
    records: list[dict[str, Any]] = [json.loads(line) for line in test.read_text().splitlines()]
    records[15]["choices"][0] = "word " * 150
    test.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def with_a_trap(config: Config) -> Config:
    """The same with a second student that cannot be trained."""
    first, second = config.training.variants
    variants = (first, second.model_copy(update={"objective": traps.Raises()}))
    return config.model_copy(update={"training": config.training.model_copy(update={"variants": variants})})


def test_students_that_cannot_be_trained_and_models_that_err_keep_nothing_from_the_report(cluster: None, tmp_path: Path) -> None:
    config = ready(with_a_row_too_long_for_the_teacher(tmp_path), student=STUDENT, evaluation={"agreement_rows": 0})
    broken = session(with_a_trap(config))
    with pytest.raises(StageError) as raised:
        pipeline.run(broken)
    untrained, unanswered = str(raised.value).split("\n\n")
    assert untrained.startswith("train: 1 of 2 runs failed; the others are finished and kept")
    assert "a defect of one rank" in untrained
    assert unanswered.startswith("evaluate: 1 of 20 rows got an error (too_long 1), more than evaluation.max_error_frac = 0.01")
    assert "predictions/teacher/0" in unanswered
    stages = broken.store.read_json("report.json")["stages"]
    missing = [name for name, found in stages.items() if found is None]
    assert missing == ["train second/0", "evaluate teacher/0", "evaluate second/0"]
    mended = session(config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"max_error_frac": 0.1})}))
    pipeline.run(mended)
    assert all(mended.store.read_json("report.json")["stages"].values())


def test_the_gate_stops_before_any_student_is_trained(tmp_path: Path) -> None:
    """Everything before it is there already, so no cluster is asked for."""
    stopped = session(ready(write_mini(tmp_path), audit=MINI["audit"] | {"min_faithfulness_gain": 1.0, "on_fail": "stop"}))
    with pytest.raises(StageError, match=r"the audit's gate: .* No student was trained"):
        pipeline.run(stopped)
    assert stopped.store.names("students") == []
    assert not stopped.store.exists("report.json")
