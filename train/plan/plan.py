"""What a recipe will cost, before anything is loaded: parameters exactly, memory as predicted, steps.

Needs the model's config.json and the number of rows, never its weights. Time is not guessed: GPUs differ
too much. After the first steps the run itself says how long it will take.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import click

from rig.errors import RigError
from train.batching import largest_divisor
from train.plan import memory, model_shape
from train.plan.memory import GIB, MemoryEstimate
from train.plan.model_shape import ModelShape
from train.recipe import Recipe

ROWS = {"gsm8k": 7473, "openai/gsm8k": 7473}
"""Training rows of data sets whose size is known without the network."""


CERTAIN = 0.9
"""A GPU below this share of the prediction is too small for certain: none was further off than a tenth."""


def make_plan(recipe: Recipe, *, gpus: int = 1) -> dict[str, Any]:
    """Return the plan: one stable object, sizes in GiB, counts as whole numbers."""
    model = model_shape.load_shape(recipe.model.name, recipe.model.revision)
    per_module = model.lora_parameters(recipe.lora.r, recipe.lora.targets)
    trainable = sum(per_module.values())
    rows, notes = _rows(recipe)
    sizes = recipe.batch_sizes(gpus=gpus, rows=rows or 0)
    steps = sizes.steps_per_epoch if rows else None
    if rows and not steps:
        notes.append(f"{rows} training prompts are too few for one generation.")
    longest = recipe.data.max_prompt_length + recipe.grpo.max_completion_length
    backend = _backend(recipe)
    predicted = predict_memory(recipe, model, backend, gpus=gpus)
    if "paged" in recipe.schedule.optim:
        states = 2 * trainable / GIB
        notes.append(
            f"The paged optimiser's {states:.2f} GiB are not counted: the driver moves them to the "
            "host when the GPU is full."
        )
    return {
        "model": recipe.model.name,
        "backend": backend,
        "decoder": _decoder(recipe, backend),
        "cards": gpus,
        "parameters": model.parameter_count,
        "trainable_parameters": trainable,
        "per_module": per_module,
        "peak_gib": round(predicted.peak_bytes / GIB, 2),
        "memory_gib": predicted.to_gib(),
        "training_prompts": rows,
        "steps": recipe.schedule.max_steps,
        "steps_per_epoch": steps,
        "epochs": round(recipe.schedule.max_steps / steps, 3) if steps else None,
        "completions_per_step": sizes.completions,
        "completions_per_generation": sizes.generated * gpus,
        "micro_batch": sizes.micro_batch,
        "gradient_accumulation_steps": sizes.accumulation,
        "tokens_per_step": sizes.completions * longest,
        "notes": notes,
    }


def predict_memory(
    recipe: Recipe, model: ModelShape, backend: str, *, gpus: int = 1
) -> MemoryEstimate:
    """The memory of each GPU under `backend` (`trl` or `unsloth`)."""
    sizes = recipe.batch_sizes(gpus=gpus)
    return memory.estimate_memory(
        model,
        precision=recipe.model.precision,
        trainable=sum(model.lora_parameters(recipe.lora.r, recipe.lora.targets).values()),
        optim=recipe.schedule.optim,
        micro_batch=sizes.micro_batch,
        generated=sizes.generated,
        generations=recipe.grpo.num_generations,
        prompt=recipe.data.max_prompt_length,
        completion=recipe.grpo.max_completion_length,
        checkpointing=recipe.schedule.gradient_checkpointing,
        decoder=_decoder(recipe, backend),
        chunked=recipe.backend.chunked_logprobs,
        packed=backend == "trl" and recipe.backend.packed and recipe.model.attention == "sdpa",
        gpus=gpus,
    )


def refuse_oversized(recipe: Recipe, backend: str, gpu_bytes: int, *, gpus: int = 1) -> None:
    """Refuse what can't fit a GPU of `gpu_bytes` by far, before its weights are loaded.

    Raises RigError with the settings that would fit and learn the same, if there are any. What is near the
    limit passes: the preflight tries it.
    """
    try:
        model = model_shape.load_shape(recipe.model.name, recipe.model.revision)
    except RigError:
        return  # a model that can't be counted is tried; one that is not there, its loader explains
    found = predict_memory(recipe, model, backend, gpus=gpus)
    if found.peak_bytes * CERTAIN <= gpu_bytes:
        return
    wanted, there = found.peak_bytes / GIB, gpu_bytes / GIB
    said = f"This run would take about {wanted:.1f} GiB, and the GPU has {there:.1f}."
    knobs: dict[str, int] = {}
    smaller = recipe
    while found.peak_bytes > gpu_bytes:
        sizes = smaller.batch_sizes(gpus=gpus)
        if found.learning_bytes >= found.generating_bytes and sizes.micro_batch > 1:
            knobs["micro_batch"] = largest_divisor(sizes.completions, sizes.micro_batch // 2)
        elif backend == "trl" and sizes.generated > 1:
            half, group = sizes.generated // 2, recipe.grpo.num_generations
            knobs["generate_at_once"] = half - half % group or half
        else:
            raise RigError(
                f"{said} Take a smaller model, model.precision=4bit or a shorter "
                "grpo.max_completion_length: rig train RECIPE --plan says what each part takes."
            )
        schedule = recipe.schedule.model_copy(update=knobs)
        smaller = recipe.model_copy(update={"schedule": schedule})
        found = predict_memory(smaller, model, backend, gpus=gpus)
    settings = " ".join(f"--set schedule.{name}={value}" for name, value in knobs.items())
    raise RigError(
        f"{said} {found.peak_bytes / GIB:.1f} GiB suffice with {settings} (it learns the same)."
    )


def format_plan(plan: dict[str, Any], recipe: str, *, as_json: bool) -> str:
    """The plan as JSON, or as a page for a person."""
    if as_json:
        return json.dumps(plan)
    share = plan["trainable_parameters"] / plan["parameters"]
    lines = [
        click.style(f"{plan['model']} by {recipe}", bold=True),
        "",
        f"Learns: {plan['trainable_parameters']:,} of {plan['parameters']:,} parameters ({share:.2%})",
    ]
    lines += [f"  {name:<12}{count:>14,}" for name, count in plan["per_module"].items()]
    of_each = " of each GPU" if plan["cards"] > 1 else ""
    lines += [
        "",
        f"Memory{of_each}, {plan['backend']} backend: {plan['peak_gib']:.2f} GiB at the peak, "
        "with every prompt and completion at its limit",
    ]
    parts = plan["memory_gib"]
    lines += [
        f"  always      weights {parts['weights']:.2f}, adapter {parts['adapter']:.2f}, "
        f"optimiser {parts['optimiser']:.2f}",
        f"  generating  key-value cache {parts['kv_cache']:.2f}, sampling {parts['sampling']:.2f}, "
        f"{'captured step' if plan['decoder'] == 'rig' else 'workspace'} {parts['capture']:.2f}",
        f"  learning    activations {parts['activations']:.2f}, logits {parts['logits']:.2f}, "
        f"gradients {parts['gradients']:.2f}, workspace {parts['workspace']:.2f}",
        "",
        f"Steps: {plan['steps']:,}" + _epochs(plan),
        f"  each {plan['completions_per_step']} completions (on {plan['cards']} "
        f"{'GPU' if plan['cards'] == 1 else 'GPUs'}: {plan['gradient_accumulation_steps']} x "
        f"{plan['micro_batch']}), at most {plan['tokens_per_step']:,} tokens; "
        f"{plan['completions_per_generation']} generated together",
    ]
    lines += [f"Note: {note}" for note in plan["notes"]]
    return "\n".join(lines)


def _epochs(plan: dict[str, Any]) -> str:
    if not plan["steps_per_epoch"]:
        return " (the number of training prompts is not known here)"
    return (
        f" = {plan['epochs']:.2f} epochs of {plan['steps_per_epoch']:,} "
        f"({plan['training_prompts']:,} prompts)"
    )


def _backend(recipe: Recipe) -> str:
    """The backend that this machine would take, or that the recipe asks for."""
    if recipe.backend.name != "auto":
        return recipe.backend.name
    return "unsloth" if importlib.util.find_spec("unsloth") else "trl"


def _decoder(recipe: Recipe, backend: str) -> str:
    """Who generates: `rig`, `transformers`, or `unsloth`."""
    return "unsloth" if backend == "unsloth" else recipe.backend.decode


def _rows(recipe: Recipe) -> tuple[int | None, list[str]]:
    """Training prompts, and what there is to say about them; a source out of reach is no error here."""
    table = recipe.data
    if table.source in ROWS:
        rows = ROWS[table.source]
        if table.held_out_split is None and table.source != "gsm8k":
            rows -= int(table.held_out if table.held_out >= 1 else rows * table.held_out)
        return min(rows, table.limit or rows), []
    from train.data import dataset

    try:
        found = dataset.load_splits(**table.model_dump(exclude={"max_prompt_length"}))
    except RigError as error:
        return table.limit, [error.message]
    return len(found.train), found.notes
