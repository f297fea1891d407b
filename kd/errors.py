"""The errors a user can meet. Each is picklable, since it crosses process boundaries, and also a standard-library error.

A message says what happened, what was expected, what was given, where, and what to do next.
"""


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
