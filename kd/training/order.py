"""Which row comes when: a pure function of (seed, epoch, row number), windowed over shards.

Every epoch shuffles the shards, groups them in windows and shuffles the rows inside each window, so a reader touches few
files at a time and memory holds one window's permutation, whatever the size of the corpus. Epochs follow each other
without a gap: global batch g is positions [g x batch, (g + 1) x batch) of one endless sequence. To resume is to ask for
the next g; another number of workers cuts the same batches differently.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
"""Row numbers: positions in the shards as they are listed, end to end."""


class Order:
    """The order of one run. `shard_rows` are the shards' sizes, in the order in which rows are numbered."""

    def __init__(self, shard_rows: Sequence[int], batch_rows: int, window_shards: int, seed: int) -> None:
        if not sum(shard_rows):
            raise ValueError("expected at least one row to train on, got none")
        self.shard_rows: Rows = np.asarray(shard_rows, dtype=np.int64)
        self.first_row: Rows = np.cumsum(self.shard_rows) - self.shard_rows
        self.rows = int(self.shard_rows.sum())
        self.batch_rows = batch_rows
        self.window_shards = window_shards
        self.seed = seed
        self._windows = lru_cache(maxsize=2)(self._draw_windows)
        self._shuffled = lru_cache(maxsize=2)(self._shuffle_window)

    def rows_of_batch(self, batch: int) -> Rows:
        """The row numbers of a global batch, in order. A corpus smaller than a batch repeats in it, epoch by epoch."""
        position, end = batch * self.batch_rows, (batch + 1) * self.batch_rows
        pieces = []
        while position < end:
            piece = self._piece(position)[: end - position]
            pieces.append(piece)
            position += len(piece)
        return np.concatenate(pieces)

    def _piece(self, position: int) -> Rows:
        """The rows from a position of the endless sequence to the end of its window."""
        epoch, inside = divmod(position, self.rows)
        _, ends = self._windows(epoch)
        window = int(np.searchsorted(ends, inside, side="right"))
        start = int(ends[window - 1]) if window else 0
        return self._shuffled(epoch, window)[inside - start :]

    def _draw_windows(self, epoch: int) -> tuple[list[Rows], Rows]:
        """An epoch's windows, as lists of shards, and the position at which each ends."""
        shards = _generator(self.seed, epoch, 0).permutation(len(self.shard_rows))
        windows = [shards[at : at + self.window_shards] for at in range(0, len(shards), self.window_shards)]
        return windows, np.cumsum([self.shard_rows[window].sum() for window in windows])

    def _shuffle_window(self, epoch: int, window: int) -> Rows:
        """The rows of one window, shuffled."""
        shards = self._windows(epoch)[0][window]
        rows = [np.arange(self.first_row[shard], self.first_row[shard] + self.shard_rows[shard]) for shard in shards]
        shuffled: Rows = _generator(self.seed, epoch, window + 1).permutation(np.concatenate(rows))
        return shuffled


def _generator(seed: int, epoch: int, which: int) -> np.random.Generator:
    """The randomness of one permutation. Keys have one length: a key and the same with a zero behind it are one to numpy."""
    return np.random.default_rng([seed, epoch, which])
