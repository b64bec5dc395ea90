"""vLLM as the generator inside the training process: what TRL's coupling leaves open is settled here.

TRL hands weights over by merging the adapter into the model's own and taking it out again, at every step.
In 16 bits W + d - d is not W: the base drifts away from the one that the adapter will be put on. vLLM's
worker puts a seed of its own in place of the recipe's, logs where the result belongs, and reports how it is
used. Read in TRL 1.14.2 and vLLM 0.26.0.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rig.errors import RigError
from train.recipe import Recipe

if TYPE_CHECKING:
    import torch

ENVIRONMENT = {
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Set before vLLM is imported, unless they are set already."""


def prepare() -> None:
    """Keep vLLM's log off stdout and its reports at home; call it before anything imports vLLM."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def limits(recipe: Recipe) -> list[str]:
    """What this recipe asks for and TRL can't do together with vLLM, one sentence each."""
    found = []
    if recipe.model.precision == "4bit":
        found.append(
            "grpo.use_vllm with 4-bit weights: vLLM would read new weights with the scales of the old ones. "
            "Set model.precision=16bit, or grpo.use_vllm=false."
        )
    if recipe.model.revision:
        found.append(
            "grpo.use_vllm knows no model.revision: download it and give the folder as model.name, or set "
            "grpo.use_vllm=false."
        )
    if recipe.backend.compile:
        found.append("backend.compile is not for vLLM, which compiles by itself: set it to false.")
    return found


@contextlib.contextmanager
def starting(share: float) -> Iterator[None]:
    """While the trainer is built, which starts the engine: what stops it becomes a sentence."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RigError(
            f"vLLM did not start: {reason[:300]}. It may take {share:.0%} of the card, and its weights are a "
            "second copy: try another grpo.vllm_gpu_memory_utilization, or set grpo.use_vllm=false."
        ) from error


def settle(trainer: Any) -> None:
    """Let the engine be given weights that leave the model alone, and the recipe's seed count again."""
    from accelerate.utils import set_seed

    coupling = trainer.vllm_generation
    coupling._iter_named_params = lambda: weights(coupling.model)
    set_seed(trainer.args.seed, device_specific=True)  # as TRL does before vLLM undoes it


def weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the base under the base's name, with the adapter's part added; `model` stays as it is.

    The sum is taken in 32 bits and rounded once to the weight's own type. A tied weight comes once.
    """
    base = model.get_base_model()
    for name, parameter in base.named_parameters():
        if model.prefix in name:
            continue
        path, _, kind = name.rpartition(".")
        whole = parameter.data
        if path.endswith(".base_layer") and kind == "weight":
            layer = base.get_submodule(path.removesuffix(".base_layer"))
            parts = [layer.get_delta_weight(adapter).detach() for adapter in layer.active_adapters]
            whole = sum((part.float() for part in parts), whole.float()).to(whole.dtype)
        yield name.replace(".base_layer.", "."), whole


@contextlib.contextmanager
def to_the_limit(coupling: Any) -> Iterator[None]:
    """Inside the block every completion runs to its limit."""
    kept = coupling.generation_kwargs
    limit = {"ignore_eos": True, "min_tokens": coupling.max_completion_length}
    coupling.generation_kwargs = {**kept, **limit}
    try:
        yield
    finally:
        coupling.generation_kwargs = kept
