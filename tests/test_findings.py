"""What a report says of half a run, and what a person is told about the teacher."""

import io
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import report, teacher_findings
from jobs.cli import Session
from jobs.console import Console
from jobs.findings import Findings
from jobs.teacher_wiring import EXAMPLES, TEACHER
from jobs.wiring import Wiring
from kd.config import Config
from kd.rows import Example
from kd.store import Store
from kd.training.validation import Score, named
from tests.mini import TINY, alone, mini_config, plain, prepared, studied, taught, write_mini


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Wiring:
    """A finished run with one seed."""
    path = write_mini(tmp_path_factory.mktemp("mini"))
    return studied(taught(prepared(mini_config(path, training=alone()))))


def changed(done: Wiring, **sections: Mapping[str, object]) -> Wiring:
    """The same run directory with a config in which keys of these sections have other values."""
    data = done.config.model_dump(mode="json")
    merged = {name: data[name] | dict(values) for name, values in sections.items()}
    return Wiring(Config.model_validate(data | merged), done.store)


def content(store: Store) -> dict[str, int]:
    root = Path(store.root)
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*")}


def accuracies(wiring: Wiring) -> set[tuple[str, int | None]]:
    return {(row.variant, row.seed) for row in Findings(wiring).report().metrics if row.metric == "accuracy"}


def test_a_student_that_is_still_to_come_hides_no_other(done: Wiring) -> None:
    everyone = {("teacher", 0), ("label-only", 0), ("attribution", 0)}
    assert accuracies(done) == everyone
    another_seed = changed(done, training={"seeds": [0, 1]})
    assert accuracies(another_seed) == everyone
    stages = Findings(another_seed).report().stages
    assert stages["train label-only/0"] is not None
    assert stages["evaluate teacher/0"] is not None
    assert stages["train label-only/1"] is None
    assert stages["evaluate label-only/1"] is None
    variants = [*done.config.model_dump(mode="json")["training"]["variants"], {"name": "shuffled", "source": "random"}]
    assert accuracies(changed(done, training={"variants": variants})) == everyone


def test_a_teacher_without_students_is_reported(done: Wiring) -> None:
    assert accuracies(changed(done, student={"spec": TINY | {"d_ff": 48}})) == {("teacher", 0)}


def test_a_report_of_what_is_not_there_makes_nothing(done: Wiring) -> None:
    before = content(done.store)
    for other in (
        changed(done, student={"spec": TINY | {"vocab_size": 99}}),
        changed(done, teacher={"spec": TINY | {"vocab_size": 98}}),
        changed(done, attribution={"explained": "predicted"}),
        changed(done, training={"seeds": [5]}),
    ):
        Findings(other).report()
    assert content(done.store) == before


def test_the_report_job_writes_its_three_files_and_nothing_else(done: Wiring, tmp_path: Path) -> None:
    shutil.copytree(done.store.root, tmp_path / "run")
    store = Store.at(str(tmp_path / "run"))
    before = content(store)
    report.run(Session(changed(done, training={"seeds": [0, 1]}).config, store, Console(io.StringIO())))
    after = content(store)
    assert {name for name in after if name not in before} == {"report.html", "report.json", "report.md"}
    assert {name: after[name] for name in before if (tmp_path / "run" / name).is_file()}.items() <= before.items()


def test_with_one_seed_a_declared_comparison_is_a_difference_without_a_test(done: Wiring) -> None:
    primary = {"variant": "label-only", "against": "attribution"}
    config = Config.model_validate(done.config.model_dump(mode="json") | {"significance": {"primary": primary}})
    found = Findings(Wiring(config, done.store)).report()
    (difference,) = (row for row in found.metrics if row.metric == "accuracy_difference")
    accuracy = {row.variant: row.value or 0.0 for row in found.metrics if row.metric == "accuracy"}
    assert difference.value == pytest.approx(accuracy["label-only"] - accuracy["attribution"])
    assert (difference.against, difference.p_value, difference.n) == ("attribution", None, 20)
    assert found.comparisons is not None
    assert found.comparisons.verdicts[0].in_words.startswith("not tested: one seed")


def test_a_run_that_has_not_begun_has_a_report(done: Wiring, tmp_path: Path) -> None:
    empty = Findings(Wiring(done.config, Store.at(str(tmp_path / "empty")))).report()
    assert set(empty.stages.values()) == {None}
    assert (list(empty.metrics), list(empty.examples)) == ([], [])
    assert not (tmp_path / "empty").exists()


def test_ranked_answers_have_a_calibration_error_and_generated_ones_the_reason(done: Wiring, tmp_path: Path) -> None:
    shutil.copytree(done.store.root, tmp_path / "run")
    ranked = Wiring(changed(done, evaluation={"answer": "rank"}).config, Store.at(str(tmp_path / "run")))
    plain(ranked.store, ranked.predictions())
    for wiring, rows in ((ranked, 20), (done, 0)):
        found = Findings(wiring).report()
        errors = [row for row in found.metrics if row.metric == "calibration_error"]
        assert [(row.variant, row.n, row.value is None) for row in errors] == [
            (name, rows, not rows) for name in ("teacher", "label-only", "attribution")
        ]
        parsed = {row.value for row in found.metrics if (row.metric, row.stage) == ("parse_rate", "evaluate")}
        assert wiring is done or parsed == {1.0}
        notes = [note for table in found.tables for note in table.notes if note.startswith("No calibration error")]
        assert bool(notes) == (wiring is done)


def test_what_is_sampled_is_spread_over_the_shards(done: Wiring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_findings, "SAMPLE_ROWS", 6)
    shards = done.examples.shards_of("train")
    found = [row.uid for row in teacher_findings.sampled(done.store, EXAMPLES, shards, Example)]
    assert found == [row.uid for shard in shards for row in done.store.read_rows(f"{EXAMPLES}/{shard.file}", Example)[:2]]
    assert len(found) == 6


def test_the_chance_level_is_that_of_the_rows_that_are_evaluated(done: Wiring) -> None:
    few = Findings(changed(done, evaluation={"limit_rows": 5})).report().metrics
    assert [(row.value, row.n) for row in few if row.metric == "accuracy_chance" and row.stage == "evaluate"] == [(0.25, 5)]


def validated(done: Wiring, folder: Path, accuracy: float | None, rows: int) -> Wiring:
    """A copy of the run whose teacher was right in this share of so many validation rows."""
    shutil.copytree(done.store.root, folder / "run")
    store = Store.at(str(folder / "run"))
    manifest = store.manifest(TEACHER)
    assert manifest is not None
    assert manifest.figures["validation_rows"] == 10
    score = None if accuracy is None else Score(accuracy, 1.0, parse_rate=0.875, truncation_rate=0.125)
    figures = {**manifest.figures, **named(score), "validation_rows": rows}
    store.publish_manifest(TEACHER, replace(manifest, figures=figures))
    return Wiring(done.config, store)


@pytest.mark.parametrize(
    ("accuracy", "rows", "is_near"),
    [(0.4, 10, True), (0.4, 1000, False), (0.3, 1000, True), (1.0, 3, False)],
)
def test_a_teacher_is_near_chance_by_the_interval_of_the_rows_that_were_scored(
    done: Wiring, tmp_path: Path, accuracy: float, rows: int, is_near: bool
) -> None:
    verdict = Findings(validated(done, tmp_path, accuracy, rows)).teacher_verdict()
    assert (
        f"the teacher's validation accuracy is {accuracy:.1%} (87.5% parsed, 12.5% cut) of {rows:,} rows, chance is 25.0%"
        in verdict
    )
    assert verdict.startswith("WARNING") == is_near


def test_a_teacher_without_validation_has_no_verdict(done: Wiring, tmp_path: Path) -> None:
    assert Findings(validated(done, tmp_path, None, 0)).teacher_verdict().startswith("the teacher was not validated")
