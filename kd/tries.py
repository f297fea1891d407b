"""How often each shard of a stage is begun, so that one that ends its process every time is given up.

One object counts for all workers. It lives as long as the stage is worked on, and beside the driver, so that it outlives them.
"""

from collections import defaultdict
from collections.abc import Callable, Collection

from kd.errors import StageError

MOST_TRIES = 10
"""How often a shard may end its process, as a lack of memory does, on machines that are still there afterwards."""
MOST_LOSSES = 50
"""The same with machines that are gone. One that is taken away is no fault of the shard; so many are."""


class Tries:
    """Counts the tries of shards that were begun and not ended. `alive` says which nodes of the cluster are there now."""

    def __init__(self, alive: Callable[[], Collection[str]]) -> None:
        self._alive = alive
        self._nodes: defaultdict[str, list[str]] = defaultdict(list)

    def begin(self, shard: str, node: str) -> tuple[int, int]:
        """A worker on this node begins a shard: how many died of it before, on nodes that are there and on others."""
        before = list(self._nodes[shard])
        self._nodes[shard].append(node)
        there = set(self._alive()) if before else set()
        died = sum(each in there for each in before)
        return died, len(before) - died

    def end(self, shard: str) -> None:
        """The shard is done, or has failed with an error: its process lives."""
        self._nodes.pop(shard, None)


def check_tries(died: int, lost: int, where: str, shard: str) -> None:
    """Raise StageError where too many processes died of a shard, or too many were lost with their nodes."""
    if died >= MOST_TRIES or lost >= MOST_LOSSES:
        raise StageError(
            f"shard {shard} of {where}: its process ended {died + lost} times without a word, which is how a machine's memory"
            " runs out; finished shards are kept. Give an actor more memory, or less to do at once"
        )
