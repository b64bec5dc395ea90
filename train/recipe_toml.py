"""A recipe as text: `--set key=value` laid over its tables, and the whole written out again."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from rig.errors import WrongUse, suggest_name


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Lay `key=value` over the tables of a recipe; an entry of a list is found by its `name`.

    >>> values = {"rewards": [{"name": "correct"}]}
    >>> apply_setting(values, "rewards.correct.weight=2")
    >>> apply_setting(values, "model.name=toy")
    >>> values
    {'rewards': [{'name': 'correct', 'weight': 2}], 'model': {'name': 'toy'}}
    """
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise WrongUse(f"--set {setting}: write key=value, such as --set schedule.max_steps=20.")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *path, last = key.strip().split(".")
    place: Any = values
    for part in path:
        if isinstance(place, list):
            found = [item for item in place if item.get("name") == part]
            if not found:
                known = [str(item.get("name")) for item in place]
                raise WrongUse(f"--set {setting}: no entry {part!r}; {suggest_name(part, known)}")
            place = found[0]
        else:
            place = place.setdefault(part, {})
        if not isinstance(place, dict | list):
            raise WrongUse(f"--set {setting}: {part!r} is a value, not a table.")
    if isinstance(place, list):
        raise WrongUse(f"--set {setting}: name the entry and its key, as in rewards.NAME.weight=1.")
    place[last] = value


def format_toml(table: dict[str, Any], path: str = "") -> str:
    """A table as TOML, its plain values first; keys without a value are left out.

    >>> print(format_toml({"a": 1, "t": {"x": [1.5, "q"], "on": True}, "r": [{"n": "k"}]}).strip())
    a = 1
    <BLANKLINE>
    [t]
    x = [1.5, "q"]
    on = true
    <BLANKLINE>
    [[r]]
    n = "k"
    """
    lines, below = [], []
    for key, value in table.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value:
            below.append(f"\n[{name}]\n{format_toml(value, name)}")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            below += [f"\n[[{name}]]\n{format_toml(item, name)}" for item in value]
        elif value is not None and value != {}:
            lines.append(f"{key} = {_value(value)}\n")
    return "".join(lines + below)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for one character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
