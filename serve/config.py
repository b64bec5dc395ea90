"""The settings of one `rig serve`: built once in the command, checked, and handed on whole.

`EngineConfig` goes on to another process: as JSON on its command line (`to_json`), where it is built again
field by field (`from_json`). A field that is unknown, missing or of another type is an error with a sentence
there and here: both sides are the same rig, so it is a mistake of ours, and must not become a default.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from rig.errors import RigError, suggest_name
from serve.hardware.memory import BATCH, PARKED


@dataclass(frozen=True)
class CheckedConfig:
    """A frozen dataclass whose fields hold what their types say."""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for each in fields(self):
            value = getattr(self, each.name)
            if not _is_of(value, types[each.name]):
                given = repr(value) if each.repr else "what was given"
                raise RigError(
                    f"{type(self).__name__}: {each.name} must be {each.type}, and {given} is not."
                )


@dataclass(frozen=True)
class EngineConfig(CheckedConfig):
    """How the engine's process loads its model; sizes in tokens, `*_bytes` in bytes."""

    model: str
    """The GGUF file."""
    ctx: int
    """Of the whole context, which all replies share."""
    parallel: int = 4
    """Replies written at a time."""
    threads: int = 2
    batch: int = BATCH
    """Tokens computed in one step."""
    parked_bytes: int = PARKED
    """For copies of sequences that rest."""
    kv_type: str = "f16"
    flash_attn: bool = True
    mlock: bool = False
    adapters: tuple[str, ...] = ()
    """Files of LoRA adapters, in the order of `ServerConfig.adapters`."""
    disk: str = ""
    """Folder of the prefixes kept on disk; empty = none are."""
    disk_bytes: int = 0
    template: str = ""
    """File with a chat template in place of the model's own; empty = its own."""
    drafting: bool = True
    """Whether to guess ahead from the prompt."""

    @property
    def max_sequences(self) -> int:
        """Sequences in memory: those that write, and prefixes that rest."""
        return min(self.parallel * 2 + 16, 250)

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote. Raises RigError for anything else."""
        try:
            found = json.loads(text)
        except ValueError as error:
            raise RigError(f"{cls.__name__}: {text[:100]!r} is not JSON ({error}).") from None
        if not isinstance(found, dict):
            raise RigError(f"{cls.__name__}: {text[:100]!r} is not a JSON object.")
        known = [each.name for each in fields(cls)]
        if wrong := sorted(set(found) - set(known)):
            raise RigError(f"{cls.__name__} has no {wrong[0]!r}; {suggest_name(wrong[0], known)}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in found.items()
        }
        try:
            return cls(**values)
        except TypeError as error:  # a field without a default is not there
            raise RigError(f"{cls.__name__}: {error}.") from None


@dataclass(frozen=True)
class ServerConfig(CheckedConfig):
    """How the HTTP side behaves; sizes in bytes, times in seconds."""

    name: str
    """What the model is called."""
    fingerprint: str = ""
    """Which file it is (`gguf.fingerprint_file`)."""
    parallel: int = 4
    """Requests worked on at a time."""
    waiting: int = 64
    """Requests that may wait for a place."""
    api_key: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    """Names to answer to, beside those of this machine."""
    body_limit: int = 8 << 20
    time_limit: float = 1800.0
    """The longest a request may take, waiting included."""
    add_system: bool = True
    """Whether the taught system prompt is added to conversations that bring none."""
    adapters: tuple[str, ...] = ()
    """Names of the LoRA adapters, in the order in which they were loaded."""


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type; True is no number here, and a whole number is a float."""
    if isinstance(kind, UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        (inner, _) = get_args(kind)
        return isinstance(value, tuple) and all(_is_of(each, inner) for each in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
