"""SVAMP: arithmetic word problems whose answer is an equation (Patel et al. 2021).

Reads the authors' fields (`Body`, `Question`, `Equation`) or `body`, `sub_question`, `equation`. An answer is right by the
value of its equation, not by its text.
"""

from collections.abc import Sequence
from typing import Any, Literal

from kd.rows import Segment
from kd.tasks.base import Files, Match, TaskConfig
from kd.tasks.fields import Record, optional_text_at, text_at
from kd.tasks.holdout import Holdout
from kd.tasks.parsed import Need, Parsed, optional

SAMPLE: list[dict[str, Any]] = [
    {
        "id": "made-up-1",
        "body": "Ada packed 6 boxes with 12 pens in each",
        "sub_question": "How many pens did she pack?",
        "equation": "( 6.0 * 12.0 )",
        "llm_rationale": "Each of the 6 boxes holds 12 pens. 6 * 12 = 72.",
        "llm_label": "(6 * 12)",
    },
    {
        "id": "made-up-2",
        "Body": "Tom had 20 stamps and gave away 3 to Eva and 4 to Ben.",
        "Question": "How many stamps has he left?",
        "Equation": "( 20.0 - ( 3.0 + 4.0 ) )",
        "Answer": 13.0,
    },
    {
        "id": "made-up-3",
        "body": "A ribbon of 9 metres was cut into 3 equal parts.",
        "sub_question": "How long is each part?",
        "equation": "( 9.0 / 3.0 )",
    },
]


class Svamp(TaskConfig):
    """Word problem to equation. The published hold-out: 80 of the 800 records of train."""

    type: Literal["svamp"] = "svamp"
    path: str = "data/svamp"
    """Folder of the corpus."""
    files: Files = Files(train="train[.-]*", test="test[.-]*")
    """Which files hold which split."""
    id: str | None = "id"
    """Column with the record's id; null = the uid is a hash of the record's content."""
    holdout: Holdout | None = Holdout(fraction=0.1, seed=0, by="position")
    """Validation is a part of train."""
    match: Match = "value"
    """When an answer is right: by default where its equation has the value of the record's."""

    def needs(self) -> Sequence[Need]:
        key = "task.type (columns maps any names)"
        asked = [Need(key, ("body", "Body")), Need(key, ("sub_question", "Question"))]
        return [*asked, Need(key, ("equation", "Equation"), where="train"), *optional("llm_rationale", "llm_label")]

    def parse(self, record: Record) -> Parsed:
        return Parsed(
            segments=[
                Segment("context", text_at(record, "body", "Body")),
                Segment("prompt", "\n"),
                Segment("question", text_at(record, "sub_question", "Question")),
            ],
            target=optional_text_at(record, "equation", "Equation"),
            label_set=[],
            llm_rationale=optional_text_at(record, "llm_rationale"),
            llm_label=optional_text_at(record, "llm_label"),
        )
