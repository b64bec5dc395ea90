"""A `nvidia-smi` that changes, hangs or is absent: `pytest tests/test_train_monitor_power_borders.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from train.monitor import power

EVERY = power.EVERY


def script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(("#!/bin/sh", *lines, "")), "utf-8")
    path.chmod(0o700)
    return str(path)


def wait_until(true: Callable[[], bool]) -> bool:
    """Whether it comes to be so within ten seconds."""
    for _ in range(1000):
        if true():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "EVERY", 0.3)


def test_one_gpu_is_asked_for_its_draw_in_plain_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "nvidia-smi", f'echo "$@" > {tmp_path}/asked', "echo 100.26", "echo 50")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    meter = power.PowerMeter()
    meter.start()
    try:
        assert wait_until(lambda: meter.latest_watts() is not None)
    finally:
        meter.stop()
    assert meter.latest_watts() == 100.3, "the other GPU is somebody else's"
    asked = (tmp_path / "asked").read_text("utf-8").split()
    assert asked == ["--query-gpu=power.draw", "--format=csv,noheader,nounits"]


def test_it_asks_again_and_again_until_it_is_stopped(tmp_path: Path) -> None:
    says = tmp_path / "says"
    says.write_text("10\n", "utf-8")
    meter = power.PowerMeter(ask=script(tmp_path / "smi", f"cat {says}"))
    meter.start()
    try:
        assert wait_until(lambda: meter.latest_watts() == 10)
        says.write_text("20\n", "utf-8")
        assert wait_until(lambda: meter.latest_watts() == 20)
    finally:
        meter.stop()
    says.write_text("30\n", "utf-8")
    time.sleep(0.5)
    assert meter.latest_watts() == 20


def test_a_program_that_does_not_answer_is_given_up_and_holds_nobody(tmp_path: Path) -> None:
    meter = power.PowerMeter(ask=script(tmp_path / "smi", "sleep 1", "echo 250"))
    meter.start()
    assert meter._thread is not None
    assert meter._thread.daemon, "a run that ends need not wait for it"
    meter._thread.join(5)
    assert not meter._thread.is_alive()
    assert meter.latest_watts() is None


def test_a_program_that_cannot_be_started_is_none() -> None:
    assert power.PowerMeter(ask="/nowhere/nvidia-smi")._read() is None


def test_without_the_program_there_is_nothing_to_start_or_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    meter = power.PowerMeter()
    meter.start()
    meter.stop()
    assert meter.latest_watts() is None


def test_a_step_of_minutes_is_seen_in_many_answers() -> None:
    assert 1 <= EVERY <= 10


def test_energy_without_a_price_is_said_without_one(elsewhere: Path) -> None:
    assert power.KWH == 1000 * 3600, "a watt is a joule a second"
    (elsewhere / "rig.toml").write_text('[train]\ncurrency = "CHF"\n', "utf-8")
    assert power.format_cost(0.25) == "0.25 kWh"
