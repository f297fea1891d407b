"""How long the rows of a sample are, as a model reads and writes them."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kd.errors import RowFault
from kd.models import ModelConfig, ModelSource
from kd.rows import Example
from kd.spans import words
from kd.specs import T5Spec
from kd.store import Store
from kd.vocabulary import strings_of, train_tokenizer

if TYPE_CHECKING:
    from kd.families.base import Family
    from kd.families.text import Encoded

BINS = 12
"""Bars of a histogram, at most."""
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Length:
    """One row. `answers` are the tokens of its label set, and of its target if that is not in there; `target` of that alone.

    `size` is what it takes in a batch: input and answer tokens.
    """

    encoded: "Encoded"
    words: int
    target: int | None
    answers: Sequence[int]
    size: tuple[int, int]

    @property
    def longest(self) -> int:
        """The most tokens that an answer of this row has."""
        return self.size[1]


@dataclass(frozen=True)
class Lengths:
    """The rows of a sample that a model can take, with their lengths, and the faults of the others by reason."""

    rows: Sequence[Example]
    of_rows: Sequence[Length]
    faults: Mapping[str, int]

    @property
    def inputs(self) -> list[int]:
        """Input tokens of each row."""
        return [length.size[0] for length in self.of_rows]

    @property
    def truncated_frac(self) -> float:
        """The share of the rows that lose tokens to the limit."""
        return statistics.fmean(length.encoded.truncated_tokens > 0 for length in self.of_rows)


@contextmanager
def openable(config: ModelConfig, rows: Sequence[Example], phrases: Sequence[str]) -> Iterator[ModelSource]:
    """A source that opens inside, also of a model whose tokenizer a run trains: here on the sampled rows and `phrases`."""
    if not isinstance(config.spec, T5Spec):
        yield ModelSource(config)
        return
    with TemporaryDirectory() as folder:
        texts = [*phrases, *(text for row in rows for text in strings_of(row))]
        train_tokenizer(config.spec, texts).save_pretrained(f"{folder}/{TOKENIZER}")
        yield ModelSource(config, Store.at(folder), tokenizer_folder=TOKENIZER)


def measured(family: "Family", rows: Sequence[Example]) -> Lengths:
    """The lengths of these rows for this model."""
    faults: Counter[str] = Counter()
    taken, lengths = [], []
    found = family.questions(rows, lambda row, encoded: _length(family, row, encoded))
    for row, length in zip(rows, found, strict=True):
        if isinstance(length, RowFault):
            faults[length.reason] += 1
        else:
            taken.append(row)
            lengths.append(length)
    return Lengths(taken, lengths, faults)


def _length(family: "Family", row: Example, encoded: "Encoded") -> Length:
    candidates = [*row.label_set, *([row.target] if row.target and row.target not in row.label_set else [])]
    ids = {text: family.encode_target(text) for text in candidates}
    target = len(ids[row.target]) if row.target else None
    size = family.size(encoded, list(ids.values()))
    return Length(encoded, len(words(row.segments)), target, [len(own) for own in ids.values()], size)


def histogram(values: Sequence[int]) -> list[tuple[int, int]]:
    """How many values fall into bins of equal width, a power of two: the lower end of each bin, from 0 up, and its count."""
    width = 1
    while max(values, default=0) // width >= BINS:
        width *= 2
    counts = Counter(value // width for value in values)
    return [(place * width, counts[place]) for place in range(max(counts, default=-1) + 1)]
