"""A hard end for every call: what does not come back in time is left behind, and the caller goes on.

A timeout of a network library counts from byte to byte; a server that drips holds it for ever. The call runs
in a thread of its own that the process does not wait for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")


class CallTimeout(Exception):
    """The call took longer than it may; nobody knows what it did."""


_left: set[threading.Thread] = set()


def call_with_timeout(
    limit: timedelta, call: Callable[[], T], *, on_overdue: Callable[[], None] | None = None
) -> T:
    """Return what `call` returns, or raise what it raises, or `CallTimeout` after `limit`.

    `on_overdue` may break what the call hangs on, such as its connection.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="call", daemon=True)
    thread.start()
    thread.join(limit.total_seconds())
    if thread.is_alive():
        _left.add(thread)
        if on_overdue:
            on_overdue()
        raise CallTimeout(f"no answer within {limit.total_seconds():.0f} s")
    if failure:
        raise failure[0]
    return result[0]


def count_left_behind() -> int:
    """How many calls were left behind and still hang."""
    _left.intersection_update({thread for thread in _left if thread.is_alive()})
    return len(_left)
