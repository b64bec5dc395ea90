"""What the GPUs draw, and what it costs: `pytest tests/test_train_monitor_power.py`."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from train.monitor import power


def test_a_gpu_that_says_what_it_draws_has_a_price(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 250.00\necho '[N/A]'\necho 50\n", "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(power, "EVERY", 0.05)
    meter = power.PowerMeter(gpus=2, ask=str(program))
    meter.start()
    while meter.latest_watts() is None:
        meter._stop.wait(0.05)
    meter.stop()
    assert meter.latest_watts() == 300
    (elsewhere / "rig.toml").write_text("[train]\nprice_per_kwh = 0.5\n", "utf-8")
    assert power.format_cost(2.0) == "2.00 kWh = 1.00 EUR"


def test_without_a_gpu_that_reports_there_is_no_energy() -> None:
    meter = power.PowerMeter(ask="/bin/false")
    meter.start()
    meter.stop()
    assert meter.latest_watts() is None
