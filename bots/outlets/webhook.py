"""Any program that takes a POST of JSON: Discord, Slack, Home Assistant, one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from bots.outlets.base import LOST, UNKNOWN, Outlet, Post
from bots.outlets.errors import Halt, NotSent, Rejected, Unclear
from bots.outlets.network_errors import CONNECT, READ, raise_network_error
from rig.validation import FrozenModel

PERMANENT = re.compile(
    r"auth|token|account|team|channel|chat|archived|permission|scope|forbidden|disabled|revoked|not_found|no_service",
    re.IGNORECASE,
)
"""Errors inside an answer that no other text will help."""


class WebhookSettings(FrozenModel):
    """The table of an outlet of kind `webhook`."""

    url: str = ""
    """Where to; leave it out when the address itself is the secret, and set it with `rig auth`."""
    token: bool = False
    """Whether a bearer token goes along (set it with `rig auth`)."""
    field: str = "text"
    """The name of the text: Discord wants `content`."""
    plain: bool = False
    """Send that one field alone; without it, bot, slot and key go along."""
    idempotent: bool = False
    """The other side knows `Idempotency-Key`: an unclear post may be sent again."""
    limit: int = 2000
    """Characters."""


class Webhook(Outlet):
    """One address."""

    kind = "webhook"
    settings = WebhookSettings
    settle = 1.0

    def __init__(self, name: str, settings: Any, secrets: Mapping[str, str] | None = None) -> None:
        super().__init__(name, settings, secrets)
        self.limit = settings.limit
        wanted = {"url": "the address to post to", "token": "the bearer token"}
        needed = {"url": not settings.url, "token": settings.token}
        self.secrets = {key: wanted[key] for key, needs in needed.items() if needs}

    def prepare_post(self, post: Post, media: str) -> str:
        """Only make sure that nothing is missing."""
        _ = self.credentials
        return media

    def send_post(self, post: Post) -> str:
        """Post it."""
        import httpx

        body = {self.options.field: post.text}
        if not self.options.plain:
            body |= {"bot": post.bot, "slot": post.slot.isoformat(), "key": post.key}
        headers = {"Idempotency-Key": post.key}
        if token := self.credentials.get("token"):
            headers["Authorization"] = f"Bearer {token}"
        url = self.options.url or self.credentials["url"]
        try:
            with httpx.Client(timeout=httpx.Timeout(READ, connect=CONNECT)) as client:
                answer = client.post(url, json=body, headers=headers)
                if answer.is_redirect and (there := _same_place(answer)):
                    answer = client.post(there, json=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise_network_error(error)
        if not answer.is_success:
            raise_webhook_error(answer)
        _look_inside(answer)
        return _id(answer) or post.key

    def find_post(self, post: Post) -> str:
        """Nobody to ask; where the other side knows the key, sending again is safe."""
        return LOST if self.options.idempotent else UNKNOWN


def raise_webhook_error(answer: Any) -> NoReturn:
    """Say what an error answer means."""
    status = answer.status_code
    said = f"the webhook answered {status}"
    if status in (408, 429, 503):
        wait = str(answer.headers.get("retry-after", ""))
        again = datetime.now(UTC) + timedelta(seconds=float(wait)) if wait.isdigit() else None
        raise NotSent(said, again)
    if 300 <= status < 400:
        where = answer.headers.get("location", "nowhere")
        raise Halt(f"{said}, it moved to {where}: if that is right, make it the outlet's address")
    if status in (401, 403, 404, 405, 410):
        raise Halt(f"{said}: check its address and its token")
    if status >= 500:
        raise Unclear(said)
    raise Rejected(said)


def _same_place(answer: Any) -> str:
    """Where a redirect leads if that is the same host, so that nobody else is handed a post or a token."""
    if answer.status_code not in (301, 307, 308):
        return ""  # the others are answered by a page for people, not by a webhook
    there, here = answer.next_request.url, answer.request.url
    downgraded = here.scheme == "https" and there.scheme != "https"
    return "" if there.host != here.host or downgraded else str(there)


def _look_inside(answer: Any) -> None:
    """Raise what an answer says that calls itself a success and is none: `{"ok": false}`, as Slack does."""
    try:
        found = answer.json()
    except ValueError:
        return
    if not isinstance(found, dict) or found.get("ok") is not False:
        return
    why = str(found.get("error") or found.get("description") or "no reason given")
    said = f"the webhook answered {answer.status_code}, but not ok: {why}"
    if "ratelimit" in why.replace("_", ""):
        raise NotSent(said)
    if PERMANENT.search(why):
        raise Halt(f"{said}: check its address, its token and where it may write")
    raise Rejected(said)


def _id(answer: Any) -> str:
    try:
        found = answer.json()
    except ValueError:
        return ""
    return str(found.get("id", "")) if isinstance(found, dict) else ""
