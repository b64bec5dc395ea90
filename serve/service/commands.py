"""The subcommands beside `rig serve MODEL`: install, uninstall, status, stop. Parsing only."""

from __future__ import annotations

from typing import Any

import click

from rig.options import json_option

SYSTEM = click.option(
    "--system", is_flag=True, help="For the machine, from boot on (needs root); else for this user."
)
NAME = click.option("--name", default="rig-serve", metavar="UNIT", help="Name of the systemd unit.")


@click.command("install", context_settings={"ignore_unknown_options": True})
@click.argument("model")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@SYSTEM
@NAME
@click.option("--run-as", metavar="USER", help="Of a system unit; default: who called sudo.")
@click.option("--now", is_flag=True, help="Start it too, now and at each boot.")
@click.option("--print", "only_print", is_flag=True, help="Print the unit and write nothing.")
@click.pass_context
def install_command(
    ctx: click.Context,
    model: str,
    options: tuple[str, ...],
    system: bool,
    name: str,
    run_as: str | None,
    now: bool,
    only_print: bool,
) -> None:
    """Write a systemd unit that serves MODEL; OPTIONS are those of `rig serve`.

    The unit is Type=notify with a watchdog, a memory limit for the chosen context, and shut in.
    """
    from serve.service import systemd

    settings = _settings(ctx, model, options)
    user = run_as or systemd.default_user()
    unit = systemd.plan_unit(model, settings, list(options), name=name, system=system, user=user)
    if only_print:
        click.echo(unit.unit_text(), nl=False)
        return
    systemd.install_service(unit, now=now)
    click.echo(str(unit.file_path))
    for hint in systemd.next_steps(unit, now):
        click.echo(hint, err=True)


@click.command("uninstall")
@SYSTEM
@NAME
def uninstall_command(system: bool, name: str) -> None:
    """Stop the service and take its unit away."""
    from serve.service import systemd

    unit = systemd.unit_called(name, system)
    systemd.uninstall_service(unit)
    click.echo(f"{unit.file_path} is gone.", err=True)


@click.command("status")
@NAME
@json_option
def status_command(name: str, as_json: bool) -> None:
    """Show the installed service and every server that answers, also those started on demand."""
    import json

    from serve.service import systemd

    found = systemd.service_status(name)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(systemd.format_status(found)))


@click.command("stop")
@click.argument("model", required=False)
def stop_command(model: str | None) -> None:
    """Ask the running server of MODEL (or every one) to leave and give the memory back."""
    from rig.errors import RigError
    from serve.service import systemd

    asked = systemd.stop_servers(model)
    if not asked:
        raise RigError(f"No server{f' of {model}' if model else ''} runs here.")
    for server in asked:
        click.echo(f"{server['url']} ({server['model']}) is leaving.", err=True)


def _settings(ctx: click.Context, model: str, options: tuple[str, ...]) -> dict[str, Any]:
    """What `rig serve MODEL OPTIONS` would be called with; a wrong option is found here and now."""
    assert ctx.parent is not None
    group = ctx.parent.command
    assert isinstance(group, click.Group)
    serve = group.commands["serve"]
    with serve.make_context("serve", [model, *options], parent=ctx.parent) as inner:
        return dict(inner.params)


SUBCOMMANDS: list[click.Command] = [
    install_command,
    uninstall_command,
    status_command,
    stop_command,
]
