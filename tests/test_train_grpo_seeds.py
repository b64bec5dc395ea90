"""The toy learns its figures on any seed: `pytest -m slow -s tests/test_train_grpo_seeds.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def rig(*arguments: str) -> Any:
    """What the command printed with --json, run as a person would."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rig", *arguments, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_reaches_the_figures_of_the_quickstart(seed: int, elsewhere: Path) -> None:
    """The shipped recipe as it is, judged on 200 held-out problems."""
    trained = rig("train", "toy-arithmetic", "--name", "toy", "--set", f"schedule.seed={seed}")
    assert trained["state"] == "trained"
    judged = rig("eval", "toy", "--n", "200")["labels"]
    before, after = judged["before"], judged["after"]
    accuracy = before["lenient"]["share"], after["lenient"]["share"]
    form = before["format"]["share"], after["format"]["share"]
    print(f"\nseed {seed}: accuracy {accuracy}, format {form}, {trained['seconds']} s of steps")
    assert before["n"] == after["n"] == 200
    assert accuracy[0] <= 0.20 < 0.70 <= accuracy[1]
    assert form[0] <= 0.30 < 0.95 <= form[1]
