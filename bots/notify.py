"""A word to systemd: a few lines in a datagram to the socket that it names, nothing when there is none."""

from __future__ import annotations

import os
import socket
import time


def notify(*lines: str) -> bool:
    """Send lines such as `READY=1`; False when nobody listens.

    >>> notify("READY=1")
    False
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or not hasattr(socket, "AF_UNIX"):
        return False
    if address[0] == "@":  # an abstract name
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.settimeout(1.0)
        try:
            out.sendto("\n".join(lines).encode(), address)
        except OSError:
            return False
    return True


def reloading() -> None:
    """Tell systemd that the configuration is being read again; `READY=1` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_interval() -> float | None:
    """Seconds between two signs of life, a third of what systemd waits for; None without a watchdog."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 3_000_000 if usec.isdigit() and int(usec) else None
