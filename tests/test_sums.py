"""What all measures over rows share: sums that add up over shards, divided once, and never NaN."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kd.evaluation import agreement, overlap, plausibility, sizes
from kd.evaluation.metric_names import METRICS
from kd.evaluation.metrics import wilson
from kd.evaluation.sums import Measure, Sums, Tally, Why, add_up
from kd.rows import RowError
from tests.tiny_measures import rationale_row

ENTRIES = [
    *sizes.SIZE,
    *sizes.GAP,
    *plausibility.HARD,
    *plausibility.SOFT,
    *overlap.WORDS,
    *overlap.TEXT,
    *agreement.AGREEMENT,
]
LENGTH = Measure("length", 0, 10, True, "rows", "letters of the text", "ours")


def of(texts: list[str], **more: RowError) -> Sums:
    rows = [rationale_row(("text", text), uid=f"{number}/{text}", **more) for number, text in enumerate(texts)]
    return add_up(
        rows, [LENGTH], lambda row: {"length": float(len(row.segments[0].text))} if row.segments[0].text else Why.NO_TEXT
    )


def test_the_value_is_the_mean_over_the_rows_that_say_something_and_the_others_are_counted_by_reason() -> None:
    (found,) = (of(["ab", "", "abcd"]) + of(["", "xyz"], error=RowError("too_long", ""))).results([LENGTH])
    assert (found.value, found.n) == (3.0, 2)
    assert found.left_out == {Why.NO_TEXT: 1, Why.ERRORED: 2}
    assert found.why_null is None


def test_the_interval_is_that_of_a_mean_and_stays_inside_the_range() -> None:
    (found,) = of(["aaaa", "aaaaa", "aaaaaa", "aaaaa"]).results([LENGTH])
    theirs = stats.ttest_1samp([4, 5, 6, 5], 0).confidence_interval(0.95)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(theirs))
    (wide,) = of(["a", "a" * 10]).results([LENGTH])
    assert (wide.ci_low, wide.ci_high) == (0, 10)
    (one,) = of(["a"]).results([LENGTH])
    assert (one.value, one.ci_low, one.ci_high) == (1.0, None, None)


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1])
def test_rows_that_all_say_the_same_do_not_tell_how_far_others_are_from_that(value: float) -> None:
    found = Tally.of([value] * 7)
    assert (found.mean, found.standard_error, found.interval) == (pytest.approx(value), 0.0, None)


@pytest.mark.parametrize("rows", [2, 3, 5, 20, 200])
def test_the_interval_of_a_mean_covers_the_true_one_in_95_percent_of_samples(rows: int) -> None:
    samples = np.random.default_rng(rows).normal(0.1, 0.3, (2000, rows))
    intervals = [Tally.of(sample).interval or (0.0, 0.0) for sample in samples.tolist()]
    covered = sum(low <= 0.1 <= high for low, high in intervals)
    assert stats.binom.ppf(0.001, 2000, 0.95) <= covered <= stats.binom.ppf(0.999, 2000, 0.95)


@pytest.mark.parametrize("rows", [10, 50, 500])
def test_wilsons_interval_covers_a_share_in_95_percent_of_samples_on_average_over_shares(rows: int) -> None:
    """Exactly: over all numbers of right answers, by their probability."""
    right, shares = np.arange(rows + 1), np.linspace(0.005, 0.995, 199)
    low, high = np.array([wilson(number, rows) for number in right]).T
    inside = (low <= shares[:, None]) & (shares[:, None] <= high)
    covered = (stats.binom.pmf(right, rows, shares[:, None]) * inside).sum(axis=1)
    assert covered.mean() == pytest.approx(0.95, abs=0.006)
    assert covered[60:140].min() > 0.92


def test_the_interval_of_a_share_of_rows_is_wilsons() -> None:
    share = Measure("share", 0, 1, True, "rows", "share of texts that are long", "ours")
    rows = [rationale_row(("text", "red"), uid=str(number)) for number in range(20)]
    never = add_up(rows, [share], lambda row: {"share": 0.0}).results([share])[0]
    assert (never.value, never.ci_low, never.ci_high) == (0.0, *wilson(0, 20))
    one = add_up(rows, [share], lambda row: {"share": float(row.uid == "7")}).results([share])[0]
    assert (one.ci_low, one.ci_high) == wilson(1, 20)


def test_without_a_row_that_says_something_the_value_is_null_and_the_reason_is_said() -> None:
    (left_out,) = (of(["", ""]) + of(["x"], error=RowError("too_long", ""))).results([LENGTH])
    assert (left_out.value, left_out.ci_low, left_out.n) == (None, None, 0)
    assert left_out.why_null == "2 of 3 rows: the row has no chain of thought; 1 of 3 rows: the row has an error"
    assert of([]).results([LENGTH])[0].why_null == Sums().results([LENGTH])[0].why_null == "there is no row"


@given(st.lists(st.lists(st.one_of(st.floats(-1, 1), st.sampled_from(Why)), max_size=6), max_size=5))
def test_shards_add_up_to_the_whole(shards: list[list[float | Why]]) -> None:
    whole = Tally.of([finding for shard in shards for finding in shard])
    total = sum((Tally.of(shard) for shard in shards), Tally())
    assert (total.count, total.left_out) == (whole.count, whole.left_out)
    assert total.total == pytest.approx(whole.total, abs=1e-12)
    assert total.squares == pytest.approx(whole.squares, abs=1e-12)
    assert total.standard_error is None or math.isfinite(total.standard_error)


def test_every_entry_has_a_name_of_its_own_a_range_a_meaning_and_a_source() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    assert not set(names) & set(METRICS)
    assert all(entry.low < entry.high and entry.meaning and entry.source for entry in ENTRIES)
