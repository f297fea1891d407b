"""Copies, on this machine, of small files of an object store: what one of its processes wrote or read, the others need not fetch.

A store says with every file what its content is known by (in S3 the ETag, for a small file its MD5), so a copy is used only
where it is what lies in the store now. The copies of all jobs share one folder, which is kept small.
"""

import hashlib
import os
import stat
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

SMALL_BYTES = 8 * 2**20
"""No larger file is copied: it takes longer to fetch than to ask for."""
MOST_BYTES = 2**30
"""The copies together, about; the oldest go first."""
_LOOK_EVERY_BYTES = MOST_BYTES // 16
_since_look = [_LOOK_EVERY_BYTES]
"""The sizes of what this process has kept since it last looked; at first so many that it looks at once."""


class Far(Protocol):
    """A file of an object store, opened: its size and what is said of it are known, its bytes are to be fetched."""

    def size(self) -> int:
        """In bytes."""

    def metadata(self) -> Mapping[str, bytes]:
        """What the store says of it."""

    def read(self) -> bytes:
        """All of it."""


def tag_of(metadata: Mapping[str, bytes]) -> str | None:
    """What an object store knows a content by, from what it says of a file; None where it does not say."""
    tag = metadata.get("ETag", b"").strip(b'"').decode()
    return tag if len(tag) == 32 else None


def content_of(where: str, stream: Far, whole_bytes: int) -> bytes | None:
    """The content of a file that is open: the copy if the store has the same, else fetched if it is no larger than that."""
    content = find(where, tag_of(stream.metadata()))
    if content is None and stream.size() <= whole_bytes:
        content = bytes(stream.read())
        keep(where, content)
    return content


def find(where: str, tag: str | None) -> bytes | None:
    """The content of the file `where`, if there is a copy and the store has the same."""
    try:
        content = _path(where).read_bytes() if tag else None
    except OSError:
        return None
    return content if content is not None and _tag(content) == tag else None


def keep(where: str, content: bytes) -> None:
    """Keep a copy of a file, unless it is too large or there is no room: it is then fetched again."""
    if len(content) > SMALL_BYTES:
        return
    path = _path(where)
    partial = path.with_suffix(f".{uuid.uuid4().hex[:8]}")
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not _is_mine_alone(path.parent):
            return
        _make_room(path.parent, len(content))
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _is_mine_alone(folder: Path) -> bool:
    """Whether no other user of the machine can read what is put there, or has made the folder."""
    seen = folder.lstat()
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid() and not seen.st_mode & 0o077


def _make_room(folder: Path, more_bytes: int) -> None:
    """Delete the oldest copies where all together are too large; it is looked now and then."""
    _since_look.append(more_bytes)
    if sum(_since_look) < _LOOK_EVERY_BYTES:
        return
    _since_look.clear()
    there = []
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # another process has just put it in its place, or deleted it
            there.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
    total = 0
    for _, size, path in sorted(there, reverse=True):
        total += size
        if total > MOST_BYTES:
            Path(path).unlink(missing_ok=True)


def _path(where: str) -> Path:
    """The copy of a file; one of what it holds now takes the place of the one before."""
    return Path(tempfile.gettempdir(), f"kd-copies-{os.getuid()}", hashlib.sha256(where.encode()).hexdigest()[:32])


def _tag(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
