"""Uids are unique over a whole corpus: found out bucket by bucket, so that no process ever holds all of them.

A bucket is the uids whose hash has one remainder. Its task reads the uid column of every shard and keeps eight bytes per
uid of its own. Without an id column two equal records have one uid; they are interchangeable, so the later ones in the order
of the shards become `<uid>-2`, `<uid>-3`, wherever the shards were cut.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from kd.attempts import NEWEST_WITHIN_S, check_newest
from kd.manifests import Shard, digest
from kd.rows import Example
from kd.store import Store
from kd.tasks.base import is_content_uid

UIDS_PER_BUCKET = 2**24
"""128 MiB of hashes in the task of a bucket."""
READERS = 16
RENAMED = "renamed"
"""Counted in the footer of a shard whose uids were changed, and a part of its name."""

Renames = Mapping[str, Mapping[int, str]]
"""For each shard's name, from the position of a row in it to the row's new uid."""


@dataclass(frozen=True)
class Repeats:
    """What a bucket found: up to three ids that occur twice, and the shards with rows to rename."""

    ids: Sequence[str]
    shards: Sequence[str]


def find_repeats(store: Store, folder: str, shards: Sequence[Shard], bucket: int, buckets: int) -> tuple[Repeats, Renames]:
    """The uids of one bucket that occur more than once."""
    mine = [hashes[hashes % buckets == bucket] for hashes in (_hashes(uids) for _, uids in _uids(store, folder, shards))]
    values, counts = np.unique(np.concatenate(mine), return_counts=True)
    suspects = {int(value) for value in values[counts > 1]}
    if not suspects:
        return Repeats([], []), {}
    return _confirm(store, folder, shards, suspects)


def rename(store: Store, folder: str, attempt: str, shard: Shard, *renames: Renames) -> tuple[Shard, int]:
    """Publish a shard with the new uids of its rows as another one, unless that is there; how many uids these are.

    The shard itself stays as its records make it, and the name of the other depends on what is in it: whoever writes either
    of them once more, however late, changes nothing.

    Raises:
        StageError: this attempt was overtaken.
    """
    new = {position: uid for bucket in renames for position, uid in bucket.get(shard.name, {}).items()}
    path = f"{folder}/{shard.file}"
    content = hashlib.sha256(store.read(path)).hexdigest()
    renamed = replace(shard, name=f"{shard.name}-{RENAMED}-{digest(content, sorted(new.items()))[:8]}")
    if not store.exists(f"{folder}/{renamed.file}"):
        rows = [replace(row, uid=new.get(at, row.uid)) for at, row in enumerate(store.read_rows(path, Example))]
        check_newest(store, folder, attempt, "prepare", NEWEST_WITHIN_S)
        store.publish_rows(f"{folder}/{renamed.file}", rows, Example, store.read_notes(path) | {RENAMED: len(new)})
    return renamed, len(new)


def _confirm(store: Store, folder: str, shards: Sequence[Shard], suspects: Collection[int]) -> tuple[Repeats, Renames]:
    """The repeated uids among those with a suspect hash: two uids may share a hash."""
    seen: Counter[str] = Counter()
    renames: dict[str, dict[int, str]] = defaultdict(dict)
    for shard, uids in _uids(store, folder, shards):
        for position, uid in enumerate(uids):
            if int(_hashes([uid])[0]) in suspects:
                seen[uid] += 1
                if seen[uid] > 1:
                    renames[shard.name][position] = f"{uid}-{seen[uid]}"
    ids = [uid for uid, times in seen.items() if times > 1 and not is_content_uid(uid)]
    return Repeats(sorted(ids)[:3], sorted(renames)), dict(renames)


def _uids(store: Store, folder: str, shards: Sequence[Shard]) -> Iterator[tuple[Shard, list[str]]]:
    """The shards' uids, in order, read by several threads: an object store is slow to answer, and little is held at once."""
    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(shards), READERS):
            some = shards[start : start + READERS]
            yield from zip(some, readers.map(lambda shard: store.read_column(f"{folder}/{shard.file}", "uid"), some), strict=True)


def _hashes(uids: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    joined = b"".join(hashlib.blake2b(uid.encode(), digest_size=8).digest() for uid in uids)
    return np.frombuffer(joined, dtype=np.uint64)
