"""e-SNLI: natural language inference with human explanations and highlights (Camburu et al. 2018).

Reads `premise`, `hypothesis`, `label` (0, 1, 2 or the name) and, where it is there, `human_highlights`: for each annotator
the words of premise and hypothesis that justify the label, as `[word, offset]`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from kd.errors import RowFault
from kd.rows import Span
from kd.tasks.base import Files
from kd.tasks.fields import Record, label_at, lookup, optional_text_at, text_at
from kd.tasks.holdout import Holdout
from kd.tasks.nli import LABEL_NAMES, LABELS, NliTask
from kd.tasks.parsed import Need, Parsed, optional

SAMPLE: list[dict[str, Any]] = [
    {
        "id": "made-up-1c",
        "premise": "A girl sleeps under a tree.",
        "hypothesis": "A girl is running.",
        "label": "contradiction",
        "human_highlights": [
            {"premise": [["sleeps", 7]], "hypothesis": [["running.", 10]], "explanation": "Nobody runs asleep."},
            {"premise": [["sleeps", 7], ["under", 14]], "hypothesis": [["running.", 10]], "explanation": "She sleeps."},
            {"premise": [["girl", 2]], "hypothesis": [["running.", 10]], "explanation": "She does not run."},
        ],
        "llm_rationale": "Someone who sleeps is not running.",
        "llm_label": "contradiction",
    },
    {"id": "made-up-2e", "premise": "Two dogs play in snow.", "hypothesis": "Animals are outdoors.", "label": 0},
    {
        "id": "made-up-3n",
        "premise": "A man carries a ladder.",
        "hypothesis": "The man is a painter.",
        "label": "neutral",
        "human_highlights": [{"premise": [], "hypothesis": [["painter.", 13]], "explanation": "Others use ladders too."}],
    },
]


class ESNLI(NliTask):
    """Entailment, neutral or contradiction.

    By default it trains on the development split and holds validation out of it, for copies of the corpus without the
    549,367 rows of train. Who has those sets `files.train: train[.-]*`, `files.validation: dev[.-]*|validation[.-]*` and
    `holdout: null`: the published splits.
    """

    type: Literal["esnli"] = "esnli"
    path: str = "data/esnli"
    """Folder of the corpus."""
    files: Files = Files(train="dev[.-]*|validation[.-]*", test="test[.-]*")
    """Which files hold which split. By default the development split is train."""
    id: str | None = "id"
    """Column with the record's id; null = the uid is a hash of the record's content."""
    holdout: Holdout | None = Holdout(fraction=0.1)
    """Validation is a part of train, unless it has files of its own."""

    def needs(self) -> Sequence[Need]:
        key = "task.type (columns maps any names)"
        return [
            Need(key, ("premise",)),
            Need(key, ("hypothesis",)),
            Need(key, ("label",), where="train"),
            *optional("human_highlights", "llm_rationale", "llm_label"),
        ]

    def parse(self, record: Record) -> Parsed:
        premise, hypothesis = text_at(record, "premise"), text_at(record, "hypothesis")
        return Parsed(
            segments=self.pair(premise, hypothesis),
            target=label_at(record, "label", LABEL_NAMES),
            label_set=LABELS,
            evidence=[*_marked(record, "premise", 0), *_marked(record, "hypothesis", 2)],
            llm_rationale=optional_text_at(record, "llm_rationale"),
            llm_label=optional_text_at(record, "llm_label"),
        )


def _marked(record: Record, side: str, segment: int) -> list[Span]:
    """The words of one text that more than half of the record's annotators marked: two of three, the one of one."""
    annotators = lookup(record, "human_highlights") or []
    text = text_at(record, side)
    try:
        votes = Counter(place for marks in annotators for place in {(offset, offset + len(word)) for word, offset in marks[side]})
        misplaced = [word for marks in annotators for word, offset in marks[side] if text[offset : offset + len(word)] != word]
    except (TypeError, ValueError, KeyError) as error:
        raise RowFault("unparsable", f"human_highlights: expected [word, offset] under {side} for each annotator") from error
    if misplaced:
        raise RowFault("unparsable", f"human_highlights: {misplaced[0]!a} is not at its offset in the {side}")
    return [Span(segment, *place) for place, count in sorted(votes.items()) if 2 * count > len(annotators)]
