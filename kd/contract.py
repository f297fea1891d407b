"""What a row type's annotations say, and what its constructor checks."""

import dataclasses
import types
import typing
from typing import Any, get_args

# --- what the annotations say -----------------------------------------------------------------------------------------

_HINTS: dict[type, dict[str, Any]] = {}


def hints(row_type: type) -> dict[str, Any]:
    """Field name to resolved annotation, in order; resolved once per type."""
    if row_type not in _HINTS:
        resolved = typing.get_type_hints(row_type)
        _HINTS[row_type] = {field.name: resolved[field.name] for field in dataclasses.fields(row_type)}
    return _HINTS[row_type]


def optional(hint: Any) -> tuple[Any, bool]:
    """The annotation without its `| None`, and whether it had one."""
    if isinstance(hint, types.UnionType):
        (inner,) = [arg for arg in get_args(hint) if arg is not types.NoneType]
        return inner, True
    return hint, False


def blank(hint: Any) -> Any:
    """An empty value of an annotation: null where it may be, else an empty list or string, zero or false."""
    inner, nullable = optional(hint)
    if nullable:
        return None
    return [] if typing.get_origin(inner) is list else inner()


# --- what a constructor checks ----------------------------------------------------------------------------------------


def require(holds: bool, what: str, expected: str, got: object) -> None:
    """Raise ValueError where a field is not what it must be."""
    if not holds:
        raise ValueError(f"{what}: expected {expected}, got {got!r}")


def check_parallel(row: object, *names: str) -> None:
    """Raise ValueError where fields that go together differ in length."""
    lengths = {name: len(getattr(row, name)) for name in names}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{type(row).__name__}: expected lists of equal length, got {lengths}")
