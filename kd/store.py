"""A run directory on any file system: atomic publish, rows as Parquet, manifests, digests.

Local paths, `s3://` and `gs://` go through pyarrow.fs. Nothing half-written is ever visible: a file is built in memory or,
if large, elsewhere, then published in one step (locally a temporary name and a rename, in an object store one put). The
manifest of a stage is written last, so its presence means complete.
"""

import dataclasses
import hashlib
import io
import json
import uuid
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kd import copies
from kd.addresses import Address, settled
from kd.arrow import from_table, to_table
from kd.errors import StoreError
from kd.filesystems import delete_folder, has_bucket, opened, replacing, uploading
from kd.fingerprints import Fingerprint, Writable, copy
from kd.manifests import MANIFEST, Manifest, Memory, Shard, candidates, holder
from kd.refusals import allowed, readable
from kd.rows import Row

R = TypeVar("R", bound=Row)
CLAIM = "claim.json"
PARTLY_BYTES = 2**18
"""A file up to this size is fetched whole where a part of it is wanted: a request takes longer than its bytes."""
SHARDS_PER_PART = 10_000
"""A manifest with more shards than this lists them in files of their own, of so many each (0.9 MB)."""


@dataclass(frozen=True)
class Store:
    """One run directory. Paths given to its methods are relative to `root`, with forward slashes.

    `root` has the endpoint with it, so that workers whose environment has another one, or none, find the same folder.

    A store with a `memory` reads no manifest and no claim twice. It is for one job: what another job replaces meanwhile is
    not seen, so this one goes on with what it began with. A copy in another process remembers nothing.
    """

    root: str
    memory: Memory | None = field(default=None, compare=False, repr=False, kw_only=True)

    @classmethod
    def at(cls, root: str) -> "Store":
        """The store at a local path or a URL; a relative path is made absolute, so that workers on this machine find it too.

        Raises:
            StoreError: the URL holds credentials, or an option that its file system does not know.
        """
        try:
            return cls(settled(root).url if "://" in root else str(Path(root).absolute()))
        except ValueError as error:
            raise StoreError(f"cannot open the run directory: {error}") from error

    @cached_property
    def address(self) -> Address:
        """The root taken apart; its text names the endpoint beside it."""
        return Address.of(self.root)

    def remembering(self, shards_bytes: int = 0) -> "Store":
        """The same store with a memory of its own; it also keeps shards of so many bytes, where no other job changes them."""
        return replace(self, memory=Memory(shards_bytes=shards_bytes))

    @cached_property
    def _where(self) -> tuple[pafs.FileSystem, str]:
        try:
            return opened(self.address), self.address.path
        except OSError as error:
            raise StoreError(f"cannot open {self.address}: {error}; check the address and its service") from error
        except ValueError as error:
            raise StoreError(f"cannot open {self.address}: expected a local path, s3:// or gs://; {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    @property
    def is_local(self) -> bool:
        """Whether the files are plain files of this machine (or of a shared mount)."""
        return isinstance(self._where[0], pafs.LocalFileSystem)

    def path(self, relative: str) -> str:
        """Where a file is, for a person; a path where the store is local, else a URL without its query."""
        return self.address.below(relative).bare

    def for_libraries(self, relative: str) -> tuple[pafs.FileSystem, str]:
        """A folder as a file system and a path there, for libraries that read and write themselves."""
        filesystem, base = self._where
        return filesystem, f"{base}/{relative}"

    def _told(self, relative: str) -> str:
        """The same for the message of an error, which names the endpoint too."""
        return str(self.address.below(relative))

    def check_bucket(self) -> None:
        """Raise StoreError where there is no such bucket, or its service does not answer."""
        with allowed("look for", self._told("")):
            there = has_bucket(*self._where)
        if not there:
            raise StoreError(f"there is no bucket for {self._told('')}; make it, or set root to one that is there")

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted; none if there is no such folder."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """The files in a folder, by name, with their size in bytes; none if there is no such folder."""
        filesystem, base = self._where
        selector = pafs.FileSelector(f"{base}/{folder}", allow_not_found=True)
        with allowed("list", self._told(folder)):
            found = filesystem.get_file_info(selector)
        return {info.base_name: info.size for info in found if info.type == pafs.FileType.File}

    def folders(self, folder: str) -> list[str]:
        """The names of the folders in a folder, sorted; none if there is no such folder."""
        filesystem, base = self._where
        with allowed("list", self._told(folder)):
            if filesystem.type_name == "gcs":  # lists no folder that nobody has made, and writing a file makes none
                return sorted({path.partition("/")[0] for path in self._files_below(folder) if "/" in path})
            found = filesystem.get_file_info(pafs.FileSelector(f"{base}/{folder}", allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def exists(self, relative: str) -> bool:
        """Whether a file has been published."""
        filesystem, base = self._where
        with allowed("look for", self._told(relative)):
            if self.is_local:
                return Path(base, relative).is_file()
            try:  # one request, where get_file_info lists a folder of this name too
                filesystem.open_input_file(f"{base}/{relative}").close()
            except FileNotFoundError:
                return False
        return True

    def read(self, relative: str) -> bytes:
        """The bytes of a file. Raises StoreError if it is not there or cannot be read."""
        with readable(self._told(relative)):
            return self._read(relative)

    def _read(self, relative: str) -> bytes:
        with self._opened(relative) as stream:
            return bytes(stream.read())

    @contextmanager
    def _opened(self, relative: str, whole_bytes: int = copies.SMALL_BYTES) -> Iterator[Any]:
        """A file to read from: of an object store this machine's copy if it has the same, and one that is small fetched whole."""
        filesystem, base = self._where
        with filesystem.open_input_file(f"{base}/{relative}") as stream:
            content = None if self.is_local else copies.content_of(self._told(relative), stream, whole_bytes)
            yield stream if content is None else io.BytesIO(content)

    def publish(self, relative: str, data: bytes) -> None:
        """Write a file in one step: a reader sees all of it or none. Writing the same file again is harmless.

        Raises:
            StoreError: the file system refuses it, or has no room.
        """
        with self._writing(relative) as stream:
            stream.write(data)
        if not self.is_local:
            copies.keep(self._told(relative), data)
        if self.memory:
            self.memory.shards.pop(relative, None)

    def publish_file(self, local: Path, relative: str) -> Fingerprint:
        """The same with the content of a local file, which need not fit into memory; what was written comes back."""
        with allowed("write", self._told(relative)), local.open("rb") as source:
            if not self.is_local and local.stat().st_size <= copies.SMALL_BYTES:
                data = source.read()
                self.publish(relative, data)
                return copy(io.BytesIO(data), io.BytesIO())
            with self._writing(relative) as stream:
                return copy(source, stream)

    @contextmanager
    def _writing(self, relative: str) -> Iterator[Writable]:
        """A stream whose content is published at the end."""
        filesystem, base = self._where
        target = f"{base}/{relative}"
        with (
            allowed("write", self._told(relative)),
            replacing(Path(target)) if self.is_local else uploading(filesystem, target) as stream,
        ):
            yield stream

    def fetch_file(self, relative: str, local: Path) -> Fingerprint:
        """Copy a file to a local path; what was read comes back. Raises StoreError as `read` does."""
        local.parent.mkdir(parents=True, exist_ok=True)
        with readable(self._told(relative)), self._opened(relative) as source, local.open("wb") as target:
            return copy(source, target)

    def delete(self, relative: str) -> None:
        """Take a file away, if it is there."""
        filesystem, base = self._where
        with allowed("delete", self._told(relative)), suppress(FileNotFoundError):
            filesystem.delete_file(f"{base}/{relative}")

    def delete_folder(self, folder: str) -> None:
        """Take a folder away with all that is in it, if it is there."""
        filesystem, base = self._where
        with allowed("delete", self._told(folder)):
            delete_folder(filesystem, f"{base}/{folder}")

    def upload(self, local: Path, folder: str) -> None:
        """Publish every file below a local folder under the same names."""
        for path in sorted(local.rglob("*")):
            if path.is_file():
                self.publish_file(path, f"{folder}/{path.relative_to(local).as_posix()}")

    def local_folder(self, folder: str, cache: Path) -> Path:
        """A folder as plain files: itself where the store is local, else fetched once below `cache`."""
        if self.is_local:
            return Path(self.path(folder))
        target = cache / hashlib.sha256(self.path(folder).encode()).hexdigest()[:16]
        if not target.exists():
            partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}")
            with allowed("fetch", f"{self._told(folder)} to {partial}"):
                files = self._files_below(folder)
                if not files:
                    raise FileNotFoundError("there is no file in it")
                for relative in files:
                    self.fetch_file(f"{folder}/{relative}", partial / relative)
                partial.rename(target)
        return target

    def _files_below(self, folder: str) -> list[str]:
        """The files in a folder and in its folders, by their path from there; none if there is no such folder."""
        filesystem, base = self._where
        found = filesystem.get_file_info(pafs.FileSelector(f"{base}/{folder}", recursive=True, allow_not_found=True))
        return sorted(info.path.removeprefix(f"{base}/{folder}/") for info in found if info.type == pafs.FileType.File)

    def read_rows(self, relative: str, row_type: type[R]) -> list[R]:
        """The rows of one Parquet file, its contract checked."""
        with readable(self._told(relative)):
            table = pq.read_table(io.BytesIO(self._shard(relative)))
        try:
            return from_table(table.replace_schema_metadata(), row_type)
        except ValueError as error:
            raise StoreError(f"{self.path(relative)} is not what this version writes: {error}; use a new run name") from error

    def _shard(self, relative: str) -> bytes:
        kept = self.memory.shards.get(relative) if self.memory else None
        content = self.read(relative) if kept is None else kept
        if self.memory and kept is None:
            self.memory.keep_shard(relative, content)
        return content

    def read_column(self, relative: str, column: str) -> list[Any]:
        """One column of a Parquet file, without the others."""
        return self._columns(relative, [column])[0]

    def read_columns(self, relative: str, columns: Sequence[str]) -> Iterator[Any]:
        """Some columns of a Parquet file, without the others: for each row a tuple whose fields have the columns' names."""
        row = namedtuple("row", columns)  # type: ignore[misc]  # the names come at run time
        return map(row._make, zip(*self._columns(relative, columns), strict=True))

    def _columns(self, relative: str, columns: Sequence[str]) -> list[list[Any]]:
        with readable(self._told(relative)), self._opened(relative, PARTLY_BYTES) as stream:
            table = pq.ParquetFile(stream).read(columns=list(columns))
        return [table.column(column).to_pylist() for column in columns]

    def publish_rows(self, relative: str, rows: Sequence[R], row_type: type[R], notes: Mapping[str, Any]) -> None:
        """Rows as one Parquet file, built in memory; `notes` go into its footer as JSON."""
        self.publish_table(relative, to_table(rows, row_type), notes)

    def publish_table(self, relative: str, table: pa.Table, notes: Mapping[str, Any]) -> None:
        """A table that keeps a row type's contract, likewise."""
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"notes": json.dumps(notes)}), buffer, compression="zstd")
        self.publish(relative, buffer.getvalue())

    def read_notes(self, relative: str) -> dict[str, Any]:
        """The notes in the footer of a Parquet file, without its rows."""
        with readable(self._told(relative)), self._opened(relative, PARTLY_BYTES) as stream:
            metadata = pq.read_schema(stream).metadata or {}
        if b"notes" not in metadata:
            raise StoreError(
                f"{self.path(relative)} has no notes in its footer: no stage wrote it; delete it and run the stage again"
            )
        return dict(json.loads(metadata[b"notes"]))

    def read_json(self, relative: str) -> dict[str, Any]:
        """A JSON file as a dict. Raises StoreError if it is not there, or is none."""
        return self._parsed(relative, self.read(relative))

    def json_if_there(self, relative: str) -> dict[str, Any] | None:
        """The same; None where the file is not there."""
        with readable(self._told(relative)):
            try:
                content = self._read(relative)
            except FileNotFoundError:
                return None
        return self._parsed(relative, content)

    def _parsed(self, relative: str, content: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(content))
        except ValueError as error:
            raise StoreError(f"{self.path(relative)} is not whole JSON: {error}; delete it and run the stage again") from error

    def publish_json(self, relative: str, value: Mapping[str, Any]) -> None:
        """A mapping as readable JSON."""
        self.publish(relative, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def manifest(self, folder: str) -> Manifest | None:
        """The manifest of a stage's folder; None where the stage is not complete."""
        remembered = self.memory.manifests if self.memory else {}
        if folder not in remembered:
            content = self.json_if_there(f"{folder}/{MANIFEST}")
            if content is None:
                return None
            remembered[folder] = self._manifest_of(folder, content)
        return remembered[folder]

    def knows_manifest(self, folder: str) -> bool:
        """Whether the folder's manifest was read before and is remembered."""
        return self.memory is not None and folder in self.memory.manifests

    def _manifest_of(self, folder: str, content: dict[str, Any]) -> Manifest:
        relative, known = f"{folder}/{MANIFEST}", {item.name for item in dataclasses.fields(Manifest)}
        parts = range(content.pop("shard_parts", 0))
        if set(content) - known:
            raise StoreError(f"{self.path(relative)} was written by another version; use a new run name")
        shards = content["shards"] + [shard for part in parts for shard in self.read_json(_part(folder, part))["shards"]]
        return Manifest(**content | {"shards": [Shard(**shard) for shard in shards]})

    def publish_manifest(self, folder: str, manifest: Manifest) -> Manifest:
        """The last act of a stage. What it was made with is filled in here; a long list of shards goes into parts beside it."""
        stamped = manifest.stamped()
        content = dataclasses.asdict(stamped)
        shards = content["shards"]
        if len(shards) > SHARDS_PER_PART:
            parts = [shards[at : at + SHARDS_PER_PART] for at in range(0, len(shards), SHARDS_PER_PART)]
            for number, part in enumerate(parts):
                self.publish_json(_part(folder, number), {"shards": part})
            content |= {"shards": [], "shard_parts": len(parts)}
        self.publish_json(f"{folder}/{MANIFEST}", content)
        if self.memory:
            self.memory.manifests[folder] = stamped
        return stamped

    def delete_manifest(self, folder: str) -> None:
        """Make a stage's folder an unfinished one again."""
        if self.memory:
            self.memory.manifests.pop(folder, None)
        self.delete(f"{folder}/{MANIFEST}")

    def folder_for(self, folder: str, digest: str) -> str:
        """Where work with this digest lives: `folder`, or `folder-<digest>` where another config was there first.

        A folder belongs to the digest in its claim, which this writes at the first call.
        """
        claims = self._claims(folder, digest)
        found = holder(claims, digest)
        free = [candidate for candidate, claim in claims.items() if claim is None]
        if found is None and not free:
            raise StoreError(f"{self.path(folder)} and its twin are both taken by other configs; use a new run name")
        if found is None:
            self.publish_json(f"{free[0]}/{CLAIM}", {"digest": digest})
        return self._remembered(folder, digest, found or free[0])

    def find_folder(self, folder: str, digest: str) -> str | None:
        """The folder that belongs to this digest, if one does."""
        found = holder(self._claims(folder, digest), digest)
        return found and self._remembered(folder, digest, found)

    def _claims(self, folder: str, digest: str) -> dict[str, str | None]:
        """Whose the candidates are, up to the one of this digest or one that is nobody's yet: None for that."""
        if self.memory and (folder, digest) in self.memory.folders:
            return {self.memory.folders[folder, digest]: digest}
        claims: dict[str, str | None] = {}
        for candidate in candidates(folder, digest):
            claim = self.json_if_there(f"{candidate}/{CLAIM}")
            claims[candidate] = claim["digest"] if claim else None
            if claims[candidate] in (digest, None):
                break
        return claims

    def _remembered(self, folder: str, digest: str, found: str) -> str:
        if self.memory:
            self.memory.folders[folder, digest] = found
        return found


def _part(folder: str, number: int) -> str:
    return f"{folder}/manifest-{number:05d}.json"
