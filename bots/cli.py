"""The commands of the room `bots`."""

from __future__ import annotations

import click

from bots.articles import cli as articles
from bots.commands.auth import auth
from bots.commands.bot import bot
from bots.commands.daemon import daemon
from bots.commands.jobs import jobs

COMMANDS: list[click.Command] = [*articles.COMMANDS, daemon, jobs, bot, auth]
