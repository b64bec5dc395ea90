"""Who is told of what happened while nobody looked: one message to each address of `[notify] to`.

An address is a URL of Apprise (https://github.com/caronc/apprise): `ntfy://topic`, `tgram://token/chat`,
`mailto://...`, `jsons://host/path` for a webhook. It is a secret: whoever has it can write there. Apprise
takes some 45 MB, so a process that lives long lets a child send, `tell_person`; a message that can't be
delivered never changes what the process came for.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rig.errors import RigError, WrongUse

LONGEST = 3000
"""Characters of a message; the strictest of the common services takes 4,096 with its title."""
TIMEOUT = 60.0
"""Seconds that all addresses together may take."""


class Delivery(NamedTuple):
    """What became of a message at one address."""

    address: str
    """Without its secret parts."""
    fault: str
    """Empty when it was delivered."""


def find_addresses() -> tuple[str, ...]:
    """The addresses in force: `RIG_NOTIFY_TO`, else `[notify] to` of rig.toml; empty when there are none."""
    from rig.config import load_config

    table = load_config().get("notify", {})
    given = os.environ.get("RIG_NOTIFY_TO") or (
        table.get("to") if isinstance(table, dict) else None
    )
    return read_addresses(given or ())


def read_addresses(given: str | Sequence[str]) -> tuple[str, ...]:
    """Addresses out of a text with spaces between them, or a list; `@FILE` stands for the lines of a file.

    Raises:
        WrongUse: a file isn't there, or something is no text.
    """
    found: list[str] = []
    if not isinstance(given, str | list | tuple):
        raise WrongUse(f"[notify] to is a list of addresses in quotes; {given!r} is none.")
    for one in given.split() if isinstance(given, str) else given:
        if not isinstance(one, str):
            raise WrongUse(f"[notify] to is a list of addresses in quotes; {one!r} is none.")
        if one.startswith("@"):
            path = Path(one[1:]).expanduser()
            try:
                lines = path.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise WrongUse(f"[notify] to names {path}, which can't be read: {error}.") from None
            found += [line.strip() for line in lines if line.strip() and line[0] != "#"]
        else:
            found.append(one)
    return tuple(dict.fromkeys(found))


def send_notification(title: str, body: str, addresses: Sequence[str]) -> list[Delivery]:
    """Send one message to every address, in this process; what failed is told and not raised."""
    try:
        apprise: Any = importlib.import_module("apprise")  # its types are only half there
    except ModuleNotFoundError:
        raise RigError(
            "To tell somebody needs apprise, which is not installed here: "
            "pip install -c constraints.txt -e '.[notify]' in the project's folder."
        ) from None
    found = []
    for address in addresses:
        with apprise.LogCapture(level=apprise.logging.WARNING, fmt="%(message)s") as said:
            one = apprise.Apprise.instantiate(address)
            if one is None:
                kind = address.partition(":")[0]
                shown = f"{kind}://..." if address.startswith(f"{kind}://") else "an address"
                found.append(Delivery(shown, "it is no address that Apprise knows"))
                continue
            done = one.notify(title=title, body=_shortened(body))
            lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
        fault = "" if done else " ".join(lines) or "the service did not take it"
        found.append(Delivery(one.url(privacy=True).partition("?")[0], _hidden(fault, address)))
    return found


def tell_person(title: str, body: str, *, wait: bool = False) -> None:
    """Send a message through a child process, if rig.toml names somebody; never raises.

    With `wait` it returns once the message is out, for a process that is about to end.
    """
    try:
        if not find_addresses():
            return
    except (RigError, WrongUse) as error:
        _complain(error.message)
        return
    if wait:
        _send_by_child(title, body)
    else:
        threading.Thread(target=_send_by_child, args=(title, body), daemon=True).start()


def _send_by_child(title: str, body: str) -> None:
    """The child reads the addresses itself: they never stand in a list of processes."""
    command = [sys.executable, "-P", "-m", "rig", "notify", "--", title, body]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _complain(f"nobody could be told: {error}")
        return
    if done.returncode:
        _complain(done.stderr.strip() or f"`rig notify` ended with {done.returncode}")


def _complain(fault: str) -> None:
    import logging

    logging.getLogger("rig.notify").warning("%s", fault)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def _hidden(fault: str, address: str) -> str:
    """Leave out what a service's error repeats of the address: its parts are the secret."""
    for part in sorted(
        address.partition("://")[2].replace("?", "/").split("/"), key=len, reverse=True
    ):
        if len(part) >= 8:
            fault = fault.replace(part, "***")
    return fault
