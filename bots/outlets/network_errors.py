"""What a broken connection means: the request certainly did not go out, or it may have arrived.

Only what fails before a byte of the request went out is safe to send again: no address, no connection, no
handshake. Everything later is unclear.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from bots.outlets.errors import NotSent, Unclear

CONNECT, READ = 5.0, 20.0
"""Seconds until a connection stands, and without a byte."""


def raise_network_error(error: BaseException) -> NoReturn:
    """Raise `NotSent` or `Unclear` for an error of requests or httpx."""
    said = f"{type(error).__name__}: {_shortly(error)}"
    raise (NotSent(said) if failed_before_sending(error) else Unclear(said)) from error


def failed_before_sending(error: BaseException) -> bool:
    """Whether no byte of the request can have arrived."""
    import httpx

    early = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
    if isinstance(error, (*early, httpx.UnsupportedProtocol, httpx.InvalidURL)):
        return True
    try:
        import requests
        from urllib3 import exceptions as wire
    except ModuleNotFoundError:
        return False
    if isinstance(error, requests.exceptions.ConnectTimeout | requests.exceptions.SSLError):
        return True
    cause: Any = (
        error.args[0] if isinstance(error, requests.ConnectionError) and error.args else None
    )
    reason = getattr(cause, "reason", None)
    return isinstance(reason, wire.NewConnectionError | wire.ConnectTimeoutError | wire.SSLError)


def parse_unix_time(seconds: object) -> datetime | None:
    """A header such as x-rate-limit-reset (unix seconds) as a moment; None when it is not one."""
    try:
        return datetime.fromtimestamp(float(str(seconds)), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def clock_error(headers: Any) -> timedelta:
    """By how much this box's clock is ahead of the server's, by the answer's `Date`; 0 within a minute.

    >>> clock_error({"date": "Thu, 01 Jan 1970 00:00:00 GMT"}) > timedelta(days=1)
    True
    """
    try:
        there = parsedate_to_datetime(str(headers.get("date", "")))
    except ValueError:
        return timedelta(0)
    ahead = datetime.now(UTC) - there.replace(tzinfo=there.tzinfo or UTC)
    return ahead if abs(ahead) > timedelta(minutes=1) else timedelta(0)


def _shortly(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else "no reason given"
