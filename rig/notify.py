"""Tells systemd how a service is: datagrams to `NOTIFY_SOCKET`, nothing at all without one.

A watchdog ping says "the work gets done", not "the process is alive": so the caller pings only after what
does the work has answered, and what hangs is restarted by systemd.
"""

from __future__ import annotations

import os
import socket
import time


def tell(**words: str) -> bool:
    """Send one datagram such as `READY=1`; False where nobody listens (no systemd, or not Type=notify).

    A name that begins with `@` is an abstract socket (sd_notify(3)).

    >>> tell(READY="1")
    False
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    message = "\n".join(f"{name}={value}" for name, value in words.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        line.settimeout(1.0)
        try:
            line.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:  # systemd is being restarted; it asks nothing of us meanwhile
            return False
    return True


def ready(status: str = "") -> bool:
    """The service does its work; also the end of `reloading`."""
    return tell(READY="1", **({"STATUS": status} if status else {}))


def reloading() -> bool:
    """The configuration is being read again; `ready` ends it."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return tell(RELOADING="1", MONOTONIC_USEC=str(now))


def alive() -> bool:
    """One watchdog ping: call it only when the work gets done."""
    return tell(WATCHDOG="1")


def extend(seconds: float) -> bool:
    """Loading goes on: do not give up for another `seconds`."""
    return tell(EXTEND_TIMEOUT_USEC=str(int(seconds * 1_000_000)))


def stopping() -> bool:
    """What was begun is being finished."""
    return tell(STOPPING="1")


def watchdog_seconds() -> float | None:
    """How often to call `alive`: half of what systemd allows; None where no watchdog is set for us."""
    period, owner = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not period.isdigit() or int(period) == 0 or owner not in ("", str(os.getpid())):
        return None
    return int(period) / 2_000_000
