"""`rig jobs`: every bot on one screen."""

from __future__ import annotations

import json

import click

from rig.options import json_option


@click.command("jobs")
@json_option
def jobs_command(as_json: bool) -> None:
    """Show every bot: its next and last run, and what came of it."""
    from bots.commands import actions

    rows = actions.list_jobs()
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        how = "enabled" if row["enabled"] else "dry run"
        if row["stopped"]:
            how = f"stopped: {row['stopped']}"
        click.echo(f"{row['bot']}  {row['schedule']}  → {', '.join(row['outlets'])}  ({how})")
        click.echo(f"  next  {_time(row['next'])}")
        if last := row["last"]:
            outcome = ", ".join(f"{outlet} {state}" for outlet, state in last["posts"].items())
            reason = f": {last['reason']}" if last["reason"] else ""
            click.echo(f"  last  {_time(last['slot'])}  {outcome or last['state']}{reason}")
        if row["slots"]:
            counts = ", ".join(
                f"{number} {state}" for state, number in sorted(row["slots"].items())
            )
            click.echo(f"  slots {counts}")


def _time(moment: str) -> str:
    return f"{moment[:10]} {moment[11:16]} UTC"
