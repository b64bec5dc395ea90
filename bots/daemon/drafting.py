"""One bot at one moment: which of its slots are due, which were missed, and the draft of the latest one.

Slots are computed from the ledger and the clock, never from what a timer remembers: after sleep, a power cut
or a clock set back the same question gets the right answer. At most one slot is worked on, the latest; older
ones were missed and are accounted for as such, so there is never a burst.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from bots import moderation
from bots.bot import Bot, Draft, Skip
from bots.context import SlotContext
from bots.daemon.limits import cap_reason, in_quiet_hours
from bots.ledger import outbox, switches
from bots.ledger import slots as ledger_slots
from bots.ledger.deck import LedgerDeck
from bots.ledger.outbox import DeliveryTarget
from bots.ledger.store import Ledger
from bots.outlets.base import Outlet
from bots.settings import BotSettings, DaemonSettings
from bots.timeout import CallTimeout, call_with_timeout

if TYPE_CHECKING:
    from rig.server.client import ModelClient

log = logging.getLogger("rig.bots")

LAST_CHANCE = timedelta(minutes=1)
"""A draft that was finished late still gets this long to go out."""
MOST_SLOTS = 10_000
"""More missed slots than this are not entered one by one."""
MOST_ATTEMPTS = 3
"""So often is a slot begun anew whose daemon died over it."""


@dataclass
class Drafter:
    """Everything that drafting needs; one for each daemon."""

    ledger: Ledger
    daemon_id: str
    daemon: DaemonSettings
    bots: Mapping[str, BotSettings]
    outlets: Mapping[str, Outlet]
    functions: Mapping[str, Bot]
    clock: Callable[[], datetime]
    connect: Callable[[float], ModelClient]
    started: datetime
    _locks: dict[str, threading.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.schedules = {name: bot.make_schedule(name) for name, bot in self.bots.items()}

    def draft_due(self, name: str) -> bool:
        """Work on what is due for one bot; True when there is a new draft in the outbox."""
        lock = self._locks.setdefault(name, threading.Lock())
        if not lock.acquire(blocking=False):
            return False  # it is being attended to; the ledger tells what came due meanwhile
        try:
            taken_over = self._take_over(name)
            return self._attend(name) or taken_over
        finally:
            lock.release()

    def draft_now(self, name: str) -> bool:
        """Work on this very minute as if it were a slot: for `rig daemon run --now`."""
        slot = self.clock().replace(second=0, microsecond=0)
        ledger_slots.accounted_until(self.ledger, name, self.bots[name].schedule, self.clock())
        return self._take(name, slot)

    def _take_over(self, name: str) -> bool:
        """Go on with slots that a dead daemon had begun, or account for them."""
        now, drafted = self.clock(), False
        for row in ledger_slots.adopt_orphans(
            self.ledger, name, self.daemon_id, now, self.daemon.lease
        ):
            if row.attempt >= MOST_ATTEMPTS:
                self._end(row.id, "failed", f"the daemon died over it {row.attempt} times")
            elif now > self._expires(row.bot, row.slot, row.slot):
                self._end(row.id, "missed", "the daemon died over it, and its time is over")
            else:
                drafted |= self._work(row.bot, row.slot, row.id)
        return drafted

    def _attend(self, name: str) -> bool:
        now = self.clock()
        settings = self.bots[name]
        schedule = self.schedules[name]
        since = ledger_slots.accounted_until(self.ledger, name, settings.schedule, now)
        slots = self._unaccounted(name, since, now)
        if not slots:
            return False
        *older, latest = slots
        late = now - schedule.due_time(latest)
        reason = "the daemon was not running"
        if late > settings.grace:
            if settings.catch_up == "skip" or late > settings.catch_up_within:
                older = slots
            else:
                reason += "; a later slot was caught up with"
        elif older and older[-1] >= self.started:
            reason = "the box slept, or the bot was still busy"
        ledger_slots.record_missed(self.ledger, name, older, self.daemon_id, now, reason)
        if older is slots:
            log.info("%s: %d slots missed up to %s", name, len(older), latest)
            return False
        return self._take(name, latest)

    def _unaccounted(self, name: str, since: datetime, now: datetime) -> list[datetime]:
        """The slots of a bot since a moment; of more than MOST_SLOTS, the newest."""
        schedule, begin = self.schedules[name], since
        while (
            len(slots := list(islice(schedule.slots_between(begin, now), MOST_SLOTS + 1)))
            > MOST_SLOTS
        ):
            begin += (now - begin) / 2
        if begin > since:
            log.warning(
                "%s: no post since %s: was the clock wrong? slots before %s are not entered one by one",
                name, since, begin,
            )  # fmt: skip
        return slots

    def _take(self, name: str, slot: datetime) -> bool:
        run = ledger_slots.take_slot(self.ledger, name, slot, self.daemon_id, self.clock())
        return run is not None and self._work(name, slot, run)

    def _work(self, name: str, slot: datetime, run: int) -> bool:
        """Draft for a slot that is ours."""
        now = self.clock()
        settings = self.bots[name]
        live, outlets = self.choose_outlets(name)
        if in_quiet_hours(settings, now):
            self._end(run, "skipped", "quiet hours")
            return False
        if held := self._held(name, outlets, now):
            self._end(run, "skipped", held)
            return False
        context = self._context(name, slot, outlets, live)
        try:
            draft = call_with_timeout(
                self.daemon.draft_limit, partial(self.functions[name], context)
            )
        except Skip as skip:
            self._end(run, "skipped", str(skip))
        except CallTimeout as error:
            self._end(run, "failed", f"the draft gave {error}")
        except Exception as error:  # a bot is anybody's code: it never takes the daemon down
            said = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            self._end(run, "failed", said)
            log.error("%s: %s", name, said)
        else:
            if draft is None:
                self._end(run, "nothing", "")
            elif wrong := self._faults(draft, context):
                self._end(run, "failed", f"the draft was refused: {wrong[0]}")
            else:
                self._put(name, slot, run, draft, outlets, context.answered_by)
                return True
        finally:
            context.close()
        return False

    def choose_outlets(self, name: str) -> tuple[bool, list[Outlet]]:
        """Whether the bot may speak to the world, and where it speaks: until then, on the screen."""
        mine = [self.outlets[outlet] for outlet in self.bots[name].outlets]
        if all(not outlet.away for outlet in mine):
            return False, mine
        if switches.is_enabled(self.ledger, name):
            return True, mine
        return False, [self.outlets["screen"]]

    def _held(self, name: str, outlets: Iterable[Outlet], now: datetime) -> str | None:
        """Why a draft could go nowhere, so that the model isn't asked for nothing."""
        reasons = []
        with self.ledger.read_transaction() as connection:
            for outlet in outlets:
                why = outbox.stop_reason(connection, name, outlet.name)
                if why is None and outlet.away:
                    settings, cost = self.bots[name], outlet.post_price("")
                    why = cap_reason(connection, name, settings, outlet.name, cost, now)
                reasons.append(why)
        return reasons[0] if reasons and all(reasons) else None

    def _context(self, name: str, slot: datetime, outlets: list[Outlet], live: bool) -> SlotContext:
        return SlotContext(
            name=name,
            settings=self.bots[name],
            slot=slot,
            now=self.clock(),
            outlets=outlets,
            connect=self.connect,
            time_limit=self.daemon.draft_limit,
            live=live,
            deck=LedgerDeck(self.ledger, name, slot),
            history=partial(outbox.earlier_texts, self.ledger, name),
            tell_operator=lambda message: log.info("%s: %s", name, message),
        )

    def _faults(self, draft: Draft, context: SlotContext) -> list[str]:
        """What no bot gets past, whether it asked or not."""
        found = context.find_faults(draft.text, links=draft.links, own_words=draft.own_words)
        if draft.image is not None and not draft.alt.strip():
            found.append("The picture has no words for those who can't see it.")
        if draft.alt:
            found += moderation.find_faults(draft.alt, links=True, own_words=draft.own_words)
        return found

    def _put(
        self, name: str, slot: datetime, run: int, draft: Draft, outlets: list[Outlet], model: str
    ) -> None:
        settings, now = self.bots[name], self.clock()
        away = any(outlet.away for outlet in outlets)
        person = settings.approval == "person" and away
        picture = draft.image is not None
        targets = [
            DeliveryTarget(o.name, o.away, o.post_price(draft.text, picture and o.pictures))
            for o in outlets
        ]
        expires = now + settings.approve_within if person else self._expires(name, slot, now)
        outbox.put_draft(
            self.ledger, run, name, slot, draft, targets,
            approved=not person, expires=expires, now=now, model=model,
        )  # fmt: skip

    def _expires(self, name: str, slot: datetime, now: datetime) -> datetime:
        """Until when the post of `slot` may go out: the next one's turn, or an hour or so."""
        schedule = self.schedules[name]
        following = schedule.due_time(schedule.next_slot(max(slot, now)))
        end = min(following, schedule.due_time(slot) + self.bots[name].catch_up_within)
        return max(end, now + LAST_CHANCE)

    def _end(self, run: int, state: str, reason: str) -> None:
        ledger_slots.close_slot(self.ledger, run, state, reason, self.clock())
