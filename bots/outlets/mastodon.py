"""Mastodon through Mastodon.py: the server keeps a post from appearing twice, by its idempotency key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from bots.outlets.base import LOST, Outlet, Post
from bots.outlets.errors import Halt, NotSent, Rejected, Unclear
from bots.outlets.graphemes import count_graphemes, find_links
from bots.outlets.network_errors import CONNECT, READ, raise_network_error
from bots.outlets.same_text import is_same_text
from rig.validation import FrozenModel

if TYPE_CHECKING:
    import mastodon

LOOK_BACK = timedelta(minutes=5)
"""How long before its slot a post is looked for: clocks differ."""


class MastodonSettings(FrozenModel):
    """The table of an outlet of kind `mastodon`."""

    server: str
    """The account's home, such as https://mastodon.example."""
    visibility: Literal["public", "unlisted", "private"] = "public"
    language: str = "en"
    limit: int = 500
    """Characters that this server allows."""


class Mastodon(Outlet):
    """One account on one Mastodon server."""

    kind = "mastodon"
    pictures = True
    finds_by_text = True
    settings = MastodonSettings
    secrets = {  # noqa: RUF012
        "access_token": "access token of an application (Preferences, Development; scopes read and write)"
    }
    settle = 5.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit = self.options.limit

    def measure_text(self, text: str) -> int:
        """Characters as a reader sees them, a link being 23."""
        for begin, end in reversed(find_links(text)):
            text = text[:begin] + "_" * 23 + text[end:]
        return count_graphemes(text)

    def prepare_post(self, post: Post, media: str) -> str:
        """Upload the picture with its alt text, once."""
        with self._client() as client:  # credentials that are missing are noticed before the claim
            if post.image is None or media:
                return media
            try:
                picture = post.image.read_bytes()
                return str(client.media_post(picture, "image/jpeg", description=post.alt).id)
            except Exception as error:
                try:
                    raise_mastodon_error(error, client)
                except Unclear as unclear:  # a picture that no post shows may go up twice
                    raise NotSent(str(unclear)) from error

    def send_post(self, post: Post) -> str:
        """Post it under its key; sent again within the hour, the server answers with the same post."""
        with self._client() as client:
            try:
                found = client.status_post(
                    post.text,
                    media_ids=[post.media] if post.media else None,
                    visibility=self.options.visibility,
                    language=self.options.language,
                    idempotency_key=post.key,
                )
                return str(found.id)
            except Exception as error:
                raise_mastodon_error(error, client)

    def find_post(self, post: Post) -> str:
        """Look through the account's own newest posts; a lost one is safe to send, the key guards it."""
        try:
            with self._client() as client:
                mine = client.account_verify_credentials()
                statuses = client.account_statuses(mine.id, limit=40, exclude_reblogs=True)
        except Exception as error:
            raise NotSent(f"Mastodon: {error}") from error
        for status in statuses:
            made = status.created_at.astimezone(UTC)
            if made >= post.slot - LOOK_BACK and is_same_text(post.text, html_text(status.content)):
                return str(status.id)
        return LOST

    def account_name(self) -> str:
        """The account's name."""
        with self._client() as client:
            try:
                return f"@{client.account_verify_credentials().acct}"
            except Exception as error:
                raise_mastodon_error(error, client)

    @contextmanager
    def _client(self) -> Iterator[mastodon.Mastodon]:
        import requests
        from mastodon import Mastodon as Client

        token = self.credentials["access_token"]
        with requests.Session() as session:
            yield Client(
                access_token=token,
                api_base_url=self.options.server,
                request_timeout=(CONNECT, READ),
                ratelimit_method="throw",
                mastodon_version="4.0.0",  # asked for, a server that hides it sends Mastodon.py in circles
                session=session,
            )


def raise_mastodon_error(error: Exception, client: mastodon.Mastodon) -> NoReturn:
    """Say what an error of Mastodon.py means."""
    import mastodon

    said = f"Mastodon: {' '.join(str(part) for part in error.args)[:300]}"
    if isinstance(error, mastodon.MastodonNetworkError):
        raise_network_error(error.__cause__ or error.__context__ or error)
    if isinstance(error, mastodon.MastodonRatelimitError):
        if "Hit rate limit" not in said:
            raise Unclear(said) from error
        reset = client.ratelimit_reset
        raise NotSent(said, datetime.fromtimestamp(reset, UTC) if reset else None) from error
    if isinstance(error, mastodon.MastodonServiceUnavailableError):
        raise NotSent(said) from error
    if isinstance(error, mastodon.MastodonServerError):
        raise Unclear(said) from error
    status = error.args[1] if len(error.args) > 1 else None
    if isinstance(error, mastodon.MastodonUnauthorizedError) or status == 403:
        raise Halt(f"{said}: make a new access token and set it with `rig auth`") from error
    if "finished processing" in said:  # its picture is not ready yet
        raise NotSent(said) from error
    if isinstance(error, mastodon.MastodonAPIError):
        raise Rejected(said) from error
    raise Unclear(said) from error


def html_text(content: str) -> str:
    """A post's HTML as text, escapes and all; a link is shown shortened, so the tag's address is taken.

    >>> html_text('<p>See <a href="https://a.example/x"><span>a.exam</span></a> &amp; more</p>')
    'See https://a.example/x &amp; more'
    """
    content = re.sub(r"<a\b[^>]*>.*?</a>", _link_text, content, flags=re.DOTALL)
    content = re.sub(r"<br ?/?>|</p>\s*<p>", "\n", content)
    return re.sub(r"<[^>]+>", "", content)


def _link_text(link: re.Match[str]) -> str:
    """The address; of a hashtag or a mention, which link to a page of the server, the words."""
    begin = link[0].partition(">")[0]
    where = re.search(r'href="([^"]*)"', begin)
    named = re.search(r'class="[^"]*\b(?:hashtag|mention)\b', begin)
    return where[1] if where and not named else link[0]
