"""Safetensors read by byte ranges: only headers are held, and no page of a big file stays mapped.

The `safetensors` package gives NumPy no bfloat16, and a memory map counts every page it touched as
resident; here a row range is read into a buffer of the caller's. Every header is checked against its
file before anything is written anywhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeGuard

import numpy as np
import numpy.typing as npt

from export.quantise import ggml
from rig.errors import RigError
from rig.model.foreign import open_regular, parse_json_object, read_json_object

WIDTH = {"BF16": 2, "F16": 2, "F32": 4}
"""Bytes of one number, for the types that weights may have."""
MOST_HEADER = 100 << 20
"""Bytes of the largest header, by the format's own rule."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies; `shape` in torch order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    """First byte in the file."""

    @property
    def columns(self) -> int:
        """Numbers in a row; a vector counts as rows of one number."""
        return self.shape[1] if len(self.shape) > 1 else 1


def folder_weights(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a model folder, from one file or from all the shards that its index names."""
    index = folder / INDEX
    if not index.is_file():
        single = folder / SINGLE
        if not single.is_file():
            raise RigError(_no_weights(folder))
        return file_weights(single)
    where = read_json_object(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise RigError(f"{index} is damaged (it has no weight_map): copy or download it again.")
    for shard in where.values():
        _refuse_outside(shard, index)
    shards = sorted(set(where.values()))
    if missing := [name for name in shards if not os.path.isfile(folder / name)]:
        raise RigError(
            f"{folder} lacks {len(missing)} of its {len(shards)} weight files "
            f"({', '.join(missing[:3])}): download it again."
        )
    found: dict[str, StoredTensor] = {}
    for shard in shards:
        found |= file_weights(folder / shard)
    if absent := sorted(set(where) - set(found)):
        raise RigError(
            f"{folder}: {INDEX} names {len(absent)} tensors that no weight file holds "
            f"({absent[0]}): download it again."
        )
    return found


def file_weights(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file; a damaged or cut file ends in a sentence."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_HEADER):
            raise RigError(_damaged(path, "its header is cut off"))
        try:
            header = parse_json_object(file.read(length), path)
        except RigError as error:
            raise RigError(_damaged(path, "its header makes no sense")) from error
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        tensors[name], end = _tensor(name, entry, path, 8 + length)
        if end > size:
            raise RigError(_damaged(path, f"it ends at byte {size}, in the middle of {name}"))
        spans.append((tensors[name].offset, end, name))
    at = 8 + length
    for begin, end, name in sorted(spans):  # the format has neither gaps nor overlaps
        if begin != at:
            raise RigError(_damaged(path, f"{name} begins at byte {begin}, not {at}"))
        at = end
    return tensors


class TensorReader:
    """Reads tensors by rows; each thread has its own, since each keeps its own places in the files."""

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}
        self._raw = np.empty(0, np.uint8)

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def read_rows(self, tensor: StoredTensor, first: int, out: ggml.Floats) -> None:
        """Fill `out` ((rows, columns), float32, contiguous) with the rows from `first` on."""
        ggml.widen_to_float32(tensor.dtype, self.read_raw_rows(tensor, first, len(out)), out)

    def read_raw_rows(self, tensor: StoredTensor, first: int, count: int) -> npt.NDArray[np.uint8]:
        """The bytes of `count` rows as they stand in the file; good until the next call."""
        row = tensor.columns * WIDTH[tensor.dtype]
        size = count * row
        if len(self._raw) < size:
            self._raw = np.empty(size, np.uint8)
        file = self._files.get(tensor.path)
        if file is None:
            file = self._files[tensor.path] = tensor.path.open("rb", buffering=0)
        file.seek(tensor.offset + first * row)
        view, done = self._raw.data[:size], 0
        while done < size:
            got = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise RigError(_damaged(tensor.path, f"{tensor.name} is cut off"))
            done += got
        return self._raw[:size]


def read_tensor(tensor: StoredTensor) -> ggml.Floats:
    """All of a tensor as float32, in its own shape."""
    # (rows, columns) whatever the shape: all but the last side are rows
    out = np.empty((math.prod(tensor.shape) // tensor.columns, tensor.columns), np.float32)
    with TensorReader() as reader:
        reader.read_rows(tensor, 0, out)
    return out.reshape(tensor.shape)


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same bytes; read in slices."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    step = max(1, (1 << 22) // one.columns)
    with TensorReader() as left, TensorReader() as right:
        return all(
            np.array_equal(
                left.read_raw_rows(one, at, min(step, one.shape[0] - at)),
                right.read_raw_rows(other, at, min(step, one.shape[0] - at)),
            )
            for at in range(0, one.shape[0], step)
        )


def refuse_odd_types(tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    """Stop at weights that are no plain floating-point numbers, such as 4-bit ones."""
    odd = sorted({t.dtype for t in tensors.values() if t.dtype not in WIDTH})
    if odd:
        raise RigError(
            f"{folder} holds weights as {', '.join(odd)}: export from 16-bit or 32-bit weights "
            f"(BF16, F16, F32), the ones it was made of."
        )


def _tensor(name: str, entry: object, path: Path, base: int) -> tuple[StoredTensor, int]:
    """The tensor that an entry of the header tells of, and the byte of the file that it ends at."""
    if not isinstance(entry, dict):
        raise RigError(_damaged(path, f"{name} is no entry of a header"))
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets):
        raise RigError(_damaged(path, f"{name} lacks a type, a shape or a place"))
    if len(shape) > 8 or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise RigError(_damaged(path, f"{name} has no shape or place that makes sense"))
    begin, end = offsets
    wanted = math.prod(shape) * WIDTH.get(dtype, 0)
    if dtype in WIDTH and end - begin != wanted:
        raise RigError(_damaged(path, f"{name} has {end - begin} bytes, not {wanted}"))
    return StoredTensor(name, dtype, tuple(shape), path, base + begin), base + end


def _are_sizes(found: object) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 2**63 for n in found)


def _refuse_outside(shard: object, index: Path) -> None:
    """A shard lies in the folder of its index or below; anything else is somebody else's file."""
    name = shard if isinstance(shard, str) else ""
    odd = not name or name.startswith("/") or ".." in name.split("/") or set(name) & set("\\:\0")
    if odd:
        raise RigError(
            f"{index} names a weight file outside its folder ({shard!r:.80}): rig reads only what "
            f"lies beside it."
        )


def _damaged(path: Path, how: str) -> str:
    return f"{path} is damaged ({how}): copy or download it again."


def _no_weights(folder: Path) -> str:
    if list(folder.glob("pytorch_model*.bin")):
        return (
            f"{folder} holds its weights as pytorch_model.bin, which may run code when read: save "
            f"them as safetensors first (model.save_pretrained(folder))."
        )
    return f"{folder} holds no weights: {SINGLE} or {INDEX} should lie there."
