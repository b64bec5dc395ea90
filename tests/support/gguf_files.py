"""What stands in a GGUF file, in a form that tests can compare; by `export.gguf.writer`, itself tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.quants import dequantize

from export.gguf import writer
from export.gguf.convert import tensor_bytes


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor, in file order."""
    raw, found = path.read_bytes(), {}
    for name, entry in writer.read_header(path).tensors.items():
        size = tensor_bytes(entry.shape, entry.kind)
        found[name] = (entry.kind.name, raw[entry.offset : entry.offset + size])
    return found


def numbers(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor as float32."""
    entries = writer.read_header(path).tensors
    return {
        name: dequantize(np.frombuffer(data, np.uint8), entries[name].kind).reshape(
            entries[name].shape
        )
        for name, (_, data) in tensors(path).items()
    }


def keys(path: Path) -> dict[str, Any]:
    """Every key, lists among them."""
    return writer.read_header(path, lists=True).keys
