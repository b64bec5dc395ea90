"""Runs `rig` as a person would, in this process where that is the same and a tenth of the time."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

from click.testing import CliRunner


class Done(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def rig(*arguments: str, stdin: str | bytes = b"") -> Done:
    """Run the command here; an exception that is no sentence fails the test."""
    from rig.cli import main

    done = CliRunner().invoke(main, list(arguments), input=stdin, catch_exceptions=False)
    return Done(done.exit_code, done.stdout, done.stderr)


def rig_apart(*arguments: str, stdin: bytes = b"", seconds: float = 60) -> Done:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rig", *arguments],
        input=stdin,
        capture_output=True,
        timeout=seconds,
        env=os.environ | {"NO_COLOR": "1"},
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())
