"""What a person decided is kept, and the text before: `pytest tests/test_bots_ledger_decisions.py`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from bots.bot import Draft
from bots.ledger import outbox, review, slots
from bots.ledger.decisions import decided_posts
from bots.ledger.outbox import DeliveryTarget
from bots.ledger.store import Ledger
from bots.ledger.tables import decisions, drafts, version
from bots.ledger.tables import outbox as table
from rig.errors import WrongUse

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MODEL = "Moss Golem has 900 ATK."


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")


def put(ledger: Ledger, hour: int = 0, outlets: str = "x", source: str = "model") -> None:
    slot = NOW + timedelta(hours=hour)
    run = slots.take_slot(ledger, "cards", slot, "me", NOW)
    assert run
    draft = Draft(MODEL, str(hour), source=source, data={"card": "Moss Golem"})
    targets = [DeliveryTarget(outlet, True, 0) for outlet in outlets]
    outbox.put_draft(
        ledger, run, "cards", slot, draft, targets,
        approved=False, expires=NOW + timedelta(days=1), now=NOW,
    )  # fmt: skip


Step = Callable[[Ledger], None]


def approve(number: int) -> Step:
    return lambda ledger: review.approve_draft(ledger, number, NOW)


def edit(number: int, text: str) -> Step:
    return lambda ledger: review.edit_draft(ledger, number, text, NOW)


def reject(number: int, reason: str) -> Step:
    return lambda ledger: review.reject_draft(ledger, number, reason, NOW)


@pytest.mark.parametrize(
    ("steps", "verdict", "wanted", "reason"),
    [
        ([approve(1), approve(2)], "approved", MODEL, ""),
        ([approve(1)], "approved", MODEL, ""),
        ([edit(1, "Better."), approve(2)], "edited", "Better.", ""),
        ([edit(2, "Better."), edit(1, "Best."), approve(1)], "edited", "Best.", ""),
        ([edit(1, "Better.")], "edited", "Better.", ""),
        ([edit(1, MODEL), approve(1)], "approved", MODEL, ""),
        ([reject(1, "dull"), reject(2, "still dull")], "rejected", "", "still dull"),
        ([approve(1), reject(1, "second thoughts")], "rejected", "", "second thoughts"),
        ([reject(1, "too dear there"), approve(2)], "approved", MODEL, ""),
        ([edit(1, "Better."), reject(1, "no"), reject(2, "no")], "rejected", "", "no"),
    ],
)
def test_the_last_word_on_each_outlet_counts_and_the_model_s_text_stays(
    ledger: Ledger, steps: list[Step], verdict: str, wanted: str, reason: str
) -> None:
    put(ledger, outlets="xy")
    for step in steps:
        step(ledger)
    (found,) = decided_posts(ledger, "cards")
    assert (found.verdict, found.wanted, found.reason) == (verdict, wanted, reason)
    assert (found.text, found.author, found.at) == (MODEL, "model", NOW)
    assert (found.subject, found.data) == ("0", {"card": "Moss Golem"})


def test_what_nobody_decided_is_no_decision(ledger: Ledger) -> None:
    put(ledger, source="template")
    with pytest.raises(WrongUse):
        review.approve_draft(ledger, 9, NOW)
    outbox.drop_row(ledger, 1, NOW, "quiet hours")
    with pytest.raises(WrongUse):
        review.approve_draft(ledger, 1, NOW)
    assert decided_posts(ledger, "cards") == []
    put(ledger, 1, source="template")
    review.approve_draft(ledger, 2, NOW)
    assert [one.author for one in decided_posts(ledger, "cards")] == ["template"]
    assert decided_posts(ledger, "other") == []


def test_a_secret_in_a_reason_is_not_kept(ledger: Ledger) -> None:
    put(ledger)
    review.reject_draft(ledger, 1, "password=hunter2hunter2 stands there", NOW)
    assert decided_posts(ledger, "cards")[0].reason == "password=*** stands there"


def test_an_older_ledger_tells_what_it_still_knows(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.sqlite"
    old = Ledger.open(url)
    for hour in range(3):
        put(old, hour)
    with old.write_transaction() as connection:
        decisions.drop(connection)
        connection.execute(update(version).values(version=1))
        gone = update(table).where(table.c.id == 1)
        connection.execute(gone.values(state="skipped", reason="rejected by a person"))
        edited = update(drafts).where(drafts.c.id == 2)
        connection.execute(edited.values(source="person", text="By hand."))
    old.close()
    new = Ledger.open(url)
    found = {one.subject: one for one in decided_posts(new, "cards")}
    assert {key: one.verdict for key, one in found.items()} == {"0": "rejected", "1": "edited"}
    assert (found["1"].text, found["1"].wanted) == ("", "By hand.")
    new.close()
