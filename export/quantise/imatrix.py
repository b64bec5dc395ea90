"""How much each input of each weight matters on a text: llama.cpp's importance matrix, read, made, written.

For every matrix of the layers: the mean square of what flows into each of its columns. The file formats
are llama.cpp's (GGUF, and the older binary one), so files go both ways between rig and llama-imatrix.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np

from export.quantise.ggml import Floats
from rig.atomic import atomic_file
from rig.errors import RigError
from rig.model.foreign import open_regular
from rig.model.gguf import TensorInfo, is_gguf, read_header

CHUNK = 512
"""Tokens of text that are read together; what comes before them is not remembered."""
MOST = 100
"""Chunks that are read at most; more text than that has not been seen to help."""
MOST_OLD = 1 << 30
"""Bytes that are read of an older file."""
LEAST = 256
"""Tokens a text must have, or what it says of the model is chance."""


@dataclass
class ImportanceMatrix:
    """Sums of squares and numbers of rows by tensor name, as they are collected and stored."""

    sums: dict[str, Floats] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    chunks: int = 0
    chunk_size: int = CHUNK

    def mean_squares(self) -> dict[str, Floats]:
        """The mean squares, as the quantisers take them; all ones for a matrix that nothing flowed into."""
        return {
            name: sums / np.float32(self.counts[name]) if self.counts[name] else np.ones_like(sums)
            for name, sums in self.sums.items()
        }


def is_text(path: Path) -> bool:
    """Whether a file is text to compute from, and not a matrix that is ready."""
    with open_regular(path) as file:
        start = file.read(4096)
    return not start.startswith(b"GGUF") and b"\0" not in start


def read_imatrix(path: Path) -> ImportanceMatrix:
    """A matrix from a file of llama.cpp's or rig's own."""
    try:
        return _read_gguf(path) if is_gguf(path) else _read_old(path)
    except (RigError, ValueError, LookupError, ArithmeticError, TypeError, struct.error) as error:
        raise RigError(f"{path} is no importance matrix, or damaged ({error}).") from error


def refuse_other_model(matrix: ImportanceMatrix, columns: dict[str, int], path: Path) -> None:
    """Stop at a matrix of another model; `columns` is the row length of each tensor."""
    for name, sums in matrix.sums.items():
        if not np.isfinite(sums).all():
            raise RigError(f"{path} holds values for {name} that are not finite: make it anew.")
        if name == "token_embd.weight":
            continue
        if name not in columns or columns[name] != sums.size:
            raise RigError(
                f"{path} is the importance matrix of another model: it has {sums.size} values for {name}, "
                f"this one takes {columns.get(name, 'none')}."
            )


def write_imatrix(matrix: ImportanceMatrix, path: Path) -> None:
    """Write llama.cpp's GGUF form."""
    with atomic_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, arch="")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", matrix.datasets or [""])
        writer.add_uint32("imatrix.chunk_count", matrix.chunks)
        writer.add_uint32("imatrix.chunk_size", matrix.chunk_size)
        for name in sorted(matrix.sums):
            writer.add_tensor(f"{name}.in_sum2", matrix.sums[name].reshape(1, -1))
            writer.add_tensor(f"{name}.counts", np.array([[matrix.counts[name]]], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def compute_imatrix(
    model: Path, text: Path, *, threads: int = 2, tell: Callable[[str], None] = lambda stage: None
) -> ImportanceMatrix:
    """Let the GGUF file `model` read `text`, and collect what flows into its matrices; `tell` hears of it."""
    from export.llama import LlamaModel

    collected = ImportanceMatrix(datasets=[str(text)])
    with LlamaModel(model, context=CHUNK, threads=threads, watch=_Collector(collected)) as loaded:
        try:
            tokens = loaded.tokenize_text(text.read_text("utf-8"))
        except UnicodeDecodeError as error:
            raise RigError(f"{text} is not text in UTF-8 ({error}).") from error
        if len(tokens) < LEAST:
            raise RigError(
                f"{text} has {len(tokens)} tokens; an importance matrix wants at least {LEAST}, better "
                f"some ten thousand of the kind of text that the model will work on."
            )
        begin = [loaded.special_token_id("bos")] if loaded.adds_bos() else []
        chunks = _chunks(tokens, CHUNK - len(begin))
        for chunk in chunks:
            tell(f"part {collected.chunks + 1} of {len(chunks)}")
            loaded.run_prompt(begin + list(chunk))
            collected.chunks += 1
    return collected


def _chunks(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    whole = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    enough = [chunk for chunk in whole if len(chunk) == size] or whole[:1]
    return enough[:MOST]


class _Tensor(ctypes.Structure):
    """ggml's tensor, of the revision that constraints.txt pins; `_Collector` checks that it still fits."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class _Collector:
    """Called by llama.cpp around every operation: asks for the products with layer matrices, sums them up."""

    def __init__(self, matrix: ImportanceMatrix) -> None:
        from llama_cpp import _ggml

        self._matrix = matrix
        library: Any = _ggml.libggml
        library.ggml_op_name.restype = ctypes.c_char_p
        names = {library.ggml_op_name(number): number for number in range(128)}
        self._product = names[b"MUL_MAT"]
        library.ggml_tensor_overhead.restype = ctypes.c_size_t
        if library.ggml_tensor_overhead() != ctypes.sizeof(_Tensor) + 32:
            raise RigError(
                "This llama-cpp-python lays tensors out differently from the pinned version: install the "
                "one in constraints.txt to compute an importance matrix."
            )

    def __call__(self, pointer: int, ask: bool) -> bool:
        """Answer whether the operation is wanted (`ask`), or take what flowed into it."""
        tensor = ctypes.cast(pointer, ctypes.POINTER(_Tensor)).contents
        if tensor.op != self._product:
            return not ask
        weights, inputs = tensor.src[0].contents, tensor.src[1].contents
        name = weights.name.decode()
        if not name.startswith("blk.") or inputs.type != 0:
            return not ask
        if not ask:
            # ggml names the innermost side first: (columns, tokens, 1, 1) -> (tokens, columns)
            rows, columns = inputs.ne[1] * inputs.ne[2] * inputs.ne[3], inputs.ne[0]
            flat = (ctypes.c_float * (rows * columns)).from_address(inputs.data)
            values = np.frombuffer(flat, np.float32).reshape(rows, columns)
            self._add(name, values)
        return True

    def _add(self, name: str, values: Floats) -> None:
        # (tokens, columns) -> (columns,)
        square = np.einsum("ij,ij->j", values, values, dtype=np.float32)
        matrix = self._matrix
        matrix.sums[name] = matrix.sums[name] + square if name in matrix.sums else square
        matrix.counts[name] = matrix.counts.get(name, 0) + len(values)


def _read_gguf(path: Path) -> ImportanceMatrix:
    header = read_header(path)
    if (kind := header.metadata["general.type"]) != "imatrix":
        raise ValueError(f"general.type is {kind!r}")
    datasets = header.metadata.get("imatrix.datasets", [])
    found = ImportanceMatrix(
        datasets=list(map(str, datasets)) if isinstance(datasets, list) else []
    )
    found.chunks = int(header.metadata.get("imatrix.chunk_count", 0))
    tensors = {tensor.name: tensor for tensor in header.tensors}
    with open_regular(path) as file:
        for name, tensor in tensors.items():
            if name.endswith(".in_sum2"):
                plain = name.removesuffix(".in_sum2")
                found.sums[plain] = _floats(file, tensor)
                found.counts[plain] = int(_floats(file, tensors[f"{plain}.counts"])[0])
    return found


def _floats(file: BinaryIO, tensor: TensorInfo) -> Floats:
    """The numbers of a tensor: (1, columns) -> (columns,)."""
    if tensor.type != "F32":
        raise ValueError(f"{tensor.name} is {tensor.type}")
    file.seek(tensor.offset)
    return np.frombuffer(file.read(tensor.bytes), "<f4").astype(np.float32)


def _read_old(path: Path) -> ImportanceMatrix:
    """The binary form before GGUF: sums are means already, times a number of calls."""
    with open_regular(path) as file:
        raw, found = file.read(MOST_OLD), ImportanceMatrix()
    (entries,) = struct.unpack_from("<i", raw, 0)
    if not 0 < entries < 100_000:
        raise ValueError(f"{entries} entries")
    at = 4
    for _ in range(entries):
        (size,) = struct.unpack_from("<I", raw, at)
        name = raw[at + 4 : at + 4 + size].decode()
        calls, count = struct.unpack_from("<ii", raw, at + 4 + size)
        at += 12 + size
        if count <= 0 or at + 4 * count > len(raw):
            raise ValueError(f"{name} is cut off")
        found.sums[name] = np.frombuffer(raw, "<f4", count, at).astype(np.float32)
        found.counts[name] = max(1, calls)
        at += 4 * count
    if len(raw) >= at + 8:
        found.chunks, size = struct.unpack_from("<iI", raw, at)
        found.datasets = [raw[at + 8 : at + 8 + size].decode()]
    return found
