"""Do two importances agree? By hand, and as scipy says on random input."""

import itertools

import numpy as np
import pytest
from scipy import stats

from kd.evaluation.agreement import AGREEMENT, agreement, kendall, spearman
from kd.evaluation.sums import Sums, Why
from kd.rows import RationaleRow, RowError
from tests.tiny_measures import rationale_row, single_words, values

TEXT = ("text", "red green blue, white")


def row(importance=(4, 3, 2, 99, 1), uid: str = "r", error: RowError | None = None) -> RationaleRow:
    """Five words, of which the comma is no unit."""
    return rationale_row(TEXT, importance=importance, uid=uid, error=error)


def compared(student: tuple[float, ...], k: int = 2, teacher: RationaleRow | None = None) -> dict[str, float | None]:
    return values(agreement([teacher or row()], [student], single_words, k).results(AGREEMENT))


def test_one_of_the_two_heaviest_words_in_common() -> None:
    found = compared((4, 1, 3, 0, 2))
    # Ranks 4 3 2 1 and 4 1 3 2: squared distances 0 + 4 + 1 + 1; of six pairs (3, 2), (3, 1) are the other way round.
    assert found == pytest.approx(
        {"topk_overlap": 0.5, "topk_overlap_chance": 2 / 4, "spearman": 1 - 6 * 6 / (4 * 15), "kendall": (4 - 2) / 6}
    )


def test_the_same_order_agrees_wholly_and_the_reverse_not_at_all() -> None:
    assert {name: value for name, value in compared((40, 30, 20, 0, 10)).items() if name != "topk_overlap_chance"} == {
        "topk_overlap": 1,
        "spearman": 1,
        "kendall": 1,
    }
    reverse = compared((1, 2, 3, 0, 4))
    assert (reverse["topk_overlap"], reverse["spearman"], reverse["kendall"]) == (0, -1, -1)


def test_words_of_no_weight_are_not_among_the_heaviest() -> None:
    assert compared((5, 0, 0, 0, 0))["topk_overlap"] == 0.5
    assert compared((5, 0, 0, 0, 0))["topk_overlap_chance"] == 1 * 2 / 4 / 2


def test_chance_is_the_mean_over_all_pairs_of_choices() -> None:
    pairs = list(itertools.product(itertools.combinations(range(5), 2), itertools.combinations(range(5), 3)))
    mean = sum(len(set(a) & set(b)) / 3 for a, b in pairs) / len(pairs)
    names = ("text", "a b c d e")
    teacher = rationale_row(names, importance=(1, 2, 3, 0, 0))
    found = agreement([teacher], [(1, 2, 0, 0, 0)], single_words, 3).results(AGREEMENT)
    assert values(found)["topk_overlap_chance"] == pytest.approx(mean)


def test_importance_that_ranks_nothing_is_left_out_and_said_why() -> None:
    results = agreement([row()], [(1, 1, 1, 0, 1)], single_words, 2).results(AGREEMENT)
    assert [result.left_out for result in results] == [{}, {}, {Why.CONSTANT: 1}, {Why.CONSTANT: 1}]
    nothing = agreement([row()], [(0, 0, 0, 0, 0)], single_words, 2).results(AGREEMENT)
    assert [result.left_out for result in nothing] == [{Why.NO_IMPORTANCE: 1}] * 2 + [{Why.CONSTANT: 1}] * 2
    odd = [
        (row(), (1.0, float("nan"), 1.0, 1.0, 1.0), 2, Why.NOT_FINITE),
        (row(), (1.0, 2.0, 3.0, 4.0, 5.0), 4, Why.TOO_FEW_WORDS),
        (row(error=RowError("too_long", "")), (), 2, Why.ERRORED),
    ]
    for teacher, student, k, why in odd:
        assert [result.left_out for result in agreement([teacher], [student], single_words, k).results(AGREEMENT)] == [
            {why: 1}
        ] * 4


def test_a_student_of_other_words_is_a_defect() -> None:
    with pytest.raises(ValueError, match="expected 5 importances of the student, one per word, got 3"):
        agreement([row()], [(1, 2, 3)], single_words, 2)


def test_shards_add_up() -> None:
    rows, students = [row(uid="a"), row(uid="b")], [(1, 2, 3, 0, 4), (4, 1, 3, 0, 2)]
    parts = sum((agreement([each], [student], single_words, 2) for each, student in zip(rows, students, strict=True)), Sums())
    assert values(parts.results(AGREEMENT)) == pytest.approx(
        values(agreement(rows, students, single_words, 2).results(AGREEMENT))
    )


def test_both_correlations_are_those_of_scipy_on_random_input_with_ties() -> None:
    draw = np.random.default_rng(5)
    for _ in range(300):
        n = int(draw.integers(2, 60))
        a, b = draw.normal(size=(2, n)).round(int(draw.integers(0, 4)))
        if len(set(a)) < 2 or len(set(b)) < 2:
            continue
        assert spearman(a.tolist(), b.tolist()) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)
        assert kendall(a.tolist(), b.tolist()) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-9)


def test_what_has_no_ranks_is_refused() -> None:
    for function in (spearman, kendall):
        with pytest.raises(ValueError, match="not all equal"):
            function([1, 1], [1, 2])
