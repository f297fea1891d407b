"""CommonsenseQA: a question with five options (Talmor et al. 2019), in the layouts of its two distributions.

CoS-E 1.11 (`choices` a list, `answer` a text), CommonsenseQA itself (`choices` as labels and texts, `answerKey` a letter).
Highlights and an LLM's rationale may lie in the same records. The input is that of Distilling step-by-step (Hsieh et al.
2023): the question, "Answer Choices:", one line per option; the target is the text of the right option. An option may occur
twice, as upstream: the text is right either way.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kd.errors import RowFault
from kd.rows import Segment
from kd.tasks.base import Files, TaskConfig
from kd.tasks.fields import Record, at, lookup, optional_text_at, spans_at, text_at, texts_at
from kd.tasks.holdout import Holdout
from kd.tasks.parsed import Need, Parsed, optional

SAMPLE: list[dict[str, Any]] = [
    {
        "id": "made-up-1",
        "question": "Where would you put a kettle to boil water?",
        "choices": ["stove", "garden", "shelf", "bath", "car"],
        "answer": "stove",
        "human_rationale_spans": [[32, 42]],
        "human_rationale_is_whole_question": False,
        "llm_rationale": "The answer must be a hot place. Of the above choices, only a stove is hot.",
        "llm_label": "stove",
    },
    {
        "id": "made-up-2",
        "question": "What do people cross to get over a river?",
        "choices": ["bridge", "desert", "bridge", "queue", "line"],
        "answer": "bridge",
        "human_rationale_spans": [[0, 41]],
        "human_rationale_is_whole_question": True,
    },
    {
        "id": "made-up-3",
        "question": "Who repairs a leaking pipe?",
        "choices": {"label": ["A", "B", "C", "D", "E"], "text": ["baker", "plumber", "pilot", "singer", "nurse"]},
        "answerKey": "B",
    },
]


class CommonsenseQA(TaskConfig):
    """Multiple choice with the answer among the options. The published hold-out: 975 of the 9,741 records of train."""

    type: Literal["commonsense_qa"] = "commonsense_qa"
    path: str = "data/commonsense_qa"
    """Folder of the corpus."""
    files: Files = Files(train="train[.-]*", test="dev[.-]*|validation[.-]*")
    """Which files hold which split. The test split has no labels upstream, so the development split is the test."""
    id: str | None = "id"
    """Column with the record's id; null = the uid is a hash of the record's content."""
    holdout: Holdout | None = Holdout(fraction=0.1, seed=0, by="position")
    """Validation is a part of train."""

    def needs(self) -> Sequence[Need]:
        key = "task.type (columns maps any names)"
        return [
            Need(key, ("question",)),
            Need(key, ("choices",)),
            Need(key, ("answer", "label", "answerKey"), where="train"),
            *optional("human_rationale_spans", "human_rationale_is_whole_question", "llm_rationale", "llm_label"),
        ]

    @property
    def brings_choices(self) -> bool:
        return True

    def parse(self, record: Record) -> Parsed:
        options = _options(record)
        segments = [Segment("question", text_at(record, "question"))]
        for number, option in enumerate(options):
            before = f"\n({chr(ord('a') + number)}) "
            segments.append(Segment("prompt", before if number else f"\nAnswer Choices:{before}"))
            segments.append(Segment("choice", option))
        whole = bool(lookup(record, "human_rationale_is_whole_question"))
        return Parsed(
            segments=segments,
            target=_answer(record, options),
            label_set=options,
            evidence=[] if whole else spans_at(record, "human_rationale_spans", segment=0),
            llm_rationale=optional_text_at(record, "llm_rationale"),
            llm_label=optional_text_at(record, "llm_label"),
        )


def _options(record: Record) -> list[str]:
    labelled = isinstance(at(record, "choices"), Mapping)
    return texts_at(record, "choices.text" if labelled else "choices")


def _answer(record: Record, options: list[str]) -> str | None:
    key = optional_text_at(record, "answerKey")
    if key is None:
        return optional_text_at(record, "answer", "label")
    keys = texts_at(record, "choices.label")
    if key not in keys or len(keys) != len(options):
        raise RowFault("answer_not_in_choices", f"answerKey: expected one of {', '.join(keys)}; got {key!a:.60}")
    return options[keys.index(key)]
