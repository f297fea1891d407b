"""Figures of labels and calibration: closed forms, and the same as scikit-learn's and numpy's on random answers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_fscore_support

from kd.evaluation.answer_sums import BINS, AnswerSums, Calibration, answer_sums, bin_of, confidence
from kd.evaluation.metrics import About
from kd.reporting.answer_table import answer_table
from kd.rows import MetricRow, Prediction, RowError
from tests.tiny import example
from tests.tiny_reports import predicted

LABELS = ["cat", "dog", "emu", "fox"]


def about(variant: str = "words", seed: int = 0) -> About:
    return About("student", "evaluate", variant, seed, "toy", "test")


def answered(target: str | None, answer: str | None, labels: list[str] = LABELS, logprobs: tuple[float, ...] = ()) -> Prediction:
    row = example(choices=(), target=target, label_set=labels)
    status = "ok" if answer else "unparsed"
    correct = None if target is None else answer == target
    return predicted(row, answer=answer, status=status, correct=correct, choice_logprobs=list(logprobs))


def found(sums: AnswerSums) -> dict[str, float | None]:
    return {row.metric: row.value for row in sums.metrics(about())}


def drawn(seed: int, rows: int, labels: list[str] = LABELS) -> list[Prediction]:
    """Random answers, some unreadable, each with random log-probabilities of the labels."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        logprobs = tuple(math.log(share) for share in draw.dirichlet(np.full(len(LABELS), 0.4)))
        answer = None if draw.random() < 0.1 else str(draw.choice(labels))
        made.append(answered(str(draw.choice(LABELS[: len(labels)])), answer, LABELS, logprobs))
    return made


# --- labels -------------------------------------------------------------------------------------------------------------


def test_f1_of_a_label_by_hand() -> None:
    rows = [answered("cat", "cat"), answered("cat", "dog"), answered("dog", "dog"), answered("emu", None)]
    figures = found(answer_sums(rows))
    assert (figures["f1:cat"], figures["precision:cat"], figures["recall:cat"]) == (2 / 3, 1.0, 0.5)
    assert (figures["f1:dog"], figures["precision:dog"], figures["recall:dog"]) == (2 / 3, 0.5, 1.0)
    assert (figures["f1:emu"], figures["precision:emu"], figures["recall:emu"]) == (0.0, None, 0.0)
    assert (figures["f1:fox"], figures["precision:fox"], figures["recall:fox"]) == (None, None, None)
    assert figures["macro_f1"] == pytest.approx(4 / 9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("labels", [LABELS, LABELS[:2]], ids=["all labels", "two labels are never met"])
def test_figures_of_labels_are_those_of_scikit_learn(seed: int, labels: list[str]) -> None:
    rows = drawn(seed, 200, labels)
    target, answer = [row.target for row in rows], [row.answer or "nothing" for row in rows]
    precision, recall, f1, _ = precision_recall_fscore_support(target, answer, labels=LABELS, zero_division=np.nan)
    figures = found(answer_sums(rows))
    for name, theirs in (("precision", precision), ("recall", recall), ("f1", f1)):
        ours = [math.nan if figures[f"{name}:{label}"] is None else figures[f"{name}:{label}"] for label in LABELS]
        assert ours == pytest.approx(theirs.tolist(), abs=1e-9, nan_ok=True)
    theirs = f1_score(target, answer, labels=LABELS, average="macro", zero_division=np.nan)
    assert figures["macro_f1"] == pytest.approx(theirs, abs=1e-9)


def test_options_that_change_from_row_to_row_are_no_classes() -> None:
    rows = [
        answered("cat", "cat", ["cat", "dog"]),
        answered("emu", "fox", ["emu", "fox"]),
        answered("cat", "cat", ["cat", "dog"]),
    ]
    (macro, *rest) = answer_sums(rows).metrics(about())
    assert (macro.metric, macro.value, macro.n) == ("macro_f1", None, 3)
    assert [row.metric for row in rest] == ["calibration_error"]
    assert found(answer_sums([answered("84", "84", [])]))["macro_f1"] is None


def test_the_order_of_a_label_set_does_not_matter() -> None:
    rows = [answered("cat", "cat", ["cat", "dog"]), answered("dog", "cat", ["dog", "cat"])]
    assert found(answer_sums(rows))["f1:cat"] == pytest.approx(2 / 3)


# --- calibration --------------------------------------------------------------------------------------------------------


def test_a_ranking_that_is_as_sure_as_it_is_right_has_no_calibration_error() -> None:
    sure = (math.log(0.75), math.log(0.25))
    rows = [answered(target, "yes", ["yes", "no"], sure) for target in ("yes", "yes", "yes", "no")]
    assert found(answer_sums(rows))["calibration_error"] == pytest.approx(0.0, abs=1e-12)
    assert found(answer_sums(rows[:3]))["calibration_error"] == pytest.approx(0.25)
    assert found(answer_sums(rows[3:]))["calibration_error"] == pytest.approx(0.75)


@pytest.mark.parametrize("seed", range(20))
def test_the_calibration_error_is_that_of_the_formula(seed: int) -> None:
    rows = [row for row in drawn(seed, 300) if row.answer is not None]
    shares = np.exp([row.choice_logprobs for row in rows])
    sure = shares[np.arange(len(rows)), [LABELS.index(str(row.answer)) for row in rows]] / shares.sum(1)
    right = np.array([row.correct for row in rows], dtype=float)
    edges = np.linspace(0, 1, BINS + 1)
    inside = [(sure > low) & (sure <= high) for low, high in zip(edges, edges[1:], strict=False)]
    theirs = sum(chosen.mean() * abs(right[chosen].mean() - sure[chosen].mean()) for chosen in inside if chosen.any())
    assert found(answer_sums(rows))["calibration_error"] == pytest.approx(theirs, abs=1e-9)


def test_confidence_is_the_answers_share_whatever_the_numbers_sum_to() -> None:
    assert confidence({"a": -1000.0, "b": -1000.0 + math.log(3)}, "b") == pytest.approx(0.75)
    assert confidence({"a": -1000.0, "b": -1000.0 + math.log(3)}, "a") == pytest.approx(0.25)
    assert confidence({"a": -5.0}, "a") == 1.0
    assert confidence({"a": -1e9, "b": 0.0}, "b") == 1.0


@pytest.mark.parametrize("normalised", [False, True])
def test_a_ranker_whose_probabilities_are_those_of_the_answers_has_no_calibration_error(normalised: bool) -> None:
    """Of 1,000 rows the label of one token is right in 300 and that of four in 700, which is what it gives them; by the mean over
    tokens the long one is taken as well, and of a second kind of rows the long one of 0.4 is taken before the short one of 0.6."""
    rows = []
    for long, count in ((0.7, 1000), (0.4, 1000)):
        logprobs = [math.log(1 - long), math.log(long)]
        weights = [logprobs[0], logprobs[1] / 4] if normalised else logprobs
        answer = ["no", "maybe so"][weights.index(max(weights))]
        targets = ["maybe so"] * round(long * count) + ["no"] * round((1 - long) * count)
        rows += [answered(target, answer, ["no", "maybe so"], tuple(logprobs)) for target in targets]
    assert found(answer_sums(rows))["calibration_error"] == pytest.approx(0.0, abs=1e-12)


def test_a_label_that_is_there_twice_is_one_answer() -> None:
    sure = (math.log(0.75), math.log(0.25), math.log(0.75))
    once = [answered("yes", "yes", ["yes", "no"], sure[:2])]
    twice = [answered("yes", "yes", ["yes", "no", "yes"], sure)]
    assert found(answer_sums(twice))["calibration_error"] == found(answer_sums(once))["calibration_error"] == pytest.approx(0.25)


def test_a_confidence_on_an_edge_is_in_the_lower_bin() -> None:
    assert [bin_of(sure) for sure in (1e-9, 0.2, 0.2 + 1e-9, 0.5, 1.0)] == [0, 2, 3, 7, 14]


def test_generated_answers_have_no_calibration_error() -> None:
    rows = answer_sums([answered("cat", "cat")]).metrics(about())
    assert [(row.value, row.n) for row in rows if row.metric == "calibration_error"] == [(None, 0)]


# --- what adds up, and what is left out ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 30), st.integers(0, 30))
def test_sums_of_shards_add_up_in_any_order(seed: int, first: int, second: int) -> None:
    rows = drawn(seed, 30)
    cuts = sorted((first, second))
    one, two, three = (answer_sums(part) for part in (rows[: cuts[0]], rows[cuts[0] : cuts[1]], rows[cuts[1] :]))
    whole = found(answer_sums(rows))
    for other in (one + two + three, three + (one + two)):
        assert {name: value for name, value in found(other).items() if value is not None} == pytest.approx(
            {name: value for name, value in whole.items() if value is not None}, abs=1e-9
        )


def test_rows_with_an_error_or_without_a_target_are_left_out() -> None:
    errored = predicted(example(target="cat", label_set=["other"]), error=RowError("too_long", "600 tokens"))
    rows = [answered("cat", "cat"), answered(None, "dog"), errored]
    assert found(answer_sums(rows)) == found(answer_sums(rows[:1]))


@pytest.mark.parametrize("rows", [[], [answered(None, "cat")]], ids=["an empty split", "no labels"])
def test_without_labelled_rows_every_value_is_null(rows: list[Prediction]) -> None:
    assert [(row.metric, row.value, row.n) for row in answer_sums(rows).metrics(about())] == [
        ("macro_f1", None, 0),
        ("calibration_error", None, 0),
    ]
    assert Calibration() + Calibration() == Calibration()


# --- the table ----------------------------------------------------------------------------------------------------------


def metrics(variant: str, seed: int, rows: list[Prediction]) -> list[MetricRow]:
    return answer_sums(rows).metrics(about(variant, seed))


def test_the_table_has_means_over_seeds_and_reasons_for_what_is_missing() -> None:
    yes_no = ["no", "yes"]
    sure = (math.log(0.25), math.log(0.75))
    right, wrong = answered("yes", "yes", yes_no, sure), answered("yes", "no", yes_no, sure)
    made = [
        *metrics("words", 0, [right, right]),
        *metrics("words", 1, [right, wrong]),
        *metrics("options", 0, [answered("a", "a", ["a", "b"]), answered("c", "c", ["c", "d"])]),
        *metrics("failed", 0, []),
    ]
    table = answer_table(made)
    assert table.rows == [
        ("words", "66.7", "25.0", "2", "no 0.0, yes 83.3"),
        ("options", "–", "–", "2", "–"),
        ("failed", "–", "–", "0", "–"),
    ]
    assert table.notes == [
        "Nothing for failed: no labelled row was answered.",
        "No macro-F1 for options: the rows have no set of answers in common.",
        "No calibration error for options: the answers were generated; evaluation.answer = rank has one.",
        "No f1 of no for words/0: no row has it as target or as answer.",
        "No precision of no for words/0: no row has it as answer.",
        "No recall of no for words/0, words/1: no row has it as target.",
    ]


def test_a_table_of_nothing_says_so() -> None:
    assert answer_table([]).notes == ["Nothing has been evaluated: run evaluate."]
