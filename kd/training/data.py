"""The worker's side of the features: one memory-mapped table with random access by row number.

Rows are numbered through the shards as they are listed. A row that teaches nothing (errored, or without a target) stays
in the order and contributes no sequence, so every variant of a seed sees the same rows at the same steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kd.errors import StageError
from kd.manifests import Shard
from kd.store import Store
from kd.training.order import Rows, share

if TYPE_CHECKING:
    from datasets import Dataset

_COLUMNS = ["term", "input_ids", "target_ids"]


@dataclass(frozen=True)
class Sequences:
    """Some rows' sequences, as parallel lists: which term each belongs to, what it reads, what it is to write."""

    term: list[int]
    input_ids: list[list[int]]
    target_ids: list[list[int]]

    @property
    def tokens(self) -> int:
        """What is read and written, without padding."""
        return sum(map(len, self.input_ids)) + sum(map(len, self.target_ids))

    @property
    def padded_tokens(self) -> int:
        """The same as it goes through the model at once, with padding."""
        return len(self.term) * (max(map(len, self.input_ids), default=0) + max(map(len, self.target_ids), default=0))


@dataclass(frozen=True)
class Batch:
    """The rows of one global batch, as an Arrow table of their features."""

    table: Any

    def target_tokens(self, terms: int) -> list[int]:
        """Target tokens of the whole global batch, per term."""
        term, lengths = _flat(self.table, "term"), np.diff(_nested(self.table, "target_ids")[1])
        return [int(count) for count in np.bincount(term, lengths, minlength=terms)]

    def micro_batches(self, rank: int, world: int, accumulation: int) -> Iterator[Sequences]:
        """A rank's slice of the batch, cut in equal numbers of rows."""
        mine = share(np.arange(len(self.table)), rank, world).reshape(accumulation, -1)
        for rows in mine:
            part = self.table.slice(rows[0], len(rows))
            yield Sequences(_flat(part, "term").tolist(), _lists(part, "input_ids"), _lists(part, "target_ids"))


class FeatureTable:
    """The features of a run's shards, on disk and mapped into memory."""

    def __init__(self, dataset: "Dataset") -> None:
        self._dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, rows: Rows) -> Batch:
        """The rows with these numbers, in this order."""
        return Batch(self._dataset[rows])


def open_features(store: Store, folder: str, shards: Sequence[Shard], cache: Path) -> FeatureTable:
    """Fetch feature shards below `cache` (a private folder that outlives the table) and map them into memory.

    Raises:
        StageError: the files do not hold the rows that their manifest promises.
    """
    import datasets

    local = store.local_folder(folder, cache)
    paths = [str(local / shard.file) for shard in shards]
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_parquet(paths, columns=_COLUMNS, cache_dir=str(cache))
    expected = sum(shard.rows for shard in shards)
    if len(dataset) != expected:
        raise StageError(
            f"{store.path(folder)}: expected {expected} rows in {len(shards)} shards, got {len(dataset)};"
            " delete the folder and run the stage again"
        )
    return FeatureTable(dataset)


def _flat(table: Any, column: str) -> Any:
    """The values of a column of lists, end to end, as a numpy array."""
    return table.column(column).combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _nested(table: Any, column: str) -> tuple[Any, Any]:
    """The values of a column of lists of lists, and the offsets of the inner lists in them."""
    sequences = table.column(column).combine_chunks().flatten()
    return sequences.values.to_numpy(zero_copy_only=False), sequences.offsets.to_numpy(zero_copy_only=False)


def _lists(table: Any, column: str) -> list[list[int]]:
    """The inner lists of a column of lists of lists; one numpy slice each, no token is touched in Python."""
    values, offsets = _nested(table, column)
    return [values[start:end].tolist() for start, end in pairwise(offsets.tolist())]
