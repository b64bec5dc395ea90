"""Options that several commands share, so that they mean the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """`--json`: one stable object on stdout and nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)


def model_options(function: F) -> F:
    """`--model`, `--url`, `--api-key-file`: which server answers (see `rig.server.connect.connect_model`)."""
    options = [
        click.option(
            "--model",
            envvar="RIG_MODEL",
            metavar="MODEL",
            help="Run folder, GGUF file or hub reference; started if nothing serves it.",
        ),
        click.option(
            "--url",
            envvar="RIG_URL",
            metavar="URL",
            help="A server that runs already (any OpenAI-compatible one).",
        ),
        click.option(
            "--api-key-file",
            type=click.Path(dir_okay=False),
            help="File with the server's key; else RIG_API_KEY.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def read_api_key(path: str | None) -> str | None:
    """The key from a file, else from `RIG_API_KEY`; it is never taken from a flag."""
    import os
    from pathlib import Path

    if path is None:
        return os.environ.get("RIG_API_KEY") or None
    return Path(path).read_text("utf-8").strip()
