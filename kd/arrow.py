"""Rows as Arrow tables and back, and the schema of every row type, derived from its annotations.

A golden file pins the schemas. Conversion is by column: no Python dict per row, and the garbage collector rests while
the objects are built.

| annotation        | Arrow                  | annotation      | Arrow                    |
|-------------------|------------------------|-----------------|--------------------------|
| `str`             | string                 | `list[X]`       | list of X, 32-bit inside |
| `bool`            | bool                   | a dataclass     | struct                   |
| `int`, `float`    | int64, float64         | `X | None`      | X, nullable              |
"""

import dataclasses
import gc
import hashlib
import itertools
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

import pyarrow as pa

from kd.contract import blank, hints, optional
from kd.rows import Row

R = TypeVar("R", bound=Row)


def schema(row_type: type) -> pa.Schema:
    """The Arrow schema of a row type, derived from its annotations."""
    return pa.schema([_field(name, hint) for name, hint in hints(row_type).items()])


def schema_digest(row_type: type) -> str:
    """Sixteen hex digits that change when the row's contract does."""
    return hashlib.sha256(f"{row_type.__name__}\n{schema(row_type)}".encode()).hexdigest()[:16]


def check(table: pa.Table, row_type: type) -> None:
    """A table is what a row type says: same columns, same types, no null where none may be.

    Raises:
        ValueError: with the column, what was expected and what was found.
    """
    expected = schema(row_type)
    if table.schema.names != expected.names:
        missing = [name for name in expected.names if name not in table.schema.names]
        unknown = [name for name in table.schema.names if name not in expected.names]
        raise ValueError(f"{row_type.__name__}: columns differ from the contract; missing {missing}, unknown {unknown}")
    for want in expected:
        got = table.schema.field(want.name)
        if got.type != want.type:
            raise ValueError(f"{row_type.__name__}.{want.name}: expected {want.type}, got {got.type}")
        for chunk in table.column(want.name).chunks:
            _check_nulls(chunk, want, f"{row_type.__name__}.{want.name}")


def to_table(rows: Sequence[R], row_type: type[R]) -> pa.Table:
    """Rows as an Arrow table of the row's schema, built column by column."""
    with collector_paused():
        columns = [_to_array([getattr(row, name) for row in rows], hint) for name, hint in hints(row_type).items()]
    table = pa.Table.from_arrays(columns, schema=schema(row_type))
    check(table, row_type)
    return table


def from_table(table: pa.Table, row_type: type[R]) -> list[R]:
    """An Arrow table as rows; the contract is checked first."""
    check(table, row_type)
    with collector_paused():
        columns = [_to_values(table.column(name).combine_chunks(), hint) for name, hint in hints(row_type).items()]
        names = list(hints(row_type))
        return [row_type(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection inside: most of the cost of building many small objects is scanning them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_SCALARS: dict[type, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_ELEMENTS: dict[type, pa.DataType] = _SCALARS | {int: pa.int32(), float: pa.float32()}


def _field(name: str, hint: Any, element: bool = False) -> pa.Field:
    inner, nullable = optional(hint)
    return pa.field(name, _arrow_type(inner, element), nullable=nullable)


def _arrow_type(hint: Any, element: bool = False) -> pa.DataType:
    if dataclasses.is_dataclass(hint):
        return pa.struct([_field(name, sub, element) for name, sub in hints(typing.cast(type, hint)).items()])
    if typing.get_origin(hint) is list:
        return pa.list_(_field("item", get_args(hint)[0], element=True))
    return (_ELEMENTS if element else _SCALARS)[hint]


def _to_array(values: list[Any], hint: Any, element: bool = False) -> pa.Array:
    inner, _ = optional(hint)
    arrow_type = _arrow_type(inner, element)
    if dataclasses.is_dataclass(inner):
        return _struct_array(values, typing.cast(type, inner), arrow_type, element)
    if typing.get_origin(inner) is list:
        offsets = [0]
        for value in values:
            offsets.append(offsets[-1] + len(value))
        flat = _to_array([item for value in values for item in value], get_args(inner)[0], element=True)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, type=arrow_type)
    return pa.array(values, arrow_type)


def _struct_array(values: list[Any], cls: type, arrow_type: pa.DataType, element: bool) -> pa.Array:
    absent = [value is None for value in values]
    children = []
    for name, hint in hints(cls).items():
        empty = blank(hint)
        column = [empty if value is None else getattr(value, name) for value in values]
        children.append(_to_array(column, hint, element))
    mask = pa.array(absent, pa.bool_()) if any(absent) else None
    return pa.StructArray.from_arrays(children, fields=list(arrow_type), mask=mask)


def _to_values(array: pa.Array, hint: Any) -> list[Any]:
    inner, _ = optional(hint)
    if dataclasses.is_dataclass(inner):
        cls = typing.cast(type, inner)
        fields = [_to_values(array.field(index), sub) for index, sub in enumerate(hints(cls).values())]
        present = array.is_valid().to_pylist()
        return [cls(*parts) if valid else None for valid, *parts in zip(present, *fields, strict=True)]
    if typing.get_origin(inner) is list:
        offsets = array.offsets.to_pylist()
        flat = _to_values(array.values, get_args(inner)[0])
        return [flat[start:end] for start, end in itertools.pairwise(offsets)]
    return typing.cast(list[Any], array.to_pylist())


def _check_nulls(array: pa.Array, field: pa.Field, where: str) -> None:
    """No null where the field forbids it, at any depth; children of a null struct are not looked at."""
    if not field.nullable and array.null_count:
        raise ValueError(f"{where}: expected no nulls, got {array.null_count} of {len(array)}")
    if pa.types.is_struct(field.type):
        present = array.drop_null() if array.null_count else array
        for index, child in enumerate(field.type):
            _check_nulls(present.field(index), child, f"{where}.{child.name}")
    elif pa.types.is_list(field.type):
        _check_nulls(array.flatten(), field.type.value_field, f"{where}[]")
