"""A front door with the commands that a test gives it."""

from __future__ import annotations

import click

from rig.cli import RigGroup


def door(*commands: click.Command) -> RigGroup:
    """The group `rig` with these commands alone; files and environment count as they do for all."""
    group = RigGroup("rig", context_settings={"auto_envvar_prefix": "RIG"})
    for command in commands:
        group.add_command(command)
    return group
