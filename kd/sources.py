"""The files that a run's examples are made from: listed once, before the first shard is made, and compared from then on.

A corpus may move, and it may be gone once the examples are finished; what may not happen unseen is that it changes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kd.corpus import Source, SourceFile, find_splits, is_there
from kd.errors import StoreError
from kd.side import find_side, side_place
from kd.store import Store
from kd.tasks.base import TaskConfig

SOURCES = "sources.json"
"""The list, in the folder of the examples."""
HASHED_BYTES = 64 * 2**20
"""Files of a split that are together no larger are known by their content too: writing the same again is no change."""


def find_sources(task: TaskConfig) -> dict[str, Source]:
    """The files of every split, and under `llm` those of the side file. Raises InputError."""
    return find_splits(task) | ({"llm": find_side(task.llm)} if task.llm else {})


def sources_still_there(task: TaskConfig) -> dict[str, Source]:
    """The same, without what is gone as a whole, or on a file system that does not answer."""
    sources = find_splits(task) if is_there(task.path) else {}
    if task.llm and is_there(*side_place(task.llm)):
        sources["llm"] = find_side(task.llm)
    return sources


def freeze(store: Store, folder: str, sources: Mapping[str, Source]) -> None:
    """Publish the list, unless an earlier attempt did. Raises like `check_unchanged`, and InputError for an unreadable file."""
    listed = store.json_if_there(f"{folder}/{SOURCES}")
    if listed is None:
        listed = {name: _listed(source) for name, source in sources.items()}
        store.publish_json(f"{folder}/{SOURCES}", listed)
    _compare(store, folder, listed, sources)


def check_unchanged(store: Store, folder: str, sources: Mapping[str, Source]) -> None:
    """Compare these sources with the published list, if there is one: names, sizes and times of change.

    The time counts only where a file lies where it lay, since a copy has another one; a file whose digest is known is read
    then, and a later time alone does not matter.

    Raises:
        StoreError: a file differs. The first one is named.
    """
    listed = store.json_if_there(f"{folder}/{SOURCES}")
    if listed is not None:
        _compare(store, folder, listed, sources)


def _compare(store: Store, folder: str, listed: Mapping[str, Any], sources: Mapping[str, Source]) -> None:
    for name, source in sources.items():
        for path, change in _changes(listed.get(name, {"folder": "", "files": {}}), source):
            raise StoreError(
                f"{path}, a file of {name}, is not what {store.path(folder)} was begun with: {change}."
                " Put it back as it was, or use a new run name"
            )


def _listed(source: Source) -> dict[str, Any]:
    hashed = source.size_bytes <= HASHED_BYTES
    marks = {
        file.name: {
            "size_bytes": file.size_bytes,
            "modified": file.modified,
            "sha256": source.sha256(index) if hashed else None,
        }
        for index, file in enumerate(source.files)
    }
    return {"folder": source.place.root, "files": marks}


def _changes(listed: Mapping[str, Any], source: Source) -> Iterator[tuple[str, str]]:
    """Paths of files that differ from the list, in the order of their names, and how."""
    before, root, place = listed["files"], source.place.root, source.place.address
    now = {file.name: index for index, file in enumerate(source.files)}
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            yield str(place.below(name)), "it is no longer there"
        elif name not in before:
            yield str(place.below(name)), "it was not there, or belonged to no split"
        else:
            file, was = source.files[now[name]], before[name]
            if file.size_bytes != was["size_bytes"]:
                yield file.path, f"it had {was['size_bytes']} bytes and has {file.size_bytes}"
            elif listed["folder"] == root and _is_newer(file, was) and not _is_same(source, now[name], was):
                yield file.path, _rewritten(file, was)


def _is_newer(file: SourceFile, was: Mapping[str, Any]) -> bool:
    return file.modified is not None and was["modified"] is not None and file.modified > was["modified"]


def _is_same(source: Source, index: int, was: Mapping[str, Any]) -> bool:
    """Whether the content is known, and the same."""
    return was["sha256"] is not None and source.sha256(index) == was["sha256"]


def _rewritten(file: SourceFile, was: Mapping[str, Any]) -> str:
    times = f"it was last changed at {was['modified']} and has been changed since, at {file.modified}"
    if was["sha256"]:
        return f"{times}, with the same size but another content"
    return f"{times}. If its content is what it was, copy the corpus to another folder and name that: there times do not count"
