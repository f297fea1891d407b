"""Every number of the report has a name, a range, a direction and a meaning."""

from kd.evaluation.answer_sums import AnswerSums, Confusion
from kd.evaluation.faithfulness_sums import FaithfulnessSums
from kd.evaluation.metrics import METRICS, About, Counts, Mean, RationaleSums, chance_metrics, over_seeds

ABOUT = About("student", "evaluate", "plain", 0, "toy", "test")


def test_every_metric_that_is_made_has_a_name_a_range_a_direction_and_a_meaning() -> None:
    rows = [*Counts(ok=1, correct=1).metrics(ABOUT), *RationaleSums(rows=1).metrics(ABOUT)]
    rows += [*over_seeds(rows), *chance_metrics(Mean(0.5, 1), ABOUT), *FaithfulnessSums().metrics(ABOUT)]
    rows += AnswerSums(Confusion(1, ("yes",), {("yes", "yes"): 1})).metrics(ABOUT)
    made = {(row.metric.partition(":")[0], row.higher_is_better) for row in rows}
    assert made == {(name, metric.higher_is_better) for name, metric in METRICS.items()}
    assert all(metric.low < metric.high and metric.meaning for metric in METRICS.values())


def test_what_a_number_is_about_stands_behind_a_colon() -> None:
    assert ABOUT.row("f1", 0.5, 2, of="yes").metric == "f1:yes"
    assert ABOUT.row("accuracy", 0.5, 2).metric == "accuracy"
