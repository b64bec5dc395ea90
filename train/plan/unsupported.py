"""What a recipe asks for and a backend can't do here, said before anything is imported or loaded."""

from __future__ import annotations

import importlib.util

from train.model.backends import why_no_gpu
from train.recipe import Recipe


def unsupported_settings(recipe: Recipe, backend: str, *, cuda: bool) -> list[str]:
    """What this recipe asks for and this backend can't do here, one sentence each."""
    model, schedule = recipe.model, recipe.schedule
    found = []
    if not cuda:
        if model.precision == "4bit":
            found.append(
                f"model.precision = 4bit needs a CUDA GPU. {why_no_gpu()} "
                "On the CPU train a small model with --set model.precision=32bit."
            )
        if model.precision == "16bit":
            found.append(
                f"model.precision = 16bit needs a CUDA GPU (a CPU learns in 32 bits). "
                f"{why_no_gpu()} Or: --set model.precision=32bit."
            )
        if "8bit" in schedule.optim or "paged" in schedule.optim:
            found.append(
                f"schedule.optim = {schedule.optim} needs a CUDA GPU: --set "
                "schedule.optim=adamw_torch."
            )
        if recipe.backend.compile:
            found.append("backend.compile needs a CUDA GPU: --set backend.compile=false.")
        if model.attention == "flash_attention_2":
            found.append("model.attention = flash_attention_2 needs a CUDA GPU: use sdpa.")
    if recipe.backend.compile and recipe.grpo.cache_implementation != "static":
        found.append('backend.compile wants grpo.cache_implementation = "static": set both.')
    if recipe.backend.chunked_logprobs and "lm_head" in recipe.lora.targets:
        found.append(
            "backend.chunked_logprobs reads the head's own weights, so an adapter on lm_head would learn "
            "nothing: --set backend.chunked_logprobs=false, or leave lm_head out of lora.targets."
        )
    found += [
        f"schedule.report_to: {tracker} is not installed: pip install {tracker}, or leave it out."
        for tracker in schedule.report_to
        if importlib.util.find_spec(tracker) is None
    ]
    if backend == "unsloth":
        if model.precision == "32bit":
            found.append(
                "unsloth trains in 16 or 4 bits: set model.precision, or backend.name=trl."
            )
        if schedule.generate_at_once:
            found.append(
                "unsloth generates all completions of a step at once: leave schedule.generate_at_once "
                "out, or set backend.name=trl."
            )
        if recipe.lora.targets == "all-linear":
            found.append("unsloth wants the modules by name: list them in lora.targets.")
        if recipe.backend.compile:
            found.append("unsloth compiles by itself: --set backend.compile=false.")
        if model.attention != "sdpa":
            found.append("unsloth chooses its own attention: leave model.attention at sdpa.")
    return found
