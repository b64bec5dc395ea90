"""The remembered deck: each card of a pool once in a round, in an order that nobody knows beforehand."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from bots.ledger.store import Ledger
from bots.ledger.tables import bots, shown

PAUSE = 20
"""After so many others at the earliest does a card return at the turn of a round."""


@dataclass
class LedgerDeck:
    """The deck of one bot for one slot; see `bots.bot.Deck`."""

    ledger: Ledger
    bot: str
    slot: datetime

    def draw(self, pool: list[str]) -> str:
        """The card of this slot; a slot that is tried again gets the same one."""
        with self.ledger.write_transaction() as connection:
            connection.execute(select(bots).where(bots.c.name == self.bot).with_for_update())
            mine = shown.c.bot == self.bot
            before = (shown.c.bot == self.bot) & (shown.c.slot == self.slot)
            drawn = connection.scalar(select(shown.c.card).where(before))
            if drawn in pool:
                return str(drawn)
            connection.execute(shown.delete().where(before))  # the pool is another one by now
            number = connection.scalar(select(func.max(shown.c.round)).where(mine)) or 1
            used = select(shown.c.card).where(mine, shown.c.round == number)
            rest = set(pool) - set(connection.scalars(used))
            if not rest:
                number, rest = number + 1, set(pool)
            last = select(shown.c.card).where(mine).order_by(shown.c.slot.desc())
            fresh = set(connection.scalars(last.limit(min(PAUSE, len(pool) // 2))))
            card = random.SystemRandom().choice(sorted(rest - fresh or rest))
            row = {"bot": self.bot, "round": number, "card": card, "slot": self.slot}
            connection.execute(shown.insert().values(**row))
            return card
