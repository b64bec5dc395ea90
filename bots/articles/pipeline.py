"""One text, one request, one summary: what the command and the digest share.

Asks the cache first and a model last; a text no longer than what was asked for needs neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bots.articles import fact_check
from bots.articles.cache import ArticleCache, cache_key
from bots.articles.request import SummaryRequest
from bots.documents.article import Article
from bots.language.sentences import fits_in
from rig.config import load_config
from rig.runs import find_run
from rig.server import running_servers

if TYPE_CHECKING:
    from bots.articles.progress import SummaryListener
    from rig.server.client import (
        ModelClient,  # a third of the time that a summary from the cache takes
    )


@dataclass(frozen=True)
class SummaryResult:
    """One text and what came of it; fields as of `bots.articles.summarise.Summary`."""

    article: Article
    text: str | None = None
    """The summary; None when only the text was asked for."""
    tokens_in: int = 0
    tokens_out: int = 0
    chunks: int = 0
    model: str = ""
    exact: bool = True
    kept_notes: int = 0
    notes: Sequence[str] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by what they went into."""
    computed: Mapping[str, int] = field(default_factory=dict)
    cached: bool = False
    """Whether it was there from an earlier run."""

    @cached_property
    def unfounded(self) -> dict[str, list[str]]:
        """The `quotes` and `figures` of the summary that the text has not."""
        source = f"{self.article.title}\n{self.article.date}\n{self.article.text}"
        return fact_check.find_unfounded(self.text or "", source)

    @property
    def remarks(self) -> list[str]:
        """What the reader should know: how the text was read, then how the summary was made."""
        return [*self.article.notes, *self.notes]

    def json(self) -> dict[str, Any]:
        """The one object of `rig summarise --json`."""
        return {
            "summary": self.text,
            "title": self.article.title,
            "author": self.article.author,
            "date": self.article.date,
            "site": self.article.site,
            "url": self.article.url,
            "kind": self.article.kind,
            "tokens_in": self.tokens_in,
            "tokens_exact": self.exact,
            "tokens_computed": dict(self.computed),
            "tokens_out": self.tokens_out,
            "chunks": self.chunks,
            "kept_chunks": self.kept_notes,
            "model": self.model,
            "cached": self.cached,
            "unfounded": self.unfounded,
            "notes": self.remarks,
            "timings": dict(self.timings),
            "text": self.article.text,
        }

    def with_seconds(self, name: str, seconds: float) -> SummaryResult:
        """The same with one timing more."""
        return replace(self, timings={**self.timings, name: round(seconds, 3)})


def summarise(
    article: Article,
    request: SummaryRequest,
    connect: Callable[[], ModelClient],
    cache: ArticleCache,
    *,
    who: str = "",
    listener: SummaryListener | None = None,
    context: int | None = None,
    max_tokens: int | None = None,
    parallel: int = 4,
) -> SummaryResult:
    """Summarise `article` as `request` asks; its timings tell nothing of how the text was come by.

    `connect` is called once at most, and only if a model has to be asked; its client stays open.
    `who` names the model in the keys of the cache; empty where only the server knows. The rest as for
    `bots.articles.summarise.Summariser`.
    """
    start = time.monotonic()
    client: ModelClient | None = None
    if request.as_it_is and fits_in(article.text, request.num_points):
        notes = ["The text is as short as was asked."]
        short = SummaryResult(article, article.text, notes=notes)
        return short.with_seconds("summary", time.monotonic() - start)
    if not who:
        client = connect()
        who = served_fingerprint(client)
    key = cache_key("summary", article.text, request.task_sentence(), who, (context, max_tokens))
    kept: dict[str, Any] | None = cache.get_value(key)
    if kept is not None:
        kept |= {"timings": {}, "computed": {}, "cached": True}
    else:
        from bots.articles.summarise import Summariser

        summariser = Summariser(
            client or connect(),
            who=who,
            cache=cache,
            listener=listener,
            context=context,
            max_tokens=max_tokens,
            parallel=parallel,
        )
        kept = asdict(summariser.summarise_text(article.text, request))
        cache.put_value(key, kept)
    return SummaryResult(article, **kept).with_seconds("summary", time.monotonic() - start)


def served_fingerprint(client: ModelClient) -> str:
    """The same for a server's model: by its file if the server runs here, else by what it says of it."""
    if who := _serving(client.url):
        return who
    info = client.model_info()
    passing = ("created", "loaded", "status")
    return cache_key(
        client.url, {name: value for name, value in info.items() if name not in passing}
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
