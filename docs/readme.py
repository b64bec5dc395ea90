"""The parts of the README that the code writes; `cog --check README.md` fails when they part."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("rig", "train", "export", "serve", "bots")


def rooms() -> str:
    """One line for each room: the first line of its docstring."""
    rows = [(f"{room}/", _caption(ROOT / room / "__init__.py")) for room in ROOMS]
    rows += [
        ("tests/", "Flat; each file opens with the command that runs it."),
        ("benchmarks/", "What proves the speed; results in benchmarks/RESULTS.md."),
        ("docs/", "Your own bot; the script behind this list."),
    ]
    return _fenced(_aligned(rows))


def tree(room: str) -> str:
    """Each file of a room with the first line of its docstring, folded away."""
    folder = ROOT / room
    files = [p for p in folder.rglob("*.py") if p != folder / "__init__.py"]
    rows = []
    for path in sorted(files, key=_place):
        inner = path.relative_to(folder)
        name = f"{inner.parent}/" if path.name == "__init__.py" else str(inner)
        rows.append((name, _caption(path)))
    return f"<details><summary>{room}/</summary>\n{_fenced(_aligned(rows))}\n</details>\n"


def trees() -> str:
    """`tree` of every room."""
    return "\n".join(tree(room) for room in ROOMS)


def commands() -> str:
    """What `rig --help` prints on a screen of 100 columns."""
    told = subprocess.run(
        [sys.executable, "-P", "-m", "rig", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"},
    )
    return _fenced(told.stdout.replace("python -m rig", "rig").strip())


def _place(path: Path) -> tuple[str, bool, str]:
    """Files of a room first, then folder by folder, each opened by its `__init__.py`."""
    inner = path.relative_to(ROOT)
    folder = "/".join(inner.parts[1:-1])
    return (folder, path.name != "__init__.py", path.name)


def _caption(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]


def _aligned(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{text}".rstrip() for name, text in rows)


def _fenced(text: str) -> str:
    return f"\n```text\n{text}\n```\n"
