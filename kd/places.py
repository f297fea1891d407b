"""Where the files of a corpus are: a folder on this machine, in a bucket or on the hub, and what its listing says of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs as pafs
from fsspec.implementations.arrow import ArrowFSWrapper  # type: ignore[import-untyped]

from kd.addresses import Address, settled
from kd.errors import InputError
from kd.filesystems import opened


class Found(NamedTuple):
    """What a listing says of a file: its size, and when it was changed, in UTC; None where the file system does not say."""

    size_bytes: int
    modified: str | None


@dataclass(frozen=True)
class Place:
    """A folder on any file system: a local path, `s3://`, `gs://`, or `hf://datasets/OWNER/NAME/...`."""

    root: str

    @classmethod
    def at(cls, path: str) -> "Place":
        """The folder at a local path or a URL, with the endpoint that this process's environment sets. Raises InputError."""
        try:
            return cls(settled(path).url if "://" in path else str(Path(path).absolute()))
        except ValueError as error:
            raise InputError(f"cannot open the folder of the corpus: {error}") from error

    @cached_property
    def address(self) -> Address:
        """The root taken apart; its text names the endpoint beside it."""
        return Address.of(self.root)

    @cached_property
    def where(self) -> tuple[pafs.FileSystem, str]:
        """The file system, and the folder's path in it."""
        try:
            return opened(self.address), self.address.path
        except (OSError, ValueError) as error:
            raise InputError(f"cannot open {self.address}: expected a local path, s3://, gs:// or hf://; {error}") from error

    def exists(self) -> bool:
        """Whether there is such a folder. Raises InputError if its file system does not answer."""
        filesystem, base = self.where
        with self._answering():
            return bool(filesystem.get_file_info(base).type != pafs.FileType.NotFound)

    def glob(self, pattern: str) -> dict[str, Found | None]:
        """Paths that match a pattern below the folder, and what is said of each; None for a folder. Raises like `exists`."""
        filesystem, base = self.where
        with self._answering():
            found = ArrowFSWrapper(filesystem).glob(f"{base}/{pattern}", detail=True)
        return {path: _said(info) if info["type"] == "file" else None for path, info in found.items()}

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """What a file system says where it cannot be asked. The hub's client has errors of its own beside OSError."""
        refusals: tuple[type[Exception], ...] = (OSError,)
        if self.address.scheme == "hf":
            from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

            refusals += (HTTPError, ValueError)
        try:
            yield
        except refusals as error:
            raise InputError(f"cannot list {self.address}: {error}; check the path, the network and the credentials") from error


def _said(info: Mapping[str, Any]) -> Found:
    modified = info["mtime"]
    return Found(info["size"], modified and modified.astimezone(UTC).isoformat(timespec="microseconds"))
