"""How one optimiser step is shared out: GPUs, micro-batches, and what is generated together."""

from __future__ import annotations

from dataclasses import dataclass

from rig.errors import WrongUse


@dataclass(frozen=True)
class BatchSizes:
    """One optimiser step in numbers; however many GPUs share it, the effective batch stays."""

    micro_batch: int
    """Completions through the model at once, on each GPU."""
    accumulation: int
    """Such micro-batches per optimiser step, on each GPU."""
    completions: int
    """Completions behind one optimiser step, on all GPUs together."""
    generated: int
    """Completions generated at once, on each GPU."""
    steps_per_epoch: int


def split_step(
    *,
    prompts: int,
    group: int,
    micro_batch: int,
    steps_per_batch: int = 1,
    iterations: int = 1,
    at_once: int | None = None,
    gpus: int = 1,
    rows: int = 0,
) -> BatchSizes:
    """Split one step of `prompts` times `group` completions over `gpus`.

    Args:
        prompts: different prompts behind one step.
        group: completions of each.
        micro_batch: completions to learn from at once; less where that does not divide a GPU's share.
        steps_per_batch: steps whose completions are generated together.
        iterations: steps that learn from the same completions.
        at_once: completions to generate at once at most (None = all that are wanted together).
        gpus: among which the step is shared.
        rows: training prompts, for the steps of an epoch.

    >>> split_step(prompts=8, group=6, micro_batch=8, gpus=2, rows=100)
    BatchSizes(micro_batch=8, accumulation=3, completions=48, generated=24, steps_per_epoch=12)
    """
    completions = prompts * group
    if completions % gpus:
        raise WrongUse(
            f"One step has {completions} completions, which {gpus} GPUs can't share evenly: "
            f"set schedule.prompts_per_step to a multiple of {gpus}."
        )
    share = completions // gpus
    micro = largest_divisor(share, micro_batch)
    waiting = share * steps_per_batch
    batches = rows // (prompts * steps_per_batch)
    return BatchSizes(
        micro_batch=micro,
        accumulation=share // micro,
        completions=completions,
        generated=min(waiting, at_once or waiting),
        steps_per_epoch=batches * steps_per_batch * iterations,
    )


def largest_divisor(total: int, most: int) -> int:
    """The largest number up to `most` that divides `total`.

    >>> largest_divisor(36, 8), largest_divisor(7, 3)
    (6, 1)
    """
    return max(n for n in range(1, min(most, total) + 1) if total % n == 0)
