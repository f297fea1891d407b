"""Measures beside independent implementations, on random inputs: the calibration error of torchmetrics, scipy's Wilson interval,
statsmodels' correction of p-values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests
from torchmetrics.functional.classification import multiclass_calibration_error

from kd.evaluation.answer_sums import BINS, answer_sums
from kd.evaluation.metrics import About, wilson
from kd.evaluation.significance import holm
from kd.rows import Prediction
from tests.tiny import example
from tests.tiny_reports import predicted

LABELS = ["cat", "dog", "emu", "fox"]
ROWS = 512
SURE = 1024
"""Confidences are whole parts of this; none is on the edge of a bin, where torchmetrics rounds up and we, as Guo et al., down."""


def halved(draw: np.random.Generator, parts: int) -> list[int]:
    """So many powers of two that add up to `ROWS`."""
    sizes = [ROWS]
    while len(sizes) < parts:
        sizes.sort()
        place = int(draw.integers(max(0, len(sizes) - 3), len(sizes)))
        half = sizes.pop(place) // 2
        sizes += [half, half]
    return sizes


def drawn(seed: int) -> tuple[list[list[float]], list[int]]:
    """Shares of the labels and targets. Every bin holds a power of two of rows, so that torchmetrics, which reckons in float32,
    makes no rounding error."""
    draw = np.random.default_rng(seed)
    bins = draw.choice(np.arange(BINS // len(LABELS) + 1, BINS), size=8, replace=False)
    shares, targets = [], []
    for chosen, rows in zip(bins, halved(draw, 8), strict=True):
        inside = np.arange(math.floor(chosen * SURE / BINS) + 1, math.ceil((chosen + 1) * SURE / BINS))
        for sure in draw.choice(inside, size=rows) / SURE:
            top = int(draw.integers(len(LABELS)))
            shares.append([float(sure) if place == top else (1 - float(sure)) / 3 for place in range(len(LABELS))])
            targets.append(int(draw.integers(len(LABELS))) if draw.random() < 0.5 else top)
    return shares, targets


def answered(shares: list[float], target: int) -> Prediction:
    row = example(choices=(), target=LABELS[target], label_set=LABELS)
    answer = LABELS[int(np.argmax(shares))]
    return predicted(row, answer=answer, correct=answer == row.target, choice_logprobs=[math.log(share) for share in shares])


@pytest.mark.parametrize("seed", range(20))
def test_the_calibration_error_is_that_of_torchmetrics(seed: int) -> None:
    shares, targets = drawn(seed)
    rows = [answered(*row) for row in zip(shares, targets, strict=True)]
    figures = {row.metric: row.value for row in answer_sums(rows).metrics(About("student", "evaluate", "v", 0, "toy", "test"))}
    theirs = multiclass_calibration_error(torch.tensor(shares), torch.tensor(targets), len(LABELS), n_bins=BINS, norm="l1")
    assert figures["calibration_error"] == pytest.approx(theirs.item(), abs=1e-9)


def test_the_wilson_interval_is_that_of_scipy() -> None:
    draw = np.random.default_rng(0)
    for trials in [1, 2, 3, 10, *draw.integers(1, 100_000, 200).tolist()]:
        for successes in {0, trials, int(draw.integers(0, trials + 1))}:
            theirs = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
            assert wilson(successes, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holms_correction_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-9)
