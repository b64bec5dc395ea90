"""Tells systemd how a service is: datagrams to `NOTIFY_SOCKET`, nothing at all without one.

A watchdog ping says "the work gets done", not "the process is alive": so the caller pings only after what
does the work has answered, and what hangs is restarted by systemd.
"""

from __future__ import annotations

import os
import socket
import time


def send_state(**words: str) -> bool:
    """Send one datagram such as `READY=1`; False where nobody listens (no systemd, or not Type=notify).

    A name that begins with `@` is an abstract socket (sd_notify(3)).

    >>> send_state(READY="1")
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


def notify_ready(status: str = "") -> bool:
    """The service does its work; also the end of `notify_reloading`."""
    return send_state(READY="1", **({"STATUS": status} if status else {}))


def notify_reloading() -> bool:
    """The configuration is being read again; `notify_ready` ends it."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return send_state(RELOADING="1", MONOTONIC_USEC=str(now))


def ping_watchdog() -> bool:
    """One watchdog ping: call it only when the work gets done."""
    return send_state(WATCHDOG="1")


def extend_timeout(seconds: float) -> bool:
    """Loading goes on: do not give up for another `seconds`."""
    return send_state(EXTEND_TIMEOUT_USEC=str(int(seconds * 1_000_000)))


def notify_stopping() -> bool:
    """What was begun is being finished."""
    return send_state(STOPPING="1")


def watchdog_seconds() -> float | None:
    """How often to call `ping_watchdog`: half of what systemd allows; None where no watchdog is set."""
    period, owner = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not period.isdigit() or int(period) == 0 or owner not in ("", str(os.getpid())):
        return None
    return int(period) / 2_000_000
