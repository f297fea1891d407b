"""Every number of the report has a name, a range, a direction, a meaning and a source."""

from kd.evaluation.answer_sums import AnswerSums, Confusion
from kd.evaluation.faithfulness_sums import FaithfulnessSums
from kd.evaluation.metric_names import METRICS
from kd.evaluation.metrics import About, Counts, Mean, chance_metrics, over_seeds
from kd.evaluation.significance import COMPARED
from kd.reporting.cost_table import COSTS
from kd.reporting.report import to_json
from tests.tiny_reports import report

ABOUT = About("student", "evaluate", "plain", 0, "toy", "test")


def test_every_metric_that_is_made_has_a_name_a_range_a_direction_a_meaning_and_a_source() -> None:
    rows = Counts(ok=1, correct=1).metrics(ABOUT)
    rows += [*over_seeds(rows), *chance_metrics(Mean(0.5, 1), ABOUT), *FaithfulnessSums().metrics(ABOUT)]
    rows += AnswerSums(Confusion(1, ("yes",), {("yes", "yes"): 1})).metrics(ABOUT)
    made = {(row.metric.partition(":")[0], row.higher_is_better) for row in rows}
    assert made == {(name, metric.higher_is_better) for name, metric in METRICS.items()}
    every = [*METRICS.values(), *COMPARED, *COSTS]
    assert len({metric.name for metric in every}) == len(every)
    assert all(metric.low < metric.high and metric.meaning and metric.source for metric in every)


def test_what_a_number_is_about_stands_behind_a_colon() -> None:
    assert ABOUT.row("f1", 0.5, 2, of="yes").metric == "f1:yes"
    assert ABOUT.row("accuracy", 0.5, 2).metric == "accuracy"


def test_the_json_of_a_report_says_of_each_metric_all_that_is_known() -> None:
    told = to_json(report())
    assert {row["metric"].partition(":")[0] for row in told["metrics"]} <= told["measures"].keys()
    assert told["measures"]["accuracy_spread"] == {
        "name": "accuracy_spread",
        "low": 0,
        "high": 1,
        "higher_is_better": False,
        "counts": "seeds",
        "meaning": "sample standard deviation of the accuracy over seeds",
        "source": "by definition",
    }
