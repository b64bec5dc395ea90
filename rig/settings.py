"""What `rig config` shows: each value that is in force and where it comes from."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import click

from rig import config

SECRET = ("key", "token", "secret", "password")


class Setting(NamedTuple):
    """One setting that differs from its default."""

    name: str
    """Dotted, as in rig.toml: `serve.port`."""
    value: Any
    source: str
    """The file or the environment variable."""


def effective_settings(group: click.Group) -> list[Setting]:
    """Every value set in a file or in the environment, the winner only; checked on the way."""
    config.command_defaults(group)
    rows: dict[str, Setting] = {}
    for path in config.config_files():
        for name, value in _flat(config.read_toml(path)):
            rows[name] = Setting(name, _shown(name, value), str(path))
    for name, variable in _variables(group):
        if (value := os.environ.get(variable)) is not None:
            rows[name] = Setting(name, _shown(name, value), variable)
    return [rows[name] for name in sorted(rows)]


def print_settings(rows: list[Setting]) -> None:
    """Print the rows as aligned text on stdout."""
    from rig import paths

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
    return "(set, not shown)" if secret and value else value
