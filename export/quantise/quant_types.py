"""Which number format each tensor gets in a file of a given type: llama.cpp's own mixes, to the letter.

Source: `llama_tensor_get_type_impl` in llama.cpp's src/llama-quant.cpp, of the revision inside
llama-cpp-python 0.3.36, for dense models. A test compares every type with `llama_model_quantize` of the
installed library, so a change upstream is seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as T

from rig.errors import RigError, WrongUse, suggest_name

FILE_TYPES: dict[str, tuple[LlamaFileType, T]] = {
    "F32": (LlamaFileType.ALL_F32, T.F32),
    "F16": (LlamaFileType.MOSTLY_F16, T.F16),
    "BF16": (LlamaFileType.MOSTLY_BF16, T.BF16),
    "Q8_0": (LlamaFileType.MOSTLY_Q8_0, T.Q8_0),
    "Q6_K": (LlamaFileType.MOSTLY_Q6_K, T.Q6_K),
    "Q5_K_M": (LlamaFileType.MOSTLY_Q5_K_M, T.Q5_K),
    "Q5_K_S": (LlamaFileType.MOSTLY_Q5_K_S, T.Q5_K),
    "Q5_1": (LlamaFileType.MOSTLY_Q5_1, T.Q5_1),
    "Q5_0": (LlamaFileType.MOSTLY_Q5_0, T.Q5_0),
    "Q4_K_M": (LlamaFileType.MOSTLY_Q4_K_M, T.Q4_K),
    "Q4_K_S": (LlamaFileType.MOSTLY_Q4_K_S, T.Q4_K),
    "Q4_1": (LlamaFileType.MOSTLY_Q4_1, T.Q4_1),
    "Q4_0": (LlamaFileType.MOSTLY_Q4_0, T.Q4_0),
    "IQ4_NL": (LlamaFileType.MOSTLY_IQ4_NL, T.IQ4_NL),
    "IQ4_XS": (LlamaFileType.MOSTLY_IQ4_XS, T.IQ4_XS),
    "Q3_K_L": (LlamaFileType.MOSTLY_Q3_K_L, T.Q3_K),
    "Q3_K_M": (LlamaFileType.MOSTLY_Q3_K_M, T.Q3_K),
    "Q3_K_S": (LlamaFileType.MOSTLY_Q3_K_S, T.Q3_K),
    "IQ3_M": (LlamaFileType.MOSTLY_IQ3_M, T.IQ3_S),
    "IQ3_S": (LlamaFileType.MOSTLY_IQ3_S, T.IQ3_S),
    "IQ3_XS": (LlamaFileType.MOSTLY_IQ3_XS, T.IQ3_S),
    "IQ3_XXS": (LlamaFileType.MOSTLY_IQ3_XXS, T.IQ3_XXS),
    "Q2_K": (LlamaFileType.MOSTLY_Q2_K, T.Q2_K),
    "Q2_K_S": (LlamaFileType.MOSTLY_Q2_K_S, T.Q2_K),
    "IQ2_M": (LlamaFileType.MOSTLY_IQ2_M, T.IQ2_S),
    "IQ2_S": (LlamaFileType.MOSTLY_IQ2_S, T.IQ2_XS),
    "IQ2_XS": (LlamaFileType.MOSTLY_IQ2_XS, T.IQ2_XS),
    "IQ2_XXS": (LlamaFileType.MOSTLY_IQ2_XXS, T.IQ2_XXS),
    "IQ1_M": (LlamaFileType.MOSTLY_IQ1_M, T.IQ1_M),
    "IQ1_S": (LlamaFileType.MOSTLY_IQ1_S, T.IQ1_S),
}
"""File type by its llama.cpp name: the number in the file, and the format most tensors get."""

PLAIN = (T.F32, T.F16, T.BF16)
LOWEST = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M")
NEED_IMPORTANCE = (T.IQ3_XXS, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ1_M, T.IQ1_S)

FALLBACK = {
    **dict.fromkeys(
        (T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.IQ4_XS), T.IQ4_NL
    ),
    **dict.fromkeys((T.Q2_K, T.Q3_K), T.Q4_0),
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}
"""For rows that do not divide into blocks of 256: the format with blocks of 32."""


@dataclass(frozen=True)
class MixShape:
    """What the mixes look at in a model."""

    layers: int
    heads: int
    kv_heads: int
    shares_values: bool = False
    """The 70B layout, whose value projections are small enough to get more bits."""

    @property
    def has_grouped_heads(self) -> bool:
        """Four or more query heads for each key head."""
        return self.heads // self.kv_heads >= 4


def parse_quant_types(names: str) -> list[str]:
    """Comma-separated file types as llama.cpp writes them, in the order given, each once.

    >>> parse_quant_types("q4_k_m, Q8_0")
    ['Q4_K_M', 'Q8_0']
    """
    given = list(dict.fromkeys(name.strip().upper() for name in names.split(",") if name.strip()))
    if not given:
        raise WrongUse(f"--quant names no type; there are: {', '.join(FILE_TYPES)}.")
    for name in given:
        if name not in FILE_TYPES:
            raise WrongUse(f"There is no type {name!r}: {suggest_name(name, FILE_TYPES)}")
    return given


def tensor_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's own tensor order; the mixes count tensors in it.

    >>> sorted(["blk.10.a", "output.weight", "blk.9.b"], key=tensor_order)
    ['output.weight', 'blk.9.b', 'blk.10.a']
    """
    layer = re.match(r"blk\.(\d+)\.", name)
    return (int(layer[1]) if layer else -1, name)


def is_quantisable(name: str, dimensions: int) -> bool:
    """Whether llama.cpp stores this tensor in anything but float32."""
    return dimensions >= 2 and name.endswith("weight") and "_norm.weight" not in name


def choose_types(
    file_type: str,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    shape: MixShape,
    *,
    importance: bool = False,
) -> dict[str, T]:
    """The format of every tensor (name, shape in torch order) in a file of `file_type`.

    `importance`: whether an importance matrix is at hand, which changes a few choices.
    """
    default = FILE_TYPES[file_type][1]
    names = sorted((name for name, _ in tensors), key=tensor_order)
    dimensions = dict(tensors)
    tied = "output.weight" not in dimensions
    values = sum("attn_v.weight" in name for name in names)
    chooser = _Chooser(file_type, shape, values, tied, importance)
    found = {}
    for name in names:
        if not is_quantisable(name, len(dimensions[name])):
            found[name] = T.F32
        elif default in PLAIN:
            found[name] = default
        else:
            columns = dimensions[name][-1]  # (rows, columns): a row is what is cut into blocks
            found[name] = _fit(chooser.choose_type(name, default, columns), columns)
    return found


def refuse_without_importance(file_type: str, chosen: dict[str, T], have: set[str]) -> None:
    """Stop before a type that is garbage without an importance matrix for each tensor it reaches."""
    for name, kind in chosen.items():
        needs = kind in NEED_IMPORTANCE or (kind == T.Q2_K and file_type == "Q2_K_S")
        if needs and name not in ("token_embd.weight", "output.weight") and name not in have:
            raise RigError(
                f"{file_type} needs an importance matrix ({name} has none): give --imatrix with a "
                f"text of your own kind or a file of llama.cpp's, or take IQ4_XS, Q3_K_S or Q2_K."
            )


class _Chooser:
    """Counts tensors of each kind as they pass, because the mixes depend on how far along one is."""

    def __init__(
        self, file_type: str, shape: MixShape, values: int, tied: bool, importance: bool
    ) -> None:
        self.file_type, self.shape, self.tied, self.importance = file_type, shape, tied, importance
        self.values = values
        self.seen = {"attn_v": 0, "ffn_down": 0, "ffn_gate": 0, "ffn_up": 0}

    def choose_type(self, name: str, default: T, columns: int) -> T:
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            return self._head(default, columns)
        if name == "token_embd.weight":
            return self._embedding(default)
        part = name.split(".")[-2]
        at = self.seen.get(part, 0)
        if part in self.seen:
            self.seen[part] += 1
        if self.file_type in LOWEST:
            return self._lowest(part, at, default)
        if part == "attn_v":
            return self._value(at, default)
        if part in ("attn_k", "attn_q"):
            return {"IQ3_XS": T.IQ3_XXS, "IQ3_XXS": T.IQ2_S}.get(self.file_type, default)
        if part == "ffn_down":
            return self._down(at, default)
        if part == "attn_output":
            return {
                "Q2_K": T.Q3_K,
                "IQ3_XXS": T.IQ3_S,
                "Q3_K_M": T.Q4_K,
                "Q3_K_L": T.Q5_K,
                "IQ3_M": T.Q4_K,
            }.get(self.file_type, default)
        n = self.shape.layers
        if (
            part in ("ffn_gate", "ffn_up")
            and self.file_type == "IQ3_XS"
            and n // 8 <= at < 7 * n // 8
        ):
            return T.IQ3_XXS
        return default

    def _head(self, default: T, columns: int) -> T:
        if columns % GGML_QUANT_SIZES[default][0]:
            return T.Q8_0
        if self.file_type in LOWEST or self.file_type == "IQ3_XXS":
            return T.Q5_K
        return default if default == T.Q8_0 else T.Q6_K

    def _embedding(self, default: T) -> T:
        if self.file_type in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
            return T.Q2_K
        return T.IQ3_S if self.file_type in ("IQ2_S", "IQ2_M", "IQ3_XXS") else default

    def _lowest(self, part: str, at: int, default: T) -> T:
        better = T.IQ3_S if self.file_type in ("IQ2_S", "IQ2_M") else T.Q2_K
        if part == "attn_v":
            return T.Q4_K if self.shape.has_grouped_heads else better
        if part == "ffn_down" and at < self.shape.layers // 8:
            return better
        if part == "attn_output":
            if self.file_type in ("IQ1_S", "IQ1_M"):
                return T.IQ2_XXS
            if self.file_type in ("IQ2_S", "IQ2_M"):
                return T.IQ3_S
        return default

    def _value(self, at: int, default: T) -> T:
        chosen, grouped = default, self.shape.has_grouped_heads
        match self.file_type:
            case "Q2_K":
                chosen = T.Q4_K if grouped else T.Q3_K
            case "Q2_K_S" | "IQ3_XS" | "IQ3_S" if grouped:
                chosen = T.Q4_K
            case "IQ3_XXS":
                otherwise = T.IQ3_XXS if self.importance else T.IQ3_S
                chosen = T.Q4_K if grouped else otherwise
            case "IQ3_M":
                chosen = T.Q4_K
            case "Q3_K_M":
                chosen = T.Q5_K if at < 2 else T.Q4_K
            case "Q3_K_L":
                chosen = T.Q5_K
            case "IQ4_NL" | "IQ4_XS" if grouped:
                chosen = T.Q5_K
            case "Q4_K_M" | "Q5_K_M" if _more_bits(at, self.values):
                chosen = T.Q6_K
            case "Q4_K_S" if at < 4:
                chosen = T.Q5_K
        if self.shape.shares_values and chosen in (T.Q3_K, T.Q4_K):
            return T.Q5_K
        return chosen

    def _down(self, at: int, default: T) -> T:
        n, early = self.shape.layers, at < self.shape.layers // 8
        match self.file_type:
            case "Q2_K":
                return T.Q3_K
            case "Q2_K_S" if early:
                return T.Q4_K
            case "IQ3_XXS" if not self.importance:
                return T.Q4_K if early else T.Q3_K
            case "Q3_K_M":
                return T.Q5_K if at < n // 16 else T.Q4_K
            case "IQ3_M" if early:
                return T.Q4_K
            case "Q3_K_L":
                return T.Q5_K
            case "Q4_K_M" | "Q5_K_M" if _more_bits(at, n):
                return T.Q6_K
            case "IQ4_NL" | "IQ4_XS" if early and not self.importance:
                return T.Q5_K
            case "Q4_K_S" if early:
                return T.Q5_K
            case "Q4_0" if early and self.importance:
                return T.Q4_1
            case "Q5_0" if early and self.importance:
                return T.Q5_1
        return default


def _more_bits(at: int, n: int) -> bool:
    return at < n // 8 or at >= 7 * n // 8 or (at - n // 8) % 3 == 2


def _fit(kind: T, columns: int) -> T:
    """A format whose blocks divide a row of `columns` numbers."""
    if columns % GGML_QUANT_SIZES[kind][0]:
        kind = FALLBACK.get(kind, kind)
    return kind if columns % GGML_QUANT_SIZES[kind][0] == 0 else T.F16
