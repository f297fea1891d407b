"""Where memory runs out while rows are explained, less is taken at once, and the scores are the same."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from kd.attribution.engine import AttributionConfig, Engine
from kd.attribution.methods import IntegratedGradients, MethodConfig, Occlusion
from kd.families.base import Reading
from kd.families.text import Encoded
from kd.models import Loaded
from kd.rows import Attribution
from tests import tiny
from tests.tiny_attribution import METHODS, attribute


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_runs_out_of_memory_is_halved_and_gives_the_same_scores(
    models: dict[str, Loaded], method: MethodConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, family = tiny.examples(), tiny.family(models["t5"])
    expected = attribute(models["t5"], rows, method=method)
    sizes: list[int] = []
    read = family.read

    def short_of_memory(batch: Sequence[Encoded], differentiable: bool = False) -> Reading:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(batch, differentiable)

    monkeypatch.setattr(family, "read", short_of_memory)
    found = Engine(AttributionConfig(method=method), family).attribute(rows, Counter())
    assert sizes[0] == 6
    assert sum(size for size in sizes if size <= 2) == 6
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Attribution)
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


@pytest.mark.parametrize("method", [IntegratedGradients(n_steps=8), Occlusion()], ids=lambda method: method.type)
@pytest.mark.parametrize("count", [6, 1], ids=["a batch", "a row"])
def test_versions_of_a_row_that_run_out_of_memory_are_taken_fewer_at_once_and_give_the_same_scores(
    models: dict[str, Loaded], method: MethodConfig, count: int
) -> None:
    rows, taken = tiny.examples()[:count], list[int]()
    expected = attribute(models["t5"], rows, method=method)

    def short_of_memory(_: object, args: object, given: dict[str, torch.Tensor]) -> None:
        taken.append(len(given["inputs_embeds"]))
        if taken[-1] > count:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = models["t5"].model.get_encoder().register_forward_pre_hook(short_of_memory, with_kwargs=True)
    try:
        found = attribute(models["t5"], rows, method=method)
    finally:
        hook.remove()
    assert max(taken) > count
    for one, other in zip(found, expected, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
        assert one.completeness_gap == pytest.approx(other.completeness_gap, abs=1e-5)
