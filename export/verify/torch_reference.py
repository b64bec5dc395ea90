"""What was trained, in PyTorch, where it is installed: the yardstick for the exported file. Optional.

Only here does this room touch torch, and only when the check asks. An adapter that was trained on a 4-bit
base is computed on that base too, with bitsandbytes' kernels for processors: no GPU is needed.
"""

from __future__ import annotations

import gc
import importlib.util
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from export.checkpoint.adapter import load_adapter, match_pattern
from export.checkpoint.config import read_adapter_config, read_model_config
from export.checkpoint.source import ExportSource, local_model_folder
from export.quantise.ggml import Floats

FLOAT32, FOUR_BITS = 5, 2
"""Bytes of memory for each weight: float32, or 4 bits with the tables in float32; and some for the work."""
FAILS = (Exception,)
"""What `torch_logits` raises where the model cannot be run here: its loaders have errors of any kind."""


def four_bit_base(source: ExportSource) -> Path | None:
    """The folder to load in 4 bits, when the adapter was trained on such a base; None when it was not.

    The 4-bit folder itself where it is on this machine; else the 16-bit base, which is then quantised as
    trainers do it (NF4, block scales quantised once more).
    """
    if source.adapter is None:
        return None
    loaded = read_adapter_config(source.adapter).get("base_model_name_or_path")
    names = [str(name) for name in (loaded, source.run.base_model if source.run else None) if name]
    for name in names:
        folder = local_model_folder(name)
        if folder is not None and _is_four_bit(folder):
            return folder
    asked = source.run is not None and _precision(source.run.path / "recipe.toml") == "4bit"
    return source.folder if asked or any("4bit" in name.lower() for name in names) else None


def torch_logits(
    folder: Path,
    adapter: Path | None,
    texts: Sequence[Sequence[int]],
    *,
    weights: int,
    threads: int,
    four_bits: bool = False,
) -> Iterator[tuple[Floats, Floats | None]]:
    """For each text the logits of base and adapter, and of the base alone where there is an adapter.

    Each is (tokens, vocabulary) in float32. `weights` is their number; too little memory, or a package
    that is not there, is a RuntimeError. `four_bits` loads the base in 4 bits, its own ones or NF4 made of
    its 16 bits, and leaves the base alone out.
    """
    packages = ["torch", "transformers", *(["peft"] if adapter else [])]
    packages += ["bitsandbytes"] if four_bits else []
    if absent := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise RuntimeError(f"{', '.join(absent)} is not installed")
    needed, free = weights * (FOUR_BITS if four_bits else FLOAT32), _free_memory()
    if free is not None and free < needed:
        raise RuntimeError(
            f"it needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        )
    import logging as standard

    # It reports on stderr which of its fast paths this machine does not have.
    standard.getLogger("bitsandbytes").setLevel(standard.CRITICAL)
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": torch.float32}
    if four_bits and not _is_four_bit(folder):
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter), config=_plain_config(adapter))
        model.eval()
        for tokens in texts:
            with torch.inference_mode():
                asked = torch.tensor([list(tokens)])  # (1, tokens)
                # logits: (1, tokens, vocabulary)
                taught, bare = model(asked).logits[0].float().numpy(), None
                if adapter is not None and not four_bits:
                    with model.disable_adapter():
                        bare = model(asked).logits[0].float().numpy()
            yield taught, bare
    finally:
        model = None
        gc.collect()
        torch.set_num_threads(before)


def _plain_config(folder: Path) -> Any:
    """PEFT's configuration with names for patterns, which it would match for as long as they take."""
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(str(folder))
    changes = load_adapter(folder).changes.items()
    modules = [name.removesuffix(".weight") for name, change in changes if change.a is not None]
    for key in ("rank_pattern", "alpha_pattern"):
        names: dict[float, list[str]] = {}
        for module in modules:
            value = match_pattern(getattr(config, key, None), module, None)
            if value is not None:
                names.setdefault(value, []).append(re.escape(module))
        setattr(config, key, {"|".join(found): value for value, found in names.items()})
    config.target_modules = modules
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    return config


def _is_four_bit(folder: Path) -> bool:
    config = read_model_config(folder).get("quantization_config") or {}
    return bool(config.get("load_in_4bit"))


def _precision(recipe: Path) -> str | None:
    """What a run's recipe says of its base; None where it says nothing."""
    try:
        model = tomllib.loads(recipe.read_text("utf-8")).get("model")
    except (OSError, ValueError):
        return None
    return model.get("precision") if isinstance(model, dict) else None


def _free_memory() -> int | None:
    """Bytes that could be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        said = dict(line.split(":", 1) for line in lines)
        return int(said["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
