"""What a person is told of, and that it is told once: `pytest tests/test_bots_daemon_notices.py`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import update

from bots.bot import Draft
from bots.daemon.notices import BETWEEN_DIGESTS, Notices
from bots.ledger import outbox, review, slots, switches
from bots.ledger.outbox import DeliveryTarget
from bots.ledger.store import Ledger
from bots.ledger.tables import outbox as table
from rig import paths
from rig.notify import tell_person
from support.daemons import by_hand, keep_x_secrets, settings, tick
from support.fake_x import Event, FakeX
from support.scripted_http import Say, ScriptedServer
from support.simulated import Clock, simulated

NOW = datetime(2026, 5, 1, 0, 30, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")


def notices(ledger: Ledger, clock: Clock, heard: list[tuple[str, str]]) -> Notices:
    return Notices(
        ledger, clock, tell=lambda *words: heard.append(words), somebody=lambda: ["ntfy://x"]
    )


def draft(ledger: Ledger, clock: Clock, text: str, bot: str = "tick") -> None:
    """A draft that waits for a person."""
    run = slots.take_slot(ledger, bot, clock.now, "me", clock.now)
    assert run is not None
    outbox.put_draft(
        ledger, run, bot, clock.now, Draft(text), [DeliveryTarget("x", True, 0)],
        approved=False, expires=clock.now + timedelta(hours=6), now=clock.now,
    )  # fmt: skip


def test_drafts_are_told_once_and_gathered(ledger: Ledger, own_home: Path) -> None:
    clock, heard = Clock(NOW), list[tuple[str, str]]()
    told = notices(ledger, clock, heard)
    told.tell_news(["tick"])
    assert heard == []
    draft(ledger, clock, "The first words.")
    told.tell_news(["tick"])
    assert heard[0][0] == "rig: a draft waits for you"
    assert "1, tick, until Fri 06:30 UTC\nThe first words." in heard[0][1]
    for number in range(6):
        clock.now += timedelta(minutes=1)
        draft(ledger, clock, f"Words number {number}.")
        told.tell_news(["tick"])
    assert len(heard) == 1
    clock.now = NOW + BETWEEN_DIGESTS
    told.tell_news(["tick"])
    title, body = heard[1]
    assert title == "rig: 7 drafts wait for you"
    assert body.startswith("... and 2 before these")
    assert "Words number 5." in body
    clock.now += BETWEEN_DIGESTS
    told.tell_news(["tick"])
    notices(ledger, clock, heard).tell_news(["tick"])  # another start of the daemon
    assert len(heard) == 2


def test_another_bots_drafts_are_not_ours(ledger: Ledger, own_home: Path) -> None:
    clock, heard = Clock(NOW), list[tuple[str, str]]()
    draft(ledger, clock, "Words of another box.", bot="other")
    notices(ledger, clock, heard).tell_news(["tick"])
    assert heard == []


def test_a_clock_that_was_ahead_silences_no_digest(ledger: Ledger, own_home: Path) -> None:
    clock, heard = Clock(NOW + timedelta(days=400)), list[tuple[str, str]]()
    told = notices(ledger, clock, heard)
    draft(ledger, clock, "From the false future.")
    told.tell_news(["tick"])
    clock.now = NOW
    draft(ledger, clock, "From the present.")
    told.tell_news(["tick"])
    assert len(heard) == 2


def test_what_stopped_itself_is_told_and_what_a_person_paused_is_not(
    ledger: Ledger, own_home: Path
) -> None:
    clock, heard = Clock(NOW), list[tuple[str, str]]()
    told = notices(ledger, clock, heard)
    switches.stop_scope(ledger, "bot:tick", "paused by a person", NOW)
    told.tell_news(["tick"])
    assert heard == []
    reason = f"The key was refused{switches.AFTERWARDS} --outlet x`"
    switches.stop_scope(ledger, "outlet:x", reason, NOW)
    told.tell_news(["tick"])
    told.tell_news(["tick"])
    assert heard == [("rig: outlet x is stopped", reason)]
    switches.resume_scope(ledger, "outlet:x")
    told.tell_news(["tick"])
    switches.stop_scope(ledger, "outlet:x", reason, NOW)
    told.tell_news(["tick"])
    assert len(heard) == 2


def test_a_post_that_only_a_person_can_judge_is_told(ledger: Ledger, own_home: Path) -> None:
    clock, heard = Clock(NOW), list[tuple[str, str]]()
    told = notices(ledger, clock, heard)
    for number, reason in ((1, "the line broke"), (2, "only a person can tell: `rig bot queue`")):
        clock.now += timedelta(hours=1)
        draft(ledger, clock, f"Words {number}.")
        with ledger.write_transaction() as connection:
            mine = update(table).where(table.c.id == number)
            connection.execute(mine.values(state="unknown", reason=reason))
    told.tell_news(["tick"])
    told.tell_news(["tick"])
    assert heard == [
        (
            "rig: did post 2 of tick go out on x?",
            "Words 2.\n\nonly a person can tell: `rig bot queue`",
        )
    ]


def test_a_bot_that_fails_again_and_again_is_told_once(ledger: Ledger, own_home: Path) -> None:
    clock, heard = Clock(NOW), list[tuple[str, str]]()
    told = notices(ledger, clock, heard)

    def slot(state: str) -> None:
        clock.now += timedelta(hours=1)
        run = slots.take_slot(ledger, "tick", clock.now, "me", clock.now)
        assert run is not None
        slots.close_slot(ledger, run, state, "the model is gone", clock.now)
        told.tell_news(["tick"])

    for state in ("failed", "failed", "nothing", "failed", "failed"):
        slot(state)
    assert heard == []
    slot("failed")
    slot("failed")
    assert heard == [("rig: tick failed 3 times in a row", "the model is gone")]
    slot("drafted")
    for _ in range(3):
        slot("failed")
    assert len(heard) == 2


def test_a_damaged_memory_costs_a_second_message_and_no_more(
    ledger: Ledger, own_home: Path
) -> None:
    clock, heard = Clock(NOW), list[tuple[str, str]]()
    draft(ledger, clock, "Some words.")
    file = paths.state_dir() / "notices.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    for damaged in ("{", "[]", '{"told": 3, "digest": null}', '{"told": []}'):
        file.write_text(damaged)
        notices(ledger, clock, heard).tell_news(["tick"])
    assert len(heard) == 4
    assert json.loads(file.read_text())["told"] == ["draft 1"]


def test_a_decided_draft_is_forgotten(ledger: Ledger, own_home: Path) -> None:
    clock, heard = Clock(NOW), list[tuple[str, str]]()
    told = notices(ledger, clock, heard)
    draft(ledger, clock, "Some words.")
    told.tell_news(["tick"])
    review.reject_draft(ledger, 1, "dull", clock.now)
    told.tell_news(["tick"])
    assert json.loads((paths.state_dir() / "notices.json").read_text())["told"] == []


def test_the_daemon_tells_that_an_outlet_refuses_its_keys(
    elsewhere: Path, own_home: Path, ledger: Ledger
) -> None:
    clock = Clock(NOW)
    keep_x_secrets(own_home)
    with ScriptedServer() as service, FakeX(clock) as fake, simulated(clock):
        service.will_say("/", Say({}))
        address = service.url.replace("http://", "ntfy://") + "/topic"
        Path("rig.toml").write_text(f'[notify]\nto = "{address}"\n')
        bot = {"run": tick(elsewhere), "schedule": "0 * * * *", "outlets": ["x"]}
        found = settings({"tick": bot}, {"x": {"api": fake.url}})
        daemon, scheduler = by_hand(found, ledger, clock)
        daemon.notices.tell = partial(tell_person, wait=True)
        switches.set_enabled(ledger, "tick", True, "0 * * * *", NOW)
        fake.will(Event("unauthorized"))
        scheduler.until(NOW + timedelta(hours=1))
    ((_, _, body),) = service.history
    assert body["title"] == "rig: outlet x is stopped"
    assert "rig bot resume --outlet x" in body["message"]
