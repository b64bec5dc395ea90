"""Single numbers through the number formats: `pytest tests/test_export_quantise_borders.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from export.quantise import ggml

VALUES = np.array([0.0, 1.0, -2.5, 0.15625, 60000.0], np.float32)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_numbers_of_safetensors_are_read_by_their_own_format(dtype: str) -> None:
    numbers: dict[str, Any] = {
        "F32": VALUES,
        "F16": VALUES.astype(np.float16),
        "BF16": (VALUES.view(np.uint32) >> 16).astype(np.uint16),
    }
    out = np.empty_like(VALUES)
    ggml.widen_to_float32(dtype, numbers[dtype].view(np.uint8), out)
    assert out.tolist() == pytest.approx(VALUES.tolist(), rel=0 if dtype != "BF16" else 2**-8)


def test_a_row_takes_whole_blocks() -> None:
    assert ggml.row_bytes(T.Q8_0, 64) == 2 * 34
    assert ggml.row_bytes(T.Q4_K, 512) == 2 * 144
    assert ggml.row_bytes(T.F32, 3) == 12


def test_eight_bits_give_back_what_they_were_given_almost() -> None:
    rows = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    out = np.zeros(2 * 68, np.uint8)
    assert ggml.quantise_rows(T.Q8_0, rows, out) == len(out)
    blocks = out.reshape(4, 34)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    again = blocks[:, 2:].copy().view(np.int8) * scales
    assert np.abs(again.reshape(2, 64) - rows).max() < 0.005


def test_importance_moves_the_numbers_of_four_bits() -> None:
    rows = np.random.default_rng(1).standard_normal((1, 256)).astype(np.float32)
    plain, weighed = np.zeros(144, np.uint8), np.zeros(144, np.uint8)
    ggml.quantise_rows(T.Q4_K, rows, plain)
    importance = np.linspace(0.01, 10, 256, dtype=np.float32)
    ggml.quantise_rows(T.Q4_K, rows, weighed, importance)
    assert plain.tobytes() != weighed.tobytes()


def test_what_is_no_number_is_seen_up_to_the_size_that_is_asked() -> None:
    data = np.array([1.0, 2.0, np.inf, np.nan], np.float32).view(np.uint8)
    assert ggml.is_finite(T.F32, data, 8)
    assert not ggml.is_finite(T.F32, data, 12)
    assert not ggml.is_finite(T.F32, data, 16)
