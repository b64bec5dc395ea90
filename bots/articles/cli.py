"""`rig summarise`: options and order of events; everything heavy is imported when it is needed."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rig.errors import WrongUse
from rig.options import json_option, model_options, read_api_key

if TYPE_CHECKING:
    from bots.articles.cache import ArticleCache
    from bots.articles.pipeline import SummaryResult
    from bots.articles.request import SummaryRequest
    from bots.documents.article import Article


@click.command("summarise")
@click.argument("source", required=False)
@click.option(
    "--length", default="medium", metavar="short|medium|long|N", help="N sentences (or points)."
)
@click.option("--bullets", is_flag=True, help="A list of points instead of sentences.")
@click.option(
    "--language",
    default="",
    show_default=False,
    metavar="NAME|CODE",
    help="Write in this language.",
)
@click.option(
    "--focus", default="", show_default=False, metavar="WORDS", help="What it is about above all."
)
@click.option(
    "--style",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A template of your own: the instruction, with $length, $focus and $language.",
)
@click.option("--extract", is_flag=True, help="Print the text itself; no model is asked.")
@click.option("--browser", is_flag=True, help="Render the page with an installed Chromium first.")
@click.option("--allow-private", is_flag=True, help="Permit addresses in the local network.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write here, not to stdout."
)
@click.option("--no-cache", is_flag=True, help="Read and ask again, and keep nothing.")
@click.option(
    "--context", type=click.IntRange(256), help="Tokens the server reads at once, if it can't say."
)
@click.option(
    "--max-tokens", type=click.IntRange(16), help="Tokens the answer may take, thoughts included."
)
@click.option("--parallel", type=click.IntRange(1, 64), default=4, help="Parts asked for at once.")
@click.option("--quiet", is_flag=True, help="No progress and no remarks.")
@json_option
@model_options
@click.pass_context
def summarise_command(ctx: click.Context, /, source: str | None, **options: Any) -> None:
    """Summarise the article at SOURCE: address, file (HTML, PDF, EPUB, DOCX, Markdown, text) or -.

    \b
    rig summarise https://example.org/long-read
    rig summarise paper.pdf --length long --focus "the method"
    pbpaste | rig summarise - --bullets
    rig summarise sample            a bundled article

    All of the text is read, however long it is, or the command says what it could not read.
    """
    if source is None:
        if sys.stdin.isatty():
            click.echo(ctx.get_help())
            ctx.exit(2)
        source = "-"
    from bots.articles.cache import ArticleCache
    from bots.articles.pipeline import SummaryResult
    from bots.articles.request import SummaryRequest, read_style
    from bots.articles.source import read_article

    request = SummaryRequest(
        length=options["length"].lower(),
        bullets=options["bullets"],
        language=options["language"].strip(),
        focus=options["focus"].strip(),
        style=read_style(options["style"]) if options["style"] else "",
    )
    request.task_sentence()  # what is wrong with it shows before anything is fetched
    cache = ArticleCache(None) if options["no_cache"] else ArticleCache.at_home()
    start = time.monotonic()
    try:
        article = read_article(
            source, cache, browser=options["browser"], allow_private=options["allow_private"]
        )
        seconds = time.monotonic() - start
        if options["extract"]:
            result, streamed = SummaryResult(article), False
            text = article.text
            _remarks(result, quiet=options["quiet"])
        else:
            result, streamed = _ask(article, request, cache, options)
            text = result.text or ""
        result = result.with_seconds("text", seconds)
    finally:
        cache.close()
    shown = json.dumps(result.json(), indent=2, ensure_ascii=False) if options["as_json"] else text
    if options["out"]:
        from rig.atomic import write_text

        write_text(options["out"], shown + "\n")
    elif not streamed:
        click.echo(shown)


def _ask(
    article: Article, request: SummaryRequest, cache: ArticleCache, options: dict[str, Any]
) -> tuple[SummaryResult, bool]:
    """The summary, and whether a terminal has seen it already."""
    from bots.articles.pipeline import known_fingerprint, summarise
    from bots.articles.progress import SummaryProgress

    progress = SummaryProgress(
        quiet=options["quiet"],
        stream=sys.stdout.isatty() and not options["as_json"] and options["out"] is None,
    )
    with contextlib.ExitStack() as open_until_here:
        result = summarise(
            article,
            request,
            lambda: open_until_here.enter_context(_connect(options)),
            cache,
            who=known_fingerprint(options["url"], options["model"]),
            listener=progress,
            context=options["context"],
            max_tokens=options["max_tokens"],
            parallel=options["parallel"],
        )
    if progress.streamed:
        click.echo()
    _remarks(result, quiet=options["quiet"])
    return result, progress.streamed


def _connect(options: dict[str, Any]) -> Any:
    from rig.server import connect

    return connect.connect_model(
        options["url"], options["model"], api_key=read_api_key(options["api_key_file"])
    )


def _remarks(result: SummaryResult, *, quiet: bool) -> None:
    if quiet:
        return
    article = result.article
    head = " · ".join(filter(None, (article.title, article.author, article.date, article.site)))
    if head:
        click.echo(head, err=True)
    for note in result.remarks:
        click.echo(note, err=True)
    for what, items in result.unfounded.items():
        if items:
            shown = ", ".join(f"“{item}”" for item in items)
            click.echo(f"Not in the text, check before you use it: {what} {shown}", err=True)


@click.group("read")
def read_group() -> None:
    """The reading list: what the digest bot summarises, one after another."""


@read_group.command("add")
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
def add_command(urls: tuple[str, ...]) -> None:
    """Put pages on the list; they leave it when a digest with them has been delivered."""
    from bots.articles.reading_list import ReadingList
    from bots.documents.article import Unreadable
    from bots.web.http import parse_url

    try:
        checked = [str(parse_url(url)) for url in urls]
    except Unreadable as error:
        raise WrongUse(error.message) from error
    with ReadingList.at_home() as reading:
        for url in checked:
            click.echo(f"{'added' if reading.add_url(url) else 'waits already'}: {url}", err=True)


@read_group.command("list")
@click.option(
    "--all", "everything", is_flag=True, help="Entries of feeds and what is done as well."
)
@json_option
def list_command(everything: bool, as_json: bool) -> None:
    """Show what waits, what is drafted, and what could not be read and why."""
    from dataclasses import asdict

    from bots.articles.reading_list import ReadingList

    states = ("waiting", "drafted", "failed", *(("done",) if everything else ()))
    with ReadingList.at_home() as reading:
        items = [item for item in reading.list_items(states) if everything or not item.feed]
    if as_json:
        click.echo(json.dumps([asdict(item) for item in items], indent=2, ensure_ascii=False))
        return
    for item in items:
        remark = f"  ({item.reason})" if item.reason else ""
        click.echo(f"{item.state:8} {item.url}{remark}")
    if not items:
        click.echo("Nothing waits: rig read add URL.", err=True)


@read_group.command("remove")
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
def remove_command(urls: tuple[str, ...]) -> None:
    """Take pages off the list."""
    from bots.articles.reading_list import ReadingList

    with ReadingList.at_home() as reading:
        missing = [url for url in urls if not reading.remove_url(url)]
    if missing:
        raise WrongUse(f"Not on the list: {', '.join(missing)}.")


COMMANDS: list[click.Command] = [summarise_command, read_group]
