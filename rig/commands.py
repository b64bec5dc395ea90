"""The frame's own commands: the whole loop, the state of this machine, the configuration in force."""

from __future__ import annotations

from typing import Any

import click

from rig.options import json_option


@click.command("quickstart")
@json_option
@click.option("--seed", default=1, help="Seed of the training run.")
@click.option("--name", default="quickstart", help="Run folder under runs/.")
@click.option("--fresh", is_flag=True, help="Delete the run folder first and begin from nothing.")
@click.option("--card", metavar="NAME", help="Draft the post about this card; else one at random.")
@click.option(
    "--article", metavar="SOURCE", help="Summarise this address or file; else a bundled one."
)
@click.option(
    "--real",
    is_flag=True,
    help="Fetch a real card database and a real page instead of the bundled samples.",
)
def quickstart_command(
    as_json: bool,
    seed: int,
    name: str,
    fresh: bool,
    card: str | None,
    article: str | None,
    real: bool,
) -> None:
    """Show the whole loop on the toy model, command by command.

    Trains, exports, serves, asks, drafts a card post and summarises an article. Needs no GPU, no
    account and no network; takes about five minutes on two cores. Interrupted and started again, it goes on
    where it was.
    """
    from rig import quickstart as loop

    loop.run_quickstart(
        name, seed=seed, fresh=fresh, as_json=as_json, card=card, article=article, real=real
    )


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """Say what this machine can do, what is missing, and how to get it."""
    import json
    import sys

    from rig import doctor as examination

    findings = examination.examine_machine()
    if as_json:
        click.echo(json.dumps([f._asdict() for f in findings], indent=2))
    else:
        examination.print_findings(findings)
    sys.exit(1 if any(f.state == "broken" for f in findings) else 0)


@click.command("config")
@json_option
@click.pass_context
def config_command(ctx: click.Context, as_json: bool) -> None:
    """Show the configuration in force, value by value, with where each comes from.

    Order: flag > RIG_* environment > ./rig.toml > user rig.toml > default. Secrets are never shown.
    """
    import json

    from rig import config

    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    rows = config.effective_settings(root)
    if as_json:
        click.echo(json.dumps([r._asdict() for r in rows], indent=2, default=str))
    else:
        config.print_settings(rows)


class Addresses(click.ParamType[tuple[str, ...]]):
    """Where messages go; the checks are `rig.notify.read_addresses`'."""

    name = "addresses"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """One text with spaces between, or the list of rig.toml."""
        from rig.notify import read_addresses

        return read_addresses(value)


@click.command("notify")
@json_option
@click.argument("title", required=False)
@click.argument("body", required=False, default="")
@click.option("--to", type=Addresses(), help="Addresses in Apprise's form, a space between them.")
@click.option("--test", is_flag=True, help="Send a message that says it is a test.")
def notify_command(
    as_json: bool, title: str | None, body: str, to: tuple[str, ...] | None, test: bool
) -> None:
    """Send a message to the addresses of [notify] in rig.toml: ntfy, Telegram, e-mail, a webhook and more.

    They are told when a training run ends, fails or rings its first alarm, when drafts wait for a person,
    when posts stop, and when only a person can say whether one went out.
    """
    import json
    import platform

    from rig import notify
    from rig.errors import RigError, WrongUse

    if not to:
        raise WrongUse(
            'Nobody is to be told yet: write [notify] and to = ["ntfy://my-secret-topic"] into rig.toml, '
            "or give --to."
        )
    if test:
        title, body = "rig: a test", f"rig on {platform.node()} can tell you here."
    if not title:
        raise WrongUse("Give a TITLE, or --test.")
    found = notify.send_notification(title, body, to)
    if as_json:
        click.echo(json.dumps([one._asdict() for one in found]))
    else:
        for one in found:
            click.echo(f"{one.address}: {one.fault or 'told'}", err=bool(one.fault))
    if failed := sum(bool(one.fault) for one in found):
        raise RigError(f"{failed} of {len(found)} addresses could not be told.")


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish", "powershell"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL: `rig completion bash >> ~/.bashrc`."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        from rig.errors import RigError

        raise RigError(f"The installed Click has no completion for {shell}: pip install -U click.")
    click.echo(kind(ctx.find_root().command, {}, "rig", "_RIG_COMPLETE").source())


COMMANDS: list[click.Command] = [
    quickstart_command,
    doctor_command,
    config_command,
    notify_command,
    completion_command,
]
