"""The keys of a config tree: how an override is spelled out, laid upon a file, and how a mistake is explained.

It knows nothing of any key: a tree is a pydantic model whose fields are models, and is handed in.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from kd.errors import ConfigError


def spelled_out(override: str, tree: type[BaseModel]) -> str:
    """An override as the parser wants it: `--splits.test=5` becomes `--splits=test=5`. Unknown keys are refused.

    Raises:
        ConfigError: there is no such key; the message names those that there are.
    """
    key, equals, value = override.removeprefix("--").partition("=")
    parts = key.split(".")
    at: list[Any] = [tree]
    for depth, part in enumerate(parts):
        if key == "help":
            break
        if any(get_origin(annotation) is dict for annotation in at):
            return f"--{'.'.join(parts[:depth])}={'.'.join(parts[depth:])}={value}"
        fields = _fields(at)
        if part not in fields:
            raise ConfigError(f"command line: {_unknown(parts[: depth + 1], fields)}")
        at = fields[part]
    return f"--{key}{equals}{value}"


def _fields(annotations: Sequence[Any]) -> dict[str, list[Any]]:
    """The keys that may stand below any of these annotations, each with its own annotations."""
    found: dict[str, list[Any]] = {}
    for annotation in annotations:
        for model in _models(annotation):
            for name, field in model.model_fields.items():
                found.setdefault(name, []).append(field.annotation)
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The config classes that an annotation allows, whatever it is wrapped in."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def explain(problem: ErrorDetails, tree: type[BaseModel]) -> str:
    """One mistake: the key's path, what was expected, what was given."""
    path: list[str] = []
    at: list[Any] = [tree]
    fields = _fields(at)
    for part in problem["loc"]:
        if isinstance(part, int):
            path[-1] += f"[{part}]"
        elif part in fields or part == problem["loc"][-1]:
            path.append(part)
            at = fields.get(part, at) if problem["type"] != "extra_forbidden" or part != problem["loc"][-1] else at
        else:
            at = [model for annotation in at for model in _models(annotation) if _is_tagged(model, part)]
        fields = _fields(at)
    if problem["type"] == "extra_forbidden":
        return _unknown(path, fields)
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if problem["type"] in ("missing", "value_error") else f", got {problem['input']!r}"
    return f"{'.'.join(path) or 'the config'}: {message}{shown}"


def _is_tagged(model: type[BaseModel], tag: str) -> bool:
    field = model.model_fields.get("type")
    return field is not None and tag in get_args(field.annotation)


def _unknown(path: Sequence[str], known: Mapping[str, Any]) -> str:
    """That a key does not exist, the nearest one that does, and all of them."""
    near = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{'.'.join(path)}: unknown key{hint} The keys here are {', '.join(sorted(known)) or 'none'}"


def merge(base: Mapping[str, Any], over: Mapping[str, Any], at: Sequence[Any]) -> dict[str, Any]:
    """`over` laid upon `base`, mapping by mapping; lists are replaced. `at` are the annotations of what is merged.

    Another `type` is another thing with other keys: what `base` says of the old one is dropped.
    """
    fields = _fields(at)
    if {"type"} <= fields.keys() & base.keys() & over.keys() and over["type"] != base["type"]:
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        deeper = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(merged[key], value, fields.get(key, ())) if deeper else value
    return merged
