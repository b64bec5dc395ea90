"""What the user has set: flag > `RIG_*` environment > ./rig.toml > user rig.toml > default.

A table named like a command (`[serve]`, `[summarise]`) gives defaults for that command's options; the
other tables (`[model]`, `[bots.NAME]`, `[outlets.NAME]`, ...) belong to one room, which validates its
own with `rig.validation.load_section`. An unknown table or key is an error that names the nearest known one.
`rig config` shows each value that is in force and where it comes from.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click

from rig import paths
from rig.errors import WrongUse, suggest_name

TABLES = ("model", "daemon", "bots", "outlets", "feeds", "train")
"""Tables that are not commands, or hold more than a command's options."""

SECRET_SETTINGS = ("notify.to",)
"""Settings whose value is a secret whatever their name says."""
SECRET = ("key", "token", "secret", "password")
"""Words in the name of a setting whose value is never shown."""


def config_files() -> list[Path]:
    """The configuration files there are, the weakest first."""
    candidates = [paths.config_dir() / "rig.toml", Path("rig.toml")]
    return [path for path in candidates if path.is_file()]


def load_config() -> dict[str, Any]:
    """All files merged, table by table; damaged TOML is an error with its line."""
    merged: dict[str, Any] = {}
    for path in config_files():
        merged = merge_tables(merged, read_toml(path))
    return merged


def read_toml(path: Path) -> dict[str, Any]:
    """One TOML file as a dictionary."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise WrongUse(f"There is no file {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongUse(f"{path} is not valid TOML: {error}.") from error


def merge_tables(weak: dict[str, Any], strong: dict[str, Any]) -> dict[str, Any]:
    """Lay `strong` over `weak`, table by table.

    >>> merge_tables({"serve": {"port": 1, "host": "h"}}, {"serve": {"port": 2}})
    {'serve': {'port': 2, 'host': 'h'}}
    """
    merged = dict(weak)
    for key, value in strong.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge_tables(old, value) if both else value  # type: ignore[arg-type]
    return merged


def command_defaults(group: click.Group) -> dict[str, Any]:
    """What the tables named like commands say, checked against the options those commands have."""
    found = {}
    for name, values in load_config().items():
        command = group.commands.get(name)
        if command is None and name not in TABLES:
            raise WrongUse(
                f"rig.toml has a table [{name}] that means nothing; "
                f"{suggest_name(name, [*TABLES, *group.commands])}"
            )
        if command is not None and name not in TABLES:
            found[name] = _defaults(name, command, values)
    return found


def _defaults(name: str, command: click.Command, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise WrongUse(f"rig.toml: {name} is a table: write [{name}] and its options below.")
    if isinstance(command, click.Group):
        subs = command.commands
        _refuse_unknown(name, values, subs)
        return {sub: _defaults(f"{name}.{sub}", subs[sub], inner) for sub, inner in values.items()}
    options = {p.name for p in command.params if isinstance(p, click.Option) and p.name}
    given = {key.replace("-", "_"): value for key, value in values.items()}
    _refuse_unknown(name, given, options)
    return given


def _refuse_unknown(table: str, given: Iterable[str], known: Iterable[str]) -> None:
    if wrong := sorted(set(given) - set(known)):
        raise WrongUse(f"rig.toml: [{table}] has no {wrong[0]!r}; {suggest_name(wrong[0], known)}")


class Setting(NamedTuple):
    """One setting that differs from its default."""

    name: str
    """Dotted, as in rig.toml: `serve.port`."""
    value: Any
    source: str
    """The file or the environment variable."""


def effective_settings(group: click.Group) -> list[Setting]:
    """Every value set in a file or in the environment, the winner only; checked on the way."""
    command_defaults(group)
    rows: dict[str, Setting] = {}
    for path in config_files():
        for name, value in _flat(read_toml(path)):
            rows[name] = Setting(name, _shown(name, value), str(path))
    for name, variable in _variables(group):
        if (value := os.environ.get(variable)) is not None:
            rows[name] = Setting(name, _shown(name, value), variable)
    return [rows[name] for name in sorted(rows)]


def print_settings(rows: list[Setting]) -> None:
    """Print the rows as aligned text on stdout."""
    click.echo(f"# files read, the weakest first: {paths.config_dir() / 'rig.toml'}, ./rig.toml")
    if not rows:
        click.echo("# nothing is set: every value is the default that `rig COMMAND --help` shows")
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        click.echo(f"{row.name:<{width}} = {row.value!r}  # {row.source}")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return found


def _variables(group: click.Group, prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, command in group.commands.items():
        dotted = f"{prefix}{name}"
        if isinstance(command, click.Group):
            found += _variables(command, f"{dotted}.")
        for option in command.params:
            if isinstance(option, click.Option) and option.name:
                own = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
                automatic = (
                    f"RIG_{dotted}_{option.name}".upper().replace(".", "_").replace("-", "_")
                )
                found += [(f"{dotted}.{option.name}", variable) for variable in (*own, automatic)]
    return found


def _shown(name: str, value: Any) -> Any:
    last = name.rpartition(".")[2].lower()
    secret = any(word in last for word in SECRET) and not last.endswith(("_file", "tokens"))
    secret |= name in SECRET_SETTINGS
    return "(set, not shown)" if secret and value else value
