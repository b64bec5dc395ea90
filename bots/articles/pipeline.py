"""One text, one wish, one summary: the errand that the command and the digest share.

Asks the cache first and a model last; a text no longer than what was asked for needs neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bots.articles import chunks, fact_check
from bots.articles.cache import ArticleCache, cache_key
from bots.articles.request import SummaryRequest
from bots.documents.article import Article
from rig.config import load_config
from rig.runs import find_run
from rig.server import running_servers

if TYPE_CHECKING:
    from rig.server.client import (
        ModelClient,  # a third of the time that a summary from the cache takes
    )


def summarise(
    article: Article,
    wish: SummaryRequest,
    connect: Callable[[], ModelClient],
    cache: ArticleCache,
    *,
    who: str = "",
    listener: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Return what `--json` prints, without the timings of what came before.

    `connect` is called once at most, and only if a model has to be asked; its client stays open.
    `who` names the model in the keys of the cache; empty where only the server knows. `options` as for
    `bots.articles.summarise.Summariser`.
    """
    start = time.monotonic()
    found: dict[str, Any] | None = None
    client: ModelClient | None = None
    if wish.as_it_is and len(chunks.split_sentences(article.text)) <= wish.num_points:
        found = {"text": article.text, "chunks": 0, "notes": ["The text is as short as was asked."]}
    elif not who:
        client = connect()
        who = served_fingerprint(client)
    limits = options.get("context"), options.get("max_tokens")
    name = cache_key("summary", article.text, wish.task_sentence(), who, limits)
    cached = found is None and (found := cache.get_value(name)) is not None
    if found is None:
        from bots.articles.summarise import Summariser

        reader = Summariser(client or connect(), who=who, cache=cache, listener=listener, **options)
        found = asdict(reader.summarise_text(article.text, wish))
        cache.put_value(name, found)
    timings = {} if cached else found.get("timings", {})
    timings = {**timings, "summary": round(time.monotonic() - start, 3)}
    return summary_object(article, found, timings, cached=cached)


def summary_object(
    article: Article, found: dict[str, Any], timings: dict[str, float], *, cached: bool = False
) -> dict[str, Any]:
    """The one object of `--json`; `found` is a `summarise.Summary`, or as much of it as there is."""
    summary = found.get("text")
    source = f"{article.title}\n{article.date}\n{article.text}"
    return {
        "summary": summary,
        "title": article.title,
        "author": article.author,
        "date": article.date,
        "site": article.site,
        "url": article.url,
        "kind": article.kind,
        "tokens_in": found.get("tokens_in", 0),
        "tokens_exact": found.get("exact", True),
        "tokens_computed": {} if cached else found.get("computed", {}),
        "tokens_out": found.get("tokens_out", 0),
        "chunks": found.get("chunks", 0),
        "kept_chunks": found.get("kept_notes", 0),
        "model": found.get("model", ""),
        "cached": cached,
        "unfounded": fact_check.find_unfounded(summary or "", source),
        "notes": [*article.notes, *found.get("notes", [])],
        "timings": timings,
        "text": article.text,
    }


def served_fingerprint(client: ModelClient) -> str:
    """The same for a server's model: by its file if the server runs here, else by what it says of it."""
    if who := _serving(client.url):
        return who
    card = client.model_info()
    passing = ("created", "loaded", "status")
    return cache_key(
        client.url, {name: value for name, value in card.items() if name not in passing}
    )


def known_fingerprint(url: str | None, model: str | None) -> str:
    """The fingerprint of the model that `connect.connect_model` would take, without asking anybody.

    Empty when only a server can say: an address elsewhere was given, or nothing at all.
    """
    table = load_config().get("model", {})
    name = str(model or table.get("name") or "")
    here = bool(name) and find_run(name).exists()
    if url := url or (None if model else table.get("url")):
        served = _serving(str(url).rstrip("/").removesuffix("/v1"))
        # with an address, a name that is no file here chooses among what the server offers: an adapter, say
        return f"{served} {name}" if served and name and not here else served
    return running_servers.model_fingerprint(name) if here else ""


def _serving(url: str) -> str:
    """The fingerprint of what a server of this machine serves at `url`; empty where there is none."""
    here = (found for found in running_servers.live_servers() if found["url"] == url)
    return next((running_servers.model_fingerprint(str(found["model"])) for found in here), "")
