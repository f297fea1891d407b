"""Rows through a model: tokenised ahead, sorted by length, in micro-batches under a budget of padded tokens."""

import gc
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from kd.errors import RowFault
from kd.rows import Example, RowError

FIRST_ROWS = 256
"""Rows of the first window, for which the model waits. Up to twice as many are one window: two would pad more than is waited."""

WINDOW_ROWS = 8192
"""Rows of every other window, tokenised in one go while the window before goes through the model."""

BATCH_COST = 0.02
"""What another micro-batch costs beside its tokens, as a share of a full one; else padding would be saved row by row."""

_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says where memory runs out and it raises no OutOfMemoryError."""

log = logging.getLogger(__name__)


class Sized(Protocol):
    """A row, ready for the model. Its size is its input tokens and its answer tokens."""

    @property
    def size(self) -> tuple[int, int]: ...


E = TypeVar("E", bound=Example)
S = TypeVar("S", bound=Sized)
R = TypeVar("R")
T = TypeVar("T")
N = TypeVar("N", int, float)


class MicroBatches:
    """Takes rows through a model. A budget that turns out too large is halved, and stays so for all rows to come."""

    def __init__(self, budget_tokens: int) -> None:
        self.budget_tokens = budget_tokens

    def run(
        self,
        rows: Sequence[E],
        prepare: Callable[[Sequence[E]], Sequence[S | RowFault]],
        work: Callable[[list[S]], Sequence[R | RowError]],
        tally: Counter[str],
    ) -> list[R | RowError]:
        """One result, or the reason why there is none, for each row in order.

        Args:
            prepare: tokenises rows; runs in a thread of its own, one window ahead of the model.
            work: takes one micro-batch through the model.
            tally: gets the model's `tokens`, and the `padding_tokens` that were computed beside them.
        """
        windows = _windows([sum(len(part.text) for part in row.segments) for row in rows])
        results: dict[int, R | RowError] = {}
        for window, prepared in one_ahead((window, prepare([rows[index] for index in window])) for window in windows):
            ready: dict[int, S] = {}
            for index, item in zip(window, prepared, strict=True):
                if isinstance(item, RowFault):
                    results[index] = RowError(item.reason, item.detail)
                else:
                    ready[index] = item
            for batch, found in self._batches(ready, work, tally):
                results |= zip(batch, found, strict=True)
        return [results[index] for index in range(len(rows))]

    def _batches(
        self, ready: dict[int, S], work: Callable[[list[S]], Sequence[R | RowError]], tally: Counter[str]
    ) -> Iterator[tuple[list[int], Sequence[R | RowError]]]:
        """The rows' places, micro-batch by micro-batch, with their results.

        Work may fill the whole budget with versions of a few rows. So a budget over the batch's own tokens is halved first, and
        only what does not fit within its own is divided, or is an error.
        """
        waiting = self._cut(ready, list(ready))
        while waiting:
            batch = waiting.pop()
            sizes = [ready[index].size for index in batch]
            padded = padded_tokens(sizes)
            found = _attempt(work, [ready[index] for index in batch])
            if found is not None:
                tally.update(tokens=sum(map(sum, sizes)), padding_tokens=padded - sum(map(sum, sizes)))
                yield batch, found
            elif len(batch) == 1 and self.budget_tokens <= padded:
                detail = f"{sizes[0][0]} input and {sizes[0][1]} answer tokens do not fit into memory, even alone"
                yield batch, [RowError("out_of_memory", detail)]
            else:
                self.budget_tokens = max(padded, self.budget_tokens // 2) if self.budget_tokens > padded else padded // 2
                log.warning("out of memory in a batch of %d padded tokens: the budget is now %d", padded, self.budget_tokens)
                waiting = self._cut(ready, [index for rest in [*waiting, batch] for index in rest])

    def _cut(self, ready: dict[int, S], places: list[int]) -> list[list[int]]:
        """The places in micro-batches, the longest rows last, from where they are taken."""
        batches = cut([ready[index].size for index in places], self.budget_tokens)
        return [[places[i] for i in batch] for batch in reversed(batches)]


def _windows(lengths: Sequence[int]) -> list[list[int]]:
    """The places of rows with texts of these lengths: those most alike first, which pad little among themselves, then the
    others, longest first.
    """
    ordered = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    if len(ordered) <= 2 * FIRST_ROWS:
        return [ordered]
    starts = range(len(ordered) - FIRST_ROWS + 1)
    start = min(starts, key=lambda at: lengths[ordered[at]] - lengths[ordered[at + FIRST_ROWS - 1]])
    others = ordered[:start] + ordered[start + FIRST_ROWS :]
    return [ordered[start : start + FIRST_ROWS], *(others[at : at + WINDOW_ROWS] for at in range(0, len(others), WINDOW_ROWS))]


def cut(sizes: Sequence[tuple[int, int]], budget_tokens: int) -> list[list[int]]:
    """Rows grouped with rows of like size, so that little is padded; the largest groups first, so that too much shows at once.

    All rows are one group at first. A group over the budget is divided in two where that leaves the least padding, by
    input or by answer length, and so on. Sorting by length alone leaves twice as much, as inputs and answers do not grow
    together.

    Args:
        sizes: input and answer tokens of each row.
        budget_tokens: rows x (longest input + longest answer) stays within it; a longer row is alone in its group.

    Returns:
        Indices of the rows, each in one group, in order.
    """
    groups, over = [], [list(range(len(sizes)))] if sizes else []
    while over:
        group = over.pop()
        if len(group) == 1 or padded_tokens([sizes[index] for index in group]) <= budget_tokens:
            groups.append(sorted(group))
        else:
            over += _divided(group, sizes, budget_tokens)
    return sorted(groups, key=lambda group: (-padded_tokens([sizes[index] for index in group]), group))


def _divided(group: list[int], sizes: Sequence[tuple[int, int]], budget_tokens: int) -> tuple[list[int], list[int]]:
    """A group in two parts, sorted by one of its lengths and parted at the place that costs the least."""

    def cost(rows: int, width: int) -> float:
        return rows * width + BATCH_COST * budget_tokens * math.ceil(rows * width / budget_tokens)

    best: tuple[float, list[int], int] | None = None
    for by in (0, 1):
        ordered = sorted(group, key=lambda index: (-sizes[index][by], -sizes[index][1 - by], index))
        firsts, lasts = widths(ordered, sizes), widths(ordered[::-1], sizes)[::-1]
        for at in range(1, len(ordered)):
            price = cost(at, firsts[at - 1]) + cost(len(ordered) - at, lasts[at])
            if best is None or price < best[0]:
                best = price, ordered, at
    assert best is not None  # a group has at least two rows
    _, ordered, at = best
    return ordered[:at], ordered[at:]


def widths(group: Sequence[int], sizes: Sequence[tuple[N, N]]) -> list[N]:
    """To how many tokens the first row is padded, the first two, and so on."""
    inputs = itertools.accumulate((sizes[index][0] for index in group), max)
    answers = itertools.accumulate((sizes[index][1] for index in group), max)
    return [one + other for one, other in zip(inputs, answers, strict=True)]


def padding_frac(sizes: Sequence[tuple[int, int]], batches: Sequence[Sequence[int]]) -> float:
    """The share of the computed positions that are padding, from 0 to below 1."""
    used = sum(sum(sizes[index]) for batch in batches for index in batch)
    computed = sum(padded_tokens([sizes[index] for index in batch]) for batch in batches)
    return 1 - used / computed if computed else 0.0


def padded_tokens(sizes: Sequence[tuple[N, N]]) -> N:
    """Positions that a micro-batch of rows of these sizes computes: rows x (longest input + longest answer)."""
    return len(sizes) * (max(size[0] for size in sizes) + max(size[1] for size in sizes))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a device or of the machine."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in _NO_MEMORY)


def _attempt(work: Callable[[list[S]], Sequence[R]], items: list[S]) -> Sequence[R] | None:
    """What the work makes of the items; None where memory ran out, which is then free again."""
    import torch

    try:
        return work(items)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # only here, behind the handlers, is the batch let go that the exception's frames held
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def one_ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The items, the next one already in the making in another thread, which ends with them or when the iterator is closed."""
    with ThreadPoolExecutor(1) as other:
        coming = other.submit(lambda: next(items, None))
        while (item := coming.result()) is not None:
            coming = other.submit(lambda: next(items, None))
            yield item
