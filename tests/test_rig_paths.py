"""Words of a command line that is printed to be copied: `pytest tests/test_rig_paths.py`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rig.paths import shell_word


@pytest.mark.skipif(os.name == "nt", reason="asks a POSIX shell")
@pytest.mark.parametrize(
    "name", ["runs/läuft gut", "a'b", 'say "hi"', "$HOME", "a;b", "*", "日本", "a\\b", "it`s"]
)
def test_a_name_reaches_the_program_as_it_is(name: str) -> None:
    script = (
        f"{shlex.quote(sys.executable)} -c 'import sys; print(sys.argv[1:])' {shell_word(name)}"
    )
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str([name])


def test_an_ordinary_path_stays_readable() -> None:
    assert shell_word(Path("runs/a-1.5_b")) == str(Path("runs/a-1.5_b"))
