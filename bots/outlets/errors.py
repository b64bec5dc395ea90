"""A failed sending is one of four things, and the ledger treats each differently.

It certainly did not go out (`NotSent`, tried again later), it never will (`Rejected`), nothing will until a
person looks (`Halt`), or nobody knows (`Unclear`, never sent again before `find_post` has looked for it).
"""

from __future__ import annotations

from datetime import datetime


class NotSent(Exception):
    """It did not go out, and may later; `again` is the earliest moment that makes sense.

    `fresh`: what `prepare_post` returned is of no use any more.
    """

    def __init__(self, reason: str, again: datetime | None = None, *, fresh: bool = False) -> None:
        super().__init__(reason)
        self.again = again
        self.fresh = fresh


class Rejected(Exception):
    """The platform will not have this text; another one may pass."""


class Halt(Exception):
    """No post will pass until a person has done something: money, permission, credentials."""


class Unclear(Exception):
    """It may have gone out and it may not."""
