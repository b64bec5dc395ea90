"""Slots: the moments that posts belong to, computed from UTC alone, so that every clock agrees on them.

A slot has a name (its own time) and a due time (up to `jitter` later). The delay is drawn from the slot's
name and not from a die: it never adds up, survives a restart, and all daemons on one ledger agree on it.
APScheduler's cron fields do the arithmetic; what they get wrong about weekday numbers is put right here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Any

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Schedule:
    """When a bot's slots are.

    >>> daily = Schedule.from_text("0 9 * * 0")
    >>> daily.next_slot(datetime(2026, 11, 20, tzinfo=UTC)).strftime("%A %H:%M")
    'Sunday 09:00'
    """

    text: str
    jitter: timedelta = timedelta(0)
    salt: str = ""
    """The bot's name, so that two bots with one schedule do not post in the same second."""

    @classmethod
    def from_text(cls, text: str, jitter: timedelta = timedelta(0), salt: str = "") -> Schedule:
        """Read five cron fields or `every N[smhd]`; anything else is a ValueError with a sentence."""
        schedule = cls(" ".join(text.split()), jitter, salt)
        slots = [schedule.next_slot(EPOCH)]
        while jitter and len(slots) < 60:
            slots.append(schedule.next_slot(slots[-1]))
        if jitter and jitter >= min(b - a for a, b in pairwise(slots)):
            raise ValueError(f"a jitter of {jitter} is longer than from one slot to the next")
        return schedule

    def next_slot(self, after: datetime) -> datetime:
        """The first slot after `after`."""
        if isinstance(self._rule, timedelta):
            period = self._rule
            return EPOCH + (((after - EPOCH) // period) + 1) * period
        moment = after + timedelta(microseconds=1)
        found = [rule.get_next_fire_time(None, moment) for rule in self._rule]
        if not any(found):
            raise ValueError(f"the schedule {self.text!r} never comes")
        return min(slot for slot in found if slot is not None)  # type: ignore[no-any-return]

    def slots_between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Every slot after `after` that is due by `until`."""
        slot = self.next_slot(after)
        while slot <= until:
            if self.due_time(slot) <= until:
                yield slot
            slot = self.next_slot(slot)

    def due_time(self, slot: datetime) -> datetime:
        """When the post of `slot` is to go out: the slot itself, or up to `jitter` later."""
        if not self.jitter:
            return slot
        digest = hashlib.sha256(f"{self.salt} {slot.isoformat()}".encode()).digest()
        return slot + self.jitter * (int.from_bytes(digest[:4], "big") / 2**32)

    @cached_property
    def _rule(self) -> Any:
        every = re.fullmatch(r"every (\d+)\s*([smhd])", self.text)
        if every:
            period = timedelta(seconds=int(every[1]) * UNITS[every[2]])
            if not SECOND <= period <= timedelta(days=366):
                raise ValueError("a period lies between 1s and 366d")
            return period
        fields = ALIASES.get(self.text.lower(), self.text).split(" ")
        if len(fields) != 5:
            raise ValueError(
                'write five cron fields ("0 */2 * * *": minute, hour, day, month, weekday) '
                'or "every 2h"'
            )
        from apscheduler.triggers.cron import CronTrigger

        names = ("minute", "hour", "day", "month", "day_of_week")
        values = dict(zip(names, fields, strict=True))
        values["day_of_week"] = _weekdays(values["day_of_week"])
        rules = [values]
        if not fields[2].startswith("*") and not fields[4].startswith("*"):
            # cron's own rule: where both are given, either of them makes a day
            rules = [{**values, "day": "*"}, {**values, "day_of_week": "*"}]
        return tuple(CronTrigger(**rule, second=0, timezone=UTC) for rule in rules)


def _weekdays(field: str) -> str:
    """Cron counts from Sunday, APScheduler from Monday: names mean the same to both.

    >>> _weekdays("0"), _weekdays("5-7"), _weekdays("mon,3"), _weekdays("*")
    ('sun', 'fri,sat,sun', 'mon,wed', '*')
    >>> _weekdays("*/2"), _weekdays("1-5/2")
    ('sun,tue,thu,sat', 'mon,wed,fri')
    """
    if field == "*":
        return field
    days = []
    for part in field.lower().split(","):
        span, slash, every = part.partition("/")
        if slash and not (every.isdigit() and 0 < int(every) < 8):
            raise ValueError(f"there is no step {every!r} among weekdays: write 1-7")
        first, _, last = ("0-6" if span == "*" else span).partition("-")
        start, end = _weekday(first), _weekday(last or ("6" if slash else first))
        steps = range(0, (end - start) % 7 + 1, int(every or 1))
        days += [WEEKDAYS[(start + step) % 7] for step in steps]
    return ",".join(days)


def _weekday(text: str) -> int:
    number = int(text) if text.isdigit() else WEEKDAYS.index(text) if text in WEEKDAYS else 8
    if number > 7:
        raise ValueError(f"there is no weekday {text!r}: write 0-7 (0 is Sunday) or sun, mon, ...")
    return number % 7
