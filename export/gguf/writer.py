"""The head of a GGUF file without the wait: its keys and its list of tensors, read and written.

The `gguf` package's reader makes an array of every token's text, which takes half a minute for a
vocabulary of 128,000; here long lists are stepped over unless they are asked for. Its writer packs them
item by item, for more than a second a file; here at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from rig.errors import RigError

FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF's numbers for its plain types, as `struct` calls them; 8 is a text, 9 a list."""
TEXT, LIST = 8, 9
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    """Rows first, as in torch."""
    offset: int
    """First byte, counted from the beginning of the file."""


@dataclass(frozen=True)
class GGUFHeader:
    """What the head of a file says."""

    keys: dict[str, Any]
    """Values by key; of a list that was stepped over, None."""
    tensors: dict[str, TensorInfo]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def read_header(path: Path, *, lists: bool = False) -> GGUFHeader:
    """Read the head of `path`; `lists` also reads lists, such as all tokens."""
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as raw:
            return _Cursor(raw, lists).read_header()
    except (OSError, ValueError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise RigError(f"{path} is no GGUF file, or damaged ({error}).") from error


class _Cursor:
    def __init__(self, raw: mmap, lists: bool) -> None:
        self.raw, self.lists, self.at = raw, lists, 0

    def read_header(self) -> GGUFHeader:
        if self.raw[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version, tensors, count = (
            self.read_number("I"),
            self.read_number("Q"),
            self.read_number("Q"),
        )
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        keys = {}
        for _ in range(count):
            name = self.read_text()
            keys[name] = self.read_value(self.read_number("I"))
        found = {}
        for _ in range(tensors):
            name = self.read_text()
            shape = tuple(self.read_number("Q") for _ in range(self.read_number("I")))[::-1]
            found[name] = TensorInfo(
                GGMLQuantizationType(self.read_number("I")), shape, self.read_number("Q")
            )
        alignment = int(keys.get("general.alignment", 32))
        start = -(-self.at // alignment) * alignment
        moved = {n: TensorInfo(e.kind, e.shape, start + e.offset) for n, e in found.items()}
        return GGUFHeader(keys, moved)

    def read_number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.raw, self.at)
        self.at += struct.calcsize(form)
        return value

    def read_text(self) -> str:
        size = self.read_number("Q")
        if size > len(self.raw) - self.at:
            raise ValueError("a text is cut off")
        self.at += size
        return self.raw[self.at - size : self.at].decode("utf-8")

    def read_value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.read_text()
        if kind != LIST:
            return self.read_number(FORMS[kind])
        inner, count = self.read_number("I"), self.read_number("Q")
        if self.lists:
            return [self.read_value(inner) for _ in range(count)]
        if inner in FORMS:
            self.at += count * struct.calcsize(FORMS[inner])
        elif inner == TEXT:
            for _ in range(count):
                self.at += 8 + int.from_bytes(self.raw[self.at : self.at + 8], "little")
        else:
            raise ValueError("a list of lists")
        return None


class FastGGUFWriter(GGUFWriter):  # type: ignore[misc]
    """The package's writer, which packs long lists of texts and numbers at once; the bytes are the same."""

    def _pack_val(
        self,
        val: Any,
        vtype: GGUFValueType,
        add_vtype: bool,
        sub_type: GGUFValueType | None = None,
    ) -> bytes:
        kinds = set(map(type, val)) if vtype == GGUFValueType.ARRAY and sub_type is None else set()
        if kinds == {str}:
            texts = [text.encode("utf-8") for text in val]
            raw = b"".join(piece for text in texts for piece in (LENGTH.pack(len(text)), text))
        elif kinds == {int} or kinds == {float}:
            raw = np.array(val, "<i4" if kinds == {int} else "<f4").tobytes()
        else:
            return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))
        head = struct.pack("<IQ", GGUFValueType.get_type(val[0]), len(val)) + raw
        return struct.pack("<I", vtype) + head if add_vtype else head
