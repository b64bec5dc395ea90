"""What was trained, in PyTorch, where it is installed: the yardstick for the exported file. Optional.

Only here does this room touch torch, and only when the check asks.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from export.ggml import Floats

Consume = Callable[[int, Floats], None]


def missing(adapter: Path | None, weights: int) -> str:
    """Why the model cannot be run in PyTorch here; empty when it can. `weights` is their number."""
    wanted = ["torch", "transformers", *(["peft"] if adapter else [])]
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} is not installed"
    free = _free_memory()
    needed = weights * 5  # float32, and some for the work
    if free is not None and free < needed:
        return f"it needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
    return ""


def compare(
    folder: Path,
    adapter: Path | None,
    texts: Sequence[Sequence[int]],
    trained: Consume,
    base: Consume,
    threads: int,
) -> None:
    """Hand on the logits of each text: `trained` with the adapter, `base` without (only if there is one).

    Each gets the number of the text and [tokens, vocabulary] in float32. Texts are computed one at a time.
    """
    import logging as standard

    # It reports on stderr which of its fast paths this machine does not have.
    standard.getLogger("bitsandbytes").setLevel(standard.CRITICAL)
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    with torch.inference_mode():
        for number, tokens in enumerate(texts):
            asked = torch.tensor([list(tokens)])
            trained(number, model(asked).logits[0].float().numpy())
            if adapter is not None:
                with model.disable_adapter():
                    base(number, model(asked).logits[0].float().numpy())
    del model
    gc.collect()
    torch.set_num_threads(before)


def _free_memory() -> int | None:
    """Bytes that could be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        said = dict(line.split(":", 1) for line in lines)
        return int(said["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
