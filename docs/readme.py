"""The README's list of commands is what `rig --help` prints: `cog --check README.md` fails when they part."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commands() -> str:
    """What `rig --help` prints on a screen of 100 columns."""
    told = subprocess.run(
        [sys.executable, "-P", "-m", "rig", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"},
    )
    text = told.stdout.replace("python -m rig", "rig").strip()
    return f"\n```text\n{text}\n```\n"
