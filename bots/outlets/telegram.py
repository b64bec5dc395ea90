"""Telegram over its bot API: a chat or a channel. A bot can't read there: unclear posts wait for a person."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from bots.outlets.base import Outlet, Post
from bots.outlets.errors import Halt, NotSent, Rejected, Unclear
from bots.outlets.network_errors import CONNECT, READ, raise_network_error
from rig.validation import FrozenModel

log = logging.getLogger("rig.bots")

PERMANENT = re.compile(
    r"chat not found|rights|forbidden|kicked|deactivated|restricted|deleted|PEER_ID_INVALID|administrator",
    re.IGNORECASE,
)
"""What Telegram says with a 400 although no text will ever pass."""
CAPTION = 1024
"""UTF-16 units below a picture."""


class TelegramSettings(FrozenModel):
    """The table of an outlet of kind `telegram`."""

    chat: str
    """The chat's number, or @name of a channel."""
    api: str = "https://api.telegram.org"
    previews: bool = False
    """Show a preview of the first link."""
    silent: bool = False


class _Moved(Exception):
    """The chat has another number."""

    def __init__(self, chat: str) -> None:
        super().__init__(chat)
        self.chat = chat


class Telegram(Outlet):
    """One chat."""

    kind = "telegram"
    pictures = True
    settings = TelegramSettings
    secrets = {"token": "the bot's token from @BotFather"}  # noqa: RUF012
    limit = 4096
    moved_to = ""
    """The number that a group got when it became a supergroup."""

    def measure_text(self, text: str) -> int:
        """UTF-16 units, as Telegram counts."""
        return len(text.encode("utf-16-le")) // 2

    def prepare_post(self, post: Post, media: str) -> str:
        """Only make sure that there is a token."""
        _ = self.credentials["token"]
        return media

    def send_post(self, post: Post) -> str:
        """Send a message, or a picture with the text below it where it fits."""
        try:
            return self._send(post, self.moved_to or self.options.chat)
        except _Moved as moved:
            self.moved_to = moved.chat
            log.warning(
                "%s: the group is a supergroup now: write chat = \"%s\" into [outlets.%s]",
                self.name, moved.chat, self.name,
            )  # fmt: skip
            return self._send(post, moved.chat)

    def _send(self, post: Post, chat: str) -> str:
        common = {"chat_id": chat, "disable_notification": self.options.silent}
        if post.image is not None and self.measure_text(post.text) <= CAPTION:
            picture = {"photo": (post.image.name, post.image.read_bytes(), "image/jpeg")}
            data = {key: str(value).lower() for key, value in common.items()}
            found = self._call("sendPhoto", data={**data, "caption": post.text}, files=picture)
        else:
            preview = {"is_disabled": not self.options.previews}
            body = {**common, "text": post.text, "link_preview_options": preview}
            found = self._call("sendMessage", json=body)
        return str(found["message_id"])

    def account_name(self) -> str:
        """The bot's name."""
        return f"@{self._call('getMe')['username']}"

    def _call(self, method: str, **content: Any) -> dict[str, Any]:
        import httpx

        url = f"{self.options.api.rstrip('/')}/bot{self.credentials['token']}/{method}"
        try:
            with httpx.Client(timeout=httpx.Timeout(READ, connect=CONNECT)) as client:
                answer = client.post(url, **content)
        except httpx.HTTPError as error:
            raise_network_error(error)
        try:
            body = dict(answer.json())
        except (ValueError, TypeError):
            body = {}
        if answer.status_code >= 400 or body.get("ok") is False:
            raise_telegram_error(answer.status_code, body)
        if not isinstance(body.get("result"), dict):
            raise Unclear("Telegram answered in a form of its own")
        return dict(body["result"])


def raise_telegram_error(status: int, body: dict[str, Any]) -> NoReturn:
    """Say what an error answer means; a 200 that says "not ok" carries its real status inside."""
    parameters = body.get("parameters") or {}
    status = int(body.get("error_code") or status)
    if chat := parameters.get("migrate_to_chat_id"):
        raise _Moved(str(chat))
    said = f"Telegram: {status} {body.get('description', '')}"
    if status == 429:
        wait = parameters.get("retry_after", 30)
        raise NotSent(said, datetime.now(UTC) + timedelta(seconds=float(wait)))
    if status in (401, 403, 404) or PERMANENT.search(said):
        raise Halt(
            f"{said}: check the token (`rig auth`) and the chat, and that the bot may write there"
        )
    if status == 503:
        raise NotSent(said)
    if status >= 500:
        raise Unclear(said)
    raise Rejected(said)
