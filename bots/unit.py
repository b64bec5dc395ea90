"""The systemd unit of the daemon: restarted when it falls or hangs, secrets by credential, shut in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bots import credentials
from rig.errors import RigError
from rig.writing import write_text

NAME = "rig-daemon.service"

UNIT = """\
# Written by `rig daemon install`; write it again rather than edit it, or use `systemctl edit {name}`.
[Unit]
Description=rig: bots on their schedules
Wants=network-online.target
# a box without a clock of its own is in 1970 until it has asked the network
After=network-online.target time-sync.target rig-serve.service
# five failures in ten minutes are no accident: then stay down and let a person look
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} daemon run
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory={folder}
Environment={environment}
{user}
# fed only while the scheduler lives, the heartbeat is fresh and the ledger can be written
WatchdogSec=120
TimeoutStartSec=120
# work is finished within [daemon] stop_within; what hangs then is cut off, and the ledger knows of it
TimeoutStopSec={stop}
KillMode=mixed
Restart=on-failure
RestartSec=15

# secrets are handed to this service alone; `rig auth OUTLET`, then install again
{secrets}

# it talks to the network and writes to its own folders; nothing else
{shut}

[Install]
WantedBy={target}
"""

ANY = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
"""
"""What also a user's own service manager, without any privilege, can do."""

SYSTEM = """\
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RemoveIPC=yes
"""


def text(
    folder: Path, names: list[str], stop_within: float, *, system: bool, user: str | None
) -> str:
    """The unit file for the rig that runs now.

    `folder` is the one with rig.toml, `names` the outlets whose secrets are handed over. A unit of the
    system keeps everything in /var/lib/rig and runs as `user`, or as a user made up while it runs.
    """
    environment, who = ["PYTHONUNBUFFERED=1", "MALLOC_ARENA_MAX=2"], ""
    if system:
        environment.append("RIG_HOME=%S/rig")
        who = f"StateDirectory=rig\n{f'User={user}' if user else 'DynamicUser=yes'}\n"
    elif home := os.environ.get("RIG_HOME"):
        environment.append(f"RIG_HOME={_escaped(str(Path(home).absolute()))}")
    kept = {name: credentials.place(name) for name in [*names, "database"]}
    secrets = [f"LoadCredential=rig-{n}:{_escaped(str(p))}" for n, p in kept.items() if p.exists()]
    made = UNIT.format(
        name=NAME,
        command=_command(),
        folder=_escaped(str(folder)),
        environment=" ".join(f'"{item}"' if " " in item else item for item in environment),
        user=who,
        stop=round(stop_within) + 15,
        secrets="\n".join(secrets),
        shut=ANY + (SYSTEM if system else ""),
        target="multi-user.target" if system else "default.target",
    )
    return re.sub(r"\n{3,}", "\n\n", made)


def place(*, system: bool) -> Path:
    """Where the unit file belongs."""
    if system:
        return Path("/etc/systemd/system") / NAME
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "systemd" / "user" / NAME


def install(unit: str, *, system: bool) -> list[str]:
    """Write the unit, start it, and return what is left for the person to do."""
    path = place(system=system)
    write_text(path, unit)
    _systemctl(system, "daemon-reload")
    _systemctl(system, "enable", "--now", NAME)
    if system:
        return []
    return ["`loginctl enable-linger` keeps it running while you are logged out."]


def uninstall(*, system: bool) -> bool:
    """Stop the service and remove its unit; False when there is none."""
    path = place(system=system)
    if not path.exists():
        return False
    _systemctl(system, "disable", "--now", NAME)
    path.unlink()
    _systemctl(system, "daemon-reload")
    return True


def _systemctl(system: bool, *words: str) -> None:
    if shutil.which("systemctl") is None:
        raise RigError(
            "There is no systemctl here: write the unit with `rig daemon install --print` and install it "
            "where systemd runs."
        )
    command = ["systemctl", *([] if system else ["--user"]), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RigError(f"`{' '.join(command)}` failed: {said[-1] if said else done.returncode}")


def _command() -> str:
    """This very rig: the script beside the interpreter, else the module."""
    script = Path(sys.executable).with_name("rig")
    words = [str(script)] if script.is_file() else [sys.executable, "-P", "-m", "rig"]
    return " ".join(f'"{_escaped(w)}"' if " " in w else _escaped(w) for w in words)


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
