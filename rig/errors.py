"""What went wrong, said in one sentence that tells the reader what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click


class RigError(click.ClickException):
    """Shown as one sentence, without a traceback; exit code 1 (done wrong by the world)."""


class WrongUse(click.UsageError):
    """Shown as one sentence; exit code 2 (the command line, a recipe or the configuration is wrong)."""


def suggest_name(name: str, known: Iterable[str]) -> str:
    """End a sentence about an unknown name with the nearest known one, or with all of them.

    >>> suggest_name("learnin_rate", ["learning_rate", "lora"])
    "did you mean 'learning_rate'?"
    >>> suggest_name("zzz", ["a", "b"])
    'there are: a, b.'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}."
