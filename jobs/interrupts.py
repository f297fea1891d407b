"""What ends a job from outside: Ctrl-C, SIGTERM (`ray job stop`, a scheduler, `kill`), SIGHUP (a closed terminal), all alike.

Each raises KeyboardInterrupt in the main thread: Ray passes on no other exception from a wait of its own.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_received: list[signal.Signals] = []
"""The one that ended the job; a later one is ignored, as the job is ending."""


@contextmanager
def caught() -> Iterator[None]:
    """Inside, these signals raise KeyboardInterrupt. One that was ignored stays so, as SIGHUP below `nohup`."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


@contextmanager
def kept() -> Iterator[None]:
    """Inside, a library may set a handler of SIGTERM that exits, as `ray.init` does. Its exit is taken for our signal. Our
    handler is back afterwards.

    Outside `caught`, the library's stays.
    """
    ours = signal.getsignal(signal.SIGTERM) is _stop
    try:
        yield
    except SystemExit as ended:
        if not ours or ended.code != signal.SIGTERM:
            raise
        _note(signal.SIGTERM)
        raise KeyboardInterrupt from ended
    finally:
        if ours and not _received:
            signal.signal(signal.SIGTERM, _stop)


def received() -> signal.Signals:
    """Which signal it was; SIGINT where a KeyboardInterrupt came from elsewhere."""
    return _received[0] if _received else signal.SIGINT


def exit_code() -> int:
    """What a shell says of a program that this signal ended."""
    return 128 + received()


def _install() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> None:
    _note(signal.Signals(number))
    raise KeyboardInterrupt


def _note(number: signal.Signals) -> None:
    _received.append(number)
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
