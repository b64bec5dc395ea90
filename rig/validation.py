"""Tables of a configuration as checked objects; what is wrong with one is a sentence that names the key.

Apart from `rig.config`, which every command reads: pydantic alone would double the time a command starts in.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rig.config import load_config
from rig.errors import WrongUse, suggest_name


class FrozenModel(BaseModel):
    """A validated object that nobody changes later; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


T = TypeVar("T", bound=BaseModel)


def load_section(name: str, kind: type[T]) -> T:
    """The table `name` as a validated object; defaults when there is no such table."""
    return validate_as(kind, load_config().get(name, {}), f"[{name}] in rig.toml")


def validate_as(kind: type[T], values: Any, where: str) -> T:
    """`values` as a `kind`, or one sentence that says where and how it is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise WrongUse(_sentence(kind, error, where)) from None


def _sentence(kind: type[BaseModel], error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields(kind, first["loc"][:-1])
        return f"{where}: there is no key {path!r}; {suggest_name(str(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"{where}: the key {path!r} is missing: set it."
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f", not {first['input']!r}"
    return f"{where}: {path or 'the table'}: {message}{given}.{more}".replace("..", ".")


def _fields(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that `kind` knows at `path`; lists and dictionaries on the way are stepped through."""
    for part in path:
        field = kind.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if inner:
            kind = inner[0]
    return [field.alias or name for name, field in kind.model_fields.items()]
