"""A PEFT LoRA adapter as what it does to each tensor of its base, in float32, one range of rows at a time.

Its matrices are read when their tensor's turn comes, so that memory does not grow with the adapter. Done:
any rank and alpha (patterns too), rsLoRA, DoRA on linear layers, LoRA on embeddings, biases, modules saved
whole. What would need more than a row's own data, or the base that the adapter itself changed, is refused
by name before anything is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import regex  # type: ignore[import-untyped]

from export.checkpoint.config import ADAPTER as CONFIG
from export.checkpoint.config import read_adapter_config
from export.checkpoint.safetensors import StoredTensor, file_weights, read_tensor, refuse_odd_types
from export.quantise.ggml import Floats
from rig.errors import RigError

WEIGHTS = "adapter_model.safetensors"
PATIENCE = 1.0
"""Seconds that one pattern of an adapter may take for one module."""
KEPT = 8
"""Matrices kept in memory: those of the tensors that the threads are at, and some."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that also change the base's own weights, which the adapter alone does not hold."""
REFUSED = {
    "alora_invocation_tokens": "is an activated LoRA (it switches on in mid-text)",
    "layer_replication": "repeats layers of the base",
    "use_bdlora": "is a block-diagonal LoRA",
    "use_qalora": "is a QA-LoRA",
    "arrow_config": "routes between adapters (Arrow)",
    "monteclora_config": "is a MonteCLoRA",
    "kasa_config": "is a KaSA adapter",
    "velora_config": "is a VeLoRA adapter",
    "target_parameters": "changes bare parameters (target_parameters)",
    "trainable_token_indices": "trains single token embeddings (trainable_token_indices)",
    "megatron_config": "was made for Megatron",
}


@dataclass
class Change:
    """What happens to the rows of one base tensor."""

    whole: StoredTensor | None = None
    """Saved in full: takes the base's place."""
    a: StoredTensor | None = None
    """LoRA's A: (rank, columns) for a linear layer, (rank, rows) for an embedding."""
    b: StoredTensor | None = None
    """LoRA's B: (rows, rank) for a linear layer, (columns, rank) for an embedding."""
    read: Callable[[StoredTensor], Floats] = read_tensor
    """Gives the numbers of A and B; keeps those that were asked for last."""
    scale: float = 1.0
    embedding: bool = False
    magnitude: Floats | None = None
    """DoRA: the length that each row is given: (rows,)."""
    bias: Floats | None = None
    """Added to a bias vector: (rows,)."""

    def apply_to_rows(self, rows: Floats, first: int) -> None:
        """Change `rows` ((some rows, columns), float32, those from `first` on) in place."""
        with np.errstate(all="ignore"):  # what is not finite is told of where it is stored
            self._apply(rows, first)

    def _apply(self, rows: Floats, first: int) -> None:
        if self.a is not None and self.b is not None:
            here = slice(first, first + len(rows))
            down, up = self.read(self.a), self.read(self.b)
            # embedding: (rank, some rows).T @ (columns, rank).T; linear: (some rows, rank) @ (rank, columns)
            delta = down[:, here].T @ up.T if self.embedding else up[here] @ down
            if self.scale != 1.0:
                delta *= np.float32(self.scale)
            rows += delta
            if self.magnitude is not None:
                # (some rows, columns) -> (some rows,), and (some rows, 1) to stretch each row
                length = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float32))
                rows *= (self.magnitude[here] / length)[:, None]
        if self.bias is not None:  # a vector's rows hold one number: (some rows, 1)
            rows += self.bias[first : first + len(rows), None]

    @property
    def rank(self) -> int:
        """Rank of the LoRA product; 0 where there is none."""
        return 0 if self.a is None else self.a.shape[0]


@dataclass
class Adapter:
    """One adapter folder, read and understood."""

    folder: Path
    base: str
    """The model it was trained on, as PEFT recorded it."""
    changes: dict[str, Change] = field(default_factory=dict)
    """By the name of the base's tensor."""


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter; what rig cannot merge exactly ends in a sentence that names it."""
    config = read_adapter_config(folder)
    if not config:
        raise RigError(f"{folder} is not an adapter: it has no {CONFIG}.")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise RigError(f"{folder} has no {WEIGHTS}: save the adapter as safetensors.")
    _refuse(config, folder)
    tensors = file_weights(weights)
    refuse_odd_types(tensors, folder)
    adapter = Adapter(folder, str(config.get("base_model_name_or_path") or ""))
    for name in sorted(tensors):
        _add(adapter, config, name, tensors[name])
    read = lru_cache(KEPT)(read_tensor)
    for name, change in adapter.changes.items():
        change.read = read
        if (change.a is None) != (change.b is None):
            raise RigError(f"{weights} is damaged: half of the LoRA pair for {name} is missing.")
    if not adapter.changes:
        raise RigError(f"{weights} changes nothing: it holds no LoRA weights.")
    return adapter


def fit_to_base(
    adapter: Adapter, base: dict[str, StoredTensor], *, tied: bool
) -> dict[str, StoredTensor]:
    """The base's tensors with those that the adapter saved whole in their places; wrong shapes refused.

    A model with tied embeddings whose embeddings (or head) the adapter changed has two tables from then
    on, because PEFT leaves the other side as it was; the head is added as a tensor of its own.
    """
    merged = dict(base)
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    if tied and head not in merged and (table in adapter.changes) != (head in adapter.changes):
        merged[head] = replace(merged[table], name=head)
    for name, change in adapter.changes.items():
        if name not in merged:
            raise RigError(
                f"The adapter in {adapter.folder} changes {name}, which the base does not have"
                f"{_trained_on(adapter)}: it belongs to another model."
            )
        target = merged[name]
        if change.whole is not None:
            merged[name] = target = replace(change.whole, name=target.name)
        if (wanted := _wanted(change, target)) is not None:
            raise RigError(
                f"The adapter in {adapter.folder} does not fit {name}: it is made for {wanted}, the "
                f"base has {'x'.join(map(str, target.shape))}{_trained_on(adapter)}."
            )
    return merged


def _wanted(change: Change, target: StoredTensor) -> str | None:
    """The shape a change is made for, when that is not the target's."""
    rows, columns = target.shape[0], target.columns
    if change.a is not None and change.b is not None:
        made = (change.b.shape[0], change.a.columns)
        made = made[::-1] if change.embedding else made
        if made != (rows, columns) or change.a.shape[0] != change.b.columns:
            return f"{made[0]}x{made[1]}"
    for vector in (change.magnitude, change.bias):
        if vector is not None and vector.size != rows:
            return f"{vector.size} rows"
    return None


def _trained_on(adapter: Adapter) -> str:
    return f" (it was trained on {adapter.base})" if adapter.base else ""


def _refuse(config: dict[str, Any], folder: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise RigError(f"{folder} is a {kind} adapter; rig merges LORA ones only.")
    for key, what in REFUSED.items():
        if config.get(key):
            raise RigError(f"{folder} {what}: rig cannot merge that exactly; merge it with PEFT.")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(CHANGES_BASE):
        raise RigError(
            f"{folder} was started with {start!r}, which changed the base's own weights: save it with "
            f"path_initial_model_for_weight_conversion (see PEFT), then export again."
        )


def _add(adapter: Adapter, config: dict[str, Any], name: str, tensor: StoredTensor) -> None:
    path = name.removeprefix("base_model.model.").replace("language_model.", "")
    path = path.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
    if not 1 <= len(tensor.shape) <= 2 or 0 in tensor.shape:
        raise RigError(
            f"{adapter.folder / WEIGHTS} is damaged ({name} has the shape {list(tensor.shape)}): save the "
            f"adapter anew, from a model that is whole in one process."
        )
    match = re.fullmatch(
        r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
        r"(?:\.default)?(\.weight|\.bias)?",
        path,
    )
    if match is None:
        adapter.changes.setdefault(path, Change()).whole = tensor
        return
    module, part, suffix = match[1], match[2], match[3]
    change = adapter.changes.setdefault(f"{module}.weight", Change())
    change.scale = lora_scale(config, module)
    if suffix == ".bias":
        if part != "lora_B":
            raise RigError(f"{adapter.folder} has a bias that PEFT does not know: {name}.")
        bias = read_tensor(tensor) * np.float32(change.scale)
        adapter.changes.setdefault(f"{module}.bias", Change()).bias = bias
        return
    if part == "lora_magnitude_vector":
        if change.embedding or "embed_tokens" in module:
            raise RigError(f"{adapter.folder} uses DoRA on embeddings: merge it with PEFT.")
        change.magnitude = read_tensor(tensor).reshape(-1)
    elif part.endswith("A"):
        change.a, change.embedding = tensor, "embedding" in part
    else:
        change.b, change.embedding = tensor, "embedding" in part


def lora_scale(config: dict[str, Any], module: str) -> float:
    """What the product B·A is multiplied with: alpha/r, or alpha/sqrt(r) for rsLoRA."""
    rank = int(match_pattern(config.get("rank_pattern"), module, config.get("r", 8)))
    alpha = float(match_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


@lru_cache(2048)
def _compiled(pattern: str) -> Any:
    return regex.compile(rf"(.*\.)?({pattern})$")


def match_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's name."""
    for pattern, value in (patterns or {}).items():
        try:  # `regex`, because a pattern from anywhere may take for ever and only it can be stopped
            if _compiled(pattern).match(module, timeout=PATIENCE):
                return value
        except TimeoutError:
            raise RigError(
                f"{CONFIG} has a pattern that takes longer than {PATIENCE:g} s to match "
                f"({pattern!r:.80}): name the modules plainly."
            ) from None
        except regex.error as error:
            raise RigError(
                f"{CONFIG} has {pattern!r:.80}, which is no pattern ({error}): correct it."
            ) from None
    return default
