"""How long rationales are, and how far scores miss their sum: numbers worked out by hand."""

import dataclasses
from collections.abc import Sequence

import pytest

from kd.evaluation.sizes import GAP, SIZE, gaps, sizes
from kd.evaluation.sums import Sums, Why
from kd.rationales import RationalesConfig
from kd.rows import RationaleRow, RowError
from tests.tiny_measures import rationale_row, single_words, values

TEXT = ("text", "red gold blue")


def lengths(rows: Sequence[RationaleRow]) -> dict[str, float | None]:
    return values(sizes(rows, single_words).results(SIZE))


def test_words_are_counted_and_empty_rationales_are_a_share_of_rows() -> None:
    rows = [rationale_row(TEXT, chosen=chosen) for chosen in (("gold", "blue"), ("red",), ())]
    assert lengths(rows) == {"rationale_words": 1, "empty_rationale_rate": pytest.approx(1 / 3)}


def test_a_word_that_is_merged_is_one_word() -> None:
    row = rationale_row(("text", "gold red gold"), chosen=("gold",))
    merged = sizes([row], RationalesConfig(roles=("text",)).units).results(SIZE)
    assert (values(merged)["rationale_words"], lengths([row])["rationale_words"]) == (1, 2)


def test_rows_with_an_error_are_left_out_and_shards_add_up() -> None:
    good, bad = rationale_row(TEXT, chosen=("red",)), rationale_row(TEXT, error=RowError("not_finite", "nan"))
    (words, _) = (sizes([good], single_words) + sizes([bad], single_words) + Sums()).results(SIZE)
    assert (words.value, words.n, words.left_out) == (1, 1, {Why.ERRORED: 1})


def test_the_completeness_gap_is_the_mean_distance_whatever_its_sign() -> None:
    plain = rationale_row(TEXT)
    rows = [plain, dataclasses.replace(plain, completeness_gap=-0.5), dataclasses.replace(plain, completeness_gap=0.1)]
    (found,) = gaps(rows).results(GAP)
    assert (found.value, found.n, found.left_out) == (pytest.approx(0.3), 2, {Why.NO_SUM_CLAIMED: 1})
    (without,) = gaps([plain]).results(GAP)
    assert without.why_null == "1 of 1 rows: the row has scores of a method that claims no sum"
