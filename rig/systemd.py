"""What rig's two services tell systemd alike: how they are shut in, where a unit lies, how it is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from rig.atomic import write_text
from rig.errors import RigError

SHUT_IN = """\
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

SHUT_IN_SYSTEM = """\
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
"""What the machine's own can do besides."""


def quote_word(word: str) -> str:
    r"""One word of a command line as systemd reads it (systemd.service(5), COMMAND LINES).

    `%d` is left alone: there systemd puts in the folder of credentials.

    >>> print(*map(quote_word, ["--port", "my model.gguf", "100%$x", "%d/api-key"]))
    --port "my model.gguf" 100%%$$x %d/api-key
    """
    if word.startswith("%d/"):
        return word
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if not word or set(word) & set(" \t'\";") else word


def path_in_unit(path: str) -> str:
    """A path after `=`: not split into words, but `%` has a meaning there too."""
    return path.replace("%", "%%")


def run_as(user: str | None) -> str:
    """Who a system unit runs as: `user`, or one that systemd makes up while it runs."""
    return f"User={user}" if user else "DynamicUser=yes"


def load_credential(name: str, path: Path) -> str:
    """The line that hands a copy of a secret file to the service, and to it alone."""
    return f"LoadCredential={name}:{path_in_unit(str(path))}"


def install_target(*, system: bool) -> str:
    """What the unit is started with: the machine, or its user's session."""
    return "multi-user.target" if system else "default.target"


def this_rig() -> list[str]:
    """The rig that runs now, as words of a command: by its interpreter, whatever PATH says later."""
    return [str(Path(sys.executable).absolute()), "-P", "-m", "rig"]


def unit_path(name: str, *, system: bool) -> Path:
    """Where systemd looks for the unit `name` (without `.service`)."""
    if system:
        return Path("/etc/systemd/system") / f"{name}.service"
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "systemd" / "user" / f"{name}.service"


def has_systemd() -> bool:
    """Whether systemd manages this machine."""
    return Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def install_unit(name: str, text: str, *, system: bool) -> None:
    """Write the unit, enable it and start it anew; where no systemd runs nothing is written."""
    if not has_systemd():
        raise RigError(
            "systemd does not run here: have whatever supervises this machine run the command in the "
            "foreground."
        )
    write_text(unit_path(name, system=system), text)
    for words in (("daemon-reload",), ("enable", name), ("restart", name)):
        run_systemctl(*words, system=system)


def uninstall_unit(name: str, *, system: bool) -> bool:
    """Stop the service and take its unit away; False when there is none."""
    path = unit_path(name, system=system)
    if not path.exists():
        return False
    if has_systemd():
        run_systemctl("disable", "--now", name, system=system)
    path.unlink()
    if has_systemd():
        run_systemctl("daemon-reload", system=system)
    return True


def run_systemctl(*words: str, system: bool, check: bool = True) -> str:
    """Run systemctl for the machine or for this user; what it complains of becomes the sentence."""
    command = ["systemctl", *([] if system else ["--user"]), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if check and done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or str(done.returncode)
        raise RigError(f"`{' '.join(command)}` failed: {said}")
    return done.stdout.strip()
