"""The adapter alone, as a GGUF LoRA that llama.cpp adds to a base at run time (`--lora FILE`).

Same names and bytes as llama.cpp's `convert_lora_to_gguf.py`, except that a scale which differs between
modules (rank and alpha patterns, rsLoRA) is worked into B, because the format knows only one alpha.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from export.checkpoint import adapter as adapters
from export.checkpoint.architecture import OutputTensor
from export.checkpoint.config import read_adapter_config
from export.gguf import metadata
from export.gguf.convert import unpermute_rope
from export.plan import ExportedFile, ExportPlan, file_sha256
from export.quantise.ggml import Floats
from rig.atomic import atomic_file
from rig.errors import RigError, WrongUse


def write_lora_gguf(plan: ExportPlan, path: Path) -> ExportedFile:
    """Write the adapter of `plan` as float32; what the format cannot hold is refused."""
    if plan.source.adapter is None:
        raise WrongUse(
            f"{plan.source.name} has no adapter: --adapter wants a run or an adapter folder."
        )
    alpha = float(read_adapter_config(plan.source.adapter).get("lora_alpha", 8))
    pairs = {}
    for part in plan.parts:
        change = plan.changes.get(part.source or "")
        if change is not None:
            pairs[part.name] = _pair(part, change, alpha, plan.model.tied)
    with atomic_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[plan.model.architecture.gguf])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_name(plan.source.name)
        for key, value in metadata.rig_keys(plan.source).items():
            writer.add_string(key, value)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for name, (down, up) in pairs.items():
            writer.add_tensor(f"{name}.lora_a", down)
            writer.add_tensor(f"{name}.lora_b", up)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return ExportedFile(path, "LORA", temporary.stat().st_size, file_sha256(temporary))


def _pair(
    part: OutputTensor, change: adapters.Change, alpha: float, tied: bool
) -> tuple[Floats, Floats]:
    """A and B as llama.cpp multiplies them."""
    if (
        change.whole is not None
        or change.magnitude is not None
        or change.bias is not None
        or change.a is None
        or change.b is None
    ):
        raise RigError(
            f"A GGUF adapter holds only LoRA pairs, and this one changes {part.source} in another way "
            f"(DoRA, a bias, or saved whole): use --gguf, which works it into the model."
        )
    if tied and part.name in ("output.weight", "token_embd.weight"):
        raise RigError(
            f"The base uses one table for input and output, and the adapter changes {part.source} alone: "
            f"llama.cpp cannot add that at run time; use --gguf, which works it into the model."
        )
    down, up = change.read(change.a), change.read(change.b)
    if change.embedding:  # A of an embedding looks rows up: (rank, rows) -> (rows, rank)
        down = np.ascontiguousarray(down.T)
    elif part.heads:
        up = unpermute_rope(up, part.shape[0] // part.heads)
    ratio = change.scale / (alpha / change.rank)
    return down, up if abs(ratio - 1) < 1e-6 else up * np.float32(ratio)
