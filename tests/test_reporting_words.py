"""What a report says in words: its headline and its warnings."""

import pytest

from kd.evaluation.metrics import About, Counts
from kd.reporting.report import headline, to_html, to_json, to_markdown, warnings
from kd.reporting.tables import rationale_table
from kd.rows import MetricRow
from tests.tiny_reports import FULL, answers, chance_of, rationales, report, unlabelled

# --- the headline -----------------------------------------------------------------------------------------------------


def test_the_headline_names_the_best_variant_its_distances_and_the_seeds() -> None:
    assert headline(report()) == (
        "words has the highest mean accuracy of 3 variants, 58.0% over 2 seeds: 15.0 points above label only (plain, 43.0%)"
        " and 13.0 points above the next best (noise, 45.0%). A difference over 2 seeds proves nothing by itself, and no test"
        " of significance was made."
    )


def test_the_headline_says_so_when_label_only_is_best() -> None:
    said = headline(report([*answers("plain", 60), *answers("words", 50), *answers("noise", 55)]))
    assert said.startswith("plain has the highest mean accuracy of 3 variants, 60.0% over a single seed: 5.0 points above")
    assert "label only" not in said


def test_a_tie_is_called_level() -> None:
    assert "level with label only (plain, 50.0%)" in headline(report([*answers("words", 50), *answers("plain", 50)]))


def test_variants_with_different_numbers_of_seeds_are_told() -> None:
    assert "over 1 to 2 seeds" in headline(report([*answers("words", 50), *answers("plain", 40, 42)]))


def test_without_a_label_only_variant_the_next_best_is_named() -> None:
    said = headline(report(baseline=None))
    assert "13.0 points above the next best (noise, 45.0%)." in said
    assert "label only" not in said


@pytest.mark.parametrize(
    "metrics,said",
    [
        ([], "No student has been evaluated yet."),
        (answers("teacher", 95, subject="teacher"), "No student has been evaluated yet."),
        (unlabelled("plain"), "No accuracy: the 50 evaluated rows have no labels. The predictions are kept."),
        (answers("words", 0, rows=0), "No accuracy: no student has answered a row; every row has an error, or there is none."),
        (answers("words", 50, 60), "words has a mean accuracy of 55.0% over 2 seeds; no other variant has one."),
    ],
)
def test_the_headline_says_what_is_missing(metrics: list[MetricRow], said: str) -> None:
    assert headline(report(metrics)) == said


@pytest.mark.parametrize("metrics", [FULL, [], unlabelled("plain"), answers("words", 50)])
def test_nothing_is_ever_called_shown_or_significant(metrics: list[MetricRow]) -> None:
    said = headline(report(metrics)).lower()
    assert "shown" not in said
    assert "significant" not in said


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_a_teacher_near_chance_is_said_loudly_and_its_rationales_are_void() -> None:
    metrics = [
        *answers("teacher", 26, subject="teacher"),
        *chance_of(0.25),
        *rationales("attribution", 90),
        *rationales("llm", 80),
    ]
    (warning,) = warnings(report(metrics))
    assert warning.startswith("The teacher is near chance: 26.0% of 100 rows, where guessing gives 25.0%.")
    assert [line[1] for line in rationale_table(metrics).rows] == ["void", "80.0"]
    assert warning in to_json(report(metrics))["warnings"]
    assert f"**{warning}**" in to_markdown(report(metrics))
    assert 'role="alert"' in to_html(report(metrics))


def test_a_teacher_that_only_its_own_stage_has_measured_is_judged_by_that() -> None:
    measured = Counts(ok=100, correct=24).metrics(About("teacher", "teach", "teacher", 0, "toy", "validation"))
    (warning,) = warnings(report([*measured, *chance_of(0.25)]))
    assert "24.0% of 100 rows" in warning


def test_a_good_teacher_is_no_warning() -> None:
    assert warnings(report()) == []
    assert 'role="alert"' not in to_html(report())
