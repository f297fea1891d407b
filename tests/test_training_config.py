"""What training is configured by."""

from typing import Any

import pytest
from pydantic import ValidationError

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
    assert [config.learning_rate_at(step) for step in range(10)] == [4, 8, 8, 7, 6, 5, 4, 3, 2, 1]
    constant = config.model_copy(update={"schedule": "constant"})
    assert [constant.learning_rate_at(step) for step in range(4)] == [4, 8, 8, 8]


def test_a_run_depends_on_the_loop_and_not_on_its_neighbours_or_on_failures() -> None:
    one = TrainingConfig(variants=(Variant.model_validate(VARIANT),), seeds=(0,), max_failures=1)
    more = TrainingConfig(variants=(Variant.model_validate(VARIANT),), seeds=(0, 1), max_failures=5, keep_checkpoints=3)
    assert one.loop == more.loop
    assert one.loop == one.model_copy(update={"log_every_steps": 3, "eval_batch_tokens": 99, "max_error_frac": 0.5}).loop
    assert one.loop != one.model_copy(update={"learning_rate": 1.0}).loop
