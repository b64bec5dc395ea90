"""The systemd unit of the daemon: restarted when it falls or hangs, secrets by credential, shut in."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bots import credentials
from rig.systemd import (
    SHUT_IN,
    SHUT_IN_SYSTEM,
    install_target,
    load_credential,
    path_in_unit,
    quote_word,
    run_as,
    this_rig,
)

NAME = "rig-daemon"

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


def unit_text(
    folder: Path, names: list[str], stop_within: float, *, system: bool, user: str | None
) -> str:
    """The unit file for the rig that runs now.

    `folder` is the one with rig.toml, `names` the outlets whose secrets are handed over. A unit of the
    system keeps everything in /var/lib/rig and runs as `user`, or as a user made up while it runs.
    """
    environment, who = ["PYTHONUNBUFFERED=1", "MALLOC_ARENA_MAX=2"], ""
    if system:
        environment.append("RIG_HOME=%S/rig")
        who = f"StateDirectory=rig\n{run_as(user)}\n"
    elif home := os.environ.get("RIG_HOME"):
        environment.append(f"RIG_HOME={path_in_unit(str(Path(home).absolute()))}")
    command = " ".join(quote_word(word) for word in this_rig())
    kept = {name: credentials.credentials_path(name) for name in [*names, "database"]}
    secrets = [load_credential(f"rig-{n}", p) for n, p in kept.items() if p.exists()]
    made = UNIT.format(
        name=f"{NAME}.service",
        command=command,
        folder=path_in_unit(str(folder)),
        environment=" ".join(f'"{item}"' if " " in item else item for item in environment),
        user=who,
        stop=round(stop_within) + 15,
        secrets="\n".join(secrets),
        shut=SHUT_IN + (SHUT_IN_SYSTEM if system else ""),
        target=install_target(system=system),
    )
    return re.sub(r"\n{3,}", "\n\n", made)
