"""What stands in a GGUF file, in a form that tests can compare; by `rig.model.gguf`, itself tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from rig.model.gguf import read_header


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor, in file order."""
    raw = path.read_bytes()
    return {t.name: (t.type, raw[t.offset : t.offset + t.bytes]) for t in read_header(path).tensors}


def numbers(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor as float32."""
    shapes = {t.name: t.shape for t in read_header(path).tensors}
    return {
        name: dequantize(np.frombuffer(data, np.uint8), GGMLQuantizationType[kind]).reshape(
            shapes[name]
        )
        for name, (kind, data) in tensors(path).items()
    }


def keys(path: Path) -> dict[str, Any]:
    """Every key, lists among them."""
    return read_header(path, lists=True).metadata
