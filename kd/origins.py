"""Where a model comes from: what is there, what tells it from every other, and what went wrong in a user's words."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from kd.errors import InputError, UserError

_TOKENIZER_FILES = ("tokenizer", "spiece", "sentencepiece", "vocab")
_IDENTIFYING_SUFFIXES = (".json", ".safetensors", ".bin")
_BESIDE_SUFFIXES = (".json", ".txt", ".model", ".jinja")


def commit_of(name: str, revision: str) -> str:
    """What a revision of a hub id points to, as far as the hub or its cache can tell."""
    from huggingface_hub import ResolvedRevision
    from transformers.utils.hub import resolve_revision

    found = resolve_revision(name, revision)
    return found.resolved if isinstance(found, ResolvedRevision) else revision


def check_there(name: str) -> None:
    """A name that can only be a folder is one."""
    if (name.startswith(("/", ".", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise InputError(f"there is no model folder {name!r} (seen from {Path.cwd()}); expected a local folder or a hub id")


def check_tokenizer_files(name: str) -> None:
    """A local folder holds a tokenizer: of some model types the library makes one up that knows no word."""
    folder = Path(name)
    if folder.is_dir() and not any(path.name.startswith(_TOKENIZER_FILES) for path in folder.iterdir()):
        raise InputError(f"{name} holds no tokenizer; expected a tokenizer.json beside config.json")


def check_not_pickled(name: str, commit: str) -> None:
    """A hub id or folder holds no pickle as its only weights. Where there are none at all, there is nothing to refuse."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
    from transformers.utils.hub import has_file

    def holds(*files: str) -> bool:
        return any(has_file(name, file, revision=commit) for file in files)

    if not holds(SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) and holds(WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        raise InputError(
            f"{name}: its weights are a pickle ({WEIGHTS_NAME}), which can run code; expected {SAFE_WEIGHTS_NAME}."
            " Set allow_pickle = true where the pickle is trusted"
        )


def content_of(name: str, commit: str) -> str:
    """Sixteen hex digits of what a model folder holds; the commit of a hub id."""
    if not Path(name).is_dir():
        return commit
    total = hashlib.sha256()
    for path in sorted(Path(name).iterdir()):
        if path.suffix in _IDENTIFYING_SUFFIXES:
            stat = path.stat()
            total.update(f"{path.name} {_file_digest(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return total.hexdigest()[:16]


def files_here(name: str, revision: str) -> Path | None:
    """The folder that a model was loaded from: the local one, or the snapshot in the hub's cache; None where it has none here."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=commit_of(name, revision))
    return Path(found).parent if isinstance(found, str) else None


def size_of(folder: Path) -> int | None:
    """Bytes of what loading reads in a model folder: weights in one format, and the files beside them; None without weights."""
    weights = list(folder.glob("model*.safetensors")) or list(folder.glob("pytorch_model*.bin"))
    beside = [path for path in folder.iterdir() if path.suffix in _BESIDE_SUFFIXES]
    return sum(path.stat().st_size for path in [*weights, *beside]) if weights else None


@lru_cache
def _file_digest(path: Path, _size_bytes: int, _changed_ns: int) -> str:
    """SHA-256 of a file, which is read again only after a change."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def explained(name: str, revision: str) -> Iterator[None]:
    """What the model library says about a model that it cannot load, as an error that a user can act on."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load model {name!r} (revision {revision!r}): {' '.join(str(error).split())[:300]} "
            "Expected a hub id that can be reached, or a local folder with config.json, *.safetensors and tokenizer.json. "
            "Weights that are a pickle need allow_pickle = true, code from the repository trust_remote_code = true."
            f"{_tokenizer_hint(str(error))}"
        ) from error


def _tokenizer_hint(said: str) -> str:
    """What to do about a tokenizer that is a SentencePiece model, where that is what could not be read."""
    if "tiktoken" not in said:  # what transformers tries last, and names instead
        return ""
    return " Its tokenizer is a SentencePiece file: it must be whole, and the packages sentencepiece and protobuf installed."
