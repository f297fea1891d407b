"""How the sequences of a global batch become micro-batches, and which worker takes which: a pure function, alike everywhere.

Every worker takes equally many, since a pass through the model may be a meeting of all of them; where there are too few
sequences for that, some take a stand-in, whose loss is a differentiable zero. So any number of rows divides by any number
of workers: a batch that does not divide is no case of its own.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from kd.batching import cut, padded_tokens, widths

Group = list[int]
"""Sequences that go through the model together, as indices, in order."""
Sizes = Sequence[tuple[int, int]]
"""Input and target tokens of each sequence."""
SCORING_WORK = 0.75
"""What a real target token costs besides its position, in positions: it is scored against the vocabulary, which padding is not
(T5-small's FLOP; larger models less)."""
_EVEN_FRAC = 0.002
"""Nothing is exchanged between workers that are no further apart than this share of the work of the busiest."""
_FEW_PARTS = 8
"""Up to so many parts it is tried which of the two lengths to divide by at first; of more it would take too long."""


@dataclass(frozen=True)
class MicroBatch:
    """A group and its number in the cut of the whole batch, which seeds its dropout: whoever takes it draws the same."""

    number: int
    group: Group


def deal(
    sizes: Sizes, budget_tokens: int, world: int, in_step: bool = True, cut_for: int | None = None
) -> list[list[MicroBatch]]:
    """The sequences of a global batch in micro-batches, pass by pass and worker by worker.

    Label and rationale are cut together, each sequence beside others of its lengths, so that little is padded. Workers that
    wait in every pass have micro-batches of like size there, the largest of them for the one that has had the least; of those
    that wait in the end alone, each has as much to do in all. Of the ways to cut that are tried, workers take the one that is
    done first.

    Args:
        sizes: input and target tokens of each sequence.
        budget_tokens: no micro-batch of several sequences has more padded tokens.
        world: how many workers share the batch.
        in_step: whether workers wait for each other in every pass, and not only when all of them are done.
        cut_for: for how many workers the batch is cut, `world` unless given. Whoever shares it then, the micro-batches are the
            same; where there are too few of them for a pass, some workers take a stand-in.

    Returns:
        For every pass what each worker takes; at least one pass. An empty group is a stand-in.
    """
    meant = cut_for or world
    time = _time_of(sizes, in_step)
    groups = min(_ways(sizes, budget_tokens, meant), key=lambda groups: time(_dealt(groups, sizes, meant, in_step)))
    return _dealt(groups, sizes, world, in_step)


def _dealt(groups: Sequence[Group], sizes: Sizes, world: int, in_step: bool) -> list[list[MicroBatch]]:
    """Groups, the largest first, as passes of one for each worker."""
    missing = -len(groups) % world
    numbered = [MicroBatch(number, group) for number, group in enumerate([*groups, *([] for _ in range(missing))])]
    loads, passes = [0.0] * world, []
    for start in range(0, len(numbered), world):
        least_loaded = sorted(range(world), key=lambda rank: (loads[rank], rank))
        dealt = dict(zip(least_loaded, numbered[start : start + world], strict=True))
        passes.append([dealt[rank] for rank in range(world)])
        loads = [load + work(dealt[rank].group, sizes) for rank, load in enumerate(loads)]
    return passes if in_step else evened(passes, sizes)


def evened(passes: list[list[MicroBatch]], sizes: Sizes) -> list[list[MicroBatch]]:
    """The passes after the busiest worker has changed micro-batches for smaller ones of the least busy, one at a time: as long as
    the busier of both has less to do then, and they are further apart than it matters.
    """
    loads = np.array([[work(each.group, sizes) for each in dealt] for dealt in passes])
    while True:
        totals = loads.sum(0)
        most, least = int(totals.argmax()), int(totals.argmin())
        gap = totals[most] - totals[least]
        moved = np.subtract.outer(loads[:, most], loads[:, least])
        useful = (moved > 0) & (moved < gap)
        if gap <= _EVEN_FRAC * totals[most] or not useful.any():
            return passes
        mine, other = divmod(int(np.where(useful, abs(gap - 2 * moved), np.inf).argmin()), len(passes))
        passes[mine][most], passes[other][least] = passes[other][least], passes[mine][most]
        loads[mine, most], loads[other, least] = loads[other, least], loads[mine, most]


def _time_of(sizes: Sizes, in_step: bool) -> Callable[[list[list[MicroBatch]]], float]:
    """How long passes take, in positions: that of the worker for whom the others wait, in every pass or over all of them."""

    def time(passes: list[list[MicroBatch]]) -> float:
        taken = [[work(each.group, sizes) for each in dealt] for dealt in passes]
        return sum(map(max, taken)) if in_step else max(map(sum, zip(*taken, strict=True)))

    return time


def cost(group: Group, sizes: Sizes) -> int:
    """Padded tokens of a group: the positions that the model computes."""
    return padded_tokens([sizes[index] for index in group]) if group else 0


def work(group: Group, sizes: Sizes) -> float:
    """How long a group takes, in positions: workers that wait for each other should have equally much of it."""
    return cost(group, sizes) + SCORING_WORK * sum(sizes[index][1] for index in group)


def _ways(sizes: Sizes, budget_tokens: int, world: int) -> list[list[Group]]:
    """Groups within the budget, as many as a multiple of the workers where there are sequences enough; the largest first.

    One worker takes them as they are cut. For several the largest are halved until all have one in every pass; or the batch is
    divided in so many parts of like work, whatever the cut was.
    """
    groups = cut(sizes, budget_tokens)
    if world == 1 or not groups:
        return [groups or [[]]]
    most = -(-len(groups) // world) * world
    ways = [_filled(groups, most, sizes), _parts(list(range(len(sizes))), min(most, len(sizes)), sizes)]
    fitting = [way for way in ways if all(len(group) == 1 or cost(group, sizes) <= budget_tokens for group in way)]
    return [sorted(way, key=lambda group: (-work(group, sizes), group)) for way in fitting]


def _filled(groups: Sequence[Group], most: int, sizes: Sizes) -> list[Group]:
    """The groups, the largest of them halved until there are `most` or no two sequences are together."""

    def entry(group: Group) -> tuple[float, Group]:
        return (-work(group, sizes) if len(group) > 1 else 0.0), group

    queue = [entry(group) for group in groups]
    heapify(queue)
    while len(queue) < most and queue[0][0]:
        for half in _parts(heappop(queue)[1], 2, sizes):
            heappush(queue, entry(half))
    return [group for _, group in queue]


def _parts(group: Group, count: int, sizes: Sizes) -> list[Group]:
    """A group in `count` parts of like work, at most as many as it has sequences: divided in two, these again, and so on."""
    if count == 1:
        return [sorted(group)]
    first, last = count // 2, count - count // 2
    places = sorted(_place(group, by, first, last, sizes) for by in (0, 1))
    tried = places if count <= _FEW_PARTS else places[:1]
    ways = [[*_parts(ordered[:at], first, sizes), *_parts(ordered[at:], last, sizes)] for _, at, ordered in tried]
    return min(ways, key=lambda way: max(work(part, sizes) for part in way))


def _place(group: Group, by: int, first: int, last: int, sizes: Sizes) -> tuple[float, int, Group]:
    """Where to divide a group that is sorted by one of its lengths into so many parts to come: where the side that has more than
    its share has the least. How much that is for each of its parts comes first.
    """
    ordered = sorted(group, key=lambda index: (-sizes[index][by], -sizes[index][1 - by], index))
    heads, tails = _works(ordered, sizes), _works(ordered[::-1], sizes)[::-1]
    shares = ((max(heads[at - 1] / first, tails[at] / last), at) for at in range(first, len(ordered) - last + 1))
    return (*min(shares), ordered)


def _works(ordered: Group, sizes: Sizes) -> list[float]:
    """The work of the first sequence, of the first two together, and so on."""
    scored = itertools.accumulate(sizes[index][1] for index in ordered)
    padded = (rows * width for rows, width in enumerate(widths(ordered, sizes), 1))
    return [positions + SCORING_WORK * targets for positions, targets in zip(padded, scored, strict=True)]
