"""DeepSpeed's JSON, which follows from the config. `tests/test_deepspeed_json.py` holds it against DeepSpeed's own keys."""

from typing import Any

from kd.training.config import LoopConfig


def deepspeed_json(config: LoopConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's config for `world` workers, complete: what is left out there gets a default that may change results.

    `gradient_clipping` defaults to 1.0 in the version of record, for instance. The optimizer is our own. So is the number of
    passes of a step, which follows from its sequences: DeepSpeed is told of one, and the boundary is set by hand, so that it
    divides by the workers alone. Its batch sizes are read by nothing but its own counters.

    Raises:
        ValueError: the group is not of the size that the config says.
    """
    if world != config.num_workers:
        raise ValueError(
            f"expected a group of num_workers = {config.num_workers}, the group has {world}; start as many, or change num_workers"
        )
    dtype = "bf16" if config.precision == "bfloat16" else "fp32"
    return {
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": True,
        "gradient_clipping": 0.0 if config.has_plain_gradients else config.clip_norm,
        "gradient_allreduce_op": "mean",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": dtype,
        "disable_allgather": False,
        "bf16": _bf16(config),
        "fp16": {"enabled": False},
        "torch_autocast": {"enabled": False},
        "data_types": {
            "grad_accum_dtype": dtype,
            "param_dtype": dtype,
            "buffer_dtype": None,
            "keep_in_fp32_modules": "auto",
        },
        "zero_optimization": _zero(config),
        "zero_allow_untested_optimizer": False,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": False, "use_node_local_storage": False, "tag_validation": "WARN"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def _bf16(config: LoopConfig) -> dict[str, Any]:
    """Weights and gradients in bf16, the optimizer's copy and its states in fp32; a step that overflows is left out."""
    return {
        "enabled": config.precision == "bfloat16",
        "immediate_grad_update": False,
        "check_grad_overflow": True,
        "bf16_master_weights_and_grads": False,
        "bf16_optimizer_states": False,
    }


def _zero(config: LoopConfig) -> dict[str, Any]:
    return {
        "stage": config.zero_stage,
        "compute_grad_norm": True,
        "contiguous_gradients": True,
        "overlap_comm": config.zero_stage == 3,
        "reduce_scatter": True,
        "reduce_bucket_size": 50_000_000,
        "use_multi_rank_bucket_allreduce": True,
        "round_robin_gradients": False,
        "allgather_partitions": True,
        "allgather_bucket_size": 50_000_000,
        "ignore_unused_parameters": True,
        "load_from_fp32_weights": True,
        "legacy_stage1": False,
        "sub_group_size": 1_000_000_000,
        "offload_param": None,
        "offload_optimizer": None,
        "zenflow": None,
        "memory_efficient_linear": True,
        "zero_hpz_partition_size": 1,
        "zero_quantized_weights": False,
        "zero_quantized_nontrainable_weights": False,
        "zero_quantized_gradients": False,
        "stage3_param_persistence_threshold": config.zero3_whole_below_params,
    }
