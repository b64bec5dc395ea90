"""The lessons of the digest bot: the texts of its reading list, asked for as the bot asks.

A text that does not fit the context is asked for part by part, as the bot reads it; without a server to ask,
tokens are guessed from the letters, as they are where a server can't count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from bots.articles import chunks
from bots.articles.bot import DigestOptions
from bots.articles.prompts import summary_messages
from bots.articles.request import NOTES, TOKENS_EACH, SummaryRequest
from bots.articles.summarise import NOTE_TOKENS
from bots.articles.token_budget import TokenBudget
from bots.documents.article import Article
from bots.documents.sanitise import defuse_marks
from bots.ledger.decisions import DecidedPost
from bots.lessons.file import Lesson
from bots.lessons.notes import LessonNotes
from bots.lessons.private import PrivateWords
from rig.errors import RigError
from rig.server.client import ModelClient

LONGEST_SUBJECT = 90
"""Characters of a title or an address that name an article."""


class NoServer:
    """Stands in for a client where there is none: it can't count, so sizes are guessed."""

    context_length = None

    def model_info(self) -> dict[str, Any]:
        """Nothing is known."""
        return {}

    def count_text_tokens(self, text: str, *, special: bool = False) -> None:
        """It can't."""

    def count_chat_tokens(self, messages: object) -> None:
        """It can't."""


def article_lessons(
    bot: str,
    options: DigestOptions,
    urls: Iterable[str],
    read: Callable[[str], Article],
    *,
    context: int,
    decided: Iterable[DecidedPost],
    private: PrivateWords,
    notes: LessonNotes,
) -> Iterator[Lesson]:
    """A row for each text that fits a context of `context` tokens, a row for each part of a longer one."""
    request = SummaryRequest(options.length, options.bullets, options.language, options.focus)
    budget = TokenBudget(cast(ModelClient, NoServer()), context)
    by_url: dict[str, list[DecidedPost]] = {}
    for one in decided:
        for url in one.data.get("urls", []):
            by_url.setdefault(str(url), []).append(one)
    for url in urls:
        try:
            article = read(url)
        except RigError as error:
            notes.add("articles without a text")
            notes.said.append(f"{url}: {error.message}")
            continue
        kind = private.find_private(f"{url}\n{article.title}\n{article.text}")
        if kind in ("a blocked word", "a credential"):
            notes.add(f"articles with {kind}")
            continue
        text = private.remove_private(article.text)
        if text != article.text:
            notes.add("articles whose handles and addresses were taken out", kept=True)
        posts = _posts(article, by_url.get(url, ()), private, notes)
        title = private.remove_private(article.title)
        for piece, task, tokens in _pieces(text, request, budget):
            prompt = summary_messages(piece, task)
            lesson = {
                "kind": "article",
                "bot": bot,
                "subject": " ".join((title or url).split())[:LONGEST_SUBJECT],
                "url": private.remove_private(url),
                "prompt": prompt,
                "text": piece,
                "about": f"{title}\n{article.date}",
                "asked": _asked(request, task, tokens),
                "posts": posts,
            }
            wanted = [post["wanted"] for post in posts if post["wanted"] and piece == text]
            if wanted:
                reply = {"role": "assistant", "content": wanted[-1]}
                lesson |= {"messages": [*prompt, reply], "written_by": "person"}
            yield lesson


def _pieces(
    text: str, request: SummaryRequest, budget: TokenBudget
) -> Iterator[tuple[str, str, int]]:
    """What is read in one request each, the task, and the tokens of its answer; see `Summariser`."""
    text, task = defuse_marks(text), request.task_sentence()
    tokens = min(request.max_tokens, budget.context // 3)
    if budget.count_tokens(text) <= budget.text_tokens(task, tokens):
        yield text, task, tokens
        return
    size = min(NOTE_TOKENS, budget.context // 6)
    for part in chunks.split_text(text, budget.text_tokens(NOTES, size), budget.count_tokens):
        yield part, NOTES, size


def _asked(request: SummaryRequest, task: str, tokens: int) -> dict[str, Any]:
    whole = task != NOTES
    return {
        "temperature": 0.0,
        "max_tokens": tokens,
        "points": request.num_points if whole else 6,
        "bullets": request.bullets and whole,
        "language": request.language if whole else "",
        "tokens_each": TOKENS_EACH,
    }


def _posts(
    article: Article, decided: Iterable[DecidedPost], private: PrivateWords, notes: LessonNotes
) -> list[dict[str, Any]]:
    """What a person said of posts about this article alone; the title and the address are taken off."""
    found = []
    for one in decided:
        if len(one.data.get("urls", [])) > 1:
            notes.add("decided posts about several articles")
            continue
        text, wanted = (_body(said, article, one.data) for said in (one.text, one.wanted))
        if any(private.find_private(said) for said in (text, wanted)):
            notes.add("decided posts with something private")
            continue
        notes.add(f"{one.verdict} posts", kept=True)
        found.append(
            {
                "text": text,
                "author": one.author,
                "verdict": one.verdict,
                "wanted": wanted,
                "reason": private.remove_private(one.reason),
                "at": one.at.isoformat(timespec="seconds"),
            }
        )
    return found


def _body(post: str, article: Article, data: Mapping[str, Any]) -> str:
    """The summary in a post of the digest bot: without the title before it and the address after it."""
    lines = post.strip().splitlines()
    urls = {str(url) for url in data.get("urls", [])}
    if lines and lines[-1].strip() in urls:
        lines.pop()
    if (
        len(lines) > 1
        and article.title
        and lines[0].strip() == " ".join(article.title.split())[:200]
    ):
        lines.pop(0)
    return "\n".join(lines).strip()
