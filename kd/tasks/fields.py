"""Reading the fields of a record. What is missing or of another kind is a RowFault."""

from collections.abc import Mapping
from typing import Any

from kd.errors import RowFault

Record = Mapping[str, Any]


def at(record: Record, column: str) -> Any:
    """A value that must be there. Raises RowFault if it is not, or null."""
    value = record.get(column)
    if value is None:
        raise RowFault("missing_field", f"{column} is {'null' if column in record else 'missing'}")
    return value


def id_at(record: Record, column: str) -> str:
    """A record's id: a text or a whole number. Raises RowFault if it is missing or something else."""
    value = at(record, column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value == "":
        raise RowFault("missing_field", f"{column} is empty")
    return _as_text(value, column)


def text_at(record: Record, column: str) -> str:
    """A text that must be there. Raises RowFault if it is missing or no text."""
    return _as_text(at(record, column), column)


def optional_text_at(record: Record, column: str | None) -> str | None:
    """A text that may be missing, null or empty: then None. Raises RowFault if it is no text."""
    value = record.get(column) if column else None
    return None if value is None or value == "" else _as_text(value, str(column))


def texts_at(record: Record, column: str) -> list[str]:
    """A list of texts that must be there. Raises RowFault if it is missing, no list, or holds something else."""
    value = at(record, column)
    if not isinstance(value, list):
        raise RowFault("unparsable", f"{column}: expected a list of texts, got {value!a:.60}")
    return [_as_text(item, column) for item in value]


def _as_text(value: Any, column: str) -> str:
    if not isinstance(value, str) or not _is_text(value):
        raise RowFault("unparsable", f"{column}: expected text, got {value!a:.60}")
    return value


def _is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: JSON may hold half a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
