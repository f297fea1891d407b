"""The rows of the benchmarks: real questions where a folder of them is given, else made-up ones of the same lengths."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

from kd.corpus import find_splits
from kd.examples import as_example
from kd.rows import Example, Segment
from kd.tasks.commonsense_qa import CommonsenseQA
from kd.tasks.planted import CUES, DISTRACTORS

QUESTION_WORDS = {5: 6, 7: 9, 9: 13, 11: 16, 13: 15, 15: 12, 18: 10, 21: 7, 25: 6, 30: 4, 40: 2}
"""Words per question of CommonsenseQA's training split (11 bins, per cent): the spread that made-up questions have."""


def questions(folder: Path | None, rows: int) -> list[Example]:
    """Questions with five options and a target: the first of CommonsenseQA's training split, or made-up ones."""
    if folder is None:
        return [_made_up(number) for number in range(rows)]
    task = CommonsenseQA(path=str(folder))
    records = find_splits(task)["train"].all_records()
    return [as_example(task, "train", record) for record in itertools.islice(records, rows)]


def sentences(rows: Sequence[Example]) -> list[str]:
    """Everything that a model reads or writes in these rows, to train a tokenizer on."""
    return [text for row in rows for text in ("".join(part.text for part in row.segments), *row.label_set)]


def _made_up(number: int) -> Example:
    draw = random.Random(number)
    (length,) = draw.choices(list(QUESTION_WORDS), list(QUESTION_WORDS.values()))
    things = [*DISTRACTORS, *(word for answers in CUES.values() for words in answers.values() for word in words.split())]
    options = draw.sample(sorted(answer for answers in CUES.values() for answer in answers), 5)
    segments = [Segment("question", " ".join(draw.choices(things, k=length)) + "?"), Segment("prompt", "\nAnswer Choices:")]
    for letter, option in zip("abcde", options, strict=True):
        segments += [Segment("prompt", f"\n({letter}) "), Segment("choice", option)]
    return Example(
        uid=f"made-up/{number}",
        error=None,
        task="made-up",
        split="train",
        segments=segments,
        target=draw.choice(options),
        label_set=options,
        evidence=[],
        llm_rationale=None,
        llm_label=None,
    )
