"""Files that are copied piece by piece, and what they are recognised by afterwards."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

_PIECE_BYTES = 32 * 2**20
"""Of an object store every piece is a request."""


class Readable(Protocol):
    """A binary stream to read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most so many; none at the end."""


class Writable(Protocol):
    """A binary stream to write to."""

    def write(self, data: bytes, /) -> object:
        """Add bytes."""


@dataclass(frozen=True)
class Fingerprint:
    """The size of a file and the SHA-256 of its bytes, in hex digits."""

    size_bytes: int
    sha256: str


def copy(source: Readable, target: Writable) -> Fingerprint:
    """Copy a stream to its end, a piece at a time, and say what was copied."""
    digest, size = hashlib.sha256(), 0
    while piece := source.read(_PIECE_BYTES):
        target.write(piece)
        digest.update(piece)
        size += len(piece)
    return Fingerprint(size, digest.hexdigest())
