"""Students explained beside their teacher: as rows, over a whole small run, and in the report."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

import pytest

from jobs.agreements import agreement_works, looked
from jobs.costs import costs
from jobs.findings import Findings
from jobs.wiring import Wiring
from kd.agreement_rows import StudentAttribution
from kd.attribution.engine import AttributionConfig, Engine
from kd.attribution.students import explain
from kd.config import Config
from kd.evaluation.agreement import AGREEMENT
from kd.evaluation.sums import Sums
from kd.families.opening import open_family
from kd.loading import load
from kd.reporting.agreement_table import Looked, agreement_table
from kd.reporting.cost_table import Cost, cost_table
from kd.rows import RationaleRow, RowError
from kd.shards import completed
from tests.mini import alone, mini_config, plain, prepared, studied, taught, write_mini


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Wiring:
    """A finished run with one seed, its students explained on seven rows."""
    path = write_mini(tmp_path_factory.mktemp("mini"))
    wiring = studied(taught(prepared(mini_config(path, training=alone(), evaluation={"agreement_rows": 7}))))
    plain(wiring.store, agreement_works(wiring))
    return wiring


def changed(done: Wiring, **sections: Mapping[str, object]) -> Wiring:
    data = done.config.model_dump(mode="json")
    return Wiring(Config.model_validate(data | {name: data[name] | dict(keys) for name, keys in sections.items()}), done.store)


def rows_of(done: Wiring, place: int) -> list[StudentAttribution]:
    folder, manifest = completed(done.store, agreement_works(done)[place])
    return [row for shard in manifest.shards for row in done.store.read_rows(f"{folder}/{shard.file}", StudentAttribution)]


def explained(done: Wiring) -> list[RationaleRow]:
    folder, manifest = completed(done.store, done.rationales()["attribution"])
    return done.store.read_rows(f"{folder}/{manifest.shards_of('test')[0].file}", RationaleRow)[:7]


def test_each_student_is_explained_on_rows_of_the_evaluated_split(done: Wiring) -> None:
    assert [work.target for work in agreement_works(done)] == ["agreement/label-only/0", "agreement/attribution/0"]
    for place in (0, 1):
        rows = rows_of(done, place)
        assert [row.split for row in rows] == ["test"] * 7
        assert all(row.error is None and len(row.student_importance) == len(row.importance) > 0 for row in rows)
    first, second = ([row.student_importance for row in rows_of(done, place)] for place in (0, 1))
    assert first != second


def test_the_teacher_s_importance_is_carried_along_unchanged(done: Wiring) -> None:
    assert [(row.uid, row.importance) for row in rows_of(done, 0)] == [(row.uid, row.importance) for row in explained(done)]


@pytest.mark.parametrize("prefix", ["", "predict: "])
def test_a_teacher_that_is_asked_as_its_own_student_agrees_with_itself_and_the_prefix_is_no_word(
    done: Wiring, prefix: str
) -> None:
    engine = Engine(AttributionConfig(answers=False), open_family(load(done.teacher, "cpu"), done.teacher.config))
    rows = explained(done)
    found = explain(engine, prefix, "sum", rows, Counter())
    for row, own in zip(rows, found, strict=True):
        assert isinstance(own, StudentAttribution)
        assert len(own.student_importance) == len(row.importance)
        assert (own.student_importance == pytest.approx(row.importance, rel=1e-3, abs=1e-6)) == (not prefix)


def test_an_option_that_is_too_long_costs_no_row_and_rows_with_too_long_an_answer_end_no_run(done: Wiring) -> None:
    engine = Engine(AttributionConfig(answers=False), open_family(load(done.teacher, "cpu"), done.teacher.config))
    rows = explained(done)
    long = [dataclasses.replace(row, label_set=[*row.label_set, "much too long " * 50]) for row in rows]
    assert explain(engine, "", "sum", long, Counter()) == [
        dataclasses.replace(each, label_set=row.label_set)
        for each, row in zip(explain(engine, "", "sum", rows, Counter()), long, strict=True)
        if isinstance(each, StudentAttribution)
    ]
    (error,) = explain(engine, "", "sum", [dataclasses.replace(rows[0], explained_answer="much too long " * 50)], Counter())
    assert isinstance(error, RowError)
    assert error.reason == "too_long"
    assert {work.max_error_frac for work in agreement_works(done)} == {1.0}


def test_the_report_has_the_agreement_of_every_student(done: Wiring) -> None:
    found = Findings(done).report()
    assert found.stages["agreement attribution/0"] is not None
    assert [(each.variant, each.seed, each.split) for each in found.agreement] == [
        ("label-only", 0, "test"),
        ("attribution", 0, "test"),
    ]
    for variant in ("label-only", "attribution"):
        own = {row.metric: row for row in found.metrics if row.stage == "agreement" and row.variant == variant}
        assert own.keys() == {measure.name for measure in AGREEMENT}
        assert own["spearman"].value is not None
        assert 0 < own["spearman"].n <= 7


def test_no_rows_or_another_number_of_them_are_another_matter(done: Wiring) -> None:
    assert agreement_works(changed(done, evaluation={"agreement_rows": 0})) == []
    assert looked(changed(done, evaluation={"agreement_rows": 0})) == []
    assert looked(changed(done, evaluation={"agreement_rows": 6})) == []
    assert [work.digest for work in changed(done, evaluation={"agreement_rows": 6}).predictions()] == [
        work.digest for work in done.predictions()
    ]


def test_where_the_evaluated_split_is_not_attributed_the_rows_are_of_train_and_the_report_says_so(done: Wiring) -> None:
    (label_only, _) = agreement_works(changed(done, evaluation={"split": "validation"}))
    assert {shard.split for shard in label_only.shards} == {"train"}
    found = [Looked("words", 0, "train", Sums().results(AGREEMENT))]
    notes = " ".join(agreement_table(found, is_void=False).notes)
    assert "On rows of train, from which the students learned" in notes
    assert "No number for words/0: spearman, there is no row." in notes


def test_agreement_with_a_teacher_near_chance_is_void(done: Wiring) -> None:
    table = agreement_table(looked(done), is_void=True)
    assert table.rows[0][:5] == ("label-only", "void", "void", "void", "void")
    assert any(note.startswith("Void: the teacher is near chance") for note in table.notes)


# --- cost -------------------------------------------------------------------------------------------------------------


def test_the_cost_of_every_model_is_its_parameters_its_files_and_its_rate(done: Wiring) -> None:
    predictions = Findings(done)._predictions
    found = costs(done, predictions)
    assert [each.variant for each in found] == ["teacher", "label-only", "attribution"]
    for each in found:
        assert each.parameters is not None
        assert each.size_bytes is not None
        # float32 weights, beside them the tokenizer
        assert 4 * each.parameters < each.size_bytes < 4 * each.parameters + 200_000
        _, manifest = predictions[each.variant, each.seed] or pytest.fail("it has answered")
        assert manifest.counts["answering_ms"] > 0
        assert (each.rows, each.device) == (20, "cpu")
        assert each.rows_per_s == pytest.approx(20_000 / manifest.counts["answering_ms"])


def test_a_teacher_without_a_size_has_a_dash_and_the_rates_of_seeds_are_averaged_by_time() -> None:
    teacher = Cost("teacher", "teacher", 0, 3_000_000_000, None, 100, 2.0, "cuda")
    student = Cost("student", "words", 0, 60_000_000, 240_000_000, 100, 50.0, "cuda")
    table = cost_table([teacher, student, dataclasses.replace(student, seed=1, rows_per_s=25.0)])
    assert table.rows[0] == ("teacher", "3,000,000,000", "–", "2.0", "1.0", "cuda")
    # 200 rows in 2 + 4 seconds
    assert table.rows[1] == ("words", "60,000,000", "240.0", "33.3", "16.7", "cuda")
    assert "No size for teacher: not trained in this run, and its architecture could not be opened." in table.notes
