"""The commands of the room `serve`."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import click

from rig import paths
from rig.errors import WrongUse
from serve.chat import commands
from serve.service.commands import SUBCOMMANDS
from serve.service.subcommands import CommandWithSubcommands


@click.command(cls=CommandWithSubcommands)
@click.argument("model")
@click.option("--host", default="127.0.0.1", help="Address to listen on; others need an API key.")
@click.option("--port", default=8377, type=click.IntRange(0, 65535), help="0 = any free one.")
@click.option("--ctx", type=click.IntRange(64), help="Tokens of context; default: what fits.")
@click.option("--parallel", default=4, type=click.IntRange(1, 64), help="Replies at a time.")
@click.option("--threads", type=click.IntRange(1), help="Default: performance cores allowed here.")
@click.option("--batch", default=256, type=click.IntRange(32, 4096), help="Tokens in one step.")
@click.option(
    "--cache-type", default="f16", type=click.Choice(["f16", "q8_0"]), help="Of the KV cache."
)
@click.option(
    "--flash-attn/--no-flash-attn",
    default=True,
    help="Off: more memory; on some CPUs faster after long prompts (try it).",
)
@click.option("--mlock", is_flag=True, help="Keep the model from being swapped out.")
@click.option("--lora", "loras", multiple=True, metavar="[NAME=]PATH", help="LoRA adapter as GGUF.")
@click.option("--queue", default=64, type=click.IntRange(0), help="Requests that may wait.")
@click.option("--idle-exit", default=0.0, help="Leave after SECONDS without a request (0 = never).")
@click.option("--idle-unload", default=0.0, help="Give the memory back after SECONDS (0 = never).")
@click.option("--no-system", is_flag=True, help="Don't add the taught system prompt.")
@click.option(
    "--chat-template",
    "template",
    type=click.Path(exists=True, dir_okay=False),
    help="FILE with a Jinja template in place of the model's own.",
    metavar="FILE",
)
@click.option("--no-draft", is_flag=True, help="Don't guess ahead from the prompt.")
@click.option("--prefix-cache", default=2.0, help="GiB of prefixes kept on disk (0 = none).")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="Name to answer to.")
@click.option("--api-key-file", type=click.Path(dir_okay=False), help="Else RIG_API_KEY.")
@click.option("--body-limit", default=8.0, help="MiB that a request may have.")
@click.option("--time-limit", default=1800.0, help="Seconds that a request may take.")
def serve(
    model: str,
    host: str,
    port: int,
    ctx: int | None,
    parallel: int,
    threads: int | None,
    batch: int,
    cache_type: str,
    flash_attn: bool,
    mlock: bool,
    loras: tuple[str, ...],
    queue: int,
    idle_exit: float,
    idle_unload: float,
    no_system: bool,
    template: str | None,
    no_draft: bool,
    prefix_cache: float,
    hosts: tuple[str, ...],
    api_key_file: str | None,
    body_limit: float,
    time_limit: float,
) -> None:
    """Serve MODEL over HTTP, in OpenAI's words: a run folder, a GGUF file, or a pulled reference."""
    from rig.model.gguf import fingerprint_file, read_header
    from rig.options import read_api_key
    from serve import server
    from serve.api.idle import IdleTimer
    from serve.config import EngineConfig, ServerConfig
    from serve.hardware.machine import inspect_machine
    from serve.hardware.memory import fit_context
    from serve.models.catalogue import find_model_file, served_model_name

    key = read_api_key(api_key_file)
    if key is None and not _is_loopback(host):
        raise WrongUse(
            f"--host {host} can be reached by others: set a key with RIG_API_KEY or --api-key-file."
        )
    path = find_model_file(model)
    name = served_model_name(model, path)
    header, box = read_header(path), inspect_machine()
    fits = fit_context(header, box, ctx, micro_batch=batch, cache=cache_type, flash_attn=flash_attn)
    threads = threads or box.threads
    adapters = [_adapter(lora) for lora in loras]
    click.echo(f"{name}: {fits.describe_memory()}; {threads} threads", err=True)
    server.ModelServer(
        model,
        server.ListenAddress(host, port),
        EngineConfig(
            model=str(path),
            ctx=fits.context,
            parallel=parallel,
            threads=threads,
            batch=batch,
            parked_bytes=fits.parked,
            kv_type=cache_type,
            flash_attn=flash_attn,
            mlock=mlock,
            adapters=tuple(str(path) for _, path in adapters),
            disk=str(paths.cache_dir() / "prefixes") if prefix_cache else "",
            disk_bytes=int(prefix_cache * 2**30),
            template=_checked_template(template),
            drafting=not no_draft,
        ),
        ServerConfig(
            name=name,
            fingerprint=fingerprint_file(path),
            parallel=parallel,
            waiting=queue,
            api_key=key,
            hosts=(*hosts, host),
            body_limit=int(body_limit * 2**20),
            time_limit=time_limit,
            add_system=not no_system,
            adapters=tuple(name for name, _ in adapters),
        ),
        IdleTimer(idle_unload, idle_exit),
    ).serve_until_stopped()


def _checked_template(given: str | None) -> str:
    """The file of a chat template that can be read."""
    if given is None:
        return ""
    from rig.model.chat_template import ChatTemplate

    path = Path(given).resolve()
    try:
        ChatTemplate(path.read_text("utf-8"), bos="", eos="")
    except UnicodeDecodeError:
        raise WrongUse(f"--chat-template: {given} is not text in UTF-8.") from None
    return str(path)


def _adapter(given: str) -> tuple[str, Path]:
    name, equals, rest = given.partition("=")
    path = Path(rest if equals else given)
    if not path.is_file():
        raise WrongUse(f"--lora: there is no file {path}.")
    return (name if equals else path.stem), path.resolve()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


for _subcommand in SUBCOMMANDS:
    serve.add_subcommand(_subcommand)

COMMANDS: list[click.Command] = [serve, *commands.COMMANDS]
