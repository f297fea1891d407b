"""What training is configured by."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from kd.training.config import LoopConfig, TeachConfig, TrainingConfig, Variant
from kd.training.objectives import LabelOnly, MultiTask

VARIANT = {"name": "words", "source": "attribution"}


def refuse(message: str, config: type[LoopConfig] = LoopConfig, **values: Any) -> None:
    with pytest.raises(ValidationError, match=message):
        config.model_validate(values)


def test_any_number_of_rows_divides_by_any_number_of_workers() -> None:
    assert LoopConfig(batch_rows=32, num_workers=3).batch_rows == 32
    assert LoopConfig(batch_rows=2, num_workers=4).batch_rows == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 10, "warmup_steps": 10}, r"warmup_steps \(10\) must be fewer than steps \(10\)"),
        ({"zero_stage": 4}, "zero_stage"),
        ({"precision": "bfloat16"}, "precision bfloat16 with zero_stage 0 .* expected zero_stage: 1"),
        ({"offload": "optimizer"}, "offload optimizer needs what ZeRO splits: expected zero_stage 1 or higher, got 0"),
        ({"offload": "parameters", "zero_stage": 2}, "offload parameters .* expected zero_stage 3 or higher, got 2"),
        ({"patience_evals": 2, "eval_rows": 0}, r"patience_evals \(2\) counts validations, and eval_rows = 0"),
        ({"patience_evals": 0}, "patience_evals"),
        ({"lora": {"rank": 4}}, "targets"),
        ({"lora": {"targets": []}}, "targets"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"batch_size": 8}, "batch_size"),
        ({"micro_batch_rows": 8}, "micro_batch_rows"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens"),
    ],
)
def test_what_cannot_be_trained_is_refused(values: dict[str, Any], message: str) -> None:
    refuse(message, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variants": []}, "variants"),
        ({"variants": [VARIANT, VARIANT]}, "variants: expected each once, got words more than once"),
        ({"variants": [VARIANT], "seeds": [1, 2, 1]}, "seeds: expected each once, got 1 more than once"),
        ({"variants": [VARIANT], "seeds": [-1]}, "seeds: expected numbers from 0, got -1"),
        ({"variants": [{"name": "Words", "source": "x"}]}, "name"),
        ({"variants": [{"name": "teacher", "source": "x"}]}, "'teacher' names another row of the report"),
        ({"variants": [{"name": "chance", "source": "x"}]}, "'chance' names another row of the report"),
        ({"variants": [VARIANT | {"objective": {"type": "label"}}]}, "label_only"),
    ],
)
def test_impossible_students_are_refused(values: dict[str, Any], message: str) -> None:
    refuse(message, TrainingConfig, **values)


def test_a_variant_is_multi_task_unless_it_says_otherwise() -> None:
    assert Variant.model_validate(VARIANT).objective == MultiTask()
    assert Variant.model_validate(VARIANT | {"objective": {"type": "label_only"}}).objective == LabelOnly()
    assert TeachConfig().objective == LabelOnly()


def test_the_schedule_warms_up_and_decays_to_zero() -> None:
    config = LoopConfig(steps=10, warmup_steps=2, learning_rate=8.0)
    assert [config.learning_rate_at(step) for step in range(10)] == [0, 4, 8, 7, 6, 5, 4, 3, 2, 1]
    constant = config.model_copy(update={"schedule": "constant"})
    assert [constant.learning_rate_at(step) for step in range(4)] == [0, 4, 8, 8]


def test_a_run_depends_on_the_loop_and_not_on_its_neighbours_or_on_failures() -> None:
    one = TrainingConfig(variants=(Variant.model_validate(VARIANT),), seeds=(0,), max_failures=1)
    more = TrainingConfig(variants=(Variant.model_validate(VARIANT),), seeds=(0, 1), max_failures=5, keep_checkpoints=3)
    assert one.loop == more.loop
    assert one.loop == one.model_copy(update={"log_every_steps": 3, "eval_batch_tokens": 99, "max_error_frac": 0.5}).loop
    assert one.loop == one.model_copy(update={"parallel_runs": 3, "step_timeout_s": 1.0}).loop
    assert one.loop == one.model_copy(update={"num_workers": 2, "threads_per_worker": 4}).loop
    assert one.loop != one.model_copy(update={"learning_rate": 1.0}).loop


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (10, 0), (10, 1), (10, 2), (100, 6), (360, 20), (7, 6)])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_learning_rate_of_every_update_is_that_of_transformers_schedules(schedule: str, steps: int, warmup: int) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=3e-3)
    if schedule == "linear":
        theirs = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    else:
        theirs = get_constant_schedule_with_warmup(optimizer, warmup)
    rates = list[float]()
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    config = LoopConfig.model_validate({"steps": steps, "warmup_steps": warmup, "learning_rate": 3e-3, "schedule": schedule})
    assert [config.learning_rate_at(step) for step in range(steps)] == pytest.approx(rates, abs=1e-15)


@pytest.mark.parametrize(("steps", "every", "times"), [(10, 4, 3), (10, 5, 2), (10, 10, 1), (10, 11, 1), (1, 250, 1)])
def test_the_last_step_is_validated_too_where_the_interval_does_not_divide_the_steps(steps: int, every: int, times: int) -> None:
    config = LoopConfig(steps=steps, eval_every_steps=every)
    assert config.validations_by(steps) == times
    assert config.validations_by(every) == 1
