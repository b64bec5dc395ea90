"""Fetch the cards of YGOPRODeck by its rules: ask its version, fetch only on change, page by page, slowly.

Its rules: 20 requests a second at most (we make two), store everything locally, an hour's ban for breaking
them. So after any error nothing is asked for an hour, and the old copy serves as long as it has to.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from bots.cards.database import CardDatabase, database_path, replace_copy
from rig.atomic import write_text
from rig.errors import RigError

API = "https://db.ygoprodeck.com/api/v7"
PAGE = 500
PAUSE = 0.5
"""Seconds between two requests."""
AGENT = "rig (a hobbyist's card bot; one request in half a second, only on a new version)"
ASK_EVERY = timedelta(days=1)
BAN = timedelta(hours=1)


def refresh_cards(api: str = API, *, force: bool = False, now: datetime | None = None) -> str:
    """Bring the local copy up to date and say what was done; RigError when it could not be."""
    now = now or datetime.now(UTC)
    asked = _last_asked()
    if not force and asked.get("failed") and now < datetime.fromisoformat(asked["at"]) + BAN:
        raise RigError(
            "The card database failed less than an hour ago: it is left alone until then."
        )
    try:
        with httpx.Client(
            base_url=api, timeout=30.0, headers={"User-Agent": AGENT}, follow_redirects=True
        ) as client:
            version = _version(client)
            have = _copy()
            if have.get("version") == version and not force:
                _note(now, failed=False)
                return f"The copy of the cards is the newest ({version})."
            about = {"source": api, "version": version, "fetched": now.isoformat()}
            count = replace_copy(_entries(client), about)
    except (httpx.HTTPError, KeyError, ValueError) as error:
        _note(now, failed=True)
        raise RigError(f"The card database at {api} could not be read: {error}") from error
    _note(now, failed=False)
    return f"{count} cards, version {version}."


def refresh_due(now: datetime) -> bool:
    """Whether it is time to ask for the version: once a day, an hour after a failure."""
    asked = _last_asked()
    if not asked:
        return True
    return now >= datetime.fromisoformat(asked["at"]) + (BAN if asked["failed"] else ASK_EVERY)


def _version(client: httpx.Client) -> str:
    response = client.get("/checkDBVer.php")
    response.raise_for_status()
    return str(response.json()[0]["database_version"])


def _entries(client: httpx.Client) -> Iterator[dict[str, Any]]:
    offset: int | None = 0
    while offset is not None:
        time.sleep(PAUSE)
        response = client.get(
            "/cardinfo.php", params={"num": PAGE, "offset": offset, "misc": "yes"}
        )
        response.raise_for_status()
        found = response.json()
        yield from found["data"]
        meta = found.get("meta") or {}
        offset = meta.get("next_page_offset") if meta.get("rows_remaining") else None


def _copy() -> dict[str, str]:
    if not database_path().is_file():
        return {}
    with CardDatabase.open_copy() as database:
        return database.copy_info()


def _last_asked() -> dict[str, Any]:
    path = database_path().with_name("asked.json")
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def _note(now: datetime, *, failed: bool) -> None:
    path = database_path().with_name("asked.json")
    write_text(path, json.dumps({"at": now.isoformat(), "failed": failed}))
