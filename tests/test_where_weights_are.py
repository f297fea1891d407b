"""At ZeRO stage 3 no device holds a model's weights whole, except while it is looked at."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kd.deepspeed_engine import DeepSpeedEngine
from kd.errors import ConfigError
from kd.loading import load
from kd.models import Loaded, ModelSource
from kd.training import session
from kd.training.config import LoopConfig
from kd.training.session import open_run
from tests.tiny_runs import SHORT, tiny_queue


@pytest.mark.parametrize(("stage", "device"), [(0, "cuda"), (2, "cuda"), (3, "cpu")])
def test_a_model_reaches_its_engine_on_the_device_or_where_it_is_split_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, device: str
) -> None:
    asked = []

    def noted(source: ModelSource, device: str) -> Loaded:
        asked.append(device)
        return load(source, "cpu")

    monkeypatch.setattr(session, "load", noted)
    monkeypatch.setattr(session, "check_device", asked.append)
    queue = replace(tiny_queue(tmp_path, LoopConfig(**SHORT.model_dump() | {"zero_stage": stage})), device="cuda")
    open_run(queue, queue.items[0].run, tmp_path / "scratch", rank=0, world=1)
    assert asked == ["cuda", device]


def test_a_missing_gpu_is_told_though_the_model_is_loaded_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    queue = replace(tiny_queue(tmp_path, SHORT.model_copy(update={"zero_stage": 3})), device="cuda")
    with pytest.raises(ConfigError, match="sees no GPU"):
        open_run(queue, queue.items[0].run, tmp_path / "scratch", rank=0, world=1)


class Moved(torch.nn.Linear):
    """A layer that notes where it is asked to go."""

    def to(self, *, device: str) -> "Moved":  # type: ignore[override]
        self.places = [*getattr(self, "places", []), device]
        return self


@contextmanager
def gathered(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Parameters that are zero unless they are put together."""
    for parameter in parameters:
        parameter.fill_(7.0)
    yield
    for parameter in parameters:
        parameter.fill_(0.0)


@pytest.mark.parametrize("fails", [False, True])
def test_the_whole_copy_is_on_the_device_only_while_it_is_looked_at(fails: bool) -> None:
    engine, copy = object.__new__(DeepSpeedEngine), Moved(2, 1)
    engine.module, engine._copy, engine.device = torch.nn.Linear(2, 1), copy, "cuda"  # type: ignore[assignment]
    engine._deepspeed = SimpleNamespace(zero=SimpleNamespace(GatheredParameters=gathered))
    with pytest.raises(ZeroDivisionError) if fails else nullcontext(), engine.whole() as model:
        assert model is copy
        assert copy.places == ["cuda"]
        assert copy.weight.tolist() == [[7.0, 7.0]]
        assert not model.training
        1 / (0 if fails else 1)
    assert copy.places == ["cuda", "cpu"]
    assert copy.training
