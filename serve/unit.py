"""The systemd unit of `rig serve`: told when it is ready, watched, bounded in memory, and shut in.

What each line is for stands in the unit itself, since that is where it is read one day. Options that an
older systemd does not know it skips with a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


ANY = """\
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
"""
"""What also a user's own service manager, without any privilege, can do."""

SYSTEM = """\
StateDirectory={name}
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
LOOPBACK = "IPAddressDeny=any\nIPAddressAllow=localhost\n"


@dataclass(frozen=True)
class Unit:
    """One service; `text` is its unit file."""

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
    def path(self) -> Path:
        """Where systemd looks for it."""
        if self.system:
            return Path("/etc/systemd/system") / f"{self.name}.service"
        import platformdirs

        return Path(platformdirs.user_config_dir("systemd")) / "user" / f"{self.name}.service"

    def text(self) -> str:
        """The unit file."""
        user, shut = "", ANY
        if self.system:
            who = f"User={self.user}" if self.user else "DynamicUser=yes"
            user = f"{who}\nEnvironment=RIG_HOME=%S/{self.name}\n"
            shut += SYSTEM.format(name=self.name) + (LOOPBACK if self.loopback else "")
        if self.key_file:
            user += f"LoadCredential=api-key:{_escaped(str(self.key_file))}\n"
        if "--mlock" in self.command:
            user += "LimitMEMLOCK=infinity\n"
        return UNIT.format(
            name=self.name,
            title=self.title.replace("%", "%%"),
            command=" ".join(quoted(word) for word in self.command),
            folder=_escaped(str(self.folder)),
            user=user,
            memory=-(-self.memory // 2**20),
            shut=shut,
            target="multi-user.target" if self.system else "default.target",
        ).replace("\n\n\n", "\n\n")


def quoted(word: str) -> str:
    r"""One word of a command line as systemd reads it (systemd.service(5), COMMAND LINES).

    `%d` is left alone: there systemd puts in the folder of credentials.

    >>> print(quoted("--port"), quoted("my model.gguf"), quoted("100%$x"), quoted("%d/api-key"))
    --port "my model.gguf" 100%%$$x %d/api-key
    """
    if word.startswith("%d/"):
        return word
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if not word or set(word) & set(" \t'\";") else word


def _escaped(path: str) -> str:
    return path.replace("%", "%%")
