"""The digest bot: what waits on the reading list and in feeds, summarised, so many for each post and day.

What a page says may reach an outlet only as a checked summary: the model has no tools, and no link, mention
or hashtag of a page passes; the one link in a post is the article's own address. An item leaves the list
when an outlet has confirmed its delivery, not before.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, NamedTuple

from pydantic import Field

from bots.articles import feeds, source
from bots.articles.cache import ArticleCache
from bots.articles.pipeline import summarise
from bots.articles.reading_list import ReadingItem, ReadingList
from bots.articles.request import SummaryRequest
from bots.bot import Context, Delivery, Draft, bots
from bots.documents.article import Unreadable
from bots.documents.sanitise import clean_line
from bots.language.sentences import shorter_texts, split_sentences
from bots.moderation import ERROR_TEXT, REFUSAL
from bots.settings import Duration
from rig.errors import RigError
from rig.server.client import RequestRefused, ServerBusy, ServerUnreachable
from rig.validation import FrozenModel, validate_as

PASSING = ("network", "time", "status", "bot-check")
"""Reasons that may be gone tomorrow."""
ATTEMPTS = 5
"""Items without a text that one slot passes over."""


class DigestOptions(FrozenModel):
    """The table `[bots.NAME.options]` of the digest bot."""

    feeds: tuple[str, ...] = ()
    """Addresses of RSS or Atom feeds, read after the reading list."""
    reading_list: bool = True
    """Whether what `rig read add` put on the list is read."""
    items: Annotated[int, Field(ge=1, le=20)] = 1
    """Articles in one post, as far as the outlets have room."""
    per_day: Annotated[int, Field(ge=1)] = 5
    """Articles in one day (UTC)."""
    new_within: Duration = timedelta(days=3)
    """Entries of feeds older than this are left alone; so is what a feed held when it was first read
    beyond its newest `items`."""
    length: str = "medium"
    bullets: bool = False
    language: str = ""
    focus: str = ""
    link: bool = True
    """Put the article's address under its summary (on X a post with a link costs more)."""
    hold_for: Duration = timedelta(days=2)
    """After this long without a delivery (a draft that was rejected or lost) an article waits again."""
    browser: bool = False
    """Render pages with an installed Chromium."""
    allow_private: bool = False
    """Permit addresses in the local network, such as a wiki of one's own."""


@bots.register
def digest(context: Context) -> Draft | None:
    """Draft a post about the next articles; None when nothing waits."""
    options = validate_as(
        DigestOptions, context.options, f"[bots.{context.name}.options] in rig.toml"
    )
    request = SummaryRequest(options.length, options.bullets, options.language, options.focus)
    request.task_sentence()  # a wrong length is said before anything is fetched
    with ReadingList.at_home() as reading:
        cache = ArticleCache.at_home()
        try:
            return _draft(context, options, request, reading, cache)
        finally:
            cache.close()


@bots.on_delivery(digest)
def mark_delivered(delivery: Delivery) -> None:
    """Take the articles of a confirmed post off the list."""
    with ReadingList.at_home() as reading:
        for url in delivery.data.get("urls", []):
            reading.mark_done(str(url))


def _draft(
    context: Context,
    options: DigestOptions,
    request: SummaryRequest,
    reading: ReadingList,
    cache: ArticleCache,
) -> Draft | None:
    slot = f"{context.name} {context.slot.isoformat()}"
    reading.release_expired(options.hold_for.total_seconds())
    held = reading.held_items(slot)
    left = options.per_day - reading.count_drafted_since(context.name, _midnight(context.now))
    count = len(held) or min(options.items, left)
    waiting = held or (_waiting(context, options, reading) if count > 0 else [])
    if not waiting:
        return None
    context.model_client()  # without a model nothing is the article's fault
    blocks: list[_Block] = []
    passed_over: list[str] = []
    for item in waiting:
        if len(blocks) >= count or len(passed_over) >= ATTEMPTS:
            break
        try:
            block = _block(context, options, request, item, cache, blocks)
        except (ServerBusy, ServerUnreachable, RequestRefused):
            raise
        except RigError as error:
            passing = not isinstance(error, Unreadable) or error.reason in PASSING
            context.tell_operator(f"{context.name}: {item.url}: {error.message}")
            passed_over.append(error.message)
            if not context.preview:
                reading.mark_failed(item.url, error.message, passing=passing)
            continue
        if block and (context.preview or item.slot == slot or reading.hold_item(item.url, slot)):
            blocks.append(block)
    if not blocks:
        return None
    urls = [block.url for block in blocks]
    return Draft(
        "\n\n".join(block.text for block in blocks),
        subject=" ".join(urls),
        links=options.link,
        reasons=tuple(passed_over),
        own_words=" ".join(block.own_words for block in blocks),
        data={"urls": urls},
    )


def _waiting(context: Context, options: DigestOptions, reading: ReadingList) -> list[ReadingItem]:
    """What may be read, in the order it should be; a preview looks at feeds and remembers nothing."""
    known = {
        item.url: item for item in reading.list_items(("waiting", "drafted", "done", "failed"))
    }
    read_before = {item.feed for item in known.values()}
    oldest = context.now.timestamp() - options.new_within.total_seconds()
    new: list[ReadingItem] = []
    for url in options.feeds:
        try:
            found = feeds.fetch_entries(url, allow_private=options.allow_private)
        except Unreadable as error:  # it may answer the next time
            context.tell_operator(f"{context.name}: {error.message}")
            continue
        fresh = [entry for entry in found if not entry.published or entry.published >= oldest]
        for at, entry in enumerate(sorted(fresh, key=lambda entry: -entry.published)):
            if entry.url in known:
                continue
            item = ReadingItem(
                entry.url, entry.title, url, entry.published or context.now.timestamp() - at
            )
            backlog = url not in read_before and at >= options.items
            if not backlog:
                new.append(item)
            if not context.preview:
                reading.add_url(item.url, item.title, item.feed, item.added)
                if backlog:
                    reading.mark_done(item.url)
    waiting = reading.list_items(("waiting",)) if not context.preview else [
        *(item for item in known.values() if item.state == "waiting"), *new,
    ]  # fmt: skip
    return [i for i in waiting if (i.feed in options.feeds if i.feed else options.reading_list)]


class _Block(NamedTuple):
    """One article of a post."""

    url: str
    text: str
    own_words: str


def _block(
    context: Context,
    options: DigestOptions,
    request: SummaryRequest,
    item: ReadingItem,
    cache: ArticleCache,
    before: list[_Block],
) -> _Block | None:
    """Title, summary and address of one article; None when there is no room beside those before."""
    article = source.read_article(
        item.url, cache, browser=options.browser, allow_private=options.allow_private
    )
    result = summarise(article, request, context.model_client, cache)
    for note in result.unfounded["quotes"] + result.unfounded["figures"]:
        context.tell_operator(
            f"{context.name}: {item.url}: the summary has “{note}”, which the text has not."
        )
    own_words = _own_words(article.text)
    title = clean_line(article.title or item.title)[:200]
    link = item.url if options.link else ""

    def block(title: str, body: str) -> str:
        return "\n".join(filter(None, [title, body, link]))

    def fits(text: str) -> bool:
        return context.room_left("\n\n".join([*(one.text for one in before), text])) >= 0

    titles = [""] if context.find_faults(title or " ", own_words=own_words) else [title, ""]
    bodies = shorter_summaries(result.text or "", lines=options.bullets)
    for body, head in ((body, head) for body in bodies for head in titles):
        if not fits(block(head, body)):
            continue
        wrong = context.find_faults(body, own_words=own_words) or context.find_faults(
            block(head, body), links=options.link, own_words=f"{own_words} {item.url}"
        )
        if wrong:
            raise RigError(f"The summary did not pass: {wrong[0]}")
        return _Block(item.url, block(head, body), f"{own_words} {link}".strip())
    if not before:
        raise RigError("No summary of it has room in the outlets.")
    return None


def shorter_summaries(summary: str, *, lines: bool) -> Iterator[str]:
    """`summary`, then less and less of it: whole sentences (or lines), at last words of the first one.

    >>> list(shorter_summaries("One two three. Four.", lines=False))
    ['One two three. Four.', 'One two three.', 'One two…', 'One…']
    """
    parts = summary.splitlines() if lines else split_sentences(summary)
    glue = "\n" if lines else "" if summary[-1:] in "。！？" else " "
    for count in range(len(parts), 0, -1):
        yield glue.join(parts[:count])
    yield from shorter_texts(parts[0]) if parts else ()


def _own_words(text: str) -> str:
    """Phrases that would sound like an error or a refusal, were they not what the article says.

    Nothing else of a page excuses anything: a page must not be able to permit its own links and mentions.
    """
    return " ".join(found[0] for rule in (ERROR_TEXT, REFUSAL) for found in rule.finditer(text))


def _midnight(now: datetime) -> float:
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
