"""Reading the fields of a record. What is missing or of another kind is a RowFault."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kd.errors import RowFault
from kd.rows import Span

Record = Mapping[str, Any]
_BYTE = re.compile("[\udc80-\udcff]")
"""A byte that is no UTF-8, as readers write it: half a surrogate pair."""


def is_in(column: str, columns: Collection[str]) -> bool:
    """Whether a record with these columns can have this one. `a.b` is the column of that name, or field b of column a."""
    return column in columns or column.partition(".")[0] in columns


def outermost(columns: Iterable[str | None]) -> frozenset[str]:
    """The columns of a file that hold these; `a.b` may be in two (see `is_in`)."""
    named = [column for column in columns if column]
    return frozenset([*named, *(column.partition(".")[0] for column in named)])


def is_missing(value: Any) -> bool:
    """Whether there is no value: null, or a number that is none (NaN), which is how many programs write that there is none."""
    return value is None or bool(value != value)


def lookup(record: Record, column: str | None) -> Any:
    """A value, None if it is missing; see `is_in` for names with a dot."""
    if column is None or column in record or "." not in column:
        value = record.get(column) if column else None
        return None if is_missing(value) else value
    outer, _, inner = column.partition(".")
    value = record.get(outer)
    return lookup(value, inner) if isinstance(value, Mapping) else None


def at(record: Record, *columns: str) -> Any:
    """The first value that is there, of one or several columns. Raises RowFault if none is, or all are null."""
    for column in columns:
        value = lookup(record, column)
        if value is not None:
            return value
    raise RowFault("missing_field", f"{' or '.join(columns)} is missing")


def id_at(record: Record, column: str) -> str:
    """A record's id: a text or a whole number. Raises RowFault if it is missing or something else."""
    value = at(record, column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value == "":
        raise RowFault("missing_field", f"{column} is empty")
    return _as_text(value, column)


def text_at(record: Record, *columns: str) -> str:
    """A text that must be there, in the first of the columns that is. Raises RowFault if it is missing or no text."""
    return _as_text(at(record, *columns), " or ".join(columns))


def optional_at(record: Record, *columns: str | None) -> Any:
    """The first value that is there, of one or several columns; None where each is missing, null or blank text."""
    values = (lookup(record, column) for column in columns)
    return next((value for value in values if value is not None and not (isinstance(value, str) and not value.strip())), None)


def optional_text_at(record: Record, *columns: str | None) -> str | None:
    """A text that may be missing, null or blank: then None. Raises RowFault if it is no text."""
    value = optional_at(record, *columns)
    return None if value is None else _as_text(value, " or ".join(filter(None, columns)))


def texts_at(record: Record, column: str) -> list[str]:
    """A list of texts that must be there. Raises RowFault if it is missing, no list, or holds something else."""
    value = at(record, column)
    if not isinstance(value, list):
        raise RowFault("unparsable", f"{column}: expected a list of texts, got {value!a:.60}")
    return [_as_text(item, column) for item in value]


def label_at(record: Record, column: str, names: Mapping[str, str]) -> str | None:
    """The name of a label from what the record calls it, in any case; None where it has none. Raises RowFault if unknown."""
    given = optional_at(record, column)
    if given is None:
        return None
    value = as_label(given).strip().lower()
    if value not in names:
        raise RowFault("unknown_label", f"{column}: expected one of {', '.join(names)}; got {value!a:.60}")
    return names[value]


def as_label(value: Any) -> str:
    """A label as text: true and false as in JSON, 2.0 as 2."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else _as_text(value, "label")


def spans_at(record: Record, column: str | None, segment: int) -> list[Span]:
    """Highlights `[[start, end], ...]` of one segment's text, half-open; none where there are none. Raises RowFault."""
    value = lookup(record, column) or []
    try:
        pairs = [(start, end) for start, end in value]
    except (TypeError, ValueError):
        pairs = [(None, None)]
    if not all(type(offset) is int for pair in pairs for offset in pair):
        raise RowFault("unparsable", f"{column}: expected [[start, end], ...] in whole numbers, got {value!a:.60}")
    return [Span(segment, start, end) for start, end in pairs]


def _as_text(value: Any, column: str) -> str:
    if not isinstance(value, str) or not _is_text(value):
        fault = wrong_byte(value) if isinstance(value, str) else None
        raise RowFault("unparsable", f"{column}: expected text, got {value!a:.60}{f': {fault}' if fault else ''}")
    return value


def wrong_byte(text: str) -> str | None:
    """What to do about a text with a byte that is no UTF-8; None without one."""
    byte = _BYTE.search(text)
    return f"the byte 0x{ord(byte[0]) - 0xDC00:x} is no UTF-8; if it is Latin-1, {iconv('LATIN1')}" if byte else None


def iconv(encoding: str) -> str:
    """How to convert a file to UTF-8."""
    return f"convert the file: iconv -f {encoding} -t UTF-8 FILE > NEW"


def _is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: JSON may hold half a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
