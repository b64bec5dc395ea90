"""New secrets reach the daemon that runs, whoever owns it: by its file, or by a fresh copy of systemd's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bots.daemon import process, systemd_unit
from rig import systemd
from rig.errors import RigError


def hand_to_daemon(name: str, path: Path) -> str:
    """Let a running daemon read the secrets of `name` at `path`; what a person must know or do, or nothing.

    A daemon of this user reads the file before its next post. One of another user's is given the file where
    root asks; a service of the system, which has copies of its own, is started anew.
    """
    said = [_restart_service(name, path, system=system) for system in (True, False)]
    owner = process.daemon_owner()
    if owner is not None and owner != path.stat().st_uid:
        try:
            for place in (path.parent, path):
                shutil.chown(place, owner)
        except OSError:
            said.append(
                f"The daemon is run by user {owner}, who can't read that file: run `rig auth {name}` as "
                "that user, or as root."
            )
    if owner is not None and not any(said):
        said.append("The daemon that runs uses it from its next post on.")
    return " ".join(filter(None, said))


def _restart_service(name: str, path: Path, *, system: bool) -> str:
    """Have systemd make its copies anew, where rig's unit is installed."""
    unit = systemd.unit_path(systemd_unit.NAME, system=system)
    if not unit.is_file():
        return ""
    again = f"`rig daemon install{' --system' if system else ''}`"
    if systemd.load_credential(f"rig-{name}", path) not in unit.read_text("utf-8").splitlines():
        return f"The service was installed without it: {again}."
    if not system:
        return ""  # the user's own service reads the newer file itself
    command = f"systemctl try-restart {systemd_unit.NAME}"
    if os.geteuid() != 0 or not systemd.has_systemd():
        return f"The service has a copy of the old one: `sudo {command}`."
    try:
        systemd.run_systemctl("try-restart", systemd_unit.NAME, system=True)
    except RigError as error:
        return f"{error.message} The service has a copy of the old one: {again}."
    return "The service was started anew and has it."
