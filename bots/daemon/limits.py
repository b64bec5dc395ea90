"""What holds a post back though it is ready: quiet hours, and caps in posts and in money."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from bots.ledger.outbox import count_spent
from bots.settings import BotSettings

DOLLAR = 1_000_000
"""The ledger counts in millionths."""


def in_quiet_hours(settings: BotSettings, now: datetime) -> bool:
    """Whether it is night for this bot; the hours are those of its own time zone, summer time included."""
    if settings.quiet is None:
        return False
    begin, end = settings.quiet
    clock = now.astimezone(ZoneInfo(settings.timezone)).time()
    return begin <= clock < end if begin < end else clock >= begin or clock < end


def quiet_hours_end(settings: BotSettings, now: datetime) -> datetime:
    """The first minute after the quiet hours."""
    moment = now.replace(second=0, microsecond=0)
    while in_quiet_hours(settings, moment):
        moment += timedelta(minutes=1)
    return moment


def cap_reason(
    connection: Connection, bot: str, settings: BotSettings, outlet: str, cost: int, now: datetime
) -> str | None:
    """Why one more post of `cost` would be too many, in words; None when it is not."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month = day.replace(day=1)
    next_month = (month + timedelta(days=31)).replace(day=1)
    limits = [
        ("day", day, day + timedelta(days=1), settings.posts_per_day, settings.dollars_per_day),
        ("month", month, next_month, settings.posts_per_month, settings.dollars_per_month),
    ]
    for (
        name,
        begin,
        end,
        posts,
        dollars,
    ) in limits:  # what a clock that was ahead wrote is none of it
        sent, money = count_spent(connection, bot, begin, outlet, before=end)
        if sent + 1 > posts:
            return f"the cap of {posts} posts a {name} is reached"
        if money + cost > round(dollars * DOLLAR):
            return (
                f"${cost / DOLLAR:.3f} more would pass the cap of ${dollars:.2f} a {name} "
                f"(spent: ${money / DOLLAR:.3f})"
            )
    return None
