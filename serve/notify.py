"""Tells systemd how the service is: datagrams to `NOTIFY_SOCKET`, nothing at all without one.

A watchdog ping says "the model can answer", not "the process is alive": so the caller pings only after
the engine answered its own heartbeat, and a hung engine is restarted by systemd.
"""

from __future__ import annotations

import os
import socket


def tell(**words: str) -> bool:
    """Send one datagram such as `READY=1`; False where nobody listens (no systemd, or not Type=notify).

    A name that begins with `@` is an abstract socket (sd_notify(3)).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    message = "\n".join(f"{name}={value}" for name, value in words.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        try:
            line.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:  # systemd is being restarted; it asks nothing of us meanwhile
            return False
    return True


def ready(status: str) -> bool:
    """The model is loaded and the port is open."""
    return tell(READY="1", STATUS=status)


def status(text: str) -> bool:
    """One line for `systemctl status`."""
    return tell(STATUS=text)


def alive() -> bool:
    """One watchdog ping: call it only after the engine has answered."""
    return tell(WATCHDOG="1")


def extend(seconds: float) -> bool:
    """Loading goes on: do not give up for another `seconds`; `status` may say what it waits for."""
    return tell(EXTEND_TIMEOUT_USEC=str(int(seconds * 1_000_000)))


def stopping() -> bool:
    """The last requests are being finished."""
    return tell(STOPPING="1")


def watchdog_seconds() -> float | None:
    """How often to call `alive`: half of what systemd allows; None where no watchdog is set for us."""
    period, owner = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not period.isdigit() or int(period) == 0 or owner not in ("", str(os.getpid())):
        return None
    return int(period) / 2_000_000
