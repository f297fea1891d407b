"""A run's curves: what TensorBoard reads is the history, each point once, whatever happened on the way."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from kd.store import Store
from kd.training import progress
from kd.training.events import EVENTS, EventFile
from kd.training.loop import State
from kd.training.objectives import MultiTask
from kd.training.progress import Progress, reporting
from kd.training.session import train_here
from tests.test_loop import ignore, trainer
from tests.tiny_runs import SHORT, history, tiny_queue

TERMS = MultiTask(alpha=0.25).terms


def read_events(store: Store, folder: str) -> list[Event]:
    """Every record of a run's one event file; lengths and checksums are right."""
    (name,) = store.names(f"{EVENTS}/{folder}")
    data, events = store.read(f"{EVENTS}/{folder}/{name}"), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12]) == (masked_crc32c(data[:8]),)
        record, end, data = data[12 : 12 + length], data[12 + length : 16 + length], data[16 + length :]
        assert struct.unpack("<I", end) == (masked_crc32c(record),)
        events.append(Event.FromString(record))
    assert events[0].file_version == "brain.Event:2"
    return events[1:]


def points(event: Event) -> dict[str, float]:
    return {value.tag: value.simple_value for value in event.summary.value}


def entry(step: int, label: float | None, **more: float) -> dict[str, Any]:
    losses, sizes = {"label": label, "rationale": 2.0}, {"tokens": 30, "padding_frac": 0.25}
    return {"step": step, "loss": losses, "gradient_norm": 3.0, "learning_rate": 0.5} | sizes | more


def timing(step: int) -> dict[str, float]:
    return {"step": step, "unix_s": 100.0 + step, "seconds": 2.0, "waited_s": 0.5}


def test_the_points_are_those_of_the_history(tmp_path: Path) -> None:
    store, state = Store.at(str(tmp_path)), State(step=20)
    state.history = [entry(10, 1.0), entry(20, None, validation_accuracy=0.75, validation_parse_rate=0.5, validation_loss=0.25)]
    state.timings = [timing(10), timing(20)]
    EventFile(store, "students/words/0", TERMS).publish(state)
    first, second = read_events(store, "students/words/0")
    assert (first.step, first.wall_time, second.step, second.wall_time) == (10, 110.0, 20, 120.0)
    speeds = {"speed/tokens_per_s": 15.0, "speed/padding_frac": 0.25, "speed/waiting_frac": 0.25}
    common = {"loss/rationale": 2.0, "gradient_norm": 3.0, "learning_rate": 0.5} | speeds
    assert points(first) == common | {"loss/label": 1.0, "loss_total": 0.25 * 1.0 + 0.75 * 2.0}
    assert points(second) == common | {"validation/accuracy": 0.75, "validation/parse_rate": 0.5, "validation/loss": 0.25}


def test_a_file_that_grows_is_the_file_that_is_written_at_once(tmp_path: Path) -> None:
    store, state = Store.at(str(tmp_path)), State()
    growing = EventFile(store, "grown", TERMS)
    growing.publish(state)
    for step in (1, 2, 3):
        state.history.append(entry(step, 1.0))
        state.timings.append(timing(step))
        growing.publish(state)
        growing.publish(state)
    assert [event.step for event in read_events(store, "grown")] == [1, 2, 3]
    EventFile(store, "whole", TERMS).publish(state)
    assert [points(event) for event in read_events(store, "whole")] == [points(event) for event in read_events(store, "grown")]


def test_a_trained_run_has_its_curves_its_timings_and_its_progress(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT.model_copy(update={"eval_every_steps": 3}), seeds=(0, 1))
    train_here(queue)
    for number, item in enumerate(queue.items):
        entries, events = history(queue, number), read_events(queue.store, item.folder)
        assert [event.step for event in events] == [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
        for event, logged in zip(events, entries, strict=True):
            expected = {f"loss/{name}": loss for name, loss in logged["loss"].items()}
            expected |= {"gradient_norm": logged["gradient_norm"], "learning_rate": logged["learning_rate"]}
            keys = [key for key in logged if key.startswith("validation_")]
            expected |= {key.replace("_", "/", 1): logged[key] for key in keys}
            assert {tag: points(event)[tag] for tag in expected} == pytest.approx(expected, rel=1e-6)
            assert 0 <= points(event)["speed/padding_frac"] < 1
            assert 0 < points(event)["speed/waiting_frac"] < 1
        assert not {"seconds", "unix_s", "waited_s"} & set(entries[-1])


def test_a_resumed_run_has_every_point_once(tmp_path: Path) -> None:
    queue, saved = tiny_queue(tmp_path, SHORT.model_copy(update={"save_every_steps": 3})), tmp_path / "saved"
    saved.mkdir()
    item = replace(queue.items[0], folder="resumed")
    with trainer(queue) as disturbed:
        disturbed.train(reporting(queue, item, lambda _: None), lambda: disturbed.save(saved))
        EventFile(queue.store, item.folder, item.run.objective.terms).publish(disturbed.state)
    with trainer(queue) as resumed:
        resumed.load(saved)
        assert [timing["step"] for timing in resumed.state.timings] == [1, 2, 3]
        assert resumed.state.timings == disturbed.state.timings[:3]
        publish = EventFile(queue.store, item.folder, item.run.objective.terms).publish
        publish(resumed.state)
        assert [event.step for event in read_events(queue.store, item.folder)] == [1, 2, 3]
        resumed.train(ignore, lambda: None)
        publish(resumed.state)
    assert [event.step for event in read_events(queue.store, item.folder)] == [1, 2, 3, 4, 5, 6]
    assert resumed.state.history == disturbed.state.history


class Unread(Store):
    """A run directory that is only written, and never while a run is as short as this one."""

    def exists(self, relative: str) -> bool:
        raise AssertionError(relative)

    def sizes(self, folder: str) -> dict[str, int]:
        raise AssertionError(folder)

    def read(self, relative: str) -> bytes:
        raise AssertionError(relative)

    def publish(self, relative: str, data: bytes) -> None:
        raise AssertionError(relative)


def test_progress_is_reported_without_the_run_directory(tmp_path: Path) -> None:
    queue, said = tiny_queue(tmp_path, SHORT, seeds=(0, 1)), list[Progress]()
    unread = replace(queue, store=Unread(queue.store.root))
    entry = {"step": 3, "loss": {"label": 1.0, "rationale": 2.0}, "gradient_norm": 1.0, "learning_rate": 0.1}
    report = reporting(unread, queue.items[0], said.append)
    report(State(step=3, seconds=6.0, history=[entry]))
    report(State(step=4, seconds=7.0))
    assert said == [Progress("words/0", 3, 6, {"loss": 1.5, "loss_label": 1.0, "loss_rationale": 2.0}, 6.0)], "once a second"


def test_a_store_that_cannot_be_written_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_EVENTS_INTERVAL_S", 0.0)
    queue = tiny_queue(tmp_path, SHORT)
    (tmp_path / "logs").write_text("a file where a folder should be")
    with trainer(queue) as trained:
        assert trained.train(reporting(queue, queue.items[0], lambda _: None), lambda: None).step == SHORT.steps
    assert {record.levelname for record in caplog.records} == {"WARNING"}
