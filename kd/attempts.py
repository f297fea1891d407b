"""Attempts at a folder's work: the newest one goes on, and a shard that ends its process every time is given up.

Where shards are made neither is needed for correctness: what two attempts publish is the same. A run that is trained has
checkpoints, of which each attempt deletes what is not its own.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from kd.errors import Overtaken, StageError, StoreError
from kd.store import Store

MOST_TRIES = 10
"""How often a shard is begun in one attempt. A machine that is taken away is no fault of the shard, but one that ends its
process every time, as a lack of memory does, would be begun for ever."""
ATTEMPT = "attempt.json"
"""Names the newest attempt at a folder's work."""


def begin_attempt(store: Store, folder: str) -> str:
    """Take a folder's work over from any other attempt; the token of this one."""
    attempt = uuid.uuid4().hex
    store.publish_json(f"{folder}/{ATTEMPT}", {"attempt": attempt})
    return attempt


def check_newest(store: Store, folder: str, attempt: str, title: str) -> None:
    """Raise Overtaken where another attempt has taken over; what this one has published stays and is as good."""
    if store.read_json(f"{folder}/{ATTEMPT}")["attempt"] != attempt:
        raise Overtaken(
            f"{title}: another job has started this stage in {store.path(folder)} and goes on with it;"
            " this one stops. What it has finished is kept. Run one job at a time on a run directory"
        )


@contextmanager
def noted_try(store: Store, folder: str, attempt: str, shard: str) -> Iterator[None]:
    """Inside, a shard is being done, and a note says so that outlives its process. Raises StageError at one try too many."""
    note = f"{folder}/tries/{shard}.json"
    tries = _tries(store, note, attempt) + 1
    if tries > MOST_TRIES:
        raise StageError(
            f"shard {shard} of {store.path(folder)}: its process ended {MOST_TRIES} times without a word, which is how a"
            " machine's memory runs out; finished shards are kept. Give an actor more memory, or less to do at once"
        )
    store.publish_json(note, {"attempt": attempt, "tries": tries})
    try:
        yield
    finally:
        store.delete(note)


def _tries(store: Store, note: str, attempt: str) -> int:
    """How often this attempt has begun a shard before; none without a readable note, which another process may have deleted."""
    try:
        before = store.read_json(note)
    except StoreError:
        return 0
    return int(before["tries"]) if before["attempt"] == attempt else 0
