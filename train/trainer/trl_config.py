"""Every field of the trainer is written out here, so that two backends run one recipe alike.

unsloth rewrites TRL's defaults (learning rate, optimiser, loss, masking, ...), and only on CUDA; a field
left unset is therefore a different run per backend. `grpo_config_fields` sets all fields that GRPO adds
and all that a backend is known to change.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rig.errors import WrongUse, suggest_name
from train.batching import BatchSizes
from train.recipe import Recipe

OWNED = {
    "output_dir", "run_name", "max_steps", "num_train_epochs", "per_device_train_batch_size",
    "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size", "logging_steps",
    "logging_strategy", "save_strategy", "save_steps", "save_total_limit", "seed", "data_seed",
    "reward_weights", "use_cpu", "bf16", "fp16", "report_to", "remove_unused_columns",
    "shuffle_dataset", "log_completions", "eval_strategy", "auto_find_batch_size", "push_to_hub",
    "resume_from_checkpoint", "local_rank", "model_init_kwargs", "use_transformers_paged",
    "include_num_input_tokens_seen", "logging_nan_inf_filter", "dataloader_num_workers",
}  # fmt: skip
"""Fields that follow from other tables of the recipe; `[trainer]` may not set them."""

REWRITTEN = {
    "optim", "lr_scheduler_type", "report_to", "bf16", "fp16", "logging_strategy", "save_strategy",
    "eval_strategy", "gradient_checkpointing", "gradient_checkpointing_kwargs", "warmup_steps",
}  # fmt: skip
"""Fields that transformers turns into enumerations, or that hold another value once they are in force."""

FOLLOWED = {
    "beta", "epsilon_low", "epsilon_high", "num_iterations", "loss_type", "scale_rewards",
    "mask_truncated_completions", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "importance_sampling_level", "top_entropy_quantile", "entropy_coef", "max_completion_length",
    "num_generations",
}  # fmt: skip
"""Attributes of the trainer that the method reads, copied from the config when it is built."""

LEFT = {
    "generation_batch_size", "log_completions_hub_repo", "log_multimodal", "log_unique_prompts",
    "num_completions_to_print", "max_tool_calling_iterations", "model_init_kwargs",
    "ref_model_mixup_alpha", "ref_model_sync_steps", "router_aux_loss_coef", "trust_remote_code",
    "transformers_continuous_batching_config", "use_transformers_paged",
    "ds3_gather_for_generation", "vllm_enable_sleep_mode", "vllm_gpu_memory_utilization",
    "vllm_group_port", "vllm_importance_sampling_cap", "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min", "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode", "vllm_max_model_length", "vllm_mode", "vllm_model_impl",
    "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout",
    "vllm_structured_outputs_regex", "vllm_tensor_parallel_size",
}  # fmt: skip
"""Fields of GRPO that stay unset: of no effect here, exclusive with one that is set, or deprecated."""


def grpo_config_fields(
    recipe: Recipe, sizes: BatchSizes, *, output: Path, cuda: bool, bf16: bool
) -> dict[str, Any]:
    """Every field for `GRPOConfig(**...)`; `bf16` says whether the GPU computes in bfloat16."""
    g, s = recipe.grpo, recipe.schedule
    fields: dict[str, Any] = {
        # where and how long
        "output_dir": str(output),
        "run_name": output.parent.name,
        "max_steps": s.max_steps,
        "num_train_epochs": 1.0,  # max_steps rules
        "per_device_train_batch_size": sizes.micro_batch,
        "per_device_eval_batch_size": sizes.micro_batch,
        "gradient_accumulation_steps": sizes.accumulation,
        "steps_per_generation": sizes.accumulation * s.steps_per_batch,
        "seed": s.seed,
        "data_seed": s.seed,
        # how fast
        "learning_rate": s.learning_rate,
        "lr_scheduler_type": s.lr_scheduler_type,
        "warmup_steps": s.warmup_steps,
        "optim": s.optim,
        "weight_decay": s.weight_decay,
        "adam_beta1": s.adam_beta1,
        "adam_beta2": s.adam_beta2,
        "adam_epsilon": 1e-8,
        "max_grad_norm": s.max_grad_norm,
        # numbers on the GPU
        "use_cpu": not cuda,
        "bf16": cuda and bf16,
        "fp16": cuda and not bf16,
        "gradient_checkpointing": s.gradient_checkpointing,
        "gradient_checkpointing_kwargs": (
            {"use_reentrant": False} if s.gradient_checkpointing else None
        ),
        "torch_empty_cache_steps": None,
        "dataloader_pin_memory": cuda,
        "dataloader_num_workers": 0,
        "ddp_find_unused_parameters": False,
        # what is written down: rig keeps log, samples and checkpoints itself
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_first_step": False,
        "logging_nan_inf_filter": False,  # a loss that is NaN must be seen
        "log_completions": False,  # prints tables to stdout
        "log_level_replica": "error",  # the first process says it
        "save_strategy": "steps",
        "save_steps": s.save_every,
        "save_total_limit": None,
        "eval_strategy": "no",
        "report_to": list(s.report_to) or "none",
        "project": "rig",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "shuffle_dataset": True,
        "push_to_hub": False,
        # the method
        "num_generations": g.num_generations,
        "num_generations_eval": None,
        "max_completion_length": g.max_completion_length,
        "temperature": g.temperature,
        "top_p": g.top_p,
        "top_k": g.top_k,
        "min_p": g.min_p,
        "repetition_penalty": g.repetition_penalty,
        "generation_kwargs": None,
        "chat_template_kwargs": None,
        "cache_implementation": g.cache_implementation,
        "loss_type": g.loss_type,
        "beta": g.beta,
        "num_iterations": g.num_iterations,
        "epsilon": g.epsilon,
        "epsilon_high": g.epsilon_high,
        "delta": g.delta,
        "importance_sampling_level": g.importance_sampling_level,
        "scale_rewards": g.scale_rewards,
        "reward_weights": [reward.weight for reward in recipe.rewards],
        "multi_objective_aggregation": g.multi_objective_aggregation,
        "mask_truncated_completions": g.mask_truncated_completions,
        "top_entropy_quantile": g.top_entropy_quantile,
        "entropy_coef": g.entropy_coef,
        "use_adaptive_entropy": False,
        "entropy_coef_min": 0.0,
        "entropy_coef_max": 1.0,
        "entropy_coef_delta": 0.005,
        "entropy_target": 0.2,
        "off_policy_mask_threshold": None,
        "use_bias_correction_kl": True,
        "sapo_temperature_neg": 1.05,
        "sapo_temperature_pos": 1.0,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "disable_dropout": g.disable_dropout,
        "cast_lm_head_to_fp32": False,
        "sync_ref_model": False,
        "pad_to_multiple_of": None,
        "use_transformers_continuous_batching": False,
        "use_liger_kernel": False,
        "use_vllm": False,
    }
    return fields | recipe.trainer


def check_trainer_fields(table: Iterable[str], known: set[str]) -> None:
    """Refuse a key of `[trainer]` that the backend's GRPOConfig lacks: TRL raises, unsloth only warns."""
    for key in table:
        if key.startswith(("use_vllm", "vllm_")):
            raise WrongUse(f"[trainer] {key}: no run generates with vLLM; leave it out.")
        if key in OWNED:
            raise WrongUse(
                f"[trainer] {key}: this follows from the other tables of the recipe; "
                "leave it out and set it there."
            )
        if key not in known:
            raise WrongUse(f"[trainer] has no field {key!r}; {suggest_name(key, known - OWNED)}")


def restore_fields(trainer: Any, fields: dict[str, Any]) -> None:
    """Put back every field that a backend has corrected behind our back, in the trainer as in its config.

    unsloth does so for some loss types (masking, upper clip, KL weight); what the run follows is the recipe.
    """
    mirrored = {"epsilon": "epsilon_low"}
    for key, wanted in fields.items():
        if key in REWRITTEN:
            continue
        if getattr(trainer.args, key, wanted) != wanted:
            setattr(trainer.args, key, wanted)
        name = mirrored.get(key, key)
        if name in FOLLOWED and getattr(trainer, name, wanted) != wanted:
            setattr(trainer, name, wanted)


def summarise_fields(fields: dict[str, Any]) -> str:
    """The settings that differ from run to run, in a few lines for the person who watches."""
    groups = {
        "batch": (
            "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation",
            "num_generations", "max_completion_length", "max_steps",
        ),
        "method": (
            "loss_type", "beta", "epsilon", "epsilon_high", "scale_rewards", "num_iterations",
            "mask_truncated_completions", "temperature", "top_p", "top_k",
        ),
        "speed": (
            "learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay",
            "adam_beta1", "adam_beta2", "max_grad_norm", "seed",
        ),
        "memory": ("bf16", "gradient_checkpointing", "cache_implementation"),
    }  # fmt: skip
    return "\n".join(
        f"  {name}: " + ", ".join(f"{key}={fields[key]}" for key in keys)
        for name, keys in groups.items()
    )
