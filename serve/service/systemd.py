"""`rig serve install|uninstall|status|stop`: the unit of a server that stays, and those that came on demand.

The unit is told when it is ready, watched, bounded in memory and shut in. What each of its lines is for
stands in the unit itself, since that is where it is read one day; options that an older systemd does not
know it skips with a warning.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rig import runs, systemd
from rig.atomic import write_text
from rig.errors import RigError, WrongUse
from rig.model import gguf
from rig.server import connect, running_servers
from serve.hardware import machine
from serve.hardware.memory import fit_context
from serve.models import catalogue

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
        return systemd.unit_path(self.name, system=self.system)

    def unit_text(self) -> str:
        """The unit file."""
        user, shut = "", systemd.SHUT_IN
        if self.system:
            user = f"{systemd.run_as(self.user)}\nEnvironment=RIG_HOME=%S/{self.name}\n"
            shut += f"StateDirectory={self.name}\n{systemd.SHUT_IN_SYSTEM}" + (
                LOOPBACK if self.loopback else ""
            )
        if self.key_file:
            user += f"{systemd.load_credential('api-key', self.key_file)}\n"
        if "--mlock" in self.command:
            user += "LimitMEMLOCK=infinity\n"
        return UNIT.format(
            name=self.name,
            title=self.title.replace("%", "%%"),
            command=" ".join(systemd.quote_word(word) for word in self.command),
            folder=systemd.path_in_unit(str(self.folder)),
            user=user,
            memory=-(-self.memory // 2**20),
            shut=shut,
            target=systemd.install_target(system=self.system),
        ).replace("\n\n\n", "\n\n")


def plan_unit(
    model: str,
    settings: dict[str, Any],
    more: list[str],
    *,
    name: str,
    system: bool,
    user: str | None,
) -> ServiceUnit:
    """The unit that serves `model`; `settings` are the options of `rig serve`, `more` as they were typed.

    Everything that would fail at three in the morning fails here: a model that is not there or does not
    fit, an option that does not exist, a file that the service's user can't reach.
    """
    path = catalogue.find_model_file(model).resolve()
    fits = fit_context(
        gguf.read_header(path), machine.inspect_machine(), settings["ctx"],
        micro_batch=settings["batch"], cache=settings["cache_type"],
        flash_attn=settings["flash_attn"], name=model,
    )  # fmt: skip
    if user is not None:
        _known(user)
    words, key = _words(more)
    if settings["ctx"] is None:  # chosen today, outside the limit that the unit sets
        words += ["--ctx", str(fits.context)]
    python = Path(systemd.this_rig()[0])
    if system and any(path.is_relative_to(place) for place in ("/tmp", "/var/tmp")):
        raise WrongUse(f"A service has a /tmp of its own: move {path} somewhere else first.")
    if system and user is None:
        for needed in (python, path):
            _reachable_by_others(needed)
    here = runs.find_run(model)
    # of a run its last export, also after the next one; what was pulled lies in this user's home
    served = str(here.resolve() if here.exists() else path)
    host = "127.0.0.1" if settings["host"] in ("0.0.0.0", "::") else settings["host"]
    folder = Path("/") if system and user is None else Path.cwd()
    return ServiceUnit(
        name=name,
        title=catalogue.served_model_name(model, path),
        command=(*systemd.this_rig(), "serve", served, *words),
        folder=folder,
        memory=int(fits.total_bytes * 1.2) + 512 * 2**20,
        system=system,
        user=user,
        loopback=settings["host"] in ("127.0.0.1", "::1", "localhost"),
        key_file=key,
        url=f"http://[{host}]:{settings['port']}"
        if ":" in host
        else f"http://{host}:{settings['port']}",
    )


def install_service(unit: ServiceUnit, *, now: bool) -> None:
    """Write the unit, and start it if asked to."""
    if sys.platform != "linux":
        raise RigError(
            "Units are for systemd, on Linux: here have `rig serve` started by other means."
        )
    if not now:
        write_text(unit.file_path, unit.unit_text())
        return
    systemd.install_unit(unit.name, unit.unit_text(), system=unit.system)


def uninstall_service(unit: ServiceUnit) -> None:
    """Stop the service and take its unit away."""
    if not systemd.uninstall_unit(unit.name, system=unit.system):
        raise RigError(f"There is no {unit.file_path}: nothing is installed under that name.")


def unit_called(name: str, system: bool) -> ServiceUnit:
    """The unit of that name, for looking at; its text means nothing."""
    return ServiceUnit(name, name, (), Path.cwd(), 0, system)


def service_status(name: str) -> dict[str, Any]:
    """Installed units of that name with their state, and every server that answers."""
    units = []
    for system in (True, False):
        unit = unit_called(name, system)
        if unit.file_path.exists():
            known = systemd.has_systemd()
            state = known and systemd.run_systemctl("is-active", name, system=system, check=False)
            units.append(
                {"unit": str(unit.file_path), "system": system, "state": state or "unknown"}
            )
    found = [
        {key: value for key, value in server.items() if key != "api_key"}
        for server in running_servers.live_servers()
    ]
    return {"units": units, "servers": found}


def stop_servers(model: str | None) -> list[dict[str, Any]]:
    """Ask the running servers (of one model, or all) to leave; returns those that were asked."""
    found = running_servers.live_servers(model)
    for server in found:
        connect.stop_server(server)
    return found


def next_steps(unit: ServiceUnit, now: bool) -> list[str]:
    """What a person does next."""
    scope = "" if unit.system else "--user "
    rows = []
    if not now:
        rows.append(f"Start it, now and at boot: systemctl {scope}daemon-reload && "
                    f"systemctl {scope}enable --now {unit.name}")  # fmt: skip
    rows.append(
        f"See how it is: systemctl {scope}status {unit.name}; journalctl {scope}-u {unit.name}"
    )
    if not unit.system:
        rows.append("To run while you are logged out: loginctl enable-linger")
    else:
        rows.append(f'For rig ask and the bots, in rig.toml: [model] url = "{unit.url}"')
    return rows


def default_user() -> str | None:
    """Who called sudo, so that a system service need not run as root."""
    return os.environ.get("SUDO_USER")


def _words(more: list[str]) -> tuple[list[str], Path | None]:
    """The options with absolute paths, and the key file, which systemd hands over as a credential."""
    words: list[str] = []
    key: Path | None = None
    rest = iter(more)
    for word in rest:
        if word == "--api-key-file" or word.startswith("--api-key-file="):
            key = Path(word.partition("=")[2] or next(rest)).resolve()
            words += ["--api-key-file", "%d/api-key"]
            continue
        head, equals, tail = word.rpartition("=")
        path = Path(tail)
        words.append(f"{head}{equals}{path.resolve()}" if path.is_file() else word)
    return words, key


def _known(user: str) -> None:
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        raise WrongUse(f"There is no user {user} here: give another one with --run-as.") from None


def _reachable_by_others(path: Path) -> None:
    for part in (path, *path.parents):
        mode = part.stat().st_mode
        wanted = stat.S_IXOTH if part.is_dir() else stat.S_IROTH
        if not mode & wanted:
            raise WrongUse(
                f"{part} is closed to the user that systemd makes up for the service: "
                "name a user who can read it with --run-as USER, or install without --system."
            )


def format_status(found: dict[str, Any]) -> list[str]:
    """The status as text."""
    rows = [f"{u['unit']}: {click.style(u['state'], bold=True)}" for u in found["units"]]
    rows += [f"{s['url']} serves {s['model']} (process {s['pid']})" for s in found["servers"]]
    return rows or ["No unit is installed and no server runs here."]
