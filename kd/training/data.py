"""The worker's side of the features: one memory-mapped table with random access by row number.

Rows are numbered through the shards as they are listed. A row that teaches nothing (errored, or without a target) stays
in the order and contributes no sequence, so every variant of a seed sees the same rows at the same steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kd.errors import StageError, StoreError
from kd.manifests import Shard
from kd.store import Store
from kd.training.cutting import cost, deal
from kd.training.order import Rows

if TYPE_CHECKING:
    from datasets import Dataset

_COLUMNS = ["term", "input_ids", "target_ids"]


@dataclass(frozen=True)
class Sequences:
    """A micro-batch, as parallel lists: which term each sequence belongs to, what it reads, what it is to write.

    `number` is its place in the cut of the whole batch. None is in it where it is a stand-in.
    """

    number: int
    term: list[int]
    input_ids: list[list[int]]
    target_ids: list[list[int]]


@dataclass(frozen=True)
class Share:
    """What one rank learns in one step, ready for the model: as many micro-batches as every other rank, at least one.

    `target_tokens` per term, `tokens` (inputs and targets) and the `padding_tokens` beside them are those of the whole
    global batch, over all ranks.
    """

    micro_batches: list[Sequences]
    target_tokens: list[int]
    tokens: int
    padding_tokens: int


@dataclass(frozen=True)
class Batch:
    """The rows of one global batch, as an Arrow table of their features."""

    table: Any

    def share(
        self, rank: int, world: int, budget_tokens: int, terms: int, in_step: bool = True, cut_for: int | None = None
    ) -> Share:
        """A rank's part of the batch, cut under a budget of padded tokens; see `kd.training.cutting.deal`."""
        term = self.table.column("term").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        inputs, targets = _Lists.of(self.table, "input_ids"), _Lists.of(self.table, "target_ids")
        sizes = list(zip(inputs.lengths.tolist(), targets.lengths.tolist(), strict=True))
        passes = deal(sizes, budget_tokens, world, in_step, cut_for)
        mine = [(dealt[rank].number, dealt[rank].group) for dealt in passes]
        tokens = sum(map(sum, sizes))
        return Share(
            [Sequences(number, term[group].tolist(), inputs.some(group), targets.some(group)) for number, group in mine],
            [int(count) for count in np.bincount(term, targets.lengths, minlength=terms)],
            tokens,
            sum(cost(each.group, sizes) for dealt in passes for each in dealt) - tokens,
        )


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
        StoreError: they cannot be read, or `cache` has no room for them.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    local = store.local_folder(folder, cache)
    paths = [str(local / shard.file) for shard in shards]
    datasets.disable_progress_bars()
    try:
        dataset = datasets.Dataset.from_parquet(paths, columns=_COLUMNS, cache_dir=str(cache))
    except (OSError, ValueError, DatasetGenerationError) as error:  # a file that is not whole is a ValueError
        cause = error.__cause__ or error  # a DatasetGenerationError only says that there was another one
        raise StoreError(
            f"cannot read {store.path(folder)} into {cache}: {cause}; check that the files are whole and the free space there,"
            " then run it again"
        ) from error
    expected = sum(shard.rows for shard in shards)
    if len(dataset) != expected:
        raise StageError(
            f"{store.path(folder)}: expected {expected} rows in {len(shards)} shards, got {len(dataset)};"
            " delete the folder and run the stage again"
        )
    return FeatureTable(dataset)


@dataclass(frozen=True)
class _Lists:
    """A column of lists of lists: the values of the inner lists, end to end, and where each begins and ends in them."""

    values: Any
    offsets: Any

    @classmethod
    def of(cls, table: Any, column: str) -> "_Lists":
        inner = table.column(column).combine_chunks().flatten()
        return cls(inner.values.to_numpy(zero_copy_only=False), inner.offsets.to_numpy(zero_copy_only=False))

    @property
    def lengths(self) -> Any:
        return np.diff(self.offsets)

    def some(self, group: Sequence[int]) -> list[list[int]]:
        """Some of the inner lists; one numpy slice each, no token is touched in Python."""
        return [self.values[self.offsets[index] : self.offsets[index + 1]].tolist() for index in group]
