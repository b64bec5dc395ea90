"""What a person types at the model: ask, chat, logs, models, pull, bench. Parsing only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from rig.options import json_option, model_options

F = TypeVar("F", bound=Callable[..., Any])


def sampling_options(function: F) -> F:
    """How words are chosen; what is not given is left to the server."""
    options = [
        click.option(
            "--system", metavar="TEXT", help="System prompt; default: as taught. '' = none."
        ),
        click.option("--temperature", type=click.FloatRange(0), help="0 = always the likeliest."),
        click.option("--top-p", type=click.FloatRange(0, 1), help="Nucleus sampling (1 = off)."),
        click.option("--top-k", type=click.IntRange(0), help="Choose among so many (0 = all)."),
        click.option("--min-p", type=click.FloatRange(0, 1), help="Least share of the likeliest."),
        click.option("--seed", type=int, help="The same seed repeats; default: a new one."),
        click.option(
            "--max-tokens", type=click.IntRange(1), help="End of the answer at the latest."
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT."),
        click.option("--show-thinking", is_flag=True, help="Show the thought, on stderr."),
        click.option("--timeout", default=600.0, help="Seconds to wait for the next word."),
        click.option(
            "--log/--no-log", "log", default=True, help="Keep question and answer in `rig logs`."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command("ask")
@click.argument("prompt", nargs=-1)
@model_options
@sampling_options
@click.option(
    "--schema", type=click.Path(dir_okay=False, exists=True), help="JSON schema to answer in."
)
@click.option("--stats", is_flag=True, help="Show tokens and speed, on stderr.")
@json_option
def ask_command(
    prompt: tuple[str, ...],
    model: str | None,
    url: str | None,
    api_key_file: str | None,
    system: str | None,
    show_thinking: bool,
    timeout: float,
    log: bool,
    schema: str | None,
    stats: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Ask the model one thing: rig ask 'Why is the sky blue?'

    What comes in on stdin is added below the prompt: git diff | rig ask 'Write a commit message.'
    A server is started if none runs, and leaves again when idle.
    """
    from rig.options import read_api_key
    from rig.server.connect import connect_model
    from serve.chat import ask as asking

    form = asking.load_schema(schema)
    text = asking.read_question(prompt)
    with connect_model(url, model, api_key=read_api_key(api_key_file), timeout=timeout) as client:
        asking.ask_model(
            client,
            [*asking.system_messages(client, system), {"role": "user", "content": text}],
            _given(sampling),
            schema=form,
            as_json=as_json,
            thinking=show_thinking,
            stats=stats,
            log=log,
        )


@click.command("chat")
@model_options
@sampling_options
def chat_command(
    model: str | None,
    url: str | None,
    api_key_file: str | None,
    system: str | None,
    show_thinking: bool,
    timeout: float,
    log: bool,
    **sampling: Any,
) -> None:
    """Talk with the model; /help inside lists what can be done there.

    Without a terminal each line of stdin is one turn, and stdout gets the answers.
    """
    from rig.options import read_api_key
    from rig.server.connect import connect_model
    from serve.chat.conversation import Conversation
    from serve.chat.repl import run_chat as talk

    key = read_api_key(api_key_file)
    well = talk(
        Conversation(
            lambda: connect_model(url, model, api_key=key, timeout=timeout),
            _given(sampling),
            system=system,
            thinking=show_thinking,
            log=log,
        ),
        keep_history=log,
    )
    sys.exit(0 if well else 1)


@click.command("logs")
@click.option("-n", "number", default=5, type=click.IntRange(1), help="How many.")
@click.option("--search", default="", metavar="TEXT", help="Only those that contain TEXT.")
@click.option("--clear", is_flag=True, help="Forget all of them.")
@json_option
def logs_command(number: int, search: str, clear: bool, as_json: bool) -> None:
    """Show what was asked and answered at this shell.

    Off: --no-log of ask and chat, RIG_ASK_LOG=0 and RIG_CHAT_LOG=0, or log = false in [ask] and [chat].
    """
    import json
    from dataclasses import asdict

    from serve.chat import history

    if clear:
        click.echo(f"{history.clear_calls()} calls forgotten.", err=True)
        return
    found = history.last_calls(number, search)
    if as_json:
        click.echo(json.dumps([asdict(call) for call in found], indent=2, ensure_ascii=False))
        return
    for line in history.format_calls(found):
        click.echo(line)
    if not found:
        click.echo(f"No calls{f' that contain {search!r}' if search else ''} yet.", err=True)


@click.command("models")
@click.argument("paths", nargs=-1, type=click.Path(exists=True))
@json_option
def models_command(paths: tuple[str, ...], as_json: bool) -> None:
    """List the models of runs/, the pulled ones, and those in PATHS, and whether they fit this box."""
    import json
    from pathlib import Path

    from serve.models import catalogue as all_models

    found = all_models.list_models([Path(path) for path in paths])
    if as_json:
        click.echo(json.dumps(all_models.models_as_json(found), indent=2, ensure_ascii=False))
    elif found:
        click.echo("\n".join(all_models.format_models(found)))
    if not found:
        click.echo("No models here: rig pull org/repo:Q4_K_M, or rig export RUN --gguf.", err=True)


@click.command("pull")
@click.argument("reference")
@json_option
def pull_command(reference: str, as_json: bool) -> None:
    """Fetch a GGUF from the hub: rig pull org/repo:Q4_K_M, org/repo/file.gguf, either with @revision.

    Interrupted, it goes on where it was; the file appears once its hash is right. HF_ENDPOINT and
    HF_TOKEN are honoured.
    """
    import json

    from rig.errors import RigError, WrongUse
    from rig.model.gguf import is_gguf
    from serve.models import download as pulling
    from serve.models.progress import progress_bar
    from serve.models.reference import parse_reference

    wanted = parse_reference(reference)
    if wanted is None:
        raise WrongUse(
            f"{reference!r} is no reference: write org/repo:QUANT, such as org/repo:Q4_K_M."
        )
    with progress_bar() as progress:
        path = pulling.pull_model(wanted, progress)
    if not is_gguf(path):
        path.unlink()
        raise RigError(f"{reference} is not a GGUF, whatever its name says: it was thrown away.")
    if as_json:
        click.echo(json.dumps(pulling.read_record(path) | {"path": str(path)}, indent=2))
    else:
        click.echo(str(path))


@click.command("bench")
@click.argument("model")
@click.option("--rounds", default=3, type=click.IntRange(1), help="Repeats of each measurement.")
@click.option(
    "--tokens", default=512, type=click.IntRange(32), help="Read at most, per measurement."
)
@click.option("--threads", type=click.IntRange(1), help="Only so many; default: tries several.")
@json_option
def bench_command(model: str, rounds: int, tokens: int, threads: int | None, as_json: bool) -> None:
    """Measure MODEL on this box and print the settings to serve it with.

    Reading and writing speed, the share of what the memory allows, and what threads, batch size,
    several at a time, the kind of cache and a known prefix change. Takes a minute or two.
    """
    import json
    import os

    from rig.server import running_servers
    from serve.bench import bench as benching
    from serve.models.catalogue import find_model_file

    for server in running_servers.live_servers():
        click.echo(f"{server['url']} runs too and disturbs: rig serve stop", err=True)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 1:
        click.echo(
            f"This box is busy (load {os.getloadavg()[0]:.1f}): figures come out low.", err=True
        )
    report = benching.benchmark_model(
        find_model_file(model),
        rounds=rounds,
        tokens=tokens,
        threads=threads,
        told=lambda step: click.echo(f"measured {step}", err=True),
    )
    click.echo(
        json.dumps(report, indent=2) if as_json else "\n".join(benching.format_report(report))
    )


def _given(sampling: dict[str, Any]) -> dict[str, Any]:
    """Only what was given: a server may not know every option."""
    return {name: value for name, value in sampling.items() if value not in (None, ())}


COMMANDS: list[click.Command] = [
    ask_command,
    chat_command,
    logs_command,
    models_command,
    pull_command,
    bench_command,
]
