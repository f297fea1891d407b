"""What a stage says of itself when it is complete: its manifest, and the shards that it made."""

import dataclasses
import hashlib
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
RECORDED_LIBRARIES = ("ray", "torch", "transformers", "captum", "deepspeed", "datasets", "pyarrow", "numpy")


@dataclass(frozen=True)
class Shard:
    """A unit of work: the first `rows` rows of one file. Its name is the same in every stage."""

    name: str
    split: str
    rows: int

    @property
    def file(self) -> str:
        return f"{self.name}.parquet"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a complete stage says of itself. `digest` identifies what it was asked to do, `inputs` what it was made from.

    `errors` and `counts` are rows by reason and by what their type tallies; `figures` the stage's own numbers. `seconds` and
    `rows_per_s` are of the attempt that finished it; the rate is null where that made no new shard. `device` is what did it, by
    name where the stage tells; several are parted by commas.
    """

    stage: str
    digest: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    row_type: str | None = None
    schema_digest: str | None = None
    shards: Sequence[Shard] = ()
    rows: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, float | str | None] = field(default_factory=dict)
    device: str = "cpu"
    seconds: float = 0.0
    rows_per_s: float | None = None
    code_revision: str | None = None
    code_dirty: bool | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    finished_unix_s: float = 0.0

    def stamped(self) -> "Manifest":
        """The same with what it was made with and when: the code's commit, the versions of libraries, the time."""
        revision, dirty = _code_revision()
        now = round(time.time(), 3)
        return dataclasses.replace(self, code_revision=revision, code_dirty=dirty, versions=_versions(), finished_unix_s=now)

    def shards_of(self, split: str) -> list[Shard]:
        """The shards of one split, in order."""
        return [shard for shard in self.shards if shard.split == split]


@dataclass(frozen=True)
class Memory:
    """What a store read that stays as it is: the manifests of complete stages by folder, and folders by their claim.

    That something is not there is never remembered: another process may publish it at any time.
    """

    manifests: dict[str, Manifest] = field(default_factory=dict)
    folders: dict[tuple[str, str], str] = field(default_factory=dict)
    shards: dict[str, bytes] = field(default_factory=dict)
    """The last few shards that rows were read of, for an actor: several works read the same ones, which stay as they are."""
    shards_bytes: int = 0
    """How large these may be together."""

    def keep_shard(self, relative: str, content: bytes) -> None:
        """Keep a shard, and let the oldest go where all are too large."""
        self.shards[relative] = content
        while sum(map(len, self.shards.values())) > self.shards_bytes:
            self.shards.pop(next(iter(self.shards)))


def candidates(folder: str, digest: str) -> tuple[str, str]:
    """Where work with this digest may live: the folder, and its twin where another config was there first."""
    return folder, f"{folder}-{digest[:8]}"


def holder(claims: Mapping[str, str | None], digest: str) -> str | None:
    """The folder that this digest has claimed."""
    return next((candidate for candidate, claim in claims.items() if claim == digest), None)


def digest(*parts: object) -> str:
    """Sixteen hex digits of the parts' canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    found = {}
    for name in RECORDED_LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _code_revision() -> tuple[str | None, bool | None]:
    """The commit of the running code and whether it was changed; nulls where there is no git checkout."""
    here = Path(__file__).parent
    try:
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return revision.stdout.strip(), bool(status.stdout.strip())
