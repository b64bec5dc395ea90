"""The daemon as a process: one on a box, signals, watchdog, /health: `pytest tests/test_bots_daemon.py`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from conftest import needs
from sqlalchemy import select

import rig.cli
from bots import timeout
from bots.daemon.scheduler import Daemon
from bots.ledger import switches
from bots.ledger.store import Ledger
from bots.ledger.tables import daemons, outbox, runs
from support.daemons import Process, by_hand, keep_x_secrets, settings, tick
from support.fake_x import Event, FakeX
from support.simulated import Clock, simulated

RIG = """
[daemon]
listen = "127.0.0.1:0"
heartbeat = "1s"
stop_within = "2s"
call_limit = "20s"

[outlets.x]
api = "{url}"
settle = 1.0

[bots.tick]
run = "{run}"
schedule = "{schedule}"
outlets = ["{outlet}"]
"""


@pytest.fixture
def fake() -> Iterator[FakeX]:
    with FakeX() as server:
        yield server


@pytest.fixture
def start(elsewhere: Path, own_home: Path, fake: FakeX) -> Iterator[Callable[..., Process]]:
    """Write rig.toml and start a daemon; whatever still runs at the end is killed."""
    begun: list[Process] = []
    keep_x_secrets(own_home)

    def begin(
        *options: str,
        schedule: str = "every 1h",
        outlet: str = "x",
        background: bool = False,
        **more: str,
    ) -> Process:
        text = RIG.format(url=fake.url, run=tick(elsewhere), schedule=schedule, outlet=outlet)
        (elsewhere / "rig.toml").write_text(text)
        ledger = Ledger.open()
        switches.set_enabled(ledger, "tick", True, schedule, datetime.now(UTC))
        ledger.close()
        begun.append(Process(elsewhere, own_home, *options, background=background, **more))
        begun[-1].ready(own_home)
        return begun[-1]

    yield begin
    for daemon in begun:
        if daemon.process.poll() is None:
            daemon.kill()


def until(said: Callable[[], Any], timeout: float = 30.0) -> Any:
    end = time.monotonic() + timeout
    while not (found := said()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def rows() -> list[Any]:
    ledger = Ledger.open()
    with ledger.read_transaction() as connection:
        found = list(connection.execute(select(outbox).order_by(outbox.c.slot)).all())
    ledger.close()
    return found


def test_a_second_daemon_is_refused_and_says_who_runs(
    start: Callable[..., Process], elsewhere: Path
) -> None:
    first = start()
    second = subprocess.run(
        [sys.executable, "-P", "-m", "rig", "daemon", "run"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 1
    assert f"process {first.process.pid}" in second.stderr
    assert "rig daemon reload" in second.stderr
    assert first.stop() == 0


def test_sigterm_lets_a_post_finish(start: Callable[..., Process], fake: FakeX) -> None:
    fake.will(Event("ok", seconds=1.0))
    daemon = start("--now")
    until(lambda: fake.attempts)
    assert daemon.stop() == 0
    assert [row.state for row in rows()] == ["sent"]
    assert len(fake.stored) == 1


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_ctrl_c_stops_it_but_not_behind_a_script_that_ignores_it(
    start: Callable[..., Process],
) -> None:
    shown = start()
    shown.process.send_signal(signal.SIGINT)
    assert shown.process.wait(timeout=60) == 0
    hidden = start(background=True)
    hidden.process.send_signal(signal.SIGINT)
    hidden.process.send_signal(signal.SIGHUP)  # it looks at this only if it does not stop
    until(lambda: "configuration read again" in hidden.log.read_text())
    assert hidden.log.read_text().count("stopping") == 1  # the first one's; both write here
    assert hidden.stop() == 0


def test_sigterm_abandons_what_hangs_and_the_next_start_clears_it_up(
    start: Callable[..., Process], fake: FakeX
) -> None:
    fake.will(Event("hang", stored=True, seconds=30))
    daemon = start("--now")
    until(lambda: fake.attempts)
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 15
    assert [row.state for row in rows()] == ["claimed"]
    again = start()
    until(lambda: [row.state for row in rows()] == ["sent"])
    assert again.stop() == 0
    assert len(fake.stored) == len(fake.attempts) == 1


def test_sighup_reads_rig_toml_again_and_a_wrong_one_changes_nothing(
    start: Callable[..., Process], elsewhere: Path, own_home: Path
) -> None:
    daemon = start()
    toml, runner = elsewhere / "rig.toml", CliRunner()
    good = toml.read_text()
    toml.write_text(good.replace('"every 1h"', '"every 30m"'))
    told = runner.invoke(rig.cli.main, ["daemon", "reload"])
    assert told.exit_code == 0, told.output
    until(lambda: "read again: 1 bots" in daemon.log.read_text())
    toml.write_text(good.replace("schedule", "schedul"))
    told = runner.invoke(rig.cli.main, ["daemon", "reload"])
    assert told.exit_code == 2
    assert "did you mean 'schedule'" in told.output
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "the old one stays in force" in daemon.log.read_text())
    toml.write_text(good)
    status = json.loads(runner.invoke(rig.cli.main, ["daemon", "status", "--json"]).output)
    following = datetime.fromisoformat(status["bots"]["tick"]["next"])
    assert following.minute in (0, 30)
    assert daemon.stop() == 0


def test_health_and_metrics_say_how_it_is(
    start: Callable[..., Process], own_home: Path, fake: FakeX
) -> None:
    daemon = start("--now")
    until(lambda: fake.stored)
    listen = json.loads((own_home / "state" / "daemon.json").read_text())["listen"]
    health = until(lambda: answered(f"http://{listen}/health"))
    assert health["status"] == "well"
    assert health["wrong"] == []
    assert health["bots"]["tick"]["last_state"] == "drafted"
    assert health["outlets"]["x"] == {"kind": "x", "credentials_age_days": 0}
    metrics = httpx.get(f"http://{listen}/metrics").text
    assert 'rig_posts_total{bot="tick",outlet="x",state="sent"} 1.0' in metrics
    assert 'rig_spent_dollars_total{bot="tick",outlet="x"} 0.015' in metrics
    assert "rig_healthy 1.0" in metrics
    assert "process_resident_memory_bytes" in metrics
    assert httpx.get(f"http://{listen}/other").status_code == 404
    for path in ("health", "metrics"):
        asked = f"http://{listen}/{path}"
        for name in ("evil.example", "127.0.0.1.nip.io", "localhost.evil.example:8378"):
            assert httpx.get(asked, headers={"Host": name}).status_code == 421
        assert httpx.get(asked, headers={"Origin": "https://evil.example"}).status_code == 403
        assert httpx.get(asked, headers={"Host": "localhost"}).status_code != 421
    status = CliRunner().invoke(rig.cli.main, ["daemon", "status"])
    assert status.exit_code == 0
    assert status.output.startswith("well")
    assert daemon.stop() == 0
    gone = CliRunner().invoke(rig.cli.main, ["daemon", "status"])
    assert gone.output == "No daemon runs on this box; `rig daemon run` starts one.\n"
    assert gone.exit_code == 1


def answered(url: str) -> Any:
    found = httpx.get(url, timeout=10).json()
    return found if found["bots"]["tick"]["last_state"] == "drafted" else None


def test_a_taken_port_is_one_sentence(elsewhere: Path, own_home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (elsewhere / "rig.toml").write_text(
            f'[daemon]\nlisten = "127.0.0.1:{taken.getsockname()[1]}"\n'
        )
        done = CliRunner().invoke(rig.cli.main, ["daemon", "run"])
    assert done.exit_code == 1
    assert "set [daemon] listen" in done.output


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd is Linux's")
def test_systemd_is_told_and_the_watchdog_is_fed(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        path = f"/tmp/rig-notify-{os.getpid()}"
        Path(path).unlink(missing_ok=True)
        systemd.bind(path)
        systemd.settimeout(20)
        try:
            daemon = start(NOTIFY_SOCKET=path, WATCHDOG_USEC="600000")
            said = [systemd.recv(4096).decode() for _ in range(4)]
            assert said[0].startswith("READY=1")
            assert said[1:] == ["WATCHDOG=1"] * 3
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda: "RELOADING=1" in systemd.recv(4096).decode())
            daemon.process.terminate()
            until(lambda: "STOPPING=1" in systemd.recv(4096).decode())
            assert daemon.process.wait(30) == 0
        finally:
            Path(path).unlink(missing_ok=True)


def test_a_stop_and_a_sweep_do_not_wait_for_each_other(tmp_path: Path, own_home: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
    found = settings({"tick": {"run": tick(tmp_path), "schedule": "every 1h"}}, stop_within="20s")
    daemon = Daemon(found, ledger)
    sweeping, paused = threading.Event(), threading.Event()
    modify, pause = daemon.scheduler.modify_job, daemon.scheduler.pause

    def late(*args: Any, **more: Any) -> Any:
        sweeping.set()
        assert paused.wait(10)
        time.sleep(0.2)
        return modify(*args, **more)

    def stopping() -> None:
        pause()
        paused.set()

    daemon.scheduler.modify_job, daemon.scheduler.pause = late, stopping
    daemon.scheduler.start()
    daemon.schedule_jobs()
    assert sweeping.wait(10)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(daemon.stop_gracefully()), daemon=True)
    thread.start()
    thread.join(10)
    assert done == [True]
    daemon.run_sweep()  # too late: it leaves the scheduler alone


def test_without_a_ledger_the_watchdog_starves(tmp_path: Path, own_home: Path) -> None:
    clock = Clock(datetime(2026, 5, 1, tzinfo=UTC))
    with simulated(clock):
        ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
        found = settings({"tick": {"run": tick(tmp_path), "schedule": "every 1h"}})
        daemon, scheduler = by_hand(found, ledger, clock)
        scheduler.step()
        assert daemon.health_problems() == []

        def gone() -> Any:
            raise OSError("the disk is gone")

        ledger.engine.begin = gone  # type: ignore[method-assign]
        daemon.last_heartbeat -= 100
        clock.now += timedelta(minutes=5)
        scheduler.step()
        assert "no heartbeat" in daemon.health_problems()[0]
        scheduler.shutdown()
        assert "the scheduler has stopped" in daemon.health_problems()
        ledger.close()


def test_a_hung_call_is_left_behind_and_counted() -> None:
    stop, before = threading.Event(), timeout.count_left_behind()
    with pytest.raises(timeout.CallTimeout, match="no answer within 0 s"):
        timeout.call_with_timeout(timedelta(seconds=0.05), stop.wait)
    assert timeout.count_left_behind() == before + 1
    stop.set()
    until(lambda: timeout.count_left_behind() == before)
    assert timeout.call_with_timeout(timedelta(seconds=5), lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        timeout.call_with_timeout(timedelta(seconds=5), lambda: 1 // 0)


def test_a_bot_that_breaks_or_hangs_does_not_take_the_daemon_along(
    tmp_path: Path, own_home: Path
) -> None:
    code = (
        "def broken(context): raise KeyError('x')\ndef slow(context): __import__('time').sleep(5)\n"
    )
    (tmp_path / "mine.py").write_text(code)
    clock = Clock(datetime(2026, 5, 1, 0, 30, tzinfo=UTC))
    with simulated(clock):
        ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
        names = ("broken", "slow")
        bots = {n: {"run": f"{tmp_path}/mine.py:{n}", "schedule": "every 1h"} for n in names}
        _, scheduler = by_hand(settings(bots, heartbeat="1h", draft_limit="0.3s"), ledger, clock)
        scheduler.until(clock.now + timedelta(hours=2))
        with ledger.read_transaction() as connection:
            found = connection.execute(select(runs)).all()
        assert {(row.bot, row.state) for row in found} == {("broken", "failed"), ("slow", "failed")}
        assert {row.reason for row in found} == {
            "KeyError: 'x'",
            "the draft gave no answer within 0 s",
        }
        ledger.close()


def test_a_daemon_that_was_cut_off_hands_over_its_slot(tmp_path: Path, own_home: Path) -> None:
    clock = Clock(datetime(2026, 5, 1, 0, 59, tzinfo=UTC))
    found = settings(
        {"tick": {"run": tick(tmp_path), "schedule": "every 1h", "outlets": ["file"]}},
        {"file": {"path": str(tmp_path / "posts")}},
    )
    with simulated(clock):
        ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
        first, _ = by_hand(found, ledger, clock)
        first.drafter.draft_due("tick")
        clock.now += timedelta(minutes=2)
        slot = datetime(2026, 5, 1, 1, tzinfo=UTC)
        from bots.ledger import slots as account

        assert account.take_slot(
            ledger, "tick", slot, first.daemon_id, clock.now
        )  # and here the power went
        assert account.take_slot(ledger, "tick", slot, "another", clock.now) is None
        second, scheduler = by_hand(
            found, ledger, clock
        )  # same box: the first one is gone for sure
        scheduler.step()
        scheduler.step()
        with ledger.read_transaction() as connection:
            row = connection.execute(select(runs)).one()
            ended = connection.scalar(
                select(daemons.c.ended).where(daemons.c.id == first.daemon_id)
            )
        assert (row.state, row.owner, row.attempt) == ("drafted", second.daemon_id, 2)
        assert ended
        ledger.close()


@needs("systemd-analyze")
@pytest.mark.parametrize("options", [[], ["--system"], ["--system", "--user", "daemon"]])
def test_systemd_accepts_the_unit(elsewhere: Path, own_home: Path, options: list[str]) -> None:
    keep_x_secrets(own_home)
    (elsewhere / "rig.toml").write_text('[bots.cards]\noutlets = ["x"]\n')
    done = CliRunner().invoke(rig.cli.main, ["daemon", "install", "--print", *options])
    assert done.exit_code == 0, done.output
    unit = elsewhere / "rig-daemon.service"
    unit.write_text(done.stdout)
    verified = subprocess.run(
        ["systemd-analyze", "verify", *(["--user"] if not options else []), str(unit)],
        capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(elsewhere)},
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    assert str(unit) not in verified.stderr, verified.stderr
    assert f"LoadCredential=rig-x:{own_home}" in done.stdout
    assert "WatchdogSec=120" in done.stdout
    assert ("DynamicUser=yes" in done.stdout) is (options == ["--system"])
