"""ANLI, round 1: natural language inference written against a model (Nie et al. 2020).

Reads the authors' JSON lines (`uid`, `context`, `hypothesis`, `label` e, n or c, `reason`) and the hub's Parquet files
(`premise`, `label` 0, 1, 2).
"""

from collections.abc import Sequence
from typing import Any, Literal

from kd.tasks.base import Files
from kd.tasks.fields import Record, label_at, optional_text_at, text_at
from kd.tasks.nli import LABEL_NAMES, LABELS, NliTask
from kd.tasks.parsed import Need, Parsed, optional

SAMPLE: list[dict[str, Any]] = [
    {
        "uid": "made-up-1",
        "context": "The Linden Bridge was built in 1904 and closed to cars in 1987.",
        "hypothesis": "Cars used the Linden Bridge for over eighty years.",
        "label": "e",
        "reason": "It was open to cars from 1904 to 1987.",
    },
    {
        "uid": "made-up-2",
        "premise": "Mara Oduya is a chess player from Leeds.",
        "hypothesis": "Mara Oduya was born in Leeds.",
        "label": 1,
        "reason": "It does not say where she was born.",
    },
    {
        "uid": "made-up-3",
        "premise": "The film was shot in nine days.",
        "hypothesis": "Shooting took a month.",
        "label": "contradiction",
        "reason": "Nine days are less than a month.",
        "llm_rationale": "The film was shot in nine days, which is not a month.",
        "llm_label": "contradiction",
    },
]


class Anli(NliTask):
    """Entailment, neutral or contradiction; validation is the development split of round 1."""

    type: Literal["anli"] = "anli"
    path: str = "data/anli"
    """Folder of the corpus."""
    files: Files = Files(train="train_r1[.-]*|train[.-]*", validation="dev_r1[.-]*|dev[.-]*", test="test_r1[.-]*|test[.-]*")
    """Which files hold which split: those of round 1."""
    id: str | None = "uid"
    """Column with the record's id; null = the uid is a hash of the record's content."""

    def needs(self) -> Sequence[Need]:
        key = "task.type (columns maps any names)"
        return [
            Need(key, ("premise", "context")),
            Need(key, ("hypothesis",)),
            Need(key, ("label",), where="train"),
            *optional("llm_rationale", "llm_label"),
        ]

    def parse(self, record: Record) -> Parsed:
        return Parsed(
            segments=self.pair(text_at(record, "premise", "context"), text_at(record, "hypothesis")),
            target=label_at(record, "label", LABEL_NAMES),
            label_set=LABELS,
            llm_rationale=optional_text_at(record, "llm_rationale"),
            llm_label=optional_text_at(record, "llm_label"),
        )
