"""Each tensor's type, held against the installed llama.cpp: `pytest tests/test_export_quantise_types.py`."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from export.quantise import quant_types
from export.quantise.quant_types import FILE_TYPES, MixShape
from rig.errors import RigError, WrongUse

Tensors = list[tuple[str, tuple[int, ...]]]
LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*\], type = +(\S+), .*?(?:MiB \((\w+)\))?\s*$")


def tensors(layers: int, hidden: int, inner: int, heads: int, kv: int, *, tied: bool) -> Tensors:
    head = hidden // heads
    found: Tensors = [("token_embd.weight", (320, hidden)), ("output_norm.weight", (hidden,))]
    if not tied:
        found.append(("output.weight", (320, hidden)))
    for layer in range(layers):
        at = f"blk.{layer}."
        found += [
            (at + "attn_norm.weight", (hidden,)),
            (at + "attn_q.weight", (hidden, hidden)),
            (at + "attn_k.weight", (kv * head, hidden)),
            (at + "attn_v.weight", (kv * head, hidden)),
            (at + "attn_q.bias", (hidden,)),
            (at + "attn_output.weight", (hidden, hidden)),
            (at + "ffn_norm.weight", (hidden,)),
            (at + "ffn_gate.weight", (inner, hidden)),
            (at + "ffn_up.weight", (inner, hidden)),
            (at + "ffn_down.weight", (hidden, inner)),
        ]
    return found


def empty_model(path: Path, arch: str, shape: MixShape, wanted: Tensors) -> Path:
    """A GGUF with a whole head and no weights: the file is a hole, which costs no disk."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(shape.layers)
    writer.add_context_length(512)
    writer.add_embedding_length(wanted[0][1][1])
    writer.add_feed_forward_length(wanted[-1][1][1])
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    size = 0
    for name, dimensions in wanted:
        length = 4 * int(np.prod(dimensions))
        writer.add_tensor_info(name, dimensions, np.dtype(np.float32), length)
        size += gguf.GGUFWriter.ggml_pad(length, 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, gguf.GGUFWriter.ggml_pad(path.stat().st_size, 32) + size)
    return path


def by_llama_cpp(path: Path, file_type: str, importance: bool) -> dict[str, str]:
    """What `llama_model_quantize` of the installed library would choose: its dry run says so."""
    said: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def hear(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        said.append(text.decode())

    asked: Any = llama_cpp.llama_model_quantize_default_params()
    asked.ftype, asked.nthread, asked.dry_run = FILE_TYPES[file_type][0], 1, True
    if importance:  # present is enough: the choice looks only at whether there is one
        Entry = type(asked.imatrix)._type_
        entries = (Entry * 2)(Entry(b"nothing", (ctypes.c_float * 1)(1.0), 1), Entry())
        asked.imatrix = ctypes.cast(entries, type(asked.imatrix))
    llama_cpp.llama_log_set(hear, ctypes.c_void_p(0))
    code = llama_cpp.llama_model_quantize(
        str(path).encode(), str(path.with_suffix(".out")).encode(), ctypes.byref(asked)
    )
    assert code == 0, "".join(said)
    lines = "".join(said).splitlines()
    found = [match for match in map(LINE.search, lines) if match]
    return {match[1]: (match[3] or match[2]).upper() for match in found}


@pytest.mark.parametrize(
    ("arch", "layers", "hidden", "inner", "heads", "kv", "tied"),
    [
        pytest.param("llama", 2, 256, 512, 4, 4, False, id="few layers, no grouping"),
        pytest.param("llama", 17, 256, 256, 8, 2, True, id="grouped, tied, odd count of layers"),
        pytest.param("llama", 32, 256, 512, 4, 2, False, id="32 layers: every branch of more bits"),
        pytest.param("llama", 80, 256, 256, 8, 1, False, id="80 layers: values of a 70B get more"),
        pytest.param("llama", 80, 256, 256, 4, 4, False, id="80 layers without grouping: a 65B"),
        pytest.param("qwen2", 80, 256, 256, 4, 4, False, id="qwen2 with 80 layers is a 72B"),
        pytest.param("qwen2", 24, 224, 512, 7, 1, True, id="rows of 224: blocks of 32 only"),
        pytest.param("qwen3", 28, 256, 512, 4, 2, True, id="qwen3"),
        pytest.param("llama", 4, 72, 136, 3, 1, False, id="rows that nothing divides: F16"),
        pytest.param("llama", 4, 256, 160, 4, 1, True, id="only ffn_down does not divide by 256"),
    ],
)
def test_every_type_mixes_as_llama_cpp_does(
    tmp_path: Path, arch: str, layers: int, hidden: int, inner: int, heads: int, kv: int, tied: bool
) -> None:
    shape = MixShape(layers, heads, kv, layers == 80 and (arch == "qwen2" or heads != kv))
    wanted = tensors(layers, hidden, inner, heads, kv, tied=tied)
    model = empty_model(tmp_path / "model.gguf", arch, shape, wanted)
    for file_type in FILE_TYPES:
        for importance in (False, True):
            ours = quant_types.choose_types(file_type, wanted, shape, importance=importance)
            theirs = by_llama_cpp(model, file_type, importance)
            assert {name: kind.name for name, kind in ours.items()} == theirs, (
                file_type,
                importance,
            )


def test_every_file_type_of_the_library_is_known_or_left_out_on_purpose() -> None:
    """A new release may bring new types; this list is where to notice them."""
    left_out = {
        "MOSTLY_TQ1_0", "MOSTLY_TQ2_0",  # for models trained ternary
        "MOSTLY_MXFP4_MOE", "MOSTLY_NVFP4",  # for mixtures of experts, and for Blackwell cards
        "MOSTLY_Q1_0", "MOSTLY_Q2_0",  # for models trained with them
        "GUESSED",
    }  # fmt: skip
    known = {kind.name for kind, _ in FILE_TYPES.values()}
    names = {name.removeprefix("LLAMA_FTYPE_") for name in dir(llama_cpp) if "LLAMA_FTYPE_" in name}
    assert known | left_out >= names


@pytest.mark.parametrize("file_type", ["IQ3_XXS", "IQ2_M", "IQ2_XXS", "IQ1_S", "Q2_K_S"])
def test_a_type_that_is_garbage_without_importance_is_refused(file_type: str) -> None:
    wanted = tensors(2, 256, 256, 4, 2, tied=True)
    chosen = quant_types.choose_types(file_type, wanted, MixShape(2, 4, 2))
    with pytest.raises(RigError, match="needs an importance matrix"):
        quant_types.refuse_without_importance(file_type, chosen, set())
    quant_types.refuse_without_importance(file_type, chosen, {name for name, _ in wanted})


@pytest.mark.parametrize("file_type", ["Q4_K_M", "IQ4_XS", "Q2_K", "IQ3_S", "Q8_0"])
def test_the_others_do_without(file_type: str) -> None:
    chosen = quant_types.choose_types(
        file_type, tensors(2, 256, 256, 4, 2, tied=True), MixShape(2, 4, 2)
    )
    quant_types.refuse_without_importance(file_type, chosen, set())


def test_norms_and_biases_stay_in_32_bits() -> None:
    chosen = quant_types.choose_types(
        "Q2_K", tensors(1, 256, 256, 4, 2, tied=True), MixShape(1, 4, 2)
    )
    assert {kind for name, kind in chosen.items() if "norm" in name or "bias" in name} == {T.F32}


def test_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(WrongUse, match="did you mean 'Q4_K_M'"):
        quant_types.parse_quant_types("Q4_KM")


def test_a_list_of_types_keeps_its_order_and_drops_repetitions() -> None:
    assert quant_types.parse_quant_types(" q8_0,Q4_K_M , q8_0") == ["Q8_0", "Q4_K_M"]
