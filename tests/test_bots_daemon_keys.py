"""New keys reach the running daemon, whoever owns it: `pytest tests/test_bots_daemon_keys.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from bots import credentials
from bots.daemon import hand_over, process, systemd_unit
from bots.ledger import switches
from bots.ledger.store import Ledger
from bots.outlets.base import Post
from bots.outlets.build import build_outlet
from rig import systemd
from support import fake_services
from support.daemons import Process, by_hand, keep_x_secrets, settings, tick
from support.fake_x import SECRETS, FakeX
from support.simulated import Clock, simulated

OLD = {**SECRETS, "access_token": "1072250532645998596-oldTokenThatWasRevoked00000"}
START = datetime(2026, 11, 22, 13, 59, tzinfo=UTC)
TWO_HOURS = timedelta(hours=2)
BOT = {"schedule": "0 */2 * * *", "outlets": ["x"]}


def newer_than(copy: Path, path: Path, seconds: int) -> None:
    moment = copy.stat().st_mtime_ns + seconds * 1_000_000_000
    os.utime(path, ns=(moment, moment))


@pytest.mark.parametrize("place", ["file", "systemd"])
def test_after_a_resume_the_next_slot_uses_the_new_keys(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    clock = Clock(START)
    path = credentials.save_credentials("x", OLD)
    if place == "systemd":
        copy = tmp_path / "rig-x"
        copy.write_text(json.dumps(OLD))
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with FakeX(clock) as fake, simulated(clock):
        found = settings({"one": {"run": tick(tmp_path), **BOT}}, {"x": {"api": fake.url}})
        ledger = Ledger.open(f"sqlite:///{own_home}/l.sqlite")
        _, scheduler = by_hand(found, ledger, clock)
        switches.set_enabled(ledger, "one", True, "0 */2 * * *", clock())
        scheduler.until(START + TWO_HOURS / 2)
        assert "401" in switches.stopped_scopes(ledger)["outlet:x"]
        keep_x_secrets(own_home)
        if place == "systemd":
            newer_than(copy, path, 1)
        switches.resume_scope(ledger, "outlet:x")
        scheduler.until(START + 2 * TWO_HOURS)
        assert not switches.stopped_scopes(ledger)
        assert len(fake.stored) == 1
        assert len(fake.refused) == 1
        ledger.close()


def test_the_real_commands_and_a_real_daemon(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with FakeX() as fake:
        (tmp_path / "rig.toml").write_text(
            '[daemon]\nlisten = ""\nheartbeat = "1s"\n'
            f'[bots.one]\nrun = "{tick(tmp_path)}"\nschedule = "every 2s"\noutlets = ["x"]\n'
            "posts_per_day = 100\ndollars_per_day = 10\n"
            f'[outlets.x]\napi = "{fake.url}"\n'
        )
        path = home / "config" / "credentials" / "x.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(OLD))
        path.chmod(0o600)
        environment = {**os.environ, "RIG_HOME": str(home)}

        def rig(*words: str, stdin: str = "") -> str:
            command = [sys.executable, "-P", "-m", "rig", *words]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, input=stdin, capture_output=True, text=True,
                timeout=60, check=True,
            )  # fmt: skip
            return done.stdout + done.stderr

        rig("bot", "enable", "one")
        daemon = Process(tmp_path, home)
        daemon.ready(home)
        wait_for(lambda: bool(fake.refused))
        assert "from its next post on" in rig("auth", "x", stdin=json.dumps(SECRETS))
        refused = len(fake.refused)
        wait_for(lambda: len(fake.stored) >= 2)
        assert len(fake.refused) == refused
        assert daemon.stop() == 0


def wait_for(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_newer_of_systemd_s_copy_and_the_file_counts(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"token": "a token"}
    path = credentials.save_credentials("telegram", {"token": "from-the-file"})
    copy = tmp_path / "rig-telegram"
    copy.write_text('{"token": "from-systemd"}')
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for seconds, said in ((1, "from-the-file"), (0, "from-systemd"), (-1, "from-systemd")):
        newer_than(copy, path, seconds)
        assert credentials.load_credentials("telegram", fields) == {"token": said}


def test_a_refusal_of_the_old_keys_stops_nothing_that_has_new_ones(
    own_home: Path, tmp_path: Path
) -> None:
    """`rig auth` finishes while the request with the old keys is on its way."""
    clock = Clock(START)
    credentials.save_credentials("x", OLD)
    with FakeX(clock) as fake, simulated(clock):
        found = settings({"one": {"run": tick(tmp_path), **BOT}}, {"x": {"api": fake.url}})
        ledger = Ledger.open(f"sqlite:///{own_home}/l.sqlite")
        daemon, scheduler = by_hand(found, ledger, clock)
        switches.set_enabled(ledger, "one", True, "0 */2 * * *", clock())
        outlet = daemon.deliverer.outlets["x"]
        send = outlet.send_post

        def slow(post: Post) -> str:
            try:
                return send(post)
            finally:
                keep_x_secrets(own_home)

        outlet.send_post = slow  # type: ignore[method-assign]
        scheduler.until(START + TWO_HOURS / 2)
        assert not switches.stopped_scopes(ledger)
        assert len(fake.refused) == len(fake.stored) == 1
        ledger.close()


def test_another_account_on_bluesky_begins_a_session_of_its_own(own_home: Path) -> None:
    secrets = {"handle": "rig.test", "app_password": "right-app-password"}
    post = Post("cards", START, "Moss Golem.", "key", claimed=START)
    with fake_services.bluesky() as service:
        for handle in ("rig.test", "rig.test", "other.test"):
            given = {**secrets, "handle": handle}
            build_outlet("bluesky", {"bluesky": {"service": service.url}}, given).send_post(post)
        logins = [b["identifier"] for _, path, b in service.history if "createSession" in path]
    assert logins == ["rig.test", "other.test"]
    kept = (own_home / "state" / "bluesky-bluesky.session").read_text()
    assert secrets["app_password"] not in kept


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs root, to give files away")
def test_root_gives_the_file_to_the_user_who_runs_the_daemon(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = credentials.save_credentials("x", SECRETS)
    monkeypatch.setattr(process, "daemon_owner", lambda: 65534)
    assert "next post" in hand_over.hand_to_daemon("x", path)
    assert path.stat().st_uid == path.parent.stat().st_uid == 65534

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(process, "daemon_owner", lambda: 65533)
    monkeypatch.setattr("shutil.chown", refused)
    assert "run `rig auth x` as that user" in hand_over.hand_to_daemon("x", path)


def test_a_service_of_the_system_is_started_anew(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = credentials.save_credentials("x", SECRETS)
    unit = tmp_path / "rig-daemon.service"
    monkeypatch.setattr(
        systemd, "unit_path", lambda name, *, system: unit if system else tmp_path / "none"
    )
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(systemd, "run_systemctl", lambda *words, system: calls.append(words))
    monkeypatch.setattr(systemd, "has_systemd", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    unit.write_text(systemd_unit.unit_text(tmp_path, ["mastodon"], 45, system=True, user=None))
    assert "`rig daemon install --system`" in hand_over.hand_to_daemon("x", path)
    unit.write_text(systemd_unit.unit_text(tmp_path, ["x"], 45, system=True, user=None))
    assert hand_over.hand_to_daemon("x", path) == "The service was started anew and has it."
    assert calls == [("try-restart", "rig-daemon")]
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    assert "`sudo systemctl try-restart rig-daemon`" in hand_over.hand_to_daemon("x", path)


def test_a_daemon_of_another_user_counts_as_running(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.state_folder().mkdir(parents=True, exist_ok=True)
    (process.state_folder() / "daemon.json").write_text('{"pid": 1}')

    def foreign(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", foreign)
    assert process.running_daemon() == {"pid": 1}
    with pytest.raises(Exception, match="belongs to another user"):
        process.signal_reload()


def test_the_ledger_s_new_password_is_used_by_new_connections(postgresql: str) -> None:
    ledger = Ledger.open(postgresql)
    with ledger.write_transaction() as connection:
        connection.execute(text("CREATE ROLE other LOGIN SUPERUSER PASSWORD 'new'"))
    address = [postgresql]
    ledger.renew_login(lambda: address[0])
    address[0] = postgresql.replace("//rig@", "//other:new@")
    ledger.engine.dispose()
    try:
        with ledger.read_transaction() as connection:
            assert connection.scalar(text("select current_user")) == "other"
    finally:
        address[0] = postgresql
        ledger.engine.dispose()
        with ledger.write_transaction() as connection:
            connection.execute(text("DROP ROLE other"))
        ledger.close()
