"""The number formats of the installed llama.cpp, called through ctypes: no bit is laid out here.

ctypes gives the interpreter lock back while C works, so several threads may quantise at once. Types go
by their ggml numbers (`gguf.GGMLQuantizationType`), which the library itself uses.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

Floats = npt.NDArray[np.float32]


@cache
def _library() -> Any:
    from llama_cpp import _ggml
    from llama_cpp._ctypes_extensions import load_shared_library

    library = load_shared_library("ggml-base", _ggml.libggml_base_path)
    pointer, i64, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    for name, result, arguments in (
        ("ggml_quantize_chunk", size, [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]),
        ("ggml_validate_row_data", ctypes.c_bool, [ctypes.c_int, pointer, size]),
        ("ggml_bf16_to_fp32_row", None, [pointer, pointer, i64]),
        ("ggml_fp16_to_fp32_row", None, [pointer, pointer, i64]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def row_bytes(kind: GGMLQuantizationType, columns: int) -> int:
    """Size of one row of `columns` numbers, a multiple of the block size, stored as `kind`.

    >>> row_bytes(GGMLQuantizationType.Q4_K, 256), row_bytes(GGMLQuantizationType.F16, 3)
    (144, 6)
    """
    block, size = GGML_QUANT_SIZES[kind]
    return int(columns // block * size)


def quantise_rows(
    kind: GGMLQuantizationType,
    rows: Floats,
    out: npt.NDArray[np.uint8],
    importance: Floats | None = None,
) -> int:
    """Write `rows` ((rows, columns), float32, contiguous) as `kind` into `out`; return the bytes.

    `importance` weighs the columns: (columns,). Rows are independent of each other, so any split of a
    tensor into rows gives the same bytes. The caller has asked for the importance matrix where the
    type cannot do without one: the library aborts the process otherwise.
    """
    count, columns = rows.shape
    return int(
        _library().ggml_quantize_chunk(
            int(kind),
            rows.ctypes.data,
            out.ctypes.data,
            0,
            count,
            columns,
            importance.ctypes.data if importance is not None else None,
        )
    )


def is_finite(kind: GGMLQuantizationType, data: npt.NDArray[np.uint8], size: int) -> bool:
    """Whether the first `size` bytes hold only finite numbers; the library's own check."""
    return bool(_library().ggml_validate_row_data(int(kind), data.ctypes.data, size))


def widen_to_float32(dtype: str, raw: npt.NDArray[np.uint8], out: Floats) -> None:
    """Turn safetensors numbers (`BF16`, `F16`, `F32`) into float32, as many as `out` holds."""
    if dtype == "F32":
        # (bytes,) -> (numbers,): four bytes are one number
        np.copyto(out.reshape(-1), raw[: out.nbytes].view(np.float32))
        return
    function = "ggml_bf16_to_fp32_row" if dtype == "BF16" else "ggml_fp16_to_fp32_row"
    getattr(_library(), function)(raw.ctypes.data, out.ctypes.data, out.size)
