"""How the sequences of a global batch become micro-batches, and which worker takes which: a pure function, alike everywhere.

Every worker takes equally many, since a pass through the model may be a meeting of all of them; where there are too few
sequences for that, some take a stand-in, whose loss is a differentiable zero. So any number of rows divides by any number
of workers: a batch that does not divide is no case of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from kd.batching import cut, padded_tokens, widths

Group = list[int]
"""Sequences that go through the model together, as indices, in order."""
Sizes = Sequence[tuple[int, int]]
"""Input and target tokens of each sequence."""
TARGET_WORK = 1.75
"""The work of a target token in input tokens: it is scored against the vocabulary too (T5-small's FLOP; larger models less)."""


@dataclass(frozen=True)
class MicroBatch:
    """A group and its number in the cut of the whole batch, which seeds its dropout: whoever takes it draws the same."""

    number: int
    group: Group


def deal(sizes: Sizes, budget_tokens: int, world: int, in_step: bool = True) -> list[list[MicroBatch]]:
    """The sequences of a global batch in micro-batches, pass by pass and worker by worker.

    Label and rationale are cut together, each sequence beside others of its lengths, so that little is padded. The micro-
    batches of one pass are of like size, and the largest of them goes to the worker that has had the least. Of the ways to
    cut that are tried, workers take the one that is done first.

    Args:
        sizes: input and target tokens of each sequence.
        budget_tokens: no micro-batch of several sequences has more padded tokens.
        world: how many workers share the batch.
        in_step: whether workers wait for each other in every pass, and not only when all of them are done.

    Returns:
        For every pass what each worker takes; at least one pass. An empty group is a stand-in.
    """
    return min((_dealt(groups, sizes, world) for groups in _ways(sizes, budget_tokens, world)), key=_time_of(sizes, in_step))


def _dealt(groups: Sequence[Group], sizes: Sizes, world: int) -> list[list[MicroBatch]]:
    """Groups, the largest first, as passes of one for each worker."""
    missing = -len(groups) % world
    numbered = [MicroBatch(number, group) for number, group in enumerate([*groups, *([] for _ in range(missing))])]
    loads, passes = [0.0] * world, []
    for start in range(0, len(numbered), world):
        least_loaded = sorted(range(world), key=lambda rank: (loads[rank], rank))
        dealt = dict(zip(least_loaded, numbered[start : start + world], strict=True))
        passes.append([dealt[rank] for rank in range(world)])
        loads = [load + work(dealt[rank].group, sizes) for rank, load in enumerate(loads)]
    return passes


def _time_of(sizes: Sizes, in_step: bool) -> Callable[[list[list[MicroBatch]]], float]:
    """How long passes take, in input tokens: that of the worker for whom the others wait, in every pass or over all of them."""

    def time(passes: list[list[MicroBatch]]) -> float:
        taken = [[work(each.group, sizes) for each in dealt] for dealt in passes]
        return sum(map(max, taken)) if in_step else max(map(sum, zip(*taken, strict=True)))

    return time


def cost(group: Group, sizes: Sizes) -> int:
    """Padded tokens of a group: the positions that the model computes."""
    return padded_tokens([sizes[index] for index in group]) if group else 0


def work(group: Group, sizes: Sizes) -> float:
    """How long a group takes, in input tokens: workers that wait for each other should have equally much of it."""
    return padded_tokens(_weighed(sizes[index] for index in group)) if group else 0.0


def _ways(sizes: Sizes, budget_tokens: int, world: int) -> list[list[Group]]:
    """Groups within the budget, as many as a multiple of the workers where there are sequences enough; the largest first.

    One worker takes them as they are cut. For several the largest are halved until all have one in every pass: those of the
    cut, or those of the batch as one group.
    """
    groups = cut(sizes, budget_tokens)
    if world == 1 or not groups:
        return [groups or [[]]]
    most = -(-len(groups) // world) * world
    ways = [_filled(start, most, sizes) for start in (groups, [list(range(len(sizes)))])]
    return [way for way in ways if all(len(group) == 1 or cost(group, sizes) <= budget_tokens for group in way)]


def _filled(groups: Sequence[Group], most: int, sizes: Sizes) -> list[Group]:
    """The groups, the largest of them halved until there are `most` or no two sequences are together; the largest first."""

    def entry(group: Group) -> tuple[float, Group]:
        return (-work(group, sizes) if len(group) > 1 else 0.0), group

    queue = [entry(group) for group in groups]
    heapify(queue)
    while len(queue) < most and queue[0][0]:
        for half in _halves(heappop(queue)[1], sizes):
            heappush(queue, entry(half))
    return sorted((group for _, group in queue), key=lambda group: (-work(group, sizes), group))


def _halves(group: Group, sizes: Sizes) -> tuple[Group, Group]:
    """A group in two, sorted by one of its lengths, at the place where the larger part is smallest."""
    places, weighed = [], _weighed(sizes)
    for by in (0, 1):
        ordered = sorted(group, key=lambda index: (-sizes[index][by], -sizes[index][1 - by], index))
        firsts, lasts = widths(ordered, weighed), widths(ordered[::-1], weighed)[::-1]
        for at in range(1, len(ordered)):
            places.append((max(at * firsts[at - 1], (len(ordered) - at) * lasts[at]), by, at, ordered))
    _, _, at, ordered = min(places, key=lambda place: place[:3])
    return sorted(ordered[:at]), sorted(ordered[at:])


def _weighed(sizes: Iterable[tuple[int, int]]) -> list[tuple[float, float]]:
    return [(inputs, TARGET_WORK * targets) for inputs, targets in sizes]
