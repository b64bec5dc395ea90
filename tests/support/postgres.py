"""A PostgreSQL of its own for the tests: a cluster in a temporary folder, on a socket, without a password."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

WHO = ("postgres", "nobody")
"""PostgreSQL refuses to run as root: then one of these runs it."""


def programs() -> Path | None:
    """The folder with initdb and pg_ctl; Debian keeps it off PATH."""
    if found := shutil.which("pg_ctl"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return folders[-1].parent if folders else None


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Start a server; give the address of an empty database; remove everything afterwards."""
    where = programs()
    assert where is not None
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as name:
        folder, prefix = Path(name), _as_somebody(Path(name))
        data = folder / "data"

        def run(*words: object) -> None:
            command = [*prefix, *map(str, words)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, timeout=120)

        run(
            where / "initdb",
            "-D",
            data,
            "-U",
            "rig",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        )
        options = f"-c listen_addresses='' -k {folder} -c max_connections=60"
        run(
            where / "pg_ctl",
            "-D",
            data,
            "-w",
            "-t",
            "60",
            "-l",
            folder / "log",
            "-o",
            options,
            "start",
        )
        try:
            yield f"postgresql://rig@/postgres?host={folder}"
        finally:
            run(where / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


def new_database(url: str) -> str:
    """The address of one more empty database on the server at `url`."""
    import psycopg

    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.replace("/postgres?", f"/{name}?")


def _as_somebody(folder: Path) -> list[str]:
    if os.geteuid() != 0:
        return []
    import pwd

    for name in WHO:
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            shutil.chown(folder, name)
            folder.chmod(0o755)
            return ["runuser", "-u", name, "--"]
    raise AssertionError("nobody to run PostgreSQL as")
