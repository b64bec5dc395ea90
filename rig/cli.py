"""The front door: the only file that knows the rooms, and the place where errors become sentences."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import click

import bots.cli
import export.cli
import rig
import serve.cli
import train.cli
from rig import commands

ROOMS: dict[str, list[click.Command]] = {
    "start": commands.COMMANDS,
    "train": train.cli.COMMANDS,
    "export": export.cli.COMMANDS,
    "serve": serve.cli.COMMANDS,
    "bots": bots.cli.COMMANDS,
}


class RigGroup(click.Group):
    """Lists commands room by room, fills defaults from rig.toml, turns errors into sentences."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section of the help text for each room."""
        for room, members in ROOMS.items():
            rows = [(c.name or "", c.get_short_help_str(120)) for c in members if not c.hidden]
            if rows:
                with formatter.section(room.capitalize()):
                    formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Fill the options' defaults from rig.toml; only `rig doctor` starts with a wrong one."""
        found = super().resolve_command(ctx, args)
        if found[0] != "doctor":
            from rig.config import command_defaults

            ctx.default_map = command_defaults(self)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what the world did wrong ends in one sentence, Ctrl-C in 130."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise _missing_extra(ctx, error) from error
        except OSError as error:
            raise _sentence(error) from error
        except (KeyboardInterrupt, click.Abort):
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


@click.group(
    cls=RigGroup,
    context_settings={
        "auto_envvar_prefix": "RIG",
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 110,
    },
)
@click.version_option(rig.__version__, prog_name="rig")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Teach a model to reason, shrink it, and let it work on a small box."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    if os.name == "nt":  # cp1252 consoles break on the first curly quote
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]


for _commands in ROOMS.values():
    for _command in _commands:
        main.add_command(_command)


def _missing_extra(ctx: click.Context, error: ModuleNotFoundError) -> click.ClickException:
    missing = (error.name or "").partition(".")[0]
    if missing in ("", *ROOMS, "rig"):
        raise error
    name = ctx.invoked_subcommand or ""
    room = next((r for r, commands in ROOMS.items() if name in {c.name for c in commands}), "all")
    extra = room if room != "start" else "all"
    command = f"rig {name}".strip()
    return click.ClickException(
        f"`{command}` needs {missing}, which is not installed here: "
        "pip install -c constraints.txt "
        f"-e '.[{extra}]' in the project's folder."
    )


def _sentence(error: OSError) -> click.ClickException:
    where = f" while writing {error.filename}" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return click.ClickException(
            f"The disk is full{where}: free some space and run the same command again."
        )
    if error.errno == errno.EPIPE or not error.filename:
        raise error
    return click.ClickException(f"{error.filename}: {error.strerror}.")
