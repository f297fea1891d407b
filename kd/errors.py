"""The errors a user can meet. Each is picklable, since it crosses process boundaries, and also a standard-library error.

A message says what happened, what was expected, what was given, where, and what to do next.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """Something the user can mend: shown as one message, without a traceback."""


class ConfigError(UserError, ValueError):
    """The config or the command line asks for something unknown or impossible."""


class InputError(UserError, ValueError):
    """The corpus, a side file or a model folder is not what the config says it is."""


class StoreError(UserError, RuntimeError):
    """The run directory holds something else than this run, or cannot be read or written."""


class StageError(UserError, RuntimeError):
    """A stage ended without its result: too many errored rows, an upstream stage missing, rows lost."""


class Overtaken(StageError):
    """Another job has taken the work over; this one stops."""


class RowFault(Exception):
    """What is wrong with one row. It becomes the row's `error`; the stage goes on.

    `reason` is one of `kd.rows.REASONS`, `detail` a short text for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def each_in_turn(steps: Iterable[Callable[[], T]]) -> list[T]:
    """What each step gives. A step that fails keeps none of the others from being done.

    Raises:
        StageError: once all are done: what a step raised, or what several raised, as one.
        Overtaken: at once.
    """
    done, failures = list[T](), list[StageError]()
    for step in steps:
        try:
            done.append(step())
        except Overtaken:
            raise
        except StageError as error:
            failures.append(error)
    if failures:
        raise failures[0] if len(failures) == 1 else StageError("\n\n".join(map(str, failures)))
    return done
