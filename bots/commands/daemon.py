"""`rig daemon`: run the bots on their schedules, as a process or as a systemd service."""

from __future__ import annotations

import json
import os
import sys

import click

from rig.options import json_option


@click.group("daemon")
def daemon_group() -> None:
    """Run the bots of rig.toml on their schedules, for years."""


@daemon_group.command("run")
@click.option(
    "--now", is_flag=True, help="Let every bot draft once at the start, as if a slot were due."
)
@click.option("--verbose", is_flag=True, help="Log what the daemon decides, not only what it does.")
def run_command(now: bool, verbose: bool) -> None:
    """Run in the foreground until SIGTERM or Ctrl-C; SIGHUP reads rig.toml again.

    A bot that nobody has enabled speaks on the screen only (see `rig bot enable`). Posts of the
    outlet `screen` go to stdout, what happens to stderr.
    """
    from bots.daemon import process

    done = process.run_daemon(now=now, verbose=verbose)
    sys.stdout.flush()
    if not done:
        os._exit(0)  # a call that hangs is left behind; the ledger knows of it


@daemon_group.command("status")
@json_option
def status_command(as_json: bool) -> None:
    """Ask the running daemon how it is; exit code 1 when it is ill or none runs."""
    from bots.daemon import process

    found = process.daemon_status()
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        words = found["wrong"] if found["status"] == "none" else [found["status"], *found["wrong"]]
        click.echo(": ".join(words))
        for name, about in found.get("bots", {}).items():
            last = (
                f"{about['last_state']} at {about['last'][:16]}" if about["last"] else "nothing yet"
            )
            click.echo(f"{name}: next {about['next'][:16]} UTC, last {last}")
        for scope, reason in found.get("stopped", {}).items():
            click.echo(f"{scope} is stopped: {reason}")
    if found["status"] != "well":
        raise SystemExit(1)


@daemon_group.command("reload")
def reload_command() -> None:
    """Let the running daemon read rig.toml again; a wrong one is refused and the old one stays."""
    from bots import settings
    from bots.daemon import process

    settings.read_settings()  # a mistake is shown here and not only in the log
    click.echo(process.signal_reload())


@daemon_group.command("install")
@click.option("--system", is_flag=True, help="For the whole box, started at boot (needs root).")
@click.option(
    "--user",
    "account",
    metavar="USER",
    help="With --system: whom it runs as; default: a made-up user.",
)
@click.option(
    "--print", "only_print", is_flag=True, help="Write the unit to stdout and install nothing."
)
def install_command(system: bool, account: str | None, only_print: bool) -> None:
    """Install the daemon as a systemd service that reads the rig.toml of this folder."""
    from pathlib import Path

    from bots import settings
    from bots.daemon import systemd_unit
    from rig import systemd

    found = settings.read_settings()
    names = sorted({outlet for bot in found.bots.values() for outlet in bot.outlets})
    stop = found.daemon.stop_within.total_seconds()
    text = systemd_unit.unit_text(Path.cwd(), names, stop, system=system, user=account)
    if only_print:
        click.echo(text, nl=False)
        return
    systemd.install_unit(systemd_unit.NAME, text, system=system)
    if not system:
        click.echo("`loginctl enable-linger` keeps it running while you are logged out.", err=True)
    path = systemd.unit_path(systemd_unit.NAME, system=system)
    click.echo(f"{path} is installed and runs; `rig daemon status` asks it how it is.")


@daemon_group.command("uninstall")
@click.option("--system", is_flag=True, help="The one for the whole box (needs root).")
def uninstall_command(system: bool) -> None:
    """Stop the service and remove its unit; the ledger and the credentials stay."""
    from bots.daemon import systemd_unit
    from rig import systemd

    there = systemd.uninstall_unit(systemd_unit.NAME, system=system)
    path = systemd.unit_path(systemd_unit.NAME, system=system)
    click.echo(f"{path} {'is removed' if there else 'was not there'}.")
