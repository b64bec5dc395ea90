"""Bluesky through atproto: the record's own key makes a post the same post, however often it is sent.

The key is made of the slot, so a second creation finds the first. The session is kept in a file: logging in
anew for each post would soon run into the limit of 30 in five minutes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bots.outlets.base import LOST, Outlet, Post
from bots.outlets.errors import Halt, NotSent, Rejected, Unclear
from bots.outlets.graphemes import TAG, count_graphemes, find_links
from bots.outlets.network_errors import CONNECT, READ, parse_unix_time, raise_network_error
from rig import paths
from rig.atomic import write_text
from rig.validation import FrozenModel

if TYPE_CHECKING:
    import atproto

COLLECTION = "app.bsky.feed.post"
LETTERS = "234567abcdefghijklmnopqrstuvwxyz"
LARGEST = 1_000_000
"""Bytes of a picture."""


class BlueskySettings(FrozenModel):
    """The table of an outlet of kind `bluesky`."""

    service: str = "https://bsky.social"
    languages: tuple[str, ...] = ("en",)


class Bluesky(Outlet):
    """One account on Bluesky."""

    kind = "bluesky"
    pictures = True
    settings = BlueskySettings
    secrets = {  # noqa: RUF012
        "handle": "the account's handle, such as name.bsky.social",
        "app_password": "an app password (Settings, Privacy and security, App passwords)",
    }
    limit = 300
    settle = 5.0

    def measure_text(self, text: str) -> int:
        """Characters as a reader sees them."""
        return count_graphemes(text)

    def text_faults(self, text: str) -> list[str]:
        """300 characters and 3000 bytes."""
        size = len(text.encode())
        if size > 3000:
            return [f"The post is too long: {size} of 3000 bytes for {self.name}."]
        return super().text_faults(text)

    def prepare_post(self, post: Post, media: str) -> str:
        """Upload the picture, once; one that is too large is left out."""
        with self._client() as client:  # credentials that are missing are noticed before the claim
            if post.image is None or media or post.image.stat().st_size > LARGEST:
                return media
            try:
                blob = client.upload_blob(post.image.read_bytes()).blob
            except Exception as error:
                try:
                    raise_bluesky_error(error)
                except Unclear as unclear:  # a picture that no post shows may go up twice
                    raise NotSent(str(unclear)) from error
            return str(blob.model_dump_json(by_alias=True))

    def send_post(self, post: Post) -> str:
        """Create the record under its own key."""
        record: dict[str, Any] = {
            "$type": COLLECTION,
            "text": post.text,
            "createdAt": _now(post).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "langs": list(self.options.languages),
        }
        if found := build_facets(post.text):
            record["facets"] = found
        if post.media:
            picture = {"alt": post.alt, "image": json.loads(post.media)}
            record["embed"] = {"$type": "app.bsky.embed.images", "images": [picture]}
        with self._client() as client:
            data = {
                "repo": _did(client),
                "collection": COLLECTION,
                "rkey": record_key(post),
                "record": record,
            }
            try:
                return str(client.com.atproto.repo.create_record(data).uri)
            except Exception as error:
                if _status(error) == 400 and (there := _there(client, post)):
                    return there
                raise_bluesky_error(error)

    def find_post(self, post: Post) -> str:
        """Ask for the record by its key."""
        with self._client() as client:
            return _there(client, post) or LOST

    def account_name(self) -> str:
        """The account's handle, as the service knows it."""
        _session_file(self.name).unlink(missing_ok=True)
        with self._client() as client:
            return f"@{client.com.atproto.server.get_session().handle}"

    @contextmanager
    def _client(self) -> Iterator[atproto.Client]:
        """A client that is logged in: with the session that was kept, else with the password."""
        import httpx
        from atproto import Client, Request

        secrets, path = self.credentials, _session_file(self.name)
        made_with = hashlib.sha256("\0".join(secrets.values()).encode()).hexdigest()[:12]
        request = Request(timeout=httpx.Timeout(READ, connect=CONNECT))
        try:
            client = Client(base_url=self.options.service, request=request)
            client.on_session_change(
                lambda event, session: _keep(path, session.export(), made_with)
            )
            try:
                if not (path.is_file() and _resumed(client, path, made_with)):
                    client.login(
                        secrets["handle"], secrets["app_password"], fetch_bsky_profile=False
                    )
            except Exception as error:
                try:
                    raise_bluesky_error(error)
                except (Unclear, Rejected) as unclear:  # nothing was posted by logging in
                    raise NotSent(f"login: {unclear}") from error
            yield client
        finally:
            request.close()


def _resumed(client: atproto.Client, path: Path, made_with: str) -> bool:
    """Whether the kept session still holds; it is renewed on the way if it is about to end."""
    from atproto.exceptions import AtProtocolError

    session, _, credentials = path.read_text("utf-8").partition("\n")
    if credentials != made_with:  # other credentials: it may be another account's
        return False
    try:
        client.login(session_string=session, fetch_bsky_profile=False)
        client.com.atproto.server.get_session()
    except Exception as error:
        if _status(error) in (400, 401, 403) or not isinstance(error, AtProtocolError):
            return False  # it has ended, or the file is damaged
        raise
    return True


def _there(client: atproto.Client, post: Post) -> str:
    """The address of the post's record; empty when there is none."""
    params = {"repo": _did(client), "collection": COLLECTION, "rkey": record_key(post)}
    try:
        return str(client.com.atproto.repo.get_record(params).uri)
    except Exception as error:
        if _status(error) == 400:
            return ""
        raise NotSent(f"Bluesky: {_said(error)}") from error


def _did(client: atproto.Client) -> str:
    session = client._session
    assert session is not None  # `_client` has logged in
    return str(session.did)


def build_facets(text: str) -> list[Mapping[str, Any]]:
    """What is to be a link or a tag, by byte offsets: Bluesky makes neither of plain text.

    >>> build_facets("é https://a.example/x")[0]["index"]
    {'byteStart': 3, 'byteEnd': 22}
    """
    found: list[Mapping[str, Any]] = []
    kind, links = "app.bsky.richtext.facet#", find_links(text)
    features = [(span, {"$type": f"{kind}link", "uri": text[slice(*span)]}) for span in links]
    for tag in TAG.finditer(text):
        if not any(begin <= tag.start() < end for begin, end in links):  # an anchor is no tag
            features.append((tag.span(), {"$type": f"{kind}tag", "tag": tag[1]}))
    for (first, last), feature in features:
        begin = len(text[:first].encode())
        index = {"byteStart": begin, "byteEnd": begin + len(text[first:last].encode())}
        found.append({"index": index, "features": [feature]})
    return found


def record_key(post: Post) -> str:
    """The record's key: a TID of the slot, its lowest digits drawn from the post's own key.

    >>> from datetime import datetime, UTC
    >>> record_key(Post("cards", datetime(2026, 11, 22, 14, tzinfo=UTC), "", "k"))
    '3n2vrmemd7dkd'
    """
    micros = int(post.slot.timestamp() * 1_000_000)
    digest = int.from_bytes(hashlib.sha256(post.key.encode()).digest()[:4], "big")
    number = ((micros + digest % 1_000_000) << 10) | (digest >> 22)
    return "".join(LETTERS[(number >> shift) & 31] for shift in range(60, -1, -5))


def raise_bluesky_error(error: Exception) -> NoReturn:
    """Say what an error of atproto means."""
    from atproto import exceptions

    status, said = _status(error), f"Bluesky: {_said(error)}"
    if isinstance(error, Halt | NotSent | Rejected | Unclear):
        raise error
    if status is None:
        if isinstance(error, exceptions.AtProtocolError) and error.__cause__ is not None:
            raise_network_error(error.__cause__)
        raise Unclear(said) from error
    name = str(getattr(getattr(getattr(error, "response", None), "content", None), "error", ""))
    if re.search("takedown|takendown|suspended|deactivated|notactive", name, re.IGNORECASE):
        raise Halt(f"{said}: Bluesky has closed this account; its owner gets a letter") from error
    if status == 429:
        headers = getattr(getattr(error, "response", None), "headers", {})
        raise NotSent(said, parse_unix_time(headers.get("ratelimit-reset"))) from error
    if status in (401, 403):
        raise Halt(f"{said}: make a new app password and set it with `rig auth`") from error
    if status == 400 or status == 413:
        raise Rejected(said) from error
    if status == 503:
        raise NotSent(said) from error
    raise Unclear(said) from error


def _status(error: Exception) -> int | None:
    found = getattr(getattr(error, "response", None), "status_code", None)
    return int(found) if found is not None else None


def _said(error: Exception) -> str:
    content = getattr(getattr(error, "response", None), "content", None)
    message = getattr(content, "message", None) or getattr(content, "error", None) or error
    return f"{_status(error) or type(error).__name__} {message}"[:300]


def _now(post: Post) -> datetime:
    return post.claimed or datetime.now(UTC)


def _session_file(name: str) -> Path:
    return paths.state_dir() / f"bluesky-{name}.session"


def _keep(path: Path, session: str, made_with: str) -> None:
    from bots.redact import remember_secrets

    remember_secrets(session.split(":::"))
    write_text(path, f"{session}\n{made_with}")
    path.chmod(0o600)
