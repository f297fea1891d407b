"""How good a teacher that was taught in this run is on rows that it has not seen, and which rows those are not."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeVar

from jobs.slices import spread_rows
from jobs.teacher_wiring import EXAMPLES, TEACHER, TeacherWiring
from kd.config import Config
from kd.errors import StageError
from kd.evaluation.metrics import About, chance, chance_metrics, wilson
from kd.manifests import Shard
from kd.rows import Example, MetricRow
from kd.store import Store
from kd.training.config import TeachConfig
from kd.training.runs import trained

SAMPLE_ROWS = 10_000
"""Rows read for the level of chance, which no stage counts, at most; `n` in the report says how many."""
TEACH = "teach"
_TAUGHT_ON = "train"

R = TypeVar("R", bound=Example)


def taught_on(config: Config) -> str | None:
    """The split that the teacher was taught on; None where it is used as it is, and what it was trained on is not known here."""
    return None if config.teach is None else _TAUGHT_ON


def validation_metrics(wiring: TeacherWiring) -> list[MetricRow]:
    """The accuracy of the teacher's kept step on validation, the rates beside it, and the chance level of the split.

    None where it was not taught, or not validated. The kept step is the best of several that answered the same rows, so the
    interval is one for the best of so many: each at a share of the level (Bonferroni), which covers whichever is kept.
    """
    teach = wiring.config.teach
    if teach is None:
        return []
    try:
        figures = trained(wiring.store, wiring.teaching(), teach)[1].figures
    except StageError:
        return []
    if figures["validation_accuracy"] is None:
        return []
    level = chance(sampled(wiring.store, EXAMPLES, wiring.examples.shards_of("validation"), Example))
    task = wiring.config.task.task
    answers = _answers(About(TEACHER, TEACH, TEACHER, 0, task, "validation"), figures, teach)
    return [*answers, *chance_metrics(level, About("chance", TEACH, "chance", 0, task, "validation"))]


def _answers(about: About, figures: Mapping[str, float | str | None], teach: TeachConfig) -> Iterator[MetricRow]:
    share, rows = float(figures["validation_accuracy"] or 0), int(figures["validation_rows"] or 0)
    looks = teach.validations_by(int(figures["last_step"] or 0))
    yield about.row("accuracy", share, rows, wilson(round(share * rows), rows, looks))
    for rate in ("parse_rate", "truncation_rate"):
        found = figures[f"validation_{rate}"]
        yield about.row(rate, None if found is None else float(found), rows)


def sampled(store: Store, folder: str, shards: Sequence[Shard], row_type: type[R]) -> Iterator[R]:
    """SAMPLE_ROWS rows at most, some of each of evenly spaced shards; one shard in memory at a time."""
    taken = spread_rows(shards, SAMPLE_ROWS)
    return chain.from_iterable(store.read_rows(f"{folder}/{shard.file}", row_type)[: shard.rows] for shard in taken)
