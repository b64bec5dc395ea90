"""`rig bot`: what a person does with one bot: look, decide, enable, stop."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from rig.options import json_option, model_options, read_api_key


@click.group("bot")
def bot_group() -> None:
    """Look at a bot's drafts, decide about them, switch it on and off."""


@bot_group.command("preview")
@click.argument("name", metavar="BOT")
@click.option("--card", metavar="NAME", help="The card bot: draft a post about this card.")
@model_options
@json_option
def preview_command(
    name: str,
    card: str | None,
    model: str | None,
    url: str | None,
    api_key_file: str | None,
    as_json: bool,
) -> None:
    """Draft one post and show it; nothing is kept and nothing is sent.

    Checked as a real draft would be. Works without a network: the card bot takes invented cards as
    long as there is no copy of the real ones.
    """
    from bots.commands.preview import preview_draft

    shown = preview_draft(
        name, {"card": card} if card else {}, model, url, read_api_key(api_key_file)
    )
    if as_json:
        click.echo(json.dumps(shown, ensure_ascii=False))
    elif shown["accepted"]:
        click.echo(shown["post"])
        click.echo(
            f"{shown['card'] or shown['subject']} · {shown['source']} · {shown['attempts']} "
            f"attempt{'s' * (shown['attempts'] != 1)} · {shown['weighted_length']} of 280 on X",
            err=True,
        )
    for reason in [] if as_json else shown["reasons"]:
        click.echo(f"refused: {reason}", err=True)
    if not shown["accepted"]:
        raise SystemExit(1)


@bot_group.command("enable")
@click.argument("name", metavar="BOT")
def enable_command(name: str) -> None:
    """Let BOT speak to the world, on all its outlets; until then it speaks on the screen."""
    from bots.commands import actions

    for line in actions.enable_bot(name):
        click.echo(line)


@bot_group.command("disable")
@click.argument("name", metavar="BOT")
def disable_command(name: str) -> None:
    """Take the world from BOT: from now on it speaks on the screen only."""
    from bots.commands import actions

    click.echo(actions.disable_bot(name))


@bot_group.command("queue")
@click.argument("name", metavar="[BOT]", required=False)
@json_option
def queue_command(name: str | None, as_json: bool) -> None:
    """Show what waits for a person, for its time, or for an answer."""
    from bots.commands import actions

    _show(actions.list_queue(name), as_json, "Nothing waits.")


@bot_group.command("history")
@click.argument("name", metavar="[BOT]", required=False)
@click.option("--last", default=20, type=click.IntRange(1, 10_000), help="So many posts at most.")
@json_option
def history_command(name: str | None, last: int, as_json: bool) -> None:
    """Show what became of the latest drafts: text, outcome, reason, price."""
    from bots.commands import actions

    _show(actions.list_history(name, last), as_json, "Nothing was drafted yet.")


@bot_group.command("approve")
@click.argument("number", metavar="NUMBER", type=int)
def approve_command(number: int) -> None:
    """Let the draft NUMBER of the queue go out."""
    from bots.commands import actions

    click.echo(actions.approve_post(number))


@bot_group.command("reject")
@click.argument("number", metavar="NUMBER", type=int)
@click.option("--reason", default="rejected by a person", help="Kept in the ledger.")
def reject_command(number: int, reason: str) -> None:
    """Leave the draft NUMBER of the queue out for good."""
    from bots.commands import actions

    click.echo(actions.reject_post(number, reason))


@bot_group.command("edit")
@click.argument("number", metavar="NUMBER", type=int)
@click.argument("text", metavar="[TEXT|-]", required=False)
def edit_command(number: int, text: str | None) -> None:
    """Give the draft NUMBER another text: TEXT, `-` for stdin, or an editor on a terminal.

    The new text is checked like a bot's own.
    """
    from bots.commands import actions

    if text is None:
        stdin = sys.stdin
        if not stdin.isatty():
            raise click.UsageError("Say the new text, or `-` to read it from stdin.")
        text = click.edit(actions.post_text(number))
        if text is None:
            raise click.UsageError("The text was left as it is.")
    elif text == "-":
        text = sys.stdin.read()
    click.echo(actions.edit_post(number, text.strip()))


@bot_group.command("resolve")
@click.argument("number", metavar="NUMBER", type=int)
@click.option("--arrived/--lost", required=True, help="What you saw at the outlet.")
def resolve_command(number: int, arrived: bool) -> None:
    """Say what became of the unclear post NUMBER, where no outlet can tell."""
    from bots.commands import actions

    click.echo(actions.resolve_post(number, arrived))


@bot_group.command("pause")
@click.argument("name", metavar="[BOT]", required=False)
@click.option("--outlet", metavar="OUTLET", help="Stop an outlet for all bots instead.")
@click.option("--all", "everything", is_flag=True, help="Stop everything at once.")
@click.option(
    "--reason", default="paused by a person", help="Shown wherever it holds something back."
)
def pause_command(name: str | None, outlet: str | None, everything: bool, reason: str) -> None:
    """Stop BOT before its next request goes out; works while the daemon runs, on every box."""
    from bots.commands import actions

    click.echo(actions.pause_posts(name, outlet, everything, reason))


@bot_group.command("resume")
@click.argument("name", metavar="[BOT]", required=False)
@click.option("--outlet", metavar="OUTLET", help="Let an outlet go on that was stopped.")
@click.option("--all", "everything", is_flag=True, help="Let go on what --all has stopped.")
def resume_command(name: str | None, outlet: str | None, everything: bool) -> None:
    """Let BOT go on. What was due meanwhile is caught up with as its `catch_up` says."""
    from bots.commands import actions

    click.echo(actions.resume_posts(name, outlet, everything))


@bot_group.command("lessons")
@click.argument("name", metavar="BOT")
@click.option(
    "--out",
    required=True,
    metavar="FILE.jsonl",
    type=click.Path(dir_okay=False),
    help="The file to write.",
)
@click.option(
    "--context",
    type=click.IntRange(min=512),
    default=4096,
    help="Tokens that the model holds; longer articles become a lesson for each part.",
)
@json_option
def lessons_command(name: str, out: str, context: int, as_json: bool) -> None:
    """Write what BOT asks a model as lessons to train on, with what you approved, edited and rejected.

    The card bot gives every card of its pool, the digest bot the texts of its reading list. Blocked words,
    credentials and other people's handles stay out.
    """
    from bots.commands.lessons import write_bot_lessons

    found = write_bot_lessons(name, out, context)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    click.echo(f"{found['lessons']} lessons in {out}.")
    for note in found["notes"]:
        click.echo(note, err=True)


@bot_group.command("refresh")
@click.option(
    "--from",
    "path",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="A saved answer of the API.",
)
@click.option("--force", is_flag=True, help="Fetch also what seems to be up to date.")
@json_option
def refresh_command(path: str | None, force: bool, as_json: bool) -> None:
    """Bring the card bot's copy of the cards up to date."""
    from bots.cards.database import CardDatabase
    from bots.commands import actions

    said = actions.refresh_cards(path, force)
    if not as_json:
        click.echo(said)
        return
    with CardDatabase.open_copy() as database:
        click.echo(json.dumps({"cards": len(database), **database.copy_info()}, ensure_ascii=False))


def _show(rows: list[dict[str, Any]], as_json: bool, nothing: str) -> None:
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    if not rows:
        click.echo(nothing, err=True)
    for row in rows:
        price = f" · ${row['dollars']:.3f}" if row["dollars"] else ""
        reason = f" · {row['reason']}" if row["reason"] else ""
        state = click.style(row["state"], fg=COLOURS.get(row["state"]))
        click.echo(
            f"{row['id']:>5}  {row['slot'][:16]}  {row['bot']} → {row['outlet']}  {state}{price}{reason}"
        )
        click.echo(f"       {row['text']}")


COLOURS = {"sent": "green", "failed": "red", "unknown": "yellow", "draft": "cyan"}
