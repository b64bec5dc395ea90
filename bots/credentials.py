"""Secrets: systemd's credentials, then a file that only its owner reads, then the environment, then keyring.

The first place that has any field of an outlet gives them all. systemd copies a file when the service starts,
so a file that was written after that wins over the copy. Nothing is ever taken from a flag or from rig.toml,
and everything that was read is taken out of log lines (`bots.redact`).
"""

from __future__ import annotations

import importlib
import json
import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from bots.redact import remember_secrets
from rig import paths
from rig.atomic import atomic_file
from rig.errors import RigError

SERVICE = "rig"


def load_credentials(name: str, fields: Mapping[str, str]) -> dict[str, str]:
    """The secrets of the outlet `name`; RigError when there are none or some are missing."""
    if not fields:
        return {}
    found, where = find_credentials(name, fields)
    missing = [field for field in fields if not found.get(field)]
    if missing:
        said = f"{where} lacks {', '.join(missing)}" if found else f"{name} has no credentials"
        raise RigError(f"{said}: set them with `rig auth {name}`.")
    return found


def find_credentials(name: str, fields: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """What there is, and where it was found; both empty when nowhere."""
    for place in (_systemd, _file, _environment, _keyring):
        found, where = place(name, fields)
        if found:
            remember_secrets(found.values())
            return found, where
    return {}, ""


def save_credentials(name: str, values: Mapping[str, str]) -> Path:
    """Keep secrets in the file that only the owner reads; whole or not at all."""
    path = credentials_path(name)
    remember_secrets(values.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    with atomic_file(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_text(json.dumps(dict(values), indent=2) + "\n", "utf-8")
    path.chmod(0o600)
    return path


def delete_credentials(name: str) -> bool:
    """Remove the file; False when there was none."""
    path = credentials_path(name)
    there = path.exists()
    path.unlink(missing_ok=True)
    return there


def credentials_path(name: str) -> Path:
    """The file of one outlet."""
    return paths.config_dir() / "credentials" / f"{name}.json"


def saved_at(name: str) -> datetime | None:
    """When the file was written: how old a token is."""
    path = credentials_path(name)
    return datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.exists() else None


def _systemd(name: str, fields: Mapping[str, str]) -> tuple[dict[str, str], str]:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return {}, ""
    whole = Path(folder) / f"rig-{name}"
    if whole.is_file():
        return ({}, "") if _is_newer(credentials_path(name), whole) else (_read(whole), str(whole))
    parts = {field: Path(folder) / f"rig-{name}-{field}" for field in fields}
    found = {f: p.read_text("utf-8").strip() for f, p in parts.items() if p.is_file()}
    return found, f"{folder}/rig-{name}-*"


def _is_newer(file: Path, copy: Path) -> bool:
    """Whether `file` was written after `copy` was made, and this user may read it."""
    try:
        newer = file.stat().st_mtime_ns > copy.stat().st_mtime_ns
    except OSError:
        return False
    return newer and os.access(file, os.R_OK)


def _file(name: str, fields: Mapping[str, str]) -> tuple[dict[str, str], str]:
    path = credentials_path(name)
    if not path.is_file():
        return {}, ""
    if os.name != "nt" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise RigError(f"{path} can be read by others: chmod 600 {path}.")
    return _read(path), str(path)


def _environment(name: str, fields: Mapping[str, str]) -> tuple[dict[str, str], str]:
    prefix = f"RIG_{name.upper().replace('-', '_')}_"
    found = {
        f: os.environ[prefix + f.upper()] for f in fields if os.environ.get(prefix + f.upper())
    }
    return found, f"the environment ({prefix}*)"


def _keyring(name: str, fields: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Only where the package is installed and has somewhere to look: a headless box has neither."""
    try:
        keyring = importlib.import_module("keyring")
    except ModuleNotFoundError:
        return {}, ""
    try:
        said = {field: keyring.get_password(SERVICE, f"{name}:{field}") for field in fields}
    except Exception:  # every backend has errors of its own; all mean that it can't be used
        return {}, ""
    return {field: value for field, value in said.items() if value}, "the keyring"


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text("utf-8"))
        return {str(key): str(value) for key, value in found.items()}
    except PermissionError as error:
        raise RigError(
            f"{path} belongs to another user: run `rig auth` as the user that runs the daemon."
        ) from error
    except (ValueError, AttributeError) as error:
        raise RigError(f"{path} is not a JSON object of secrets: set them again.") from error
