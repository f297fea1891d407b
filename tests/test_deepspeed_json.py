"""DeepSpeed's JSON against the keys that DeepSpeed itself knows: whatever could change a result is written."""

from typing import Any, Literal

import pytest

from kd.deepspeed_engine import import_deepspeed
from kd.training.config import LoopConfig
from kd.training.deepspeed import deepspeed_json

WITHOUT_EFFECT: dict[str, set[str]] = {
    "measure or print, and compute nothing": {
        "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "log_level", "flops_profiler", "comms_logger",
        "tensorboard", "wandb", "csv_monitor", "comet", "timers", "vocabulary_size",
        "zero_optimization.log_trace_cache_warnings", "zero_optimization.enable_sanity_checks",
    },
    "configure parts of DeepSpeed that are off, by their section or by its absence": {
        "activation_checkpointing", "autotuning", "hybrid_engine", "pipeline", "data_efficiency", "aio", "weight_quantization",
        "compile", "tensor_parallel", "expert_parallel", "datastates_ckpt", "use_data_before_expert_parallelism",
        "fp16.auto_cast", "fp16.loss_scale", "fp16.initial_scale_power", "fp16.loss_scale_window", "fp16.hysteresis",
        "fp16.consecutive_hysteresis", "fp16.min_loss_scale", "fp16.fp16_master_weights_and_grads",
        "torch_autocast.dtype", "torch_autocast.lower_precision_safe_modules", "seq_parallel_communication_data_type",
    },
    "belong to what is ours: optimizer, schedule, batches": {"optimizer", "scheduler", "dataloader_drop_last"},
    "say how files are written": {"checkpoint.parallel_write", "checkpoint.writer", "checkpoint.checkpoint_serialization", "zero_optimization.pipeline_loading_checkpoint"},
    "are other names of keys that are written": {
        "zero_optimization.cpu_offload", "zero_optimization.cpu_offload_param",
        "zero_optimization.cpu_offload_use_pin_memory", "zero_optimization.stage3_gather_fp16_weights_on_model_save",
    },
    "say when and how much ZeRO-3 fetches, not what": {
        "zero_optimization.stage3_prefetch_bucket_size", "zero_optimization.stage3_model_persistence_threshold",
        "zero_optimization.stage3_max_live_parameters", "zero_optimization.stage3_max_reuse_distance",
        "zero_optimization.stage3_module_granularity_threshold", "zero_optimization.stage3_use_all_reduce_for_fetch_params",
        "zero_optimization.stage3_allgather_sequential", "zero_optimization.override_module_apply", "zero_optimization.leaf_module",
    },
    "are about exports and optimizers that are not used here": {
        "zero_optimization.stage3_gather_16bit_weights_on_model_save", "zero_optimization.save_muon_momentum_buffer_in_memory",
        "zero_optimization.elastic_checkpoint",
    },
    "lay memory out": {"zero_optimization.parameter_alignment", "disable_python_gc"},
    "say how what is offloaded travels and waits": {
        "zero_optimization.offload_optimizer.nvme_path",
        "zero_optimization.offload_optimizer.buffer_count",
        "zero_optimization.offload_optimizer.pin_memory",
        "zero_optimization.offload_optimizer.pipeline_read",
        "zero_optimization.offload_optimizer.pipeline_write",
        "zero_optimization.offload_optimizer.fast_init",
        "zero_optimization.offload_optimizer.ratio",
        "zero_optimization.offload_optimizer.super_offload",
        "zero_optimization.offload_optimizer.cpuadam_cores_perc",
        "zero_optimization.offload_param.nvme_path",
        "zero_optimization.offload_param.buffer_count",
        "zero_optimization.offload_param.buffer_size",
        "zero_optimization.offload_param.max_in_cpu",
        "zero_optimization.offload_param.pin_memory",
    },
}  # fmt: skip
"""What DeepSpeed may be left to choose, and why."""

CONFIGS = [
    LoopConfig(zero_stage=stage, precision=precision)
    for stage in (0, 1, 2, 3)
    for precision in ("float32", "bfloat16")
    if stage or precision == "float32"
]
CONFIGS += [LoopConfig(zero_stage=2, offload="optimizer"), LoopConfig(zero_stage=3, offload="parameters")]


class Asked(dict[str, Any]):
    """A section of the JSON that notes what it is asked for, and so do its sections."""

    def __init__(self, section: dict[str, Any], keys: set[str], prefix: str = "") -> None:
        super().__init__(
            {key: Asked(value, keys, f"{prefix}{key}.") if isinstance(value, dict) else value for key, value in section.items()}
        )
        self.asked, self.prefix = keys, prefix

    def __copy__(self) -> "Asked":
        return self

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(self.prefix + key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(self.prefix + key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(f"{self.prefix}{key}")
        return super().__contains__(key)

    def keys(self) -> Any:
        return self


def known(settings: dict[str, Any]) -> set[str]:
    """The keys that DeepSpeed asks these settings for, and the fields of its models of them."""
    import_deepspeed("cpu")
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, _REMOVED_ZERO_CONFIG_KEYS, DeepSpeedConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig

    asked: set[str] = set()
    DeepSpeedConfig(Asked(settings, asked))
    models = {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}
    offloads = {"offload_param": DeepSpeedZeroOffloadParamConfig, "offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig}
    models |= {f"zero_optimization.{key}": model for key, model in offloads.items() if settings["zero_optimization"][key]}
    for name, model in models.items():
        asked |= {f"{name}.{field.alias or key}" for key, field in model.model_fields.items()}
    removed = {*_REMOVED_TOP_LEVEL_CONFIG_KEYS, *(f"zero_optimization.{key}" for key in _REMOVED_ZERO_CONFIG_KEYS)}
    return asked - removed


def written(section: dict[str, Any], prefix: str = "") -> set[str]:
    """The keys of the JSON, those of sections behind the section's name."""
    inner = [written(value, f"{prefix}{key}.") for key, value in section.items() if isinstance(value, dict)]
    return {prefix + key for key in section}.union(*inner)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.zero_stage}-{config.precision}-{config.offload}")
def test_every_key_that_could_change_a_result_is_written(config: LoopConfig) -> None:
    settings = deepspeed_json(config, world=1)
    left_out = set().union(*WITHOUT_EFFECT.values())
    assert sorted(known(settings) - written(settings) - left_out) == []


def test_every_key_that_is_written_or_left_out_is_one_that_deepspeed_knows() -> None:
    every = [deepspeed_json(config, world=1) for config in CONFIGS]
    named = set().union(*WITHOUT_EFFECT.values(), *map(written, every))
    assert sorted(named - set().union(*map(known, every))) == []


def test_clipping_and_precision_are_the_configs() -> None:
    config = LoopConfig(zero_stage=2, clip_norm=0.5, precision="bfloat16")
    settings = deepspeed_json(config, world=1)
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"]["enabled"]
    assert settings["zero_optimization"]["stage"] == 2
    assert deepspeed_json(config.model_copy(update={"clip_norm": 0.0}), world=1)["gradient_clipping"] == 0.0


def test_without_zero_and_in_fp32_clipping_is_ours_alone() -> None:
    config = LoopConfig(zero_stage=0, clip_norm=0.5)
    assert config.has_plain_gradients
    assert deepspeed_json(config, world=1)["gradient_clipping"] == 0.0
    assert not LoopConfig(zero_stage=1).has_plain_gradients
    assert not LoopConfig(zero_stage=1, precision="bfloat16").has_plain_gradients


@pytest.mark.parametrize(
    ("offload", "kept"),
    [("none", set()), ("optimizer", {"offload_optimizer"}), ("parameters", {"offload_optimizer", "offload_param"})],
)
def test_deepspeed_is_told_what_stays_in_the_cpus_memory(
    offload: Literal["none", "optimizer", "parameters"], kept: set[str]
) -> None:
    settings = deepspeed_json(LoopConfig(zero_stage=3, offload=offload), world=1)
    zero = settings["zero_optimization"]
    assert {key for key, value in zero.items() if key.startswith("offload") and value} == kept
    assert all(zero[key] == {"device": "cpu"} for key in kept)
    assert settings["zero_force_ds_cpu_optimizer"] is False


def test_a_group_of_another_size_than_the_config_says_is_refused() -> None:
    with pytest.raises(ValueError, match="num_workers = 2, the group has 3"):
        deepspeed_json(LoopConfig(num_workers=2), world=3)
