"""The row in which a student's importance of words stands beside its teacher's."""

from dataclasses import dataclass

from kd.contract import check_parallel
from kd.rows import RationaleRow


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentAttribution(RationaleRow):
    """A row that a student was explained on: its `importance` is the teacher's, `student_importance` the student's.

    Both are of the same words, for the same answer. A word that the student did not read, since its input was cut by
    `student_truncated_tokens`, has the importance zero.
    """

    student: str
    student_importance: list[float]
    student_truncated_tokens: int

    def __post_init__(self) -> None:
        RationaleRow.__post_init__(self)
        if self.error is None:
            check_parallel(self, "importance", "student_importance")

    def tally(self) -> tuple[str, ...]:
        return ("input_truncated",) if self.error is None and self.student_truncated_tokens else ()
