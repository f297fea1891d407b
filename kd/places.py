"""Where the files of a corpus are: a folder on this machine, in a bucket or on the hub, and what its listing says of them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow.fs as pafs

from kd.addresses import Address, settled
from kd.errors import InputError
from kd.filesystems import opened

_MAGIC = re.compile(r"[*?\[]")


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
        except OSError as error:
            raise InputError(f"cannot open {self.address}: {error}; check the address and its service") from error
        except ValueError as error:
            raise InputError(f"cannot open {self.address}: expected a local path, s3://, gs:// or hf://; {error}") from error

    def exists(self) -> bool:
        """Whether there is such a folder. Raises InputError if its file system does not answer."""
        filesystem, base = self.where
        with self._answering():
            return bool(filesystem.get_file_info(base).type != pafs.FileType.NotFound)

    def glob(self, pattern: str) -> dict[str, Found | None]:
        """Paths below the folder that match a pattern, and what is said of each; None for a folder. Raises like `exists`.

        `*` and `?` stand for any characters of a name and any one, `[ab]` for one of these, `**` for any number of folders. What
        is there under a part's very name is what that part means.
        """
        with self._answering():
            found = list(self._below(self.where[1], pattern.split("/")))
        return {info.path: _said(info) for info in found}

    def _below(self, folder: str, parts: Sequence[str]) -> Iterator[pafs.FileInfo]:
        """What matches the parts of a pattern, part by part: only folders that match are listed, and behind `**` all of them."""
        first, *rest = parts
        if first == "**":
            inside = self._listed(folder, recursive=True)
            yield from (info for info in inside if _fits(info.path.removeprefix(f"{folder}/").split("/"), parts))
        elif _MAGIC.search(first):
            there = self._listed(folder)
            named = [info for info in there if info.base_name == first]
            matching = named or [info for info in there if fnmatchcase(info.base_name, first)]
            folders = [info.path for info in matching if info.type == pafs.FileType.Directory]
            yield from (info for each in folders for info in self._below(each, rest)) if rest else matching
        elif rest:
            yield from self._below(f"{folder}/{first}", rest)
        else:
            info = self.where[0].get_file_info(f"{folder}/{first}")
            yield from [info] if info.type != pafs.FileType.NotFound else []

    def _listed(self, folder: str, recursive: bool = False) -> list[pafs.FileInfo]:
        """What is in a folder; nothing where there is none."""
        selector = pafs.FileSelector(folder, allow_not_found=True, recursive=recursive)
        try:
            found: list[pafs.FileInfo] = self.where[0].get_file_info(selector)
        except NotADirectoryError:
            return []
        return found

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


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the names of a path match the parts of a pattern. `**` is any number of folders; at the end it is all in them."""
    if not parts:
        return not names
    first, *rest = parts
    if first == "**":
        return any(_fits(names[skipped:], rest or ["*"]) for skipped in range(len(names)))
    return bool(names) and (names[0] == first or fnmatchcase(names[0], first)) and _fits(names[1:], rest)


def _said(info: pafs.FileInfo) -> Found | None:
    if info.type == pafs.FileType.Directory:
        return None
    modified = info.mtime
    return Found(info.size, modified and modified.astimezone(UTC).isoformat(timespec="microseconds"))
