"""The picture in the README: `python -m tools.report_picture runs/quickstart docs/report.png`.

A photograph of the real page, taken by an installed Chromium: head, figures and the first four curves.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SIZE = "1060,880"
LARGEST = 150_000
"""Bytes that the picture may have."""


def photograph_report(run: Path, picture: Path) -> None:
    """Take the picture; Chromium's own folder is made for it and thrown away."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-background-networking"),
                *("--hide-scrollbars", f"--user-data-dir={profile}", f"--window-size={SIZE}"),
                *(f"--screenshot={picture.resolve()}", (run / "report.html").resolve().as_uri()),
            ],
            check=True,
            capture_output=True,
        )
    if picture.stat().st_size > LARGEST:
        sys.exit(f"{picture} has {picture.stat().st_size:,} bytes, more than {LARGEST:,}.")


if __name__ == "__main__":
    photograph_report(Path(sys.argv[1]), Path(sys.argv[2]))
