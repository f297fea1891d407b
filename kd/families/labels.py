"""Whether labels are still different once they are what a model writes: a tokenizer may not know what they differ in."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

from kd.errors import ConfigError, RowFault

if TYPE_CHECKING:
    from kd.families.base import Family

Marks = Callable[[str], Iterable[Hashable]]
"""From a label to all that it is recognised by when it is ranked or read: another label must have none of it."""


def check_apart(labels: Sequence[str], marks: Marks, name: str) -> None:
    """Raise the RowFault "tokenizer_error" where two labels that differ in more than white space have a mark in common."""
    owners: dict[Hashable, str] = {}
    for label in labels:
        for mark in marks(label):
            owner = owners.setdefault(mark, label)
            if owner.split() != label.split():
                raise RowFault("tokenizer_error", f"the tokenizer of {name} reads {owner!r} and {label!r} alike")


def check_fixed_labels(family: "Family", labels: Sequence[str]) -> None:
    """Raise ConfigError where the model cannot have, write or tell apart the labels that are the same for every row."""
    try:
        _check_known(family, labels)
        family.check_labels(labels)
    except RowFault as fault:
        raise ConfigError(
            f"{fault.detail}; expected labels that the model can tell apart. Give the classes other names in task.labels"
            " (words of the model's language), or take a model whose tokenizer knows them"
        ) from fault


def _check_known(family: "Family", labels: Sequence[str]) -> None:
    unknown = [label for label in labels if not family.knows(label)]
    if unknown:
        detail = f"the tokenizer of {family.name} knows nothing of {unknown[0]!r}: it would be written and read as unknown text"
        raise RowFault("tokenizer_error", detail)
