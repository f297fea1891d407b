"""The tables of a report: what is missing is a dash with its reason, and nothing breaks or widens them."""

import pytest

from kd.evaluation.metrics import About, Counts
from kd.evaluation.sums import Why
from kd.reporting.rationale_table import rationale_table
from kd.reporting.tables import (
    Table,
    accuracy_table,
    as_markdown,
    as_text,
    hundredfold,
    percent,
    stage_table,
    terminal_table,
    training_table,
)
from kd.training.validation import Score, named
from tests.tiny_reports import FULL, answers, manifest, rationales, unlabelled


def test_the_accuracy_table_has_the_teacher_each_variant_and_chance() -> None:
    table = accuracy_table(FULL)
    assert table.rows[0] == ("teacher", "95.0", "–", "95.0", "100", "100.0", "0.0")
    assert table.rows[2] == ("words", "58.0", "2.8", "56.0 60.0", "100", "98.0", "0.0")
    assert table.rows[-1][:2] == ("chance", "25.0")
    assert table.notes == ["No spread for teacher: a single seed has none."]


def test_the_teachers_accuracy_of_another_stage_is_not_mixed_in() -> None:
    other = Counts(ok=100, correct=10).metrics(About("teacher", "teach", "teacher", 0, "toy", "validation"))
    assert accuracy_table([*FULL, *other]) == accuracy_table(FULL)


def test_rows_without_labels_have_a_dash_and_the_reason() -> None:
    table = accuracy_table(unlabelled("plain"))
    assert table.rows[0] == ("plain", "–", "–", "–", "50", "100.0", "0.0")
    assert table.notes[0] == "No accuracy for plain: the rows have no labels; the predictions are kept."
    assert table.notes[1].startswith("No chance level")


def test_a_model_that_answered_no_row_has_a_dash_and_another_reason() -> None:
    nothing = Counts().metrics(About("student", "evaluate", "failed", 0, "toy", "test"))
    table = accuracy_table([*FULL, *nothing])
    assert table.rows[-2] == ("failed", "–", "–", "–", "0", "–", "–")
    assert "No accuracy for failed: every row has an error, or there is none." in table.notes
    assert table.rows[:4] == accuracy_table(FULL).rows[:4]


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ({Why.NO_EVIDENCE: 200}, "200 of 200 rows: the row has no human evidence"),
        ({Why.ERRORED: 200}, "200 of 200 rows: the row has an error"),
        ({}, "there is no row"),
    ],
    ids=["no evidence", "every row has an error", "no row"],
)
def test_rationales_without_a_hit_rate_have_a_dash_and_the_reason(left_out: dict[Why, int], said: str) -> None:
    metrics = [*rationales("llm", 0, with_evidence=0), *rationales("none", 0, with_evidence=0)]
    table = rationale_table(metrics, (), {source: {"evidence_hit_rate": left_out} for source in ("llm", "none")})
    assert table.rows[0] == ("llm", "–", "–", "–", "3.0", "0.5", "200", "0")
    assert table.notes == [f"No hit rate for llm, none: {said}."]


def test_rows_with_evidence_that_are_in_no_hit_rate_are_said() -> None:
    left_out = {Why.NO_EVIDENCE: 97, Why.EVIDENCE_EVERYWHERE: 3}
    table = rationale_table(rationales("llm", 50), (), {"llm": {"evidence_hit_rate": left_out}})
    why = "has its evidence on every word that a rationale may hold"
    assert table.notes == [f"The hit rate of llm is without 3 rows of which each {why}."]


def test_rationales_that_were_not_measured_say_so() -> None:
    assert rationale_table([]).notes == ["The rationales have not been measured: run audit."]


def test_a_stage_says_its_errors_by_reason_and_an_absent_one_that_it_is_absent() -> None:
    done = manifest(
        rows=1200, errors={"too_long": 1, "empty_text": 3}, rows_per_s=600.0, counts={"ok": 1196}, figures={"loss": 0.12345}
    )
    table = stage_table({"prepare": done, "train": None})
    assert table.rows[0] == ("prepare", "1,200", "3 empty_text, 1 too_long", "2.0", "600.0", "cpu", "ok 1,196, loss 0.1235")
    assert table.rows[1] == ("train", *["–"] * 6)
    assert table.notes == ["Not complete: train."]


def test_the_terminal_table_is_aligned_and_at_most_100_columns_wide() -> None:
    metrics = [*answers("a" * 80, *range(40, 70)), *answers("b", 50)]
    lines = terminal_table(metrics).splitlines()
    assert max(map(len, lines)) == 100
    assert lines[0].rstrip().endswith("cut %")
    assert [line[-5:] for line in lines[2:4]] == ["  0.0"] * 2
    assert len(lines[2]) == len(lines[3])
    assert "…" in lines[2]


def test_numbers_are_never_clipped_to_make_room_for_a_name() -> None:
    table = Table("t", ("model", "mean %"), [("x" * 50, "58.0")], left=frozenset({"model"}))
    assert as_text(table, width=20).splitlines()[2] == "x" * 11 + "…    58.0"


def test_markdown_cells_cannot_break_the_table() -> None:
    table = Table("t", ("model", "mean %"), [("a|b\nc", "58.0")], notes=["note"], left=frozenset({"model"}))
    assert as_markdown(table) == "## t\n\n| model | mean % |\n| --- | ---: |\n| a\\|b c | 58.0 |\n\nnote"


def test_a_run_shows_its_best_step_and_its_last_one() -> None:
    scores = {"best_step": 40, **named(Score(0.75, 0.5, parse_rate=0.875, truncation_rate=0.125))}
    newest = named(Score(1.0, 0.75, parse_rate=1.0, truncation_rate=0.0))
    last = {
        "last_step": 60,
        **{f"last_{name}": value for name, value in newest.items()},
        "validation_rows": 200,
        "trained_parameters": 3072,
    }
    unscored = dict.fromkeys({**scores, **last}) | {"best_step": 6, "last_step": 6, "trained_parameters": 10}
    runs = {"teach": manifest(figures=scores | last), "train a/0": manifest(figures=unscored), "prepare": manifest()}
    table = training_table(runs)
    assert table.rows == [
        ("teach", "40", "best", "75.0", "87.5", "12.5", "0.5", "200", "3,072"),
        ("teach", "60", "last", "100.0", "100.0", "0.0", "0.75", "200", "3,072"),
        ("train a/0", "6", "best, last", "–", "–", "–", "–", "–", "10"),
    ]
    older = {name: value for name, value in (scores | last).items() if "rate" not in name}
    assert training_table({"teach": manifest(figures=older)}).rows[0][3:6] == ("75.0", "–", "–")
    counted = stage_table({"teach": manifest(figures=scores | last | {"final_loss_label": 0.25})}).rows[0][-1]
    assert counted == "final_loss_label 0.25", "what the table of training says is not said twice"
    assert table.notes == ["Not validated, so the last step is kept: train a/0."]
    assert training_table({"train": None}).notes == ["Nothing has been trained."]


def test_the_same_difference_is_the_same_number_however_it_was_summed_up() -> None:
    means, pairs = (0.729 + 0.565) / 2 - (0.568 + 0.577) / 2, 0.0745
    assert f"{100 * means:.1f}" == "7.5"
    assert f"{100 * pairs:.1f}" == "7.4"
    assert hundredfold(means) == hundredfold(pairs) == 7.5
    assert hundredfold(-pairs) == -7.5
    assert percent(pairs) == "7.5"
    assert percent(0.5725) == "57.2", "an exact tie goes to the even digit"
