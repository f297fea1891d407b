"""What a report says in words: its headline and its warnings."""

import pytest

from kd.evaluation.metrics import About, Counts, Mean, chance_metrics
from kd.reporting.rationale_table import rationale_table
from kd.reporting.report import headline, to_html, to_json, to_markdown, warnings
from kd.reporting.tables import teacher_near_chance
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
    assert warning.startswith(
        "The teacher is near chance: 26.0% (100.0% parsed, 0.0% cut) of 100 rows of test, where guessing gives 25.0%."
    )
    assert [line[1] for line in rationale_table(metrics, {"attribution"}).rows] == ["void", "80.0"]
    assert warning in to_json(report(metrics))["warnings"]
    assert f"**{warning}**" in to_markdown(report(metrics))
    assert 'role="alert"' in to_html(report(metrics))


def test_a_teacher_that_only_its_own_stage_has_measured_is_judged_by_that() -> None:
    (warning,) = warnings(report(audited(24, 0.25)))
    assert "24.0% (100.0% parsed, 0.0% cut) of 100 rows of train, where guessing gives 25.0%" in warning


def audited(right: int, level: float | None) -> list[MetricRow]:
    """The teacher's accuracy on 100 audited rows of train, and what guessing gives there; None for free text."""
    rows = Counts(ok=100, correct=right).metrics(About("teacher", "audit", "teacher", 0, "toy", "train"))
    chance = Mean() if level is None else Mean(100 * level, 100)
    return [*rows, *chance_metrics(chance, About("chance", "audit", "chance", 0, "toy", "train"))]


def test_an_evaluated_split_without_labels_hides_no_teacher_near_chance() -> None:
    elsewhere = chance_metrics(Mean(), About("chance", "evaluate", "chance", 0, "toy", "test"))
    metrics = [*unlabelled("plain"), *elsewhere, *audited(26, 0.25), *rationales("attribution", 90)]
    (warning,) = warnings(report(metrics))
    assert "26.0% (100.0% parsed, 0.0% cut) of 100 rows of train, where guessing gives 25.0%" in warning
    assert rationale_table(metrics, {"attribution"}).rows[0][1] == "void"


def test_each_accuracy_of_the_teacher_is_judged_by_the_level_of_its_own_rows() -> None:
    """Two options in the audited rows and four in the evaluated ones: 45 % is far from chance there, and is chance here."""
    evaluated = [*answers("teacher", 45, subject="teacher"), *chance_of(0.25)]
    assert teacher_near_chance([*evaluated, *audited(90, 0.5)]) is None
    near = teacher_near_chance([*evaluated, *audited(45, 0.5)])
    assert near is not None
    assert near.stage == "audit"
    assert teacher_near_chance([*answers("teacher", 45, subject="teacher"), *chance_of(0.5), *audited(90, 0.5)]) is not None


def test_a_teacher_near_zero_on_free_text_is_warned_of_in_words() -> None:
    (warning,) = warnings(report(audited(3, None)))
    assert "3.0% (100.0% parsed, 0.0% cut) of 100 rows of train, whose answers are text that nobody guesses." in warning
    assert "–" not in warning


def test_a_good_teacher_is_no_warning() -> None:
    assert warnings(report()) == []
    assert 'role="alert"' not in to_html(report())
