"""A side file: another model's rationales for the records of a corpus, attached to them by id."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from kd.corpus import Source, decoded, find, why_unreadable
from kd.errors import InputError, RowFault
from kd.manifests import digest
from kd.rows import Example
from kd.tasks.base import SideFile, folder_and_pattern
from kd.tasks.fields import Record, id_at, optional_text_at, outermost

SideTable = Mapping[str, tuple[str | None, str | None]]
"""From a record's id to another model's rationale and answer."""


def find_side(config: SideFile) -> Source:
    """The files of a side file. Raises InputError."""
    folder, pattern = side_place(config)
    columns = outermost((config.id, config.rationale, config.label))
    return find(folder, pattern, config.format, "task.llm.path", columns, config.delimiter)


def side_place(config: SideFile) -> tuple[str, str]:
    """The folder, and the pattern of the files in it."""
    folder, pattern = folder_and_pattern(config.path, config.format)
    return folder, pattern or "*"


@lru_cache(maxsize=1)
def side_table(config: SideFile, source: Source) -> SideTable:
    """A side file in memory, read once per process. Raises InputError where a record has no id, or another's."""
    table: dict[str, tuple[str | None, str | None]] = {}
    for text in source.all_records():
        try:
            record = _record(text)
            key = id_at(record, config.id)
            entry = optional_text_at(record, config.rationale), optional_text_at(record, config.label)
        except RowFault as fault:
            raise InputError(
                f"{config.path}: {fault.detail} in {text[:80]!a}; mend it, or name the column in task.llm"
            ) from fault
        if key in table:
            raise InputError(f"{config.path}: id {key!r} occurs twice; a side file has one record per id")
        table[key] = entry
    return table


def _record(text: str) -> Record:
    record = decoded(text)
    if record is None:
        raise RowFault("unparsable", why_unreadable(text)[0])
    return record


@lru_cache(maxsize=1)
def side_digest(config: SideFile, source: Source) -> str:
    """What identifies all that a side file says."""
    return digest(sorted(side_table(config, source).items()))


def side_size(config: SideFile, source: Source) -> int:
    """How many records a side file has. Raises InputError, like `side_table`."""
    return len(side_table(config, source))


def attach(rows: Sequence[Example], side: SideTable) -> tuple[list[Example], dict[str, int]]:
    """The rows with the side file's rationales in place of their own, and how many have one there."""
    found = [side.get(row.uid.partition("/")[2]) if row.error is None else None for row in rows]
    attached = sum(entry is not None for entry in found)
    pairs = ((row, entry or (None, None)) for row, entry in zip(rows, found, strict=True))
    changed = [replace(row, llm_rationale=rationale, llm_label=label) for row, (rationale, label) in pairs]
    return changed, {"llm_attached": attached, "llm_missing": len(rows) - attached}
