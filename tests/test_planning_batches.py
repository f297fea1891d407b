"""Which budget of tokens a plan suggests, and with how many actors it reckons."""

import os
from pathlib import Path

import pytest
import torch

from kd.attribution.engine import Attribute, AttributionConfig
from kd.batching import cut
from kd.cluster_config import ClusterConfig
from kd.planning.batches import by_lengths, fastest, suggested_batches
from kd.planning.probe import actors_here, actors_like_these, measure
from tests.tiny import examples, tiny_source

ALIKE = [(30, 2)] * 320
UNLIKE = [(10 + 3 * place, 2) for place in range(320)]


@pytest.mark.parametrize(
    ("rates", "budget"),
    [
        ({50: 9.0, 100: 10.0, 200: 10.9}, 100),  # hardly faster
        ({50: 9.0, 100: 10.0, 200: 11.5}, 200),
        ({50: 12.0, 100: 10.0, 200: 11.0}, 50),
    ],
)
def test_a_measured_budget_is_suggested_where_it_is_clearly_faster(rates: dict[int, float], budget: int) -> None:
    assert fastest(100, rates) == budget


def test_a_budget_by_lengths_has_rows_enough_and_little_padding_and_else_is_the_configured_one() -> None:
    assert by_lengths(ALIKE, 2048) == 2048
    assert by_lengths(ALIKE, 256) == 1024  # 32 rows of 32 tokens
    assert by_lengths(ALIKE[:3], 32) == 128  # a shard is one batch
    assert by_lengths([(5000, 2)] * 50, 8192) == 16_384  # only memory would grow
    assert by_lengths([(5000, 2)] * 50, 40_000) == 40_000
    assert by_lengths(UNLIKE[:40], 8192) == 8192  # 32 rows would have as much padding, in one batch
    assert by_lengths(UNLIKE, 131_072) == 32_768
    assert len(cut(UNLIKE, 32_768)) <= 10 < len(cut(UNLIKE, 16_384))  # 32 rows, though 15 % is padding


def test_a_suggestion_says_what_it_rests_on() -> None:
    found = suggested_batches(ALIKE, 256, {})
    assert (found.configured_tokens, found.batch_tokens, found.rows, found.padding_frac, found.rows_per_s) == (
        256,
        1024,
        32,
        0,
        {},
    )
    tried = {128: 1.0, 256: 2.0, 512: 3.0}
    assert suggested_batches(ALIKE, 256, tried).batch_tokens == 512
    assert suggested_batches(ALIKE, 256, tried).rows_per_s == tried


@pytest.mark.parametrize(("budget", "tried"), [(8, [4, 8, 16]), (8192, [])])
def test_a_probe_tries_budgets_where_its_rows_fill_them(tmp_path: Path, budget: int, tried: list[int]) -> None:
    source = tiny_source(tmp_path, max_input_tokens=64, max_answer_tokens=16)
    found = measure(Attribute(AttributionConfig(batch_tokens=budget), source, "cpu", 1), examples())
    assert list(found.rows_per_s_by_budget) == tried
    assert all(rate > 0 for rate in found.rows_per_s_by_budget.values())


@pytest.mark.parametrize(("gpus_per_actor", "share"), [(0.5, 2), (0.3, 3), (0.7, 1), (1, 1), (4, 1)])
def test_as_many_actors_are_probed_as_will_share_a_gpu(gpus_per_actor: float, share: int) -> None:
    cluster = ClusterConfig(device="cuda", gpus_per_actor=gpus_per_actor, max_actors=8)
    assert actors_here(cluster) == share
    assert actors_here(cluster.model_copy(update={"max_actors": 1})) == 1
    assert actors_like_these(cluster, local=False) == 8


def test_a_local_cluster_is_no_faster_than_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    cluster = ClusterConfig(max_actors=4)
    assert (actors_here(cluster), actors_like_these(cluster, local=True), actors_like_these(cluster, local=False)) == (2, 2, 4)
    assert actors_like_these(ClusterConfig(max_actors=4, cpus_per_actor=4), local=True) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    halves = ClusterConfig(device="cuda", gpus_per_actor=0.5, max_actors=40)
    assert actors_like_these(halves, local=True) == 8
    assert actors_like_these(halves.model_copy(update={"gpus_per_actor": 2}), local=True) == 2
    assert actors_like_these(halves.model_copy(update={"max_actors": 3}), local=True) == 3
