"""The pass: every weight is read once, changed by the adapter, and written in all wanted types at once.

Work is cut into ranges of rows that fit the processor's cache; each thread takes one range from file to
file (read, widen, add the delta, permute, quantise, write at its place), so no thread waits for another
and memory does not grow with the model. Layout is known before the first byte, so are the sizes.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from export.checkpoint.adapter import Change
from export.checkpoint.architecture import OutputTensor
from export.checkpoint.safetensors import StoredTensor, TensorReader
from export.quantise import ggml
from rig.errors import RigError

RANGE = 1 << 18
"""Numbers in one range of rows; at least one row, or one head where heads are permuted."""
NOTHING = Change()


class PassProgress(Protocol):
    """Hears how far the pass has come; called from several threads."""

    def advance(self, numbers: int, tensor: str, done: bool) -> None:
        """`numbers` weights of `tensor` are written; `done`: it was the last range of it."""


@dataclass
class OutputFile:
    """One file to be written: its type's choice for every tensor, and where each begins."""

    kinds: Mapping[str, GGMLQuantizationType]
    path: Path
    importance: Mapping[str, ggml.Floats] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ConversionPass:
    """What is written from what, the same for all types."""

    parts: Sequence[OutputTensor]
    tensors: Mapping[str, StoredTensor]
    """The base's tensors by their Hugging Face names."""
    changes: Mapping[str, Change]

    def total_bytes(self, kinds: Mapping[str, GGMLQuantizationType]) -> int:
        """Bytes of all tensors, padding included."""
        return sum(aligned_size(tensor_bytes(part.shape, kinds[part.name])) for part in self.parts)

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(math.prod(part.shape) for part in self.parts)

    def without_changes(self) -> ConversionPass:
        """The same pass over the base alone."""
        return ConversionPass(self.parts, self.tensors, {})

    def write_header(self, writer: gguf.GGUFWriter, target: OutputFile) -> None:
        """Write header, keys and the list of tensors; fill the space of the weights with zeros."""
        for part in self.parts:
            kind = target.kinds[part.name]
            writer.add_tensor_info(
                part.name,
                part.shape,
                np.dtype(np.float32),
                tensor_bytes(part.shape, kind),
                raw_dtype=kind,
            )
        writer.write_header_to_file(target.path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        at = aligned_size(target.path.stat().st_size)
        for part in self.parts:
            target.starts[part.name] = at
            at += aligned_size(tensor_bytes(part.shape, target.kinds[part.name]))
        os.truncate(target.path, at)

    def write_tensors(
        self, targets: Sequence[OutputFile], threads: int, progress: PassProgress
    ) -> None:
        """Fill the weights of all targets; on an error or Ctrl-C every thread ends first."""
        work = _Work(self, targets, progress)
        crew = [
            threading.Thread(target=work.write_ranges, daemon=True) for _ in range(max(1, threads))
        ]
        for thread in crew:
            thread.start()
        try:
            for thread in crew:
                while thread.is_alive():
                    thread.join(0.2)  # wakes up for Ctrl-C
        finally:
            work.stop = True
            for thread in crew:
                thread.join()
        if work.error is not None:
            raise work.error

    def row_ranges(self) -> Iterator[tuple[OutputTensor, int, int, bool]]:
        """Each part in ranges (first row, rows, whether it is the part's last), in file order."""
        for part in self.parts:
            # a vector counts as (rows, 1), a matrix is (rows, columns)
            rows, columns = part.shape[0], part.shape[1] if len(part.shape) > 1 else 1
            block = rows // part.heads if part.heads else 1
            step = max(1, RANGE // (columns * block)) * block
            for first in range(0, rows, step):
                count = min(step, rows - first)
                yield part, first, count, first + count == rows

    def fill_rows(
        self, part: OutputTensor, first: int, out: ggml.Floats, reader: TensorReader
    ) -> ggml.Floats:
        """Rows of one part as float32, in their final order; `out` is used, the answer counts.

        Both are (rows asked for, columns).
        """
        if part.values is not None:  # (rows,) -> (rows, 1)
            out[:] = part.values.reshape(-1, 1)[first : first + len(out)]
            return out
        assert part.source is not None  # a part has a source or values
        reader.read_rows(self.tensors[part.source], first, out)
        self.changes.get(part.source, NOTHING).apply_to_rows(out, first)
        if part.shift:
            out += np.float32(part.shift)
        return unpermute_rope(out, part.shape[0] // part.heads) if part.heads else out


class _Work:
    """The ranges that are left, taken one at a time by the threads."""

    def __init__(
        self, job: ConversionPass, targets: Sequence[OutputFile], progress: PassProgress
    ) -> None:
        self.job, self.targets, self.progress = job, targets, progress
        self.stop = False
        self.error: BaseException | None = None
        self._left = job.row_ranges()
        self._lock = threading.Lock()

    def take_range(self) -> tuple[OutputTensor, int, int, bool] | None:
        with self._lock:
            return None if self.stop else next(self._left, None)

    def write_ranges(self) -> None:
        """Take ranges until none is left; the first error stops everybody."""
        try:
            with ExitStack() as stack:
                reader = stack.enter_context(TensorReader())
                files = [
                    stack.enter_context(target.path.open("r+b", buffering=0))
                    for target in self.targets
                ]
                floats, packed = np.empty(0, np.float32), np.empty(0, np.uint8)
                while (taken := self.take_range()) is not None:
                    part, first, count, last = taken
                    columns = part.shape[1] if len(part.shape) > 1 else 1
                    # both are as large as the largest range yet: (count * columns,), and 4 bytes for each
                    if floats.size < count * columns:
                        floats = np.empty(count * columns, np.float32)
                        packed = np.empty(floats.nbytes, np.uint8)
                    rows = floats[: count * columns].reshape(count, columns)  # a view of `floats`
                    rows = self.job.fill_rows(part, first, rows, reader)
                    for target, file in zip(self.targets, files, strict=True):
                        _store(part, first, rows, packed, target, file)
                    self.progress.advance(count * columns, part.name, last)
        except BaseException as error:
            with self._lock:
                self.stop = True
                self.error = self.error or error


def _store(
    part: OutputTensor,
    first: int,
    rows: ggml.Floats,
    packed: npt.NDArray[np.uint8],
    target: OutputFile,
    file: BinaryIO,
) -> None:
    kind = target.kinds[part.name]
    size = ggml.quantise_rows(kind, rows, packed, target.importance.get(part.name))
    if not ggml.is_finite(kind, packed, size):
        raise RigError(
            f"{part.source} holds numbers that are not finite (rows {first} to {first + len(rows)}): "
            f"the base or the adapter is broken, or the training has diverged."
        )
    file.seek(target.starts[part.name] + first * ggml.row_bytes(kind, rows.shape[1]))
    view, done = packed.data[:size], 0
    while done < size:
        done += file.write(view[done:])


def unpermute_rope(rows: ggml.Floats, head: int) -> ggml.Floats:
    """Undo Hugging Face's order of rotary rows, in each head of `head` rows.

    >>> unpermute_rope(np.arange(8, dtype=np.float32).reshape(8, 1), 4).ravel().tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    count, columns = rows.shape
    # (heads, 2, head / 2, columns) -> (heads, head / 2, 2, columns): what rotates together comes together
    turned = rows.reshape(count // head, 2, head // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(turned).reshape(count, columns)


def tensor_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Size of a tensor of `shape` stored as `kind`."""
    return math.prod(shape[:-1]) * ggml.row_bytes(kind, shape[-1])


def aligned_size(size: int) -> int:
    """`size` rounded up to GGUF's alignment."""
    return int(gguf.GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT))
