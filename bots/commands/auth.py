"""`rig auth`: the only way in which a secret comes to rig, and no way in which it comes out again."""

from __future__ import annotations

import json
import sys

import click


@click.command("auth")
@click.argument("outlet", metavar="OUTLET")
@click.option("--check", is_flag=True, help="Test the credentials that are there.")
@click.option("--forget", is_flag=True, help="Remove the credentials that rig keeps.")
def auth_command(outlet: str, check: bool, forget: bool) -> None:
    """Store and test the credentials of OUTLET (x, bluesky, ... or a name of rig.toml).

    On a terminal they are asked for without an echo; otherwise stdin holds one JSON object of them.
    They are tested at the platform, then kept in a file that only you can read. `database` stores the
    address of a PostgreSQL ledger.
    """
    from bots import credentials
    from bots.commands import actions

    if forget:
        there = credentials.delete_credentials(outlet)
        click.echo(f"{outlet}: {'forgotten' if there else 'there was nothing to forget'}.")
        return
    if outlet == "database":
        click.echo(
            actions.store_database_url(_asked(outlet, {"url": "address of the ledger"})["url"])
        )
        return
    if check:
        click.echo(actions.check_credentials(outlet))
        return
    fields = actions.configured_outlet(outlet).secrets
    if not fields:
        click.echo(f"{outlet} needs no credentials.")
        return
    click.echo(actions.store_credentials(outlet, _asked(outlet, dict(fields))))


def _asked(outlet: str, fields: dict[str, str]) -> dict[str, str]:
    stdin = sys.stdin
    if stdin.isatty():
        return {
            field: click.prompt(f"{outlet}: {what}", hide_input=True, err=True).strip()
            for field, what in fields.items()
        }
    text = stdin.read().strip()
    try:
        given = json.loads(text)
        found = {str(key): str(value).strip() for key, value in given.items()}
    except (ValueError, AttributeError):
        if len(fields) == 1 and text and "\n" not in text:
            return {next(iter(fields)): text}
        example = json.dumps(dict.fromkeys(fields, "..."))
        raise click.UsageError(f"stdin holds no JSON object such as {example}") from None
    if set(found) != set(fields) or not all(found.values()):
        raise click.UsageError(f"{outlet} needs exactly these: {', '.join(fields)}")
    return found
