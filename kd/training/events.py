"""A run's curves as TensorBoard reads them: `tensorboard --logdir RUN/logs/tensorboard`.

The file is made from the history and the timings alone, each time whole, so a restart neither doubles a point nor leaves one
out: what lies beyond the checkpoint it went on from is gone from the file as it is from the history.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kd.store import Store
from kd.training.objectives import Term, total_loss

if TYPE_CHECKING:
    from kd.training.loop import State

EVENTS = "logs/tensorboard"
"""The folder of the run directory that TensorBoard is shown; a run's file lies below it as its results lie in the run."""
_FILE = "events.out.tfevents.0.kd"
_FORMAT = "brain.Event:2"


class EventFile:
    """The event file of the run whose results are in `folder`. Entries that were encoded once are not encoded again."""

    def __init__(self, store: Store, folder: str, terms: Sequence[Term]) -> None:
        self.store = store
        self.relative = f"{EVENTS}/{folder}/{_FILE}"
        self.terms = terms
        self._encoded = b""
        self._entries = 0

    def publish(self, state: "State") -> None:
        """Write the file anew, up to the newest entry of a state that went on from the one before."""
        timings = state.timings[self._entries :]
        records = list(self._records(state.history[self._entries :], timings))
        if self._encoded and not records:
            return
        if not self._encoded:
            first_s = timings[0]["unix_s"] - timings[0]["seconds"] if timings else 0.0
            records.insert(0, _opening(first_s))
        self._encoded += _framed(records)
        self._entries = len(state.history)
        self.store.publish(self.relative, self._encoded)

    def _records(self, history: Sequence[Mapping[str, Any]], timings: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        for entry, timing in zip(history, timings, strict=True):
            yield _event(entry["step"], timing["unix_s"], curves(entry, self.terms) | speeds(entry, timing))


def curves(entry: Mapping[str, Any], terms: Sequence[Term]) -> dict[str, float]:
    """An entry of the history as points of curves; a term that had no token in its steps has none, nor has the total."""
    losses: Mapping[str, float | None] = entry["loss"]
    points = {f"loss/{name}": loss for name, loss in losses.items()}
    points |= {"loss_total": total_loss(terms, losses)}
    points |= {"learning_rate": entry["learning_rate"], "gradient_norm": entry["gradient_norm"]}
    points |= {name.replace("_", "/", 1): value for name, value in entry.items() if name.startswith("validation_")}
    return {tag: value for tag, value in points.items() if value is not None}


def speeds(entry: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, float]:
    """An entry with its timing as points: real tokens per second, and shares of padding and of time spent waiting for data."""
    return {
        "speed/tokens_per_s": entry["tokens"] / timing["seconds"],
        "speed/padding_frac": entry["padding_frac"],
        "speed/waiting_frac": timing["waited_s"] / timing["seconds"],
    }


def _opening(unix_s: float) -> bytes:
    """The first record of every event file."""
    from tensorboardX.proto.event_pb2 import Event

    encoded: bytes = Event(wall_time=unix_s, file_version=_FORMAT).SerializeToString()
    return encoded


def _event(step: int, unix_s: float, points: Mapping[str, float]) -> bytes:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
    encoded: bytes = Event(wall_time=unix_s, step=step, summary=Summary(value=values)).SerializeToString()
    return encoded


def _framed(records: Sequence[bytes]) -> bytes:
    """The records as they follow each other in a file: length, its checksum, the record, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    parts = []
    for record in records:
        length = struct.pack("<Q", len(record))
        parts += [length, struct.pack("<I", masked_crc32c(length)), record, struct.pack("<I", masked_crc32c(record))]
    return b"".join(parts)
