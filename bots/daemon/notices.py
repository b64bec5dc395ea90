"""What a person hears of while nobody looks: drafts that wait, bots that stopped, posts of unclear fate.

Read from the ledger at every sweep, so that nothing depends on who noticed it first; each thing is told once,
also across restarts, by the box whose rig.toml has a [notify] table. Drafts are gathered: a bot that drafts
every minute does not write every minute.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select

from bots.ledger import switches
from bots.ledger.store import Ledger
from bots.ledger.tables import outbox, runs
from rig import paths
from rig.atomic import write_text
from rig.notify import find_addresses, tell_person

log = logging.getLogger("rig.bots")

BETWEEN_DIGESTS = timedelta(minutes=15)
"""Drafts that come within this time of a message wait for the next one."""
FAILED_IN_A_ROW = 3
"""So many slots of a bot without a post are told as one that has gone silent."""


class Notices:
    """What is told, and what has been; one for each daemon."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], datetime],
        *,
        tell: Callable[[str, str], None] = tell_person,
        somebody: Callable[[], object] = find_addresses,
    ) -> None:
        self.ledger, self.clock, self.tell, self.somebody = ledger, clock, tell, somebody
        self.file = paths.state_dir() / "notices.json"
        self._told, self._digest = _read_told(self.file)

    def tell_news(self, bots: Collection[str]) -> None:
        """Tell what has come up since the last look at these bots, if rig.toml names somebody."""
        if not self.somebody():
            return
        found = {**self._stops(), **self._unclear(bots), **self._silent(bots)}
        new = [key for key in found if key not in self._told]
        for key in new:
            self.tell(*found[key])
        drafts, now = self._drafts(bots), self.clock()
        fresh = [key for key in drafts if key not in self._told]
        if fresh and (self._digest is None or not now - BETWEEN_DIGESTS < self._digest <= now):
            self.tell(*_digest(list(drafts.values())))
            self._digest = now
            new += fresh
        # What is over is forgotten: a bot that stops a second time is told a second time.
        told = {key for key in (*self._told, *new) if key in found or key in drafts}
        if told != self._told or new:
            self._told = told
            last = self._digest.isoformat() if self._digest else None
            write_text(self.file, json.dumps({"told": sorted(told), "digest": last}))

    def _stops(self) -> dict[str, tuple[str, str]]:
        return {
            f"stop {scope} {reason}": (
                f"rig: {scope.replace(':', ' ')} is stopped",
                reason,
            )
            for scope, reason in switches.stopped_scopes(self.ledger).items()
            if switches.AFTERWARDS in reason  # who paused it by hand knows
        }

    def _unclear(self, bots: Collection[str]) -> dict[str, tuple[str, str]]:
        mine = (outbox.c.state == "unknown") & outbox.c.bot.in_(list(bots))
        with self.ledger.read_transaction() as connection:
            rows = connection.execute(select(outbox).where(mine)).all()
        return {
            f"unclear {row.id}": (
                f"rig: did post {row.id} of {row.bot} go out on {row.outlet}?",
                f"{row.text}\n\n{row.reason}",
            )
            for row in rows
            if "only a person can tell" in row.reason
        }

    def _silent(self, bots: Collection[str]) -> dict[str, tuple[str, str]]:
        found = {}
        with self.ledger.read_transaction() as connection:
            for bot in bots:
                query = select(runs.c.slot, runs.c.state, runs.c.reason).where(runs.c.bot == bot)
                last = query.order_by(runs.c.slot.desc()).limit(FAILED_IN_A_ROW)
                rows = connection.execute(last).all()
                if len(rows) == FAILED_IN_A_ROW and all(row.state == "failed" for row in rows):
                    found[f"silent {bot}"] = (
                        f"rig: {bot} failed {FAILED_IN_A_ROW} times in a row",
                        rows[0].reason,
                    )
        return found

    def _drafts(self, bots: Collection[str]) -> dict[str, tuple[str, str]]:
        mine = (outbox.c.state == "draft") & outbox.c.bot.in_(list(bots))
        with self.ledger.read_transaction() as connection:
            rows = connection.execute(select(outbox).where(mine).order_by(outbox.c.id)).all()
        return {
            f"draft {row.id}": (f"{row.id}, {row.bot}, until {row.expires:%a %H:%M} UTC", row.text)
            for row in rows
        }


def _digest(drafts: list[tuple[str, str]]) -> tuple[str, str]:
    number = len(drafts)
    title = f"rig: {number} drafts wait for you" if number > 1 else "rig: a draft waits for you"
    shown = [f"{head}\n{text}" for head, text in drafts[-5:]]
    more = [f"... and {number - 5} before these"] if number > 5 else []
    hint = "rig bot queue, then: rig bot approve NUMBER, rig bot reject NUMBER"
    return title, "\n\n".join([*more, *shown, hint])


def _read_told(file: Path) -> tuple[set[str], datetime | None]:
    """What was told before; a damaged file costs a message that comes twice."""
    try:
        found = json.loads(file.read_text("utf-8"))
        digest = datetime.fromisoformat(found["digest"]) if found["digest"] else None
        return {str(key) for key in found["told"]}, digest
    except FileNotFoundError:
        return set(), None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged, so some messages may come twice: %s", file, error)
        return set(), None
