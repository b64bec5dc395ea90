"""Which cards may come next, exactly: `pytest tests/test_bots_ledger_deck.py`."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from bots.ledger import switches
from bots.ledger.deck import LedgerDeck
from bots.ledger.store import Ledger
from bots.ledger.tables import shown

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Table:
    """A ledger, and a dealer who takes the first of what may come and remembers what that was."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.offered: list[list[str]] = []

    def choice(self, cards: list[str]) -> str:
        self.offered.append(cards)
        return cards[0]

    def draw(self, hour: int, pool: str | list[str], bot: str = "tick") -> str:
        return LedgerDeck(self.ledger, bot, NOW + timedelta(hours=hour)).draw(list(pool))

    def may_come(self, hour: int, pool: str | list[str], bot: str = "tick") -> list[str]:
        self.draw(hour, pool, bot)
        return self.offered[-1]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
    for bot in ("tick", "other"):
        switches.set_enabled(ledger, bot, True, "every 1h", NOW)
    found = Table(ledger)
    monkeypatch.setattr(random, "SystemRandom", lambda: found)
    return found


def test_each_card_comes_once_and_half_of_a_small_pool_rests_at_the_turn(table: Table) -> None:
    assert [table.may_come(hour, "abcde") for hour in range(5)] == [
        list("abcde"), list("bcde"), list("cde"), list("de"), list("e"),
    ]  # fmt: skip
    assert table.may_come(5, "abcde") == list("abc"), "d and e were the last two"
    assert table.may_come(6, "abcde") == list("bcd"), "a and e were"
    assert table.may_come(7, "abcde") == list("cde")


def test_twenty_cards_of_a_large_pool_rest_at_the_turn(table: Table) -> None:
    pool = [f"{number:02}" for number in range(50)]
    for hour in range(50):
        table.draw(hour, pool)
    assert table.may_come(50, pool) == pool[:30]


def test_a_slot_that_is_tried_again_has_the_card_it_had(table: Table) -> None:
    first = table.draw(0, "abc")
    table.draw(1, "abc")
    asked = len(table.offered)
    assert table.draw(0, "cba") == first
    assert len(table.offered) == asked


def test_a_card_that_left_the_pool_gives_its_slot_to_another_and_nobody_elses(
    table: Table,
) -> None:
    assert [table.draw(hour, "abcd") for hour in range(3)] == ["a", "b", "c"]
    table.draw(1, "abcd", bot="other")
    assert table.draw(1, "acde") == "d"
    with table.ledger.read_transaction() as connection:
        rows = connection.execute(select(shown).order_by(shown.c.bot, shown.c.slot)).all()
    assert [(row.bot, row.round, row.card) for row in rows] == [
        ("other", 1, "a"), ("tick", 1, "a"), ("tick", 1, "d"), ("tick", 1, "c"),
    ]  # fmt: skip


def test_a_new_card_joins_the_round_that_runs(table: Table) -> None:
    table.draw(0, "ab")
    assert table.may_come(1, "abc") == ["b", "c"]
    assert table.may_come(2, "abc") == ["c"]
    assert table.may_come(3, "abcd") == ["d"]


def test_the_cards_of_another_bot_are_not_missing_here(table: Table) -> None:
    for hour in range(6):
        table.draw(hour, "abcd", bot="other")
    assert table.may_come(6, "abcd") == list("abcd")
    for hour in range(7, 10):
        table.draw(hour, "abcd")
    with table.ledger.read_transaction() as connection:
        rounds = connection.scalars(select(shown.c.round).where(shown.c.bot == "tick")).all()
    assert list(rounds) == [1] * 4


def test_the_last_card_of_a_round_comes_although_it_was_shown_just_now(table: Table) -> None:
    """Its slot lies in a future that a wrong clock had seen, so it counts as the latest for ever."""
    assert table.draw(100, "abcd") == "a"
    for hour in range(3):
        table.draw(hour, "abcd")
    for hour in range(3, 6):
        assert "a" not in table.may_come(hour, "abcd")
    assert table.may_come(6, "abcd") == ["a"]


def test_a_pool_of_one_comes_every_time(table: Table) -> None:
    assert [table.draw(hour, "a") for hour in range(3)] == ["a"] * 3
    with table.ledger.read_transaction() as connection:
        assert list(connection.scalars(select(shown.c.round))) == [1, 2, 3]
