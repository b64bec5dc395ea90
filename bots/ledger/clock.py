"""What a wrong clock does to the ledger, and how it is put right.

A clock that was ahead books slots as missed that have not come, lets drafts expire and writes down moments
that lie in the future once it is right again. None of that may silence a bot, so it is taken back. Daemons
that share a database share its clock. A clock from before rig was written is none: nothing is done by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, case, func, literal, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from bots.ledger.store import Ledger
from bots.ledger.tables import UtcDateTime, bots, daemons, outbox, runs

EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)
"""A box without a clock of its own starts in 1970 or 2000."""
TOLERANCE = timedelta(minutes=1)
"""By so much may clocks differ, or one be set back, without a remark."""
NOISE = timedelta(seconds=1)
"""A difference from the database's clock that its answer's way may have made."""

NOT_APPROVED, TOO_LATE, NEVER_ARRIVED = (
    "nobody approved it in time",
    "too late",
    "it did not arrive, and its time is over",
)
"""Why a post was left out because of the time it was."""


class LedgerClock:
    """The clock of the database, by this box's own between two questions; for daemons on several boxes.

    Its argument is this box's clock. When the database can't be asked, the last answer goes on counting.
    """

    def __init__(self, ledger: Ledger, own: Callable[[], datetime]) -> None:
        self.ledger, self.own = ledger, own
        self._ticks = time.monotonic()
        self._base = self._own_base = own()
        self.compare()

    def __call__(self) -> datetime:
        """The moment it is."""
        passed = timedelta(seconds=time.monotonic() - self._ticks)
        if abs(self.own() - self._own_base - passed) > 2 * NOISE:  # set meanwhile, or the box slept
            self.compare()
            passed = timedelta(seconds=time.monotonic() - self._ticks)
        return self._base + passed

    def compare(self) -> timedelta:
        """Ask the database; return by how much this box's clock is ahead of it."""
        try:
            with self.ledger.read_transaction() as connection:
                begin = self.own()
                there: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
                own = begin + (self.own() - begin) / 2
        except SQLAlchemyError:
            passed = timedelta(seconds=time.monotonic() - self._ticks)
            self._base += passed
            self._own_base, self._ticks = self.own(), time.monotonic()
            return timedelta(0)
        ahead = own - there
        self._own_base, self._ticks = self.own(), time.monotonic()
        self._base = self._own_base - (ahead if abs(ahead) > NOISE else timedelta(0))
        return ahead if abs(ahead) > NOISE else timedelta(0)


def booked_ahead(now: datetime) -> ColumnElement[bool]:
    """Slots that count as missed because the clock was ahead of `now`: when they come they can be taken."""
    return (runs.c.state == "missed") & (runs.c.started > now + TOLERANCE)


def take_back_future(ledger: Ledger, names: list[str], now: datetime) -> dict[str, int]:
    """Undo what a clock that was ahead has done to these bots; how many of what, the zeros left out."""
    with ledger.write_transaction() as connection:
        mine = booked_ahead(now) & runs.c.bot.in_(names) & (runs.c.slot > now)
        found = {
            "slots were booked as missed too early": connection.scalar(
                select(func.count()).select_from(runs).where(mine)
            ),
            "posts wait again": _revive_posts(connection, names, now),
        }
        _pull_moments_back(connection, names, now)
    return {what: int(number) for what, number in found.items() if number}


def _revive_posts(connection: Connection, names: list[str], now: datetime) -> int:
    """What was left out because its time seemed over waits once more, until its time is over."""
    count, end = 0, now + TOLERANCE
    for state, reasons in (("draft", (NOT_APPROVED,)), ("approved", (TOO_LATE, NEVER_ARRIVED))):
        said = or_(*(outbox.c.reason.contains(reason, autoescape=True) for reason in reasons))
        early = (outbox.c.state == "skipped") & (outbox.c.settled > end) & (outbox.c.expires > now)
        mine = update(outbox).where(outbox.c.bot.in_(names), early, said)
        begin = case((outbox.c.slot > now, outbox.c.slot), else_=literal(now, UtcDateTime))
        values = {"state": state, "settled": None, "reason": "", "not_before": begin}
        count += connection.execute(mine.values(**values)).rowcount
    return count


def _pull_moments_back(connection: Connection, names: list[str], now: datetime) -> None:
    """A moment that can't be yet is now: unclear posts are asked for, leases end, bots begin."""
    end = now + TOLERANCE
    unclear = update(outbox).where(outbox.c.bot.in_(names), outbox.c.state == "unknown")
    never = or_(bots.c.since > end, bots.c.since < EARLIEST)
    for change in (
        unclear.where(outbox.c.not_before > end).values(not_before=now),
        unclear.where(outbox.c.claimed > end).values(claimed=now),
        update(bots).where(bots.c.name.in_(names), never).values(since=now),
        update(daemons).where(daemons.c.beat > end).values(beat=now),
    ):
        connection.execute(change)
