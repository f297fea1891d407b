"""Two variants' answers to the same rows, paired by uid and by seed: all that a test of significance needs to know.

A row matters to such a test only through its *pattern*: for each seed the one's right or wrong less the other's, -1, 0 or 1.
Rows of one pattern are interchangeable, and to draw rows with replacement is to draw patterns by their counts: the same
distribution, exactly. So a shard becomes counts of patterns, which add up over shards; there are at most 3^seeds of them and
mostly far fewer, and no process ever holds the answers to a whole split.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Marks = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
"""Seeds x rows: whether the answer is right."""
Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
Pattern = tuple[int, ...]
Marked = Mapping[str, bool | None]
"""Whether a model's answer to a row is right, by the row's uid; null for an error or a row without a label."""


@dataclass(frozen=True)
class Paired:
    """How many rows have which pattern of differences; `left_out` counts the rows that one of the two has no mark for."""

    seeds: tuple[int, ...]
    patterns: Mapping[Pattern, int]
    left_out: int = 0

    @classmethod
    def of(cls, seeds: Sequence[int], variant: Marks, against: Marks, left_out: int = 0) -> "Paired":
        """From both variants' marks, a line per seed, in the same order of rows.

        Raises:
            ValueError: the two differ in shape, or do not have one line per seed.
        """
        if variant.shape != against.shape or len(variant) != len(seeds):
            raise ValueError(f"expected two arrays of {len(seeds)} seeds x rows, got {variant.shape} and {against.shape}")
        differences = variant.astype(np.int8) - against.astype(np.int8)
        patterns = dict(Counter(map(tuple, differences.T.tolist())))
        return cls(tuple(seeds), patterns, left_out)

    def __add__(self, other: "Paired") -> "Paired":
        if self.seeds != other.seeds:
            raise ValueError(f"shards of one comparison have the same seeds; got {self.seeds} and {other.seeds}")
        return Paired(self.seeds, dict(Counter(self.patterns) + Counter(other.patterns)), self.left_out + other.left_out)

    @property
    def rows(self) -> int:
        return sum(self.patterns.values())

    @property
    def per_seed(self) -> Floats:
        """For each seed the difference of the two accuracies. There must be a row."""
        total = np.zeros(len(self.seeds))
        for pattern, count in self.patterns.items():
            total += np.array(pattern, dtype=np.float64) * count
        return total / self.rows


def paired_marks(variant: Mapping[int, Marked], against: Mapping[int, Marked]) -> Paired:
    """One shard's marks of two variants, by seed: two columns of a file of predictions. Seeds that only one has are not compared.

    A row that has no mark in any of them is left out and counted.

    Raises:
        ValueError: the marks are not of the same rows.
    """
    seeds = sorted(variant.keys() & against.keys())
    marks = [side[seed] for side in (variant, against) for seed in seeds]
    uids = sorted(marks[0]) if marks else []
    for other in marks:
        if other.keys() != marks[0].keys():
            odd = sorted(other.keys() ^ marks[0].keys())[0]
            raise ValueError(f"predictions to compare are of the same rows; {odd} is in one of them only")
    kept = [uid for uid in uids if all(found[uid] is not None for found in marks)]
    answers = np.array([[bool(found[uid]) for uid in kept] for found in marks], dtype=np.bool_).reshape(len(marks), len(kept))
    return Paired.of(seeds, answers[: len(seeds)], answers[len(seeds) :], left_out=len(uids) - len(kept))
