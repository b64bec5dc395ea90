"""Slots, delays, quiet hours, and what rig.toml may say: `pytest tests/test_bots_schedule.py`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bots import settings
from bots.daemon.limits import in_quiet_hours, quiet_hours_end
from bots.daemon.scheduler import SlotTrigger
from bots.schedule import Schedule
from bots.settings import BotSettings
from rig.errors import WrongUse

MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        ("0 */2 * * *", "2026-11-22T11:59", "2026-11-22T12:00"),
        ("0 */2 * * *", "2026-11-22T12:00", "2026-11-22T14:00"),
        ("every 2h", "2026-11-22T12:00", "2026-11-22T14:00"),
        ("every 90m", "2026-11-22T00:01", "2026-11-22T01:30"),
        (
            "0 9 * * 0",
            "2026-11-22T10:00",
            "2026-11-29T09:00",
        ),  # cron's 0 is Sunday, APScheduler's Monday
        ("0 9 * * 7", "2026-11-22T10:00", "2026-11-29T09:00"),
        ("0 9 * * fri-mon", "2026-11-17T10:00", "2026-11-20T09:00"),  # a range over the week's end
        (
            "30 1 * * *",
            "2026-10-25T01:30",
            "2026-10-26T01:30",
        ),  # once, though London's clock shows it twice
        ("0 9 13 * fri", "2026-11-10T10:00", "2026-11-13T09:00"),  # either makes a day
        ("0 9 13 * fri", "2026-11-13T10:00", "2026-11-20T09:00"),
        ("0 9 13 * fri", "2026-12-11T10:00", "2026-12-13T09:00"),
        ("30 4 1,15 * 5", "2026-12-01T05:00", "2026-12-04T04:30"),
        ("0 9 * * */2", "2026-11-22T10:00", "2026-11-24T09:00"),
        ("0 9 * * 1-5/2", "2026-11-23T10:00", "2026-11-25T09:00"),
        ("0 9 */2 * 1", "2026-11-23T10:00", "2026-12-07T09:00"),  # a star: both must hold
        ("@daily", "2026-11-22T10:00", "2026-11-23T00:00"),
        ("@weekly", "2026-11-22T10:00", "2026-11-29T00:00"),
        ("0 0 29 2 *", "2026-01-01T00:00", "2028-02-29T00:00"),
    ],
)
def test_the_next_slot_is_where_cron_puts_it(text: str, after: str, expected: str) -> None:
    begin = datetime.fromisoformat(after).replace(tzinfo=UTC)
    assert Schedule.from_text(text).next_slot(begin) == datetime.fromisoformat(expected).replace(
        tzinfo=UTC
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "often",
        "* * * *",
        "61 * * * *",
        "0 9 * * 8",
        "0 9 * * */0",
        "@reboot",
        "every 0s",
        "every 400d",
        "0 0 31 2 *",
    ],
)
def test_a_schedule_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(WrongUse, match=r"\[bots\.cards\] in rig\.toml"):
        settings.validate_bot_settings("cards", {"schedule": text})


@given(MOMENTS, st.sampled_from(["0 */2 * * *", "every 2h", "every 45m", "15 6,18 * * mon-fri"]))
def test_slots_do_not_depend_on_where_one_starts_to_count(moment: datetime, text: str) -> None:
    schedule = Schedule.from_text(text)
    slot = schedule.next_slot(moment)
    assert slot > moment
    assert schedule.next_slot(slot - timedelta(microseconds=1)) == slot
    assert list(schedule.slots_between(moment, slot)) == [slot]


@given(MOMENTS)
def test_jitter_delays_and_never_drifts(moment: datetime) -> None:
    schedule = Schedule.from_text("0 */2 * * *", timedelta(minutes=10), "cards")
    slots = list(schedule.slots_between(moment, moment + timedelta(days=10)))
    assert all(
        timedelta(0) <= schedule.due_time(slot) - slot < timedelta(minutes=10) for slot in slots
    )
    assert all(b - a == 2 * HOUR for a, b in pairwise(slots))


def test_two_bots_do_not_post_in_the_same_second() -> None:
    slot = datetime(2026, 11, 22, 12, tzinfo=UTC)
    one, other = (
        Schedule.from_text("0 */2 * * *", timedelta(minutes=10), name) for name in ("a", "b")
    )
    assert one.due_time(slot) != other.due_time(slot)


def test_a_jitter_longer_than_the_gap_is_refused() -> None:
    with pytest.raises(WrongUse, match="longer than from one slot to the next"):
        settings.validate_bot_settings("cards", {"schedule": "0 8,9 * * *", "jitter": "2h"})


@given(MOMENTS)
def test_the_trigger_fires_when_a_slot_is_due(moment: datetime) -> None:
    schedule = Schedule.from_text("0 */2 * * *", timedelta(minutes=30), "cards")
    trigger, fired = SlotTrigger(schedule), moment
    for _ in range(5):
        following = trigger.get_next_fire_time(fired, fired)
        assert following > fired
        slot = following.replace(minute=0, second=0, microsecond=0)
        assert schedule.due_time(slot) == following
        fired = following


@pytest.mark.parametrize(
    ("moment", "asleep"),
    [
        ("2026-01-15T22:59", False),
        ("2026-01-15T23:00", True),
        ("2026-01-16T06:59", True),
        ("2026-01-16T07:00", False),
        ("2026-07-15T22:30", True),  # in summer London is an hour ahead of UTC
        ("2026-07-16T06:30", False),
    ],
)
def test_quiet_hours_are_the_bot_s_own(moment: str, asleep: bool) -> None:
    bot = BotSettings.model_validate({"quiet": "23:00-07:00", "timezone": "Europe/London"})
    now = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    assert in_quiet_hours(bot, now) is asleep
    assert not in_quiet_hours(bot, quiet_hours_end(bot, now))


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[bots.cards]\nscedule = "0 9 * * *"', "did you mean 'schedule'"),
        ('[bots.cards]\ncatch_up = "burst"', "catch_up"),
        ('[bots.cards]\ntimezone = "Mars/Base"', "there is no time zone 'Mars/Base'"),
        ('[bots.cards]\njitter = "ten"', "write a duration"),
        ('[bots.cards]\nquiet = "23-7"', "quiet hours"),
        ("[bots.cards]\nposts_per_day = -1", "posts_per_day"),
        ('[bots."Cards Bot"]', "lower case"),
        ('[daemon]\nheartbeet = "5s"', "did you mean 'heartbeat'"),
    ],
)
def test_a_mistake_in_rig_toml_is_one_sentence(elsewhere: Path, toml: str, said: str) -> None:
    (elsewhere / "rig.toml").write_text(toml)
    with pytest.raises(WrongUse) as told:
        settings.read_settings()
    assert said in told.value.message


def test_without_a_bot_there_is_the_card_bot_on_the_screen(elsewhere: Path) -> None:
    found = settings.read_settings()
    assert list(found.bots) == ["cards"]
    assert found.bots["cards"].outlets == ("screen",)
