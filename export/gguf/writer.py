"""The `gguf` package's writer, made fast where it packs a vocabulary item by item (a second and more)."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter

LENGTH = struct.Struct("<Q")


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
