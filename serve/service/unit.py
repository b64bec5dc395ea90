"""The systemd unit of `rig serve`: told when it is ready, watched, bounded in memory, and shut in.

What each line is for stands in the unit itself, since that is where it is read one day. Options that an
older systemd does not know it skips with a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rig.systemd import SHUT_IN, SHUT_IN_SYSTEM, path_in_unit, quote_word, unit_path

UNIT = """\
# Written by `rig serve install`; write it again rather than edit it, or use `systemctl edit {name}`.
[Unit]
Description=rig serve {title}
After=network.target
# five failures in five minutes are no accident: then stay down and let a person look
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
WorkingDirectory={folder}
{user}
# the ping says that the engine answered, so a hung engine is restarted
WatchdogSec=180
TimeoutStartSec=300
TimeoutStopSec=30
KillMode=mixed
Restart=on-failure
RestartSec=5

# weights, cache and work space for the chosen context, and a fifth more; the engine is started anew
# inside the service when it alone is killed
MemoryMax={memory}M
OOMPolicy=continue
OOMScoreAdjust=500
# give way to what else runs on this box
CPUWeight=50
Nice=5

# it reads a model, listens on one port and writes to its own folders; nothing else
{shut}

[Install]
WantedBy={target}
"""

LOOPBACK = "IPAddressDeny=any\nIPAddressAllow=localhost\n"


@dataclass(frozen=True)
class ServiceUnit:
    """One service; `unit_text` is its unit file."""

    name: str
    """Without `.service`."""
    title: str
    command: tuple[str, ...]
    folder: Path
    """Where it runs: the rig.toml there counts."""
    memory: int
    """Bytes that it may have."""
    system: bool
    """For the machine, started at boot; otherwise for one user."""
    user: str | None = None
    """Of a system unit: whom it runs as; None = a user made up for it while it runs."""
    loopback: bool = True
    """Whether nobody but this machine may talk to it."""
    key_file: Path | None = None
    """The API key; systemd hands a copy to the service alone."""
    url: str = ""
    """Where it will answer."""

    @property
    def file_path(self) -> Path:
        """Where systemd looks for it."""
        return unit_path(self.name, system=self.system)

    def unit_text(self) -> str:
        """The unit file."""
        user, shut = "", SHUT_IN
        if self.system:
            who = f"User={self.user}" if self.user else "DynamicUser=yes"
            user = f"{who}\nEnvironment=RIG_HOME=%S/{self.name}\n"
            shut += f"StateDirectory={self.name}\n{SHUT_IN_SYSTEM}" + (
                LOOPBACK if self.loopback else ""
            )
        if self.key_file:
            user += f"LoadCredential=api-key:{path_in_unit(str(self.key_file))}\n"
        if "--mlock" in self.command:
            user += "LimitMEMLOCK=infinity\n"
        return UNIT.format(
            name=self.name,
            title=self.title.replace("%", "%%"),
            command=" ".join(quote_word(word) for word in self.command),
            folder=path_in_unit(str(self.folder)),
            user=user,
            memory=-(-self.memory // 2**20),
            shut=shut,
            target="multi-user.target" if self.system else "default.target",
        ).replace("\n\n\n", "\n\n")
