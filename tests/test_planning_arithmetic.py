"""What a plan reckons, by hand: hours and prices, operations per row, passes of a method, shards and actors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from jaxtyping import Float, Int
from torch import Tensor

from kd.attribution.engine import AttributionConfig
from kd.attribution.methods import Case, InputXGradient, IntegratedGradients, MethodConfig, Occlusion, Saliency
from kd.cost import Shape, answered_row, explained_row, learned_row, written_row
from kd.errors import ConfigError
from kd.evaluation.answers import EvaluationConfig
from kd.planning.compute import (
    Pass,
    answered,
    answered_pass,
    asked_again,
    asked_again_pass,
    attributed,
    attributed_pass,
    learned_pass,
    micro_batches,
    trained,
    validations,
)
from kd.planning.lengths import Length, histogram
from kd.planning.plan import StagePlan, cut_in_shards, makespan, on_actors, on_gpu, smaller_shard, suggested_shard
from kd.planning.price import read_prices
from kd.planning.probe import Probe
from kd.rows import Features
from kd.training.config import LoopConfig
from tests.mini import PRICES
from tests.tiny import example, family, tiny_t5

SHAPE = Shape(reader=1000, crossed=100, writer=500, head=50, reads=64, writes=32, crosses=16, starts=1)
ROW = Length(encoded=None, words=7, target=3, answers=[3, 5], size=(10, 5))  # type: ignore[arg-type]
METHODS: Sequence[MethodConfig] = (Saliency(), InputXGradient(), IntegratedGradients(n_steps=6), Occlusion())


def stage(**asked: float) -> StagePlan:
    return StagePlan(**{"rows": 1, "flops": 0.0, "memory_gib": 1.0} | asked)  # type: ignore[arg-type]


def test_gpu_hours_are_operations_over_the_share_of_the_peak_and_price_is_hours_times_the_rate() -> None:
    stages = {"attribute": stage(flops=50e12 * 3600), "train": stage(flops=25e12 * 3600, memory_gib=11.0, devices=2)}
    found = on_gpu(PRICES.gpus[0], PRICES, stages)
    assert found.hours == {"attribute": pytest.approx((1.0, 2.0)), "train": pytest.approx((0.5, 1.0))}
    assert found.nodes == pytest.approx((2 * 0.01, 2 * 0.1))
    assert found.total_hours == pytest.approx((1.52, 3.2))
    assert (found.usd, found.too_small) == (pytest.approx((3.04, 6.4)), ["train"])
    twice = {"attribute": stage(flops=110e12 * 3600)}
    assert found.to_attribute_in_an_hour == (1, 2)
    assert on_gpu(PRICES.gpus[0], PRICES, twice).to_attribute_in_an_hour == (3, 5)


def test_kernels_that_compute_little_take_the_time_that_they_take_to_be_started() -> None:
    gpu, case = PRICES.gpus[0], PRICES.best
    assert stage(flops=50e12, kernels=1e6).seconds(gpu, case) == pytest.approx(1.0), "a second of either"
    assert stage(flops=50e10, kernels=3e6).seconds(gpu, case) == pytest.approx(3.0)
    assert stage(flops=150e12, kernels=1e6).seconds(gpu, case) == pytest.approx(3.0)


def test_updates_move_exchange_and_wait_and_processes_load() -> None:
    gpu, case = PRICES.gpus[0], PRICES.best
    assert stage(updates=2000).seconds(gpu, case) == pytest.approx(2.0)
    assert stage(moved_bytes=500e9).seconds(gpu, case) == pytest.approx(1.0)
    assert stage(exchanged_bytes=10e9).seconds(gpu, case) == pytest.approx(1.0)
    assert stage(processes=3, loaded_bytes=2e9).seconds(gpu, case) == pytest.approx(32.0)


def test_a_million_rows_of_a_three_billion_teacher_take_half_an_hour_of_an_h100() -> None:
    """0.78 TFLOP a row at 50 % and at 20 % of 989 TFLOP/s."""
    prices, million = read_prices(), stage(flops=0.78e12 * 1e6)
    hours = {gpu.type: [million.seconds(gpu, case) / 3600 for case in (prices.best, prices.worst)] for gpu in prices.gpus}
    assert hours == {
        "H200": pytest.approx([0.44, 1.10], abs=0.01),
        "H100": pytest.approx([0.44, 1.10], abs=0.01),
        "A100": pytest.approx([1.39, 3.47], abs=0.01),
        "L4": pytest.approx([3.58, 8.95], abs=0.01),
    }


def test_a_best_case_that_is_worse_is_refused(tmp_path: Path) -> None:
    swapped = PRICES.model_dump() | {"best": PRICES.worst.model_dump(), "worst": PRICES.best.model_dump()}
    (tmp_path / "prices.yaml").write_text(yaml.safe_dump(swapped | {"gpus": [dict(swapped["gpus"][0])]}))
    with pytest.raises(ConfigError, match="worse than the worst one in share_of_peak, kernel_us, node_s; swap them"):
        read_prices(tmp_path / "prices.yaml")


def test_a_table_of_prices_with_an_unknown_key_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("gpus:\n  - {type: X, peak_tflops: 1, memory_gib: 1, memory_gb_per_s: 1, eur: 1}\n")
    with pytest.raises(ConfigError, match=r"prices.yaml is no table of prices: .*gpus.0.usd_per_hour: .*; gpus.0.eur: "):
        read_prices(tmp_path / "prices.yaml")


def test_an_explained_row_costs_its_passes_and_the_answers_that_are_wanted() -> None:
    gold, longest = explained_row(SHAPE, 10, 3), explained_row(SHAPE, 10, 5)
    answers = sum(written_row(SHAPE, 10, tokens) for tokens in (5, 3, 5))  # generated, then each candidate ranked
    cheap = AttributionConfig(answers=False)
    assert attributed(SHAPE, cheap, ROW) == gold.both
    assert attributed(SHAPE, AttributionConfig(), ROW) == gold.both + answers
    assert attributed(SHAPE, cheap.model_copy(update={"explained": "predicted"}), ROW) == longest.both + answers
    assert attributed(SHAPE, cheap, replace(ROW, target=None)) == longest.both + answers
    steps = AttributionConfig(answers=False, method=IntegratedGradients(n_steps=20))
    assert attributed(SHAPE, steps, ROW) == pytest.approx(22 * gold.forward + 20 * gold.backward)
    words = AttributionConfig(answers=False, method=Occlusion())
    assert attributed(SHAPE, words, ROW) == 8 * gold.forward


def test_a_ranked_row_is_read_once_and_costs_each_of_its_answers() -> None:
    assert answered(SHAPE, EvaluationConfig(), ROW) == answered_row(SHAPE, 10, 5)
    ranked = answered_row(SHAPE, 10, 1) + written_row(SHAPE, 10, 3) + written_row(SHAPE, 10, 5)
    assert answered(SHAPE, EvaluationConfig(answer="rank"), ROW) == ranked


def test_a_row_asked_about_again_costs_every_answer_of_every_text() -> None:
    once = answered_row(SHAPE, 10, 1) + written_row(SHAPE, 10, 3) + written_row(SHAPE, 10, 5)
    assert asked_again(SHAPE, 7, ROW) == 7 * once


def test_training_costs_six_flop_per_weight_and_token_and_the_validations_their_answers() -> None:
    weights = Shape(reader=1000, crossed=0, writer=500, head=0, reads=0, writes=0, crosses=0, starts=1)
    assert learned_row(weights, 10, 4) == 6 * (10 * 1000 + 4 * 500)
    assert answered_row(weights, 10, 4) == 2 * (10 * 1000 + 4 * 500)
    row = Features(
        uid="r", error=None, term=[0, 1], input_ids=[[1] * 10, [1] * 12], target_ids=[[1] * 4, [1] * 6], truncated=False
    )
    loop = LoopConfig(steps=100, batch_rows=8, eval_every_steps=40, eval_rows=50)
    updates = 100 * 8 * 6 * (10 * 1000 + 4 * 500 + 12 * 1000 + 6 * 500)
    validated = 3 * 30 * 2 * (10 * 1000 + 4 * 500)
    assert trained(weights, loop, [row], eval_rows=30) == pytest.approx(updates + validated), "after 40, 80 and 100 steps"


LEARNED = Features(uid="r", error=None, term=[0], input_ids=[[1] * 90], target_ids=[[1] * 10], truncated=False)
KERNELS = replace(SHAPE, read_kernels=100, write_kernels=150, pass_flops=7, pass_weights=5)


def test_a_micro_batch_starts_its_kernels_forward_and_twice_as_many_backward() -> None:
    loop = LoopConfig(steps=10, batch_rows=8, micro_batch_tokens=400)
    assert learned_pass(KERNELS, loop, 10) == Pass(3 * 250, 3 * (7 + 2 * 5 * 10))
    again = loop.model_copy(update={"gradient_checkpointing": True})
    assert learned_pass(KERNELS, again, 10).kernels == 4 * 250
    causal = replace(KERNELS, starts=0)
    assert learned_pass(causal, loop, 10).kernels == 3 * 100, "prompt and answer are one pass"
    assert attributed_pass(KERNELS, AttributionConfig(answers=False), ROW) == Pass(3 * 250, 3 * 107)
    assert attributed_pass(KERNELS, AttributionConfig(), ROW).kernels == 3 * 250 + (5 + 2) * 150
    assert answered_pass(KERNELS, EvaluationConfig(), ROW) == Pass(100 + 5 * 150, 107)
    assert answered_pass(KERNELS, EvaluationConfig(answer="rank"), ROW).kernels == 100 + 2 * 150
    assert asked_again_pass(KERNELS, 4, ROW).kernels == 4 * (100 + 2 * 150)


def test_a_step_has_as_many_micro_batches_as_its_tokens_ask_for() -> None:
    loop = LoopConfig(steps=10, batch_rows=8, micro_batch_tokens=400)
    assert micro_batches(loop, [LEARNED]) == 2
    assert micro_batches(loop.model_copy(update={"num_workers": 2}), [LEARNED]) == 1
    assert [validations(replace_steps(loop, steps), 30) for steps in (100, 101, 49)] == [2, 3, 1]
    assert validations(loop, 0) == 0


def replace_steps(loop: LoopConfig, steps: int) -> LoopConfig:
    return loop.model_copy(update={"steps": steps, "eval_every_steps": 50})


def test_the_busiest_actor_decides_the_time() -> None:
    assert cut_in_shards(25, 10) == [10, 10, 5]
    assert cut_in_shards(20, 10) == [10, 10]
    assert makespan([10, 10, 10], 2) == 20
    assert makespan([5, 10, 5], 2) == 10
    assert makespan([], 2) == 0
    measured_here = Probe("cpu", 2, 1, 5.0, 100, 0, rows_per_s=2.0, tokens_per_s=0.0, padding_frac=0.0, bytes_per_row=1.0)
    found = on_actors(measured_here, 2, local=True, shards=[10, 10, 10])
    assert (found.seconds, found.actors_for_an_hour) == (15.0, 1)
    assert on_actors(measured_here, 2, local=True, shards=[1000] * 20).actors_for_an_hour == 3  # 20,000 rows at 7,190 an hour


@pytest.mark.parametrize(
    ("rows", "actors", "configured", "rate", "suggested"),
    [
        (6000, 2, 1000, 100.0, 750),  # four shards for each actor
        (10_000_000, 2, 1000, 100.0, 6000),  # a minute of work
        (10_000_000, 2, 1000, None, 1000),  # nothing is known of the work
        (1_239_000, 1, 1_000_000, None, 300_000),
        (3, 2, 1000, 1e9, 1),
    ],
)
def test_a_shard_is_a_minute_of_work_at_most_and_there_are_four_per_actor(
    rows: int, actors: int, configured: int, rate: float | None, suggested: int
) -> None:
    assert suggested_shard(rows, actors, configured, rate) == suggested


@pytest.mark.parametrize(
    ("shards", "actors", "configured", "better"),
    [
        ([750, 750, 100], 2, 750, 200),  # three shards for two actors
        ([200] * 8, 2, 200, None),  # four for each
        ([20] * 3, 2, 20, None),  # too few rows to divide
        ([1000], 2, 1000, 120),
        ([1000], 1, 1000, None),  # a single actor is never idle
    ],
)
def test_smaller_shards_are_advised_where_actors_would_be_idle(
    shards: list[int], actors: int, configured: int, better: int | None
) -> None:
    assert smaller_shard(shards, actors, configured) == better


def test_a_histogram_has_a_bin_for_every_length_up_to_the_longest() -> None:
    assert histogram([0, 1, 1, 3]) == [(0, 1), (1, 2), (2, 0), (3, 1)]
    assert histogram([100]) == [(0, 0), (16, 0), (32, 0), (48, 0), (64, 0), (80, 0), (96, 1)]
    assert histogram([]) == []


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.type)
def test_a_method_takes_the_passes_that_it_says(method: MethodConfig, tmp_path: Path) -> None:
    """Counted in rows that enter the model; the reading is one of them, and what uses it takes no other."""
    teacher = family(tiny_t5(tmp_path))
    reading = teacher.read([teacher.encode(example().segments)], differentiable=method.at_the_input)
    what = reading.explained([teacher.encode_answer("money")])
    passed: Counter[str] = Counter()

    def counted(embeds: Float[Tensor, "n t d"], rows: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        passed["forward"] += len(embeds)
        out = what.forward(embeds, rows)
        if out.requires_grad:
            out.register_hook(lambda _: passed.update(backward=len(embeds)))
        return out

    words = what.laid_out([[place // 2 for place in range(len(row.ids))] for row in what.encoded])
    method.explain(Case(replace(what, forward=counted), lambda: words, rows_at_once=4))
    assert method.passes(int(words.max()) + 1) == (passed["forward"], passed["backward"])
