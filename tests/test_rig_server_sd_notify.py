"""What systemd is told: `pytest tests/test_rig_server_sd_notify.py`."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from rig.server import sd_notify


def test_a_datagram_reaches_a_named_and_an_abstract_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for address in (str(tmp_path / "socket"), f"@rig-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.bind("\0" + address[1:] if address[0] == "@" else address)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            assert sd_notify.notify_ready("serving")
            assert line.recv(99) == b"READY=1\nSTATUS=serving"
            assert sd_notify.extend_timeout(1.5)
            assert line.recv(99) == b"EXTEND_TIMEOUT_USEC=1500000"
    assert not sd_notify.ping_watchdog(), "systemd is gone: nothing to do about it"
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not sd_notify.notify_ready("")


@pytest.mark.parametrize(
    ("period", "owner", "seconds"),
    [
        ("60000000", "", 30.0),
        ("60000000", "1", None),  # meant for another process
        ("0", "", None),
        ("", "", None),
        ("soon", "", None),
    ],
)
def test_the_watchdog_is_pinged_twice_as_often_as_needed(
    monkeypatch: pytest.MonkeyPatch, period: str, owner: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", period)
    monkeypatch.setenv("WATCHDOG_PID", owner)
    assert sd_notify.watchdog_seconds() == seconds
