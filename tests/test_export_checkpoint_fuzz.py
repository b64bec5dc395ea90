"""Damaged files of every kind end in a sentence: `pytest tests/test_export_checkpoint_fuzz.py`.

What a mutant is: `support/file_fuzz.py`; `python -m support.file_fuzz KIND 40 1` in `tests/` drives again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.file_fuzz import KINDS

TESTS = Path(__file__).parent


def drive(kind: str, count: int, seed: int) -> dict[str, Any]:
    path = os.pathsep.join([str(TESTS.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "support.file_fuzz", kind, str(count), str(seed)],
        capture_output=True, text=True, cwd=TESTS, env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_forty_damaged_files_are_read_or_refused_with_a_sentence(kind: str) -> None:
    found = drive(kind, 40, 1)
    assert found.get("count") == 40, found.get("trace", found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_damaged_files_are_read_or_refused_with_a_sentence(kind: str) -> None:
    found = drive(kind, 2000, 2)
    assert found.get("count") == 2000, found.get("trace", found)
