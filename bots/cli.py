"""The commands of the room `bots`."""

from __future__ import annotations

import click

from bots.articles import cli as articles
from bots.commands.auth import auth_command
from bots.commands.bot import bot_group
from bots.commands.daemon import daemon_group
from bots.commands.jobs import jobs_command

COMMANDS: list[click.Command] = [
    *articles.COMMANDS,
    daemon_group,
    jobs_command,
    bot_group,
    auth_command,
]
