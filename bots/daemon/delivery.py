"""From the outbox to the outlets: each row sent once, whatever happens on the way.

A row is claimed in the ledger before its request goes out and settled after. What was cut off in between is
unclear: the outlet is asked what became of it, and it is sent again only once it is known to be lost. Every
call has a hard limit, and every row an end after which it is left out.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row

from bots.bot import Bot, Delivery
from bots.daemon.limits import cap_reason, in_quiet_hours, quiet_hours_end
from bots.ledger import outbox, switches
from bots.ledger.clock import NEVER_ARRIVED, TOO_LATE
from bots.ledger.store import Ledger
from bots.outlets.base import LOST, UNKNOWN, Outlet, Post
from bots.outlets.errors import Halt, NotSent, Rejected, Unclear
from bots.settings import BotSettings, DaemonSettings
from bots.timeout import CallTimeout, call_with_timeout

log = logging.getLogger("rig.bots")

BACKOFF = (30, 60, 120, 300, 600)
"""Seconds before the second, third, ... attempt."""
HOLD = timedelta(minutes=1)
"""How soon a paused row is looked at again."""
GIVE_UP = timedelta(days=1)
"""An unclear post that can't be looked for this long waits for a person."""


@dataclass
class Deliverer:
    """Everything the delivery needs; one for each daemon."""

    ledger: Ledger
    daemon_id: str
    daemon: DaemonSettings
    bots: Mapping[str, BotSettings]
    outlets: Mapping[str, Outlet]
    functions: Mapping[str, Bot]
    clock: Callable[[], datetime]
    busy: set[int] = field(default_factory=set)
    """Rows that are being sent at this moment."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def deliver_due(self, bot: str | None = None) -> int:
        """Send every row whose time has come; return how many were tried."""
        names = [bot] if bot else list(self.bots)
        rows = outbox.due_rows(self.ledger, names, self.clock())
        return sum(self._one(row) for row in rows)

    def clear_up(self) -> None:
        """Look after what was cut off or is unclear, and tell bots what was delivered."""
        now = self.clock()
        with self.lock:
            busy = set(self.busy)
        outbox.expire_drafts(self.ledger, list(self.bots), now)
        outbox.mark_cut_off(self.ledger, self.daemon_id, busy, now, self.daemon.lease)
        lend = self.daemon.call_limit * 2
        for row in outbox.borrow_unclear(self.ledger, list(self.bots), self.daemon_id, now, lend):
            self._look_for(row)
        for row in outbox.untold_rows(self.ledger, list(self.bots)):
            self._tell(row)

    def _one(self, row: Row[Any]) -> int:
        now = self.clock()
        settings, outlet = self.bots[row.bot], self.outlets.get(row.outlet)
        if outlet is None:
            outbox.drop_row(self.ledger, row.id, now, f"there is no outlet {row.outlet!r} any more")
            return 0
        if now >= row.expires:
            reason = f"{TOO_LATE}; {row.reason}" if row.reason else TOO_LATE
            outbox.drop_row(self.ledger, row.id, now, reason)
            return 0
        if outlet.away and in_quiet_hours(settings, now):
            outbox.postpone_row(self.ledger, row.id, quiet_hours_end(settings, now), "quiet hours")
            return 0
        with self.lock:
            if row.id in self.busy:
                return 0
            self.busy.add(row.id)
        try:
            return self._claim_and_send(row, settings, outlet)
        finally:
            with self.lock:
                self.busy.discard(row.id)

    def _claim_and_send(self, row: Row[Any], settings: BotSettings, outlet: Outlet) -> int:
        post = _post(row)
        try:  # what can fail without harm comes before the claim: credentials, pictures
            media = call_with_timeout(
                self.daemon.call_limit, partial(outlet.prepare_post, post, row.media)
            )
        except (NotSent, CallTimeout) as error:
            self._later(row, error)
            return 1
        except Halt as halt:
            self._halt(row, outlet, str(halt))
            return 1
        except Rejected as error:
            outbox.drop_row(self.ledger, row.id, self.clock(), str(error), "failed")
            return 1
        now = self.clock()

        def gate(connection: Connection) -> str | None:
            if not outlet.away:
                return None
            return cap_reason(connection, row.bot, settings, row.outlet, row.cost, now)

        verdict, reason = outbox.claim_row(self.ledger, row, self.daemon_id, now, gate, media)
        if verdict == "go":
            self._send(row, outlet, _post(row, now, media))
        elif verdict == "hold":
            outbox.postpone_row(self.ledger, row.id, now + HOLD, reason)
        elif verdict == "drop":
            outbox.drop_row(self.ledger, row.id, now, reason)
            log.info("%s: not sent to %s: %s", row.bot, row.outlet, reason)
        return 1

    def _send(self, row: Row[Any], outlet: Outlet, post: Post) -> None:
        done = partial(outbox.settle_row, self.ledger, row.id, self.daemon_id)
        try:
            found = call_with_timeout(self.daemon.call_limit, partial(outlet.send_post, post))
        except NotSent as error:
            self._later(row, error)
        except Rejected as error:
            done("failed", self.clock(), reason=str(error), cost=0)
            log.warning("%s: %s refused the post: %s", row.bot, row.outlet, error)
        except Halt as halt:
            self._halt(row, outlet, str(halt))
        except (Unclear, CallTimeout) as error:
            self._unclear(row, outlet, str(error))
        except Exception as error:  # an outlet that breaks must not leave a row claimed for ever
            self._unclear(row, outlet, f"{type(error).__name__}: {error}")
        else:
            if self._is_another(row, outlet, found):
                reason = f"{row.outlet} has had the same text before, as {found}"
                done("failed", self.clock(), reason=reason, cost=0)
                log.warning("%s: %s", row.bot, reason)
            else:
                self._sent(row, found)

    def _is_another(self, row: Row[Any], outlet: Outlet, external_id: str) -> bool:
        """Whether what was found by its text is an earlier post that said the same."""
        return outlet.finds_by_text and outbox.is_another_post(
            self.ledger, row.id, row.outlet, external_id
        )

    def _sent(self, row: Row[Any], external_id: str) -> None:
        told = not hasattr(self.functions.get(row.bot), "delivered")
        values = {"external_id": external_id, "told": told}
        outbox.settle_row(self.ledger, row.id, self.daemon_id, "sent", self.clock(), **values)
        log.info("%s: sent to %s as %s", row.bot, row.outlet, external_id)
        if not told:
            self._tell(row, external_id)

    def _later(self, row: Row[Any], error: NotSent | CallTimeout) -> None:
        """It did not go out: once more within its time, else left out."""
        now, reason = self.clock(), str(error)
        wait = timedelta(seconds=BACKOFF[min(row.attempt, len(BACKOFF) - 1)])
        until = max(getattr(error, "again", None) or now, now + wait)
        done = partial(outbox.settle_row, self.ledger, row.id, self.daemon_id)
        if until >= row.expires:
            reason = (
                f"{reason}; no other attempt before {until:%Y-%m-%d %H:%M} UTC, which is {TOO_LATE}"
            )
            if not done("skipped", now, reason=reason, cost=0):
                outbox.drop_row(self.ledger, row.id, now, reason)
        else:
            media = {"media": ""} if getattr(error, "fresh", False) else {}
            if not done("approved", now, reason=reason, not_before=until, **media):
                outbox.postpone_row(self.ledger, row.id, until, reason)
        log.info("%s: %s did not take the post: %s", row.bot, row.outlet, reason)

    def _halt(self, row: Row[Any], outlet: Outlet, reason: str) -> None:
        """Nothing will pass until a person acts: stop this outlet for all bots and all daemons."""
        if outlet.has_new_credentials():  # the person was faster: these were the old ones
            self._later(row, NotSent(f"{reason}; there are new credentials by now"))
            return
        now = self.clock()
        reason = f"{reason}{switches.AFTERWARDS} --outlet {outlet.name}`"
        switches.stop_scope(self.ledger, f"outlet:{outlet.name}", reason, now)
        if not outbox.settle_row(
            self.ledger, row.id, self.daemon_id, "failed", now, reason=reason, cost=0
        ):
            outbox.drop_row(self.ledger, row.id, now, reason, "failed")
        log.error("%s: %s is stopped: %s", row.bot, row.outlet, reason)

    def _unclear(self, row: Row[Any], outlet: Outlet, reason: str) -> None:
        now = self.clock()
        outbox.settle_row(
            self.ledger, row.id, self.daemon_id, "unknown", now, reason=reason,
            not_before=now + timedelta(seconds=outlet.settle),
        )  # fmt: skip
        log.warning("%s: unclear whether %s has the post: %s", row.bot, row.outlet, reason)

    def _look_for(self, row: Row[Any]) -> None:
        """An unclear post: found, lost (then it may go again), or not to be told."""
        now = self.clock()
        outlet = self.outlets.get(row.outlet)
        begun = min(row.claimed or now, now)
        if outlet is None:
            outbox.postpone_unclear(
                self.ledger, row.id, self.daemon_id, now + GIVE_UP, "its outlet is gone"
            )
            return
        # Whoever sent it may still be at it, and the platform may take its time to show it.
        earliest = begun + self.daemon.call_limit + timedelta(seconds=outlet.settle)
        try:
            found = call_with_timeout(
                self.daemon.call_limit, partial(outlet.find_post, _post(row, begun))
            )
        except Exception as error:  # it can't be looked for now; it stays unclear
            wait = max(timedelta(seconds=60), min((now - begun) / 2, timedelta(hours=6)))
            outbox.postpone_unclear(
                self.ledger,
                row.id,
                self.daemon_id,
                now + wait,
                f"{row.reason.split(';')[0]}; {error}",
            )
            return
        if found not in (LOST, UNKNOWN) and self._is_another(row, outlet, found):
            found = LOST
        if found not in (LOST, UNKNOWN):
            self._sent(row, found)
        elif found == UNKNOWN:
            reason = "only a person can tell whether it went out: see `rig bot queue`"
            outbox.postpone_unclear(self.ledger, row.id, self.daemon_id, now + GIVE_UP, reason)
        elif now < earliest:
            outbox.postpone_unclear(
                self.ledger, row.id, self.daemon_id, earliest, "not there yet; looked for once more"
            )
        elif now >= row.expires:
            outbox.settle_row(
                self.ledger, row.id, self.daemon_id, "skipped", now, reason=NEVER_ARRIVED, cost=0
            )
        else:
            reason = "it did not arrive: sent again"
            outbox.settle_row(
                self.ledger, row.id, self.daemon_id, "approved", now, reason=reason, not_before=now
            )

    def _tell(self, row: Row[Any], external_id: str = "") -> None:
        hook = getattr(self.functions.get(row.bot), "delivered", None)
        if hook is not None:
            delivery = Delivery(
                bot=row.bot,
                slot=row.slot,
                outlet=row.outlet,
                text=row.text,
                external_id=external_id or row.external_id,
                subject=row.subject,
                data=json.loads(row.data),
            )
            try:
                call_with_timeout(self.daemon.draft_limit, partial(hook, delivery))
            except Exception as error:  # the bot's own code: it is told again at the next heartbeat
                log.error(
                    "%s: its delivery hook failed: %s: %s", row.bot, type(error).__name__, error
                )
                return
        outbox.mark_told(self.ledger, row.id)


def _post(row: Row[Any], claimed: datetime | None = None, media: str = "") -> Post:
    return Post(
        bot=row.bot,
        slot=row.slot,
        text=row.text,
        key=row.key,
        image=Path(row.image) if row.image else None,
        alt=row.alt,
        claimed=claimed,
        attempt=row.attempt + 1,
        media=media or row.media,
    )
