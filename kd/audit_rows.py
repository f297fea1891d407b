"""The rows that the audit writes: what erasing words does to a row, and what measures say of its rationale."""

from dataclasses import dataclass

from kd.contract import check_parallel
from kd.rows import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure(Row):
    """How far the teacher's `probability` of the answer that it explained falls where words are erased from a row's text.

    Parallel lists, one entry per text that it was asked about: the `measure`, the `order` in which words were taken, which
    share of them (`frac`), and the `fall`, negative where the probability rose.
    """

    explained_answer: str
    probability: float
    measure: list[str]
    order: list[str]
    frac: list[float]
    fall: list[float]

    def __post_init__(self) -> None:
        Row.__post_init__(self)
        check_parallel(self, "measure", "order", "frac", "fall")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Row):
    """What measures of plausibility and label overlap say of one row's rationale.

    Two sets of parallel lists: each `metric` has a `value` for a `part` (empty for the row as a whole, else what of it is
    looked at, see `kd/evaluation/auditing.py`); each `silent_metric` has the reason `why` there is none for its `silent_part`.
    `teacher_right` and `llm_right` say whether the own answer of the teacher, and of the LLM that wrote the chain of thought, is
    the label: null without one of both. `teacher_status` is how the teacher's came out (`kd.rows.Prediction`), null without
    one: what it ranks first is `ok`, and what is not `ok` is not right. `chance` is the share of the label set that is right:
    null without label set or label.
    """

    metric: list[str]
    part: list[str]
    value: list[float]
    silent_metric: list[str]
    silent_part: list[str]
    why: list[str]
    teacher_right: bool | None
    teacher_status: str | None
    llm_right: bool | None
    chance: float | None

    def __post_init__(self) -> None:
        Row.__post_init__(self)
        check_parallel(self, "metric", "part", "value")
        check_parallel(self, "silent_metric", "silent_part", "why")
