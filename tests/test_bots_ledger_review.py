"""What a person sees and decides in the ledger, to the second: `pytest tests/test_bots_ledger_review.py`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from bots.bot import Draft
from bots.ledger import outbox, review, slots, switches
from bots.ledger.outbox import DeliveryTarget
from bots.ledger.store import Ledger
from bots.ledger.tables import drafts, runs
from bots.ledger.tables import outbox as table
from rig.errors import WrongUse

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")


def put(ledger: Ledger, hour: int, bot: str = "tick", outlets: str = "x") -> None:
    """A draft of that hour that waits for a person."""
    slot = NOW + hour * HOUR
    run = slots.take_slot(ledger, bot, slot, "me", NOW)
    assert run
    targets = [DeliveryTarget(outlet, True, 15_000) for outlet in outlets]
    outbox.put_draft(
        ledger, run, bot, slot, Draft(f"Text of {hour}"), targets,
        approved=False, expires=NOW + HOUR, now=NOW, model="a model",
    )  # fmt: skip


def row(ledger: Ledger, number: int) -> Any:
    return review.find_post(ledger, number)


def become(ledger: Ledger, number: int, **values: Any) -> None:
    with ledger.write_transaction() as connection:
        connection.execute(update(table).where(table.c.id == number).values(**values))


def test_what_is_open_is_listed_by_slot_and_what_was_newest_first(ledger: Ledger) -> None:
    put(ledger, 2, outlets="xy")
    put(ledger, 1)
    put(ledger, 0, bot="other")
    assert [one.id for one in review.open_posts(ledger)] == [4, 3, 1, 2]
    assert [one.id for one in review.open_posts(ledger, "tick")] == [3, 1, 2]
    assert [one.id for one in review.latest_posts(ledger, None, 3)] == [2, 1, 3]
    assert [one.id for one in review.latest_posts(ledger, "other", 9)] == [4]
    become(ledger, 3, state="sent")
    become(ledger, 1, state="unknown")
    become(ledger, 2, state="claimed")
    become(ledger, 4, state="failed")
    assert [one.id for one in review.open_posts(ledger)] == [1, 2]


def test_a_draft_may_be_approved_up_to_its_last_second(ledger: Ledger) -> None:
    put(ledger, 0, outlets="xy")
    with pytest.raises(WrongUse, match="2026-11-22 13:00 UTC was the end"):
        review.approve_draft(ledger, 1, NOW + HOUR + SECOND)
    review.approve_draft(ledger, 1, NOW + HOUR)
    assert (row(ledger, 1).state, row(ledger, 1).not_before) == ("approved", NOW + HOUR)
    assert row(ledger, 2).state == "draft"
    with pytest.raises(WrongUse, match=r"is approved: .* only of draft\."):
        review.approve_draft(ledger, 1, NOW)


def test_a_rejected_one_keeps_the_reason_and_what_was_sent_stays_sent(ledger: Ledger) -> None:
    put(ledger, 0, outlets="xyz")
    review.reject_draft(ledger, 1, "dull", NOW + SECOND)
    review.approve_draft(ledger, 2, NOW)
    review.reject_draft(ledger, 2, "dull too", NOW)
    assert [row(ledger, n).state for n in (1, 2, 3)] == ["skipped", "skipped", "draft"]
    assert (row(ledger, 1).reason, row(ledger, 1).settled) == ("dull", NOW + SECOND)
    become(ledger, 3, state="sent")
    with pytest.raises(WrongUse, match=r"Post 3 is sent: .* only of draft or approved\."):
        review.reject_draft(ledger, 3, "too late", NOW)


def test_an_edit_reaches_every_outlet_that_has_not_sent_it(ledger: Ledger) -> None:
    put(ledger, 0, outlets="wxyz")
    put(ledger, 1)
    become(ledger, 1, state="sent")
    become(ledger, 2, state="approved")
    become(ledger, 3, state="skipped")
    review.edit_draft(ledger, 4, "Words of a person", NOW)
    assert [row(ledger, n).text for n in range(1, 6)] == [
        "Text of 0", "Words of a person", "Text of 0", "Words of a person", "Text of 1",
    ]  # fmt: skip
    with ledger.read_transaction() as connection:
        found = connection.execute(select(drafts).order_by(drafts.c.id)).all()
    assert [(one.text, one.source) for one in found] == [
        ("Words of a person", "person"), ("Text of 1", "model"),
    ]  # fmt: skip
    for number in (1, 3):
        with pytest.raises(WrongUse, match="only what waits can be changed"):
            review.edit_draft(ledger, number, "No", NOW)


@pytest.mark.parametrize(
    ("arrived", "state", "reason", "cost"),
    [
        (True, "sent", "a person saw it", 15_000),
        (False, "skipped", "a person looked: it is not there", 0),
    ],
)
def test_a_person_says_what_became_of_an_unclear_post(
    ledger: Ledger, arrived: bool, state: str, reason: str, cost: int
) -> None:
    put(ledger, 0, outlets="xy")
    become(ledger, 1, state="unknown")
    review.settle_unclear(ledger, 1, arrived, NOW + SECOND)
    found = row(ledger, 1)
    assert (found.state, found.reason, found.cost) == (state, reason, cost)
    assert found.settled == NOW + SECOND
    with pytest.raises(WrongUse, match=r"only of unknown\."):
        review.settle_unclear(ledger, 2, arrived, NOW)


def test_a_number_that_is_none_is_refused(ledger: Ledger) -> None:
    with pytest.raises(WrongUse, match="There is no post 7: `rig bot queue`"):
        review.find_post(ledger, 7)


def test_a_row_as_json_counts_money_only_where_it_may_be_spent(ledger: Ledger) -> None:
    put(ledger, 0)
    shown = review.post_object(row(ledger, 1))
    assert shown == {
        "id": 1, "bot": "tick", "outlet": "x", "slot": "2026-11-22T12:00:00+00:00",
        "state": "draft", "text": "Text of 0", "subject": "", "source": "model", "attempts": 1,
        "refused": [], "reason": "", "external_id": "", "dollars": 0.0,
        "expires": "2026-11-22T13:00:00+00:00",
    }  # fmt: skip
    spent = {}
    for state in ("approved", "claimed", "sent", "unknown", "failed", "skipped"):
        become(ledger, 1, state=state)
        spent[state] = review.post_object(row(ledger, 1))["dollars"]
    assert [state for state, dollars in spent.items() if dollars] == ["claimed", "sent", "unknown"]
    assert spent["sent"] == 0.015


def test_an_unclear_row_is_put_off_by_whoever_holds_it_and_by_nobody_else(ledger: Ledger) -> None:
    put(ledger, 0, outlets="xy")
    become(ledger, 1, state="unknown", owner="me")
    become(ledger, 2, state="approved", owner="me")
    outbox.postpone_unclear(ledger, 1, "another", NOW + HOUR, "no")
    assert (row(ledger, 1).not_before, row(ledger, 1).reason) == (NOW, "")
    for number in (1, 2):
        outbox.postpone_unclear(ledger, number, "me", NOW + HOUR, "later")
    assert (row(ledger, 1).not_before, row(ledger, 1).reason) == (NOW + HOUR, "later")
    assert row(ledger, 2).not_before == NOW


def test_a_bot_is_told_of_each_of_its_posts_once(ledger: Ledger) -> None:
    put(ledger, 0, outlets="xy")
    put(ledger, 1, bot="other")
    for number in (1, 2, 3):
        become(ledger, number, state="sent")
    assert [one.id for one in outbox.untold_rows(ledger, ["tick"])] == [1, 2]
    outbox.mark_told(ledger, 1)
    assert [one.id for one in outbox.untold_rows(ledger, ["tick", "other"])] == [2, 3]


def test_a_slot_says_how_it_ended(ledger: Ledger) -> None:
    slots.record_missed(ledger, "tick", [NOW, NOW + HOUR], "me", NOW, "the box slept")
    run = slots.take_slot(ledger, "tick", NOW + 2 * HOUR, "me", NOW)
    assert run
    slots.close_slot(ledger, run, "failed", "x" * 3000, NOW + SECOND)
    slots.close_slot(ledger, run, "nothing", "", NOW)
    put(ledger, 3)
    with ledger.read_transaction() as connection:
        found = connection.execute(select(runs).order_by(runs.c.slot)).all()
    assert [(one.state, one.reason, one.owner, one.model) for one in found] == [
        ("missed", "the box slept", "me", ""), ("missed", "the box slept", "me", ""),
        ("failed", "x" * 2000, "me", ""), ("drafted", "", "me", "a model"),
    ]  # fmt: skip
    assert [one.ended for one in found] == [NOW, NOW, NOW + SECOND, NOW]


def test_stops_are_listed_in_their_order_and_the_first_reason_stays(ledger: Ledger) -> None:
    for scope, reason in (("outlet:x", "b"), ("all", "c"), ("bot:tick", "a"), ("all", "d")):
        switches.stop_scope(ledger, scope, reason, NOW)
    assert list(switches.stopped_scopes(ledger).items()) == [
        ("all", "c"), ("bot:tick", "a"), ("outlet:x", "b"),
    ]  # fmt: skip
    assert switches.resume_scope(ledger, "all")
    assert not switches.resume_scope(ledger, "all")


def test_a_daemons_own_begun_slots_are_not_taken_over(ledger: Ledger) -> None:
    """However long it did not say that it lives: it may be busy with them."""
    me = slots.register_daemon(ledger, "one", NOW)
    slots.take_slot(ledger, "tick", NOW, me, NOW)
    assert slots.adopt_orphans(ledger, "tick", me, NOW + 9 * HOUR, HOUR) == []
    other = slots.register_daemon(ledger, "two", NOW + 9 * HOUR)
    (taken,) = slots.adopt_orphans(ledger, "tick", other, NOW + 9 * HOUR, HOUR)
    assert (taken.owner, taken.attempt) == (me, 1)
    with ledger.read_transaction() as connection:
        (mine,) = connection.execute(select(runs)).all()
    assert (mine.owner, mine.attempt) == (other, 2)


def test_a_row_that_is_being_sent_is_not_taken_for_cut_off(ledger: Ledger) -> None:
    put(ledger, 0, outlets="xyz")
    for number in (1, 2):
        become(ledger, number, state="claimed", owner="me")
    assert outbox.mark_cut_off(ledger, "me", [1], NOW + SECOND, HOUR) == 1
    assert [row(ledger, number).state for number in (1, 2, 3)] == ["claimed", "unknown", "draft"]
    assert row(ledger, 2).reason == "cut off while it was being sent"
    assert row(ledger, 2).not_before == NOW + SECOND
    assert outbox.mark_cut_off(ledger, "me", [1], NOW, HOUR) == 0


@pytest.mark.parametrize(
    ("enabled", "away", "stopped", "gate", "verdict"),
    [
        (True, True, "", None, ("go", "")),
        (False, False, "", None, ("go", "")),
        (False, True, "", None, ("drop", "the bot is not enabled")),
        (True, True, "outlet:x", None, ("hold", "outlet:x is paused: why not")),
        (True, True, "outlet:y", None, ("go", "")),
        (True, True, "bot:tick", "too many", ("hold", "bot:tick is paused: why not")),
        (True, True, "", "too many", ("drop", "too many")),
    ],
)
def test_what_keeps_a_row_from_being_sent(
    ledger: Ledger, enabled: bool, away: bool, stopped: str, gate: Any, verdict: tuple[str, str]
) -> None:
    switches.set_enabled(ledger, "tick", enabled, "every 1h", NOW)
    put(ledger, 0)
    become(ledger, 1, state="approved", away=away, reason="an earlier try", settled=NOW)
    if stopped:
        switches.stop_scope(ledger, stopped, "why not", NOW)
    (due,) = outbox.due_rows(ledger, ["tick"], NOW)
    assert outbox.claim_row(ledger, due, "me", NOW + SECOND, lambda _: gate, "m1") == verdict
    found = row(ledger, 1)
    if verdict[0] == "go":
        assert (found.state, found.owner, found.claimed) == ("claimed", "me", NOW + SECOND)
        assert (found.attempt, found.media, found.reason, found.settled) == (1, "m1", "", None)
        assert outbox.claim_row(ledger, due, "you", NOW, lambda _: None) == ("gone", "")
    else:
        assert (found.state, found.attempt) == ("approved", 0)


def test_the_caps_count_what_may_have_gone_out(ledger: Ledger) -> None:
    for hour, state in enumerate(
        ("claimed", "sent", "unknown", "draft", "approved", "failed", "skipped", "sent", "sent")
    ):
        put(ledger, hour, outlets="xy" if hour == 1 else "x")
        become(ledger, hour + 1 + (hour > 1), state=state, claimed=NOW + hour * HOUR)
    become(ledger, 3, state="sent", claimed=NOW + HOUR)
    become(ledger, 9, away=False)
    with ledger.read_transaction() as connection:
        assert outbox.count_spent(connection, "tick", NOW) == (5, 75_000)
        assert outbox.count_spent(connection, "tick", NOW, "x") == (4, 75_000)
        assert outbox.count_spent(connection, "tick", NOW, "y") == (1, 75_000)
        assert outbox.count_spent(connection, "tick", NOW + SECOND) == (4, 60_000)
        assert outbox.count_spent(connection, "tick", NOW + 8 * HOUR) == (1, 15_000)
        assert outbox.count_spent(connection, "tick", NOW + 8 * HOUR + SECOND) == (0, 0)
        assert outbox.count_spent(connection, "other", NOW) == (0, 0)


def test_what_became_of_a_row_is_said_with_its_reason(ledger: Ledger) -> None:
    put(ledger, 0, outlets="xy")
    for number in (1, 2):
        become(ledger, number, state="claimed", owner="me")
    assert not outbox.settle_row(ledger, 1, "you", "sent", NOW)
    assert outbox.settle_row(ledger, 1, "me", "failed", NOW, reason="r" * 3000, cost=0)
    assert outbox.settle_row(ledger, 2, "me", "sent", NOW + SECOND, external_id="77")
    assert (row(ledger, 1).reason, row(ledger, 1).cost) == ("r" * 2000, 0)
    assert (row(ledger, 2).reason, row(ledger, 2).external_id) == ("", "77")
    assert row(ledger, 2).settled == NOW + SECOND
    assert not outbox.settle_row(ledger, 2, "me", "failed", NOW), "what is settled stays"
    assert outbox.is_another_post(ledger, 1, "y", "77")
    assert not outbox.is_another_post(ledger, 2, "y", "77")
    assert not outbox.is_another_post(ledger, 1, "x", "77")


def test_earlier_texts_are_the_newest_first_each_once(ledger: Ledger) -> None:
    for hour in range(4):
        put(ledger, hour, outlets="xy")
    put(ledger, 9, bot="other")
    become(ledger, 1, state="failed")
    become(ledger, 2, state="skipped")
    assert outbox.earlier_texts(ledger, "tick", 9) == ["Text of 3", "Text of 2", "Text of 1"]
    assert outbox.earlier_texts(ledger, "tick", 2) == ["Text of 3", "Text of 2"]
