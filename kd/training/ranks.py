"""What the ranks of a group tell each other apart from tensors: plans, file lists, errors. One process alone is a group too."""

import os
from collections.abc import Callable
from typing import TypeVar

from torch import distributed

from kd.errors import UserError

T = TypeVar("T")


def rank() -> int:
    """This process' number in the group."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes the group has."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_rank() -> int:
    """This process' number on its node; whoever starts a group puts it into the environment, as torchrun does."""
    return int(os.environ.get("LOCAL_RANK", "0")) if distributed.is_initialized() else 0


def gathered(value: T) -> list[T]:
    """Every rank's value, in the order of ranks, on every rank."""
    if not distributed.is_initialized():
        return [value]
    values: list[T] = [value] * world()
    distributed.all_gather_object(values, value)
    return values


def together(act: Callable[[], T]) -> T:
    """Do it on every rank, and wait for all.

    Raises:
        UserError: the first one that any rank met, on all of them: none may wait for one that has given up.
    """
    done: list[T] = []
    error: UserError | None = None
    try:
        done.append(act())
    except UserError as met:
        error = met
    first = next((each for each in gathered(error) if each is not None), None)
    if first is not None:
        raise first
    return done[0]


def by_first(act: Callable[[], T]) -> T:
    """Do it on the first rank alone; what it returns comes to all, and so does the UserError that it raises."""
    made = together(lambda: [act()] if rank() == 0 else [])
    return gathered(made)[0][0]
