"""Tweet Sentiment Extraction: tweets, their sentiment, and the part that a person chose for it (Kaggle 2020).

Reads `text`, `sentiment` (or `label`) and, as highlights, `selected_text`, the words themselves, or
`human_rationale_spans`, their offsets. A highlight is evidence for a positive or negative tweet only: in a neutral one people
mostly selected all of it, which says nothing.
"""

from collections.abc import Sequence
from typing import Any, Literal

from kd.errors import RowFault
from kd.rows import Segment, Span
from kd.tasks.base import Files, TaskConfig
from kd.tasks.fields import Record, label_at, optional_text_at, spans_at, text_at
from kd.tasks.holdout import Holdout
from kd.tasks.parsed import Need, Parsed, optional

LABELS = ["negative", "neutral", "positive"]

SAMPLE: list[dict[str, Any]] = [
    {
        "id": "made-up-1",
        "text": " what a lovely, lovely morning :)",
        "label": "positive",
        "human_rationale_spans": [[8, 22]],
    },
    {
        "id": "made-up-2",
        "text": "the bus is late AGAIN, i hate mondays",
        "sentiment": "negative",
        "selected_text": "i hate mondays",
    },
    {"id": "made-up-3", "text": "going to the library", "label": "neutral", "human_rationale_spans": [[0, 20]]},
]


class TweetSentiment(TaskConfig):
    """Negative, neutral or positive. Validation is held out of train; the test split has labels but no highlights."""

    type: Literal["tweet_sentiment_spans"] = "tweet_sentiment_spans"
    path: str = "data/tweet_sentiment_spans"
    """Folder of the corpus."""
    files: Files = Files(train="train[.-]*", test="test[.-]*")
    """Which files hold which split."""
    id: str | None = "id"
    """Column with the record's id (`textID` in the upstream's files); null = the uid is a hash of the record's content."""
    holdout: Holdout | None = Holdout(fraction=0.1)
    """Validation is a part of train."""

    @property
    def fixed_labels(self) -> list[str]:
        return LABELS

    def needs(self) -> Sequence[Need]:
        key = "task.type (columns maps any names)"
        return [
            Need(key, ("text",)),
            Need(key, ("label", "sentiment"), where="train"),
            *optional("selected_text", "human_rationale_spans", "llm_rationale", "llm_label"),
        ]

    def parse(self, record: Record) -> Parsed:
        text = text_at(record, "text")
        target = _label(record)
        return Parsed(
            segments=[Segment("text", text)],
            target=target,
            label_set=LABELS,
            evidence=[] if target in (None, "neutral") else _selected(record, text),
            llm_rationale=optional_text_at(record, "llm_rationale"),
            llm_label=optional_text_at(record, "llm_label"),
        )


def _label(record: Record) -> str | None:
    names = {name: name for name in LABELS}
    return label_at(record, "label", names) or label_at(record, "sentiment", names)


def _selected(record: Record, text: str) -> list[Span]:
    """The highlights: by their offsets, or the first place where the selected words stand."""
    selected = optional_text_at(record, "selected_text")
    if selected is None:
        return spans_at(record, "human_rationale_spans", segment=0)
    start = text.find(selected.strip())
    if start < 0:
        raise RowFault("unparsable", f"selected_text: expected a part of the text, got {selected!a:.60}")
    return [Span(0, start, start + len(selected.strip()))]
