"""Do students look where their teacher looked? A line for each variant: means over its seeds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kd.evaluation.metrics import About
from kd.evaluation.sums import Result
from kd.reporting.tables import MISSING, Table, percent
from kd.rows import MetricRow

TITLE = "Agreement with the teacher"
COLUMNS = ("variant", "overlap %", "chance %", "Spearman", "Kendall", "rows", "seeds")


@dataclass(frozen=True)
class Looked:
    """How far one student's importance of words agrees with its teacher's: a result for each measure, on rows of a split."""

    variant: str
    seed: int
    split: str
    results: Sequence[Result]

    def metrics(self, task: str) -> list[MetricRow]:
        """The results as rows of the report."""
        about = About("student", "agreement", self.variant, self.seed, task, self.split)
        return [about.row(each.measure, each.value, each.n, each.interval) for each in self.results]


def agreement_table(found: Sequence[Looked], is_void: bool, taught_on: str | None = None) -> Table:
    """One line per variant. `is_void`: the teacher is near chance, so that to agree with it means nothing. `taught_on`: the
    split that the teacher was taught on."""
    variants: dict[str, list[Looked]] = {}
    for each in found:
        variants.setdefault(each.variant, []).append(each)
    reasons = {
        "No student was explained: there is no teacher, evaluation.agreement_rows is 0, or evaluate was not run.": not found,
        "Void: the teacher is near chance, so to look where it looked says nothing. The numbers are in report.json.": is_void
        and bool(found),
        "On rows of train, from which the students learned: the teacher was not explained on the evaluated split"
        " (attribution.splits).": any(each.split == "train" for each in found),
        f"In-sample: the teacher was taught on {taught_on} too.": any(each.split == taught_on for each in found),
    }
    return Table(
        title=TITLE,
        columns=COLUMNS,
        rows=[_line(variant, students, is_void) for variant, students in variants.items()],
        notes=[*(reason for reason, applies in reasons.items() if applies), *_nulls(found)],
        left=frozenset({"variant"}),
    )


def _line(variant: str, students: Sequence[Looked], is_void: bool) -> tuple[str, ...]:
    means = {name: _mean(students, name) for name in ("topk_overlap", "topk_overlap_chance", "spearman", "kendall")}
    cells = [percent(means["topk_overlap"]), percent(means["topk_overlap_chance"])]
    cells += [MISSING if means[name] is None else f"{means[name]:.2f}" for name in ("spearman", "kendall")]
    rows = max((each.n for student in students for each in student.results), default=0)
    return (variant, *(["void"] * len(cells) if is_void else cells), f"{rows:,}", f"{len(students)}")


def _mean(students: Iterable[Looked], name: str) -> float | None:
    values = [each.value for student in students for each in student.results if each.measure.name == name]
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def _nulls(found: Sequence[Looked]) -> list[str]:
    """Why a number is missing, once for the students that miss it for the same reason."""
    reasons: dict[str, list[str]] = {}
    for student in found:
        for why in _whys(student.results):
            reasons.setdefault(why, []).append(f"{student.variant}/{student.seed}")
    return [f"No number for {', '.join(names)}: {why}." for why, names in reasons.items()]


def _whys(results: Sequence[Result]) -> Mapping[str, None]:
    return dict.fromkeys(f"{each.measure.name}, {each.why_null}" for each in results if each.why_null is not None)
