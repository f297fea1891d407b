"""The name of every number that the report makes of a model's answers, what it means and where it is from.

Measures over rows, comparisons and costs have entries of the same kind beside the code that makes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A metric's name, range, direction and meaning. `counts` is what `MetricRow.n` counts for it; `source` is the paper or the
    reasoning that it comes from."""

    name: str
    low: float
    high: float
    higher_is_better: bool
    counts: Literal["rows", "seeds"]
    meaning: str
    source: str


IN_SAMPLE = "accuracy:in_sample"
"""A teacher's accuracy on rows of the split that it was taught on, which does not tell whether it is near chance."""
_COUNTED = "by definition"
_MEAN = "without a seed: the mean over seeds"
_OURS = "ours"
_RETRIEVAL = "van Rijsbergen 1979"
_CALIBRATION = "Guo et al. 2017"
_ERASER = "DeYoung et al. 2020"

_ENTRIES = (
    Metric("accuracy", 0, 1, True, "rows", f"share of labelled rows answered right; {_MEAN}", _COUNTED),
    Metric("accuracy_spread", 0, 1, False, "seeds", "sample standard deviation of the accuracy over seeds", _COUNTED),
    Metric("accuracy_min", 0, 1, True, "seeds", "lowest accuracy of a seed", _COUNTED),
    Metric("accuracy_max", 0, 1, True, "seeds", "highest accuracy of a seed", _COUNTED),
    Metric("accuracy_chance", 0, 1, True, "rows", "accuracy of guessing evenly among each row's label set", "mean of 1/labels"),
    Metric("parse_rate", 0, 1, True, "rows", f"share of rows whose answer could be read; {_MEAN}", _COUNTED),
    Metric("truncation_rate", 0, 1, False, "rows", f"share of rows whose answer was cut at the length limit; {_MEAN}", _COUNTED),
    Metric(
        "macro_f1",
        0,
        1,
        True,
        "rows",
        "mean of F1 over the labels, where all rows have the same; null where they differ",
        _RETRIEVAL,
    ),
    Metric(
        "f1", 0, 1, True, "rows", "twice the right answers, by the rows with this target and those with this answer", _RETRIEVAL
    ),
    Metric("precision", 0, 1, True, "rows", "share of the rows with this answer that are right", _RETRIEVAL),
    Metric("recall", 0, 1, True, "rows", "share of the rows with this target that are right", _RETRIEVAL),
    Metric(
        "calibration_error",
        0,
        1,
        False,
        "rows",
        "mean distance of a ranking's confidence from its accuracy, in 15 bins",
        _CALIBRATION,
    ),
    Metric(
        "answer_probability", 0, 1, True, "rows", "mean probability that the teacher gives the answer that it explained", _COUNTED
    ),
    Metric("comprehensiveness", -1, 1, True, "rows", "mean fall of that probability when the words are erased", _ERASER),
    Metric("sufficiency", -1, 1, False, "rows", "mean fall of that probability when no other words are left", _ERASER),
    Metric("comprehensiveness_gain", -2, 2, True, "rows", "comprehensiveness above that of the control's words", _OURS),
    Metric("sufficiency_gain", -2, 2, True, "rows", "sufficiency below that of the control's words", _OURS),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ENTRIES}
"""By name. In `MetricRow.metric` a colon may follow, and what part of the rows it is about: the label in `f1:yes`."""
