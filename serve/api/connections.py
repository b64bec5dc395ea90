"""Connections have a number and a time: who opens a thousand and says nothing takes nobody's place.

A head has to arrive within `HEAD_SECONDS`. When all places are taken, the connection goes that has been
silent longest, then the one whose body is longest on its way; one whose reply is being written never goes.
"""

from __future__ import annotations

import asyncio
import time

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
MOST_CONNECTIONS = 512
RESERVE = 96
"""Descriptors for everything else: the engine, files, and connections that are just being accepted."""
ACCEPTED_AT_ONCE = 16
WAITING_CONNECTIONS = 256
"""That the system keeps until they are accepted."""


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 with a limit on connections and a time for each head."""

    most = MOST_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        self._head_timer: asyncio.TimerHandle | None = None
        self.since = time.monotonic()
        super().connection_made(transport)
        self._await_head()
        others = [one for one in self.connections if isinstance(one, LimitedProtocol)]
        if len(others) > self.most:
            self._make_room([one for one in others if one is not self])

    def data_received(self, data: bytes) -> None:
        """Some of a request, or a whole one."""
        super().data_received(data)
        if not self.is_silent:
            self.since = time.monotonic()
            self._stop_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def is_silent(self) -> bool:
        """Whether no request is on its way: none has come, or the last one is answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_sending(self) -> bool:
        """Whether a request's body has not arrived in full."""
        return not self.is_silent and self.cycle.more_body

    def _make_room(self, others: list[LimitedProtocol]) -> None:
        silent = [one for one in others if one.is_silent]
        sending = [one for one in others if one.is_sending]
        victim = min(silent or sending or [self], key=lambda one: one.since)
        self.connections.discard(victim)
        victim.transport.abort()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._head_timer = None
        if self.is_silent and not self.transport.is_closing():
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def limited_protocol() -> type[LimitedProtocol]:
    """The protocol with as many connections as this process may have descriptors."""

    class Protocol(LimitedProtocol):
        """As many as fit."""

        most = _most_connections()

    return Protocol


def _most_connections() -> int:
    try:
        import resource
    except ImportError:  # Windows, where a process has enough
        return MOST_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + RESERVE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(8, min(MOST_CONNECTIONS, soft - RESERVE))
