"""Attempts at a folder's work: the newest one goes on.

Where shards are made this is not needed for correctness: what two attempts publish is the same. A run that is trained has
checkpoints, of which each attempt deletes what is not its own.
"""

import time
import uuid

from kd.errors import Overtaken
from kd.store import Store

NEWEST_WITHIN_S = 5.0
"""So long a process that publishes many shards trusts what it has read: two requests for each would be most of all requests."""
ATTEMPT = "attempt.json"
"""Names the newest attempt at a folder's work."""


def begin_attempt(store: Store, folder: str) -> str:
    """Take a folder's work over from any other attempt; the token of this one."""
    attempt = uuid.uuid4().hex
    _read_s.pop((store.root, folder), None)
    store.publish_json(f"{folder}/{ATTEMPT}", {"attempt": attempt})
    return attempt


def check_newest(store: Store, folder: str, attempt: str, title: str, within_s: float = 0.0) -> None:
    """Raise Overtaken where another attempt has taken over; what this one has published stays and is as good.

    It is not read again where this process has read it no longer than `within_s` ago.
    """
    now_s, (known, read_s) = time.monotonic(), _read_s.get((store.root, folder), ("", 0.0))
    if known == attempt and now_s - read_s < within_s:
        return
    newest = store.read_json(f"{folder}/{ATTEMPT}")["attempt"]
    if newest != attempt:
        raise Overtaken(
            f"{title}: another job has started this stage in {store.path(folder)} and goes on with it;"
            " this one stops. What it has finished is kept. Run one job at a time on a run directory"
        )
    _read_s[store.root, folder] = attempt, now_s


_read_s: dict[tuple[str, str], tuple[str, float]] = {}
"""The attempt that this process last found to be the newest of a folder, and when."""
