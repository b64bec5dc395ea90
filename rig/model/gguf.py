"""Reads what a GGUF says about itself (keys and tensor table) without llama.cpp and without its weights.

Listing twenty models must take milliseconds and a damaged download must not reach native code: the `gguf`
package builds every array of a 128k vocabulary in Python (seconds), llama.cpp maps the file to find out.
Whatever a file claims, reading it ends: nothing is believed that the file is too short for, and counts and
texts beyond any real model's are refused. Every failure is a sentence with the file's name.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rig.errors import RigError
from rig.model.foreign import open_regular
from rig.model.reply_format import ReplyFormat

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
KEPT = 4096
"""Arrays up to this length are kept; longer ones (vocabularies, merges) only as their length."""
MOST_KEYS, MOST_TENSORS, MOST_ITEMS, MOST_TEXT, MOST_PARTS = 2**14, 2**16, 2**24, 2**26, 4096
MOST_KEPT, MOST_LAYERS = 2**18, 2**12
"""Far above any real model: what a damaged or malicious file may not claim. `MOST_KEPT`: items of all
arrays together, `MOST_LAYERS`: `block_count`."""

BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""ggml type: name, weights in a block, bytes of a block (ggml.h, ggml-common.h)."""

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
"""`general.file_type` (enum llama_ftype in llama.h)."""


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as in torch: (rows, columns) of a matrix."""
    type: str
    """In ggml's words, such as Q4_K; `type 99` for one newer than this table."""
    bytes: int
    offset: int
    """First byte, counted from the beginning of the file."""


@dataclass(frozen=True)
class GGUFHeader:
    """One GGUF file, or the first part of a split one."""

    path: Path
    metadata: dict[str, Any]
    """Keys and values; arrays longer than `KEPT` stand as their length."""
    tensors: tuple[TensorInfo, ...]
    parts: tuple[Path, ...]
    """All files of a split model, this one first; just this one otherwise."""

    def arch_value(self, key: str, default: Any = None) -> Any:
        """A key of this architecture: `arch_value("block_count")` reads `llama.block_count`."""
        return self.metadata.get(f"{self.arch}.{key}", default)

    def arch_number(self, key: str, default: int = 0) -> int:
        """A size of this architecture; a file with anything else in that place is refused."""
        found = self.arch_value(key, default)
        if type(found) is not int or not 0 <= found < 2**31:
            raise RigError(
                f"{self.path} is a damaged GGUF ({self.arch}.{key} is no size): copy or pull it again."
            )
        return found

    def layer_numbers(self, key: str, default: int = 0) -> list[int]:
        """A size of each layer, whether the file has one for all or one for each."""
        layers, found = self.layers, self.arch_value(key, default)
        if not isinstance(found, list):
            return [self.arch_number(key, default)] * layers
        if any(type(n) is not int or not 0 <= n < 2**31 for n in found):
            raise RigError(
                f"{self.path} is a damaged GGUF ({self.arch}.{key} holds no sizes): copy or pull it again."
            )
        return [*found, *[0] * layers][:layers]

    @property
    def layers(self) -> int:
        """Number of layers."""
        if (found := self.arch_number("block_count")) > MOST_LAYERS:
            raise RigError(
                f"{self.path} is a damaged GGUF ({found:,} layers): copy or pull it again."
            )
        return found

    @property
    def arch(self) -> str:
        """The architecture, such as `llama` or `qwen3`."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def quant_name(self) -> str:
        """The format in llama.cpp's words, such as Q4_K_M; `?` when the file does not say."""
        found = self.metadata.get("general.file_type")
        return FILE_TYPES.get(found, "?") if isinstance(found, int) else "?"

    @property
    def total_bytes(self) -> int:
        """Size of all parts on disk."""
        return sum(part.stat().st_size for part in self.parts)

    @property
    def context_length(self) -> int:
        """Tokens the model was trained to look back on; 0 when it does not say."""
        return self.arch_number("context_length")

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return len(tokens) if isinstance(tokens, list) else tokens if type(tokens) is int else 0

    @property
    def reply_format(self) -> ReplyFormat:
        """The contract the model was taught, if it was."""
        return ReplyFormat.from_metadata(self.metadata)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with open_regular(path) as file:
        return file.read(4) == b"GGUF"


def read_header(path: Path, *, lists: bool = False) -> GGUFHeader:
    """Read the header of `path`; a file that is none, or not all there, is refused with a sentence.

    `lists` keeps arrays of any length, such as all tokens.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(4) != b"GGUF":
                raise RigError(
                    f"{path} is not a GGUF file: give one, such as `rig export` writes or `rig pull` brings."
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                metadata, tensors, end = _Reader(data, lists).read_header()
        parts = _parts(path, metadata)
    except OSError as error:
        raise RigError(f"{path} can't be read: {error.strerror or error}.") from error
    except (
        struct.error,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        MemoryError,
    ) as error:
        raise RigError(f"{path} is a damaged GGUF ({error}): copy or pull it again.") from error
    if size < end:
        raise RigError(
            f"{path} is not all there ({size:,} of {end:,} bytes): copy or pull it again."
        )
    if not tensors and len(parts) < 2:  # the first part of a split may have none
        raise RigError(
            f"{path} holds no weights: it is damaged, or a vocabulary only; copy or pull it again."
        )
    return GGUFHeader(path, metadata, tensors, parts)


def fingerprint_file(path: Path) -> str:
    """16 hex digits that tell one model file from another: of its size, its first MiB and its last.

    Milliseconds for any size. It says whether two boxes serve the same file, not who made it: whoever
    wants that compares the SHA-256 that `rig pull` checks.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        found = hashlib.sha256(str(size).encode())
        found.update(file.read(2**20))
        file.seek(max(0, size - 2**20))
        found.update(file.read(2**20))
    return found.hexdigest()[:16]


def _parts(path: Path, metadata: dict[str, Any]) -> tuple[Path, ...]:
    count = int(metadata.get("split.count", 1))
    if count < 2:
        return (path,)
    if count > MOST_PARTS:
        raise ValueError(f"{count} parts")
    if int(metadata.get("split.no", 0)) != 0:
        raise RigError(
            f"{path} is a later part of a split model: name the part -00001-of- instead."
        )
    stem = path.name.removesuffix(f"-00001-of-{count:05d}.gguf")
    parts = tuple(
        path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)
    )
    if missing := [part.name for part in parts if not part.is_file()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise RigError(
            f"{path} needs its other parts beside it; missing: {', '.join(missing[:3])}{more}."
        )
    return parts


class _Reader:
    """Walks through a mapped file. Raises the plain errors that `read_header` puts into a sentence."""

    def __init__(self, data: mmap.mmap, lists: bool) -> None:
        self.data = data
        self.kept = self.left = MOST_ITEMS
        if not lists:
            self.kept, self.left = KEPT, MOST_KEPT
        self.at = 4

    def read_header(self) -> tuple[dict[str, Any], tuple[TensorInfo, ...], int]:
        """Keys, tensor table, and the offset at which the last tensor ends."""
        version = self.read_number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        n_tensors = self.read_count(MOST_TENSORS, "tensors")
        n_keys = self.read_count(MOST_KEYS, "keys")
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.read_string()
            if key in metadata:
                raise ValueError(f"two keys {key!r:.80}")
            metadata[key] = self.read_value(self.read_number("I"))
        rows = []
        for _ in range(n_tensors):
            name = self.read_string()
            sides = self.read_number("I")
            shape = tuple(self.read_number("Q") for _ in range(min(sides, 9)))[::-1]
            if sides > 8 or 0 in shape or math.prod(shape) >= 2**63:
                raise ValueError(f"a tensor of the shape {shape}")
            kind, offset = self.read_number("I"), self.read_number("Q")
            # a type newer than this table is no error here: llama.cpp decides what it can load
            named, block, size = BLOCKS.get(kind, (f"type {kind}", 1, 0))
            rows.append(TensorInfo(name, shape, named, math.prod(shape) // block * size, offset))
        align = int(metadata.get("general.alignment", 32))
        start = -(-self.at // align) * align
        tensors = tuple(replace(row, offset=start + row.offset) for row in rows)
        return metadata, tensors, max((t.offset + t.bytes for t in tensors), default=self.at)

    def read_number(self, code: str) -> Any:
        (found,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return found

    def read_count(self, most: int, noun: str) -> int:
        count = int(self.read_number("Q"))
        if count > most:
            raise ValueError(f"{count:,} {noun}")
        return count

    def read_string(self) -> str:
        size = self.read_count(MOST_TEXT, "bytes of text")
        self.skip_bytes(size)
        return bytes(self.data[self.at - size : self.at]).decode("utf-8", "surrogateescape")

    def read_value(self, kind: int) -> Any:
        if kind == STRING:
            return self.read_string()
        if kind != ARRAY:
            return self.read_number(SCALARS[kind])
        inner, count = self.read_number("I"), self.read_count(MOST_ITEMS, "items")
        if inner != STRING and inner not in SCALARS:
            raise ValueError(f"an array of type {inner}")
        if count <= min(self.kept, self.left):
            self.left -= count
            return [self.read_value(inner) for _ in range(count)]
        if inner == STRING:
            at, size_at = self.at, struct.Struct("<Q").unpack_from
            for _ in range(count):  # 400,000 of them in a large vocabulary: no calls in here
                at += 8 + size_at(self.data, at)[0]
            self.skip_bytes(at - self.at)
        else:
            self.skip_bytes(count * struct.calcsize("<" + SCALARS[inner]))
        return count

    def skip_bytes(self, size: int) -> None:
        if self.at + size > len(self.data):
            raise ValueError("it ends too early")
        self.at += size
