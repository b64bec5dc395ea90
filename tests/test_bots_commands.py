"""What a person does with bots at the shell: `pytest tests/test_bots_commands.py`."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import rig.cli
from bots import credentials, settings
from bots.daemon import process
from bots.ledger import review
from bots.ledger.store import Ledger
from support.daemons import by_hand, keep_x_secrets, tick
from support.fake_x import SECRETS, FakeX
from support.simulated import Clock, simulated

RIG = """
[daemon]
heartbeat = "10m"

[outlets.x]
api = "{url}"

[bots.tick]
run = "{run}"
schedule = "every 1h"
outlets = ["x"]
approval = "{approval}"
"""


@pytest.fixture
def fake() -> Iterator[FakeX]:
    with FakeX() as server:
        yield server


@pytest.fixture
def scene(elsewhere: Path, own_home: Path, fake: FakeX) -> Path:
    (elsewhere / "rig.toml").write_text(
        RIG.format(url=fake.url, run=tick(elsewhere), approval="person")
    )
    keep_x_secrets(own_home)
    return elsewhere


def rig_(*words: str, stdin: str = "") -> Result:
    return CliRunner().invoke(rig.cli.main, list(words), input=stdin)


def ok(*words: str, stdin: str = "") -> str:
    done = rig_(*words, stdin=stdin)
    assert done.exit_code == 0, done.output
    return done.stdout


def live(hours: float, clock: Clock) -> None:
    """Let the daemon of this rig.toml live for some hours."""
    with simulated(clock):
        ledger = Ledger.open()
        daemon, scheduler = by_hand(settings.read_settings(), ledger, clock)
        scheduler.until(clock.now + timedelta(hours=hours))
        scheduler.shutdown()
        daemon.ledger.close()


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime.now(UTC))


def test_until_enabled_a_bot_speaks_on_the_screen(
    scene: Path, fake: FakeX, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    live(2, clock)
    assert not fake.attempts
    assert len(capsys.readouterr().out.splitlines()) == 2
    said = ok("bot", "enable", "tick")
    assert "$0.015" in said
    (scene / "rig.toml").write_text((scene / "rig.toml").read_text().replace("person", "auto"))
    live(2, clock)
    assert len(fake.stored) == 2
    ok("bot", "disable", "tick")
    live(2, clock)
    assert len(fake.stored) == 2


def test_a_person_sees_edits_and_approves_each_post(scene: Path, fake: FakeX, clock: Clock) -> None:
    ok("bot", "enable", "tick")
    live(3, clock)
    assert not fake.attempts
    waiting = json.loads(ok("bot", "queue", "--json"))
    assert [row["state"] for row in waiting] == ["draft"] * 3
    first, second, third = (str(row["id"]) for row in waiting)
    ok("bot", "edit", first, "A person's own words.")
    ok("bot", "approve", first)
    ok("bot", "reject", second, "--reason", "dull")
    live(0.5, clock)
    assert fake.texts() == ["A person's own words."]
    history = {str(row["id"]): row for row in json.loads(ok("bot", "history", "tick", "--json"))}
    assert history[first]["state"] == "sent"
    assert history[first]["source"] == "person"
    assert history[first]["dollars"] == 0.015
    assert (history[second]["state"], history[second]["reason"]) == ("skipped", "dull")
    assert history[third]["state"] == "draft"
    again = rig_("bot", "approve", first)
    assert again.exit_code == 2
    assert "is sent" in again.output
    clock.now += timedelta(hours=30)
    live(0.1, clock)
    history = {str(row["id"]): row for row in json.loads(ok("bot", "history", "tick", "--json"))}
    assert (history[third]["state"], history[third]["reason"]) == (
        "skipped",
        "nobody approved it in time",
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Read more at example.com", "link"),
        ("x" * 281, "too long"),
        ("", "empty"),
        ("I'm sorry, I can't", "refuses"),
    ],
)
def test_a_person_s_words_are_checked_too(scene: Path, clock: Clock, text: str, why: str) -> None:
    ok("bot", "enable", "tick")
    live(1, clock)
    number = str(json.loads(ok("bot", "queue", "--json"))[0]["id"])
    done = rig_("bot", "edit", number, "-", stdin=text)
    assert done.exit_code == 2
    assert why in done.output


def test_without_a_terminal_edit_does_not_wait(scene: Path, clock: Clock) -> None:
    ok("bot", "enable", "tick")
    live(1, clock)
    done = rig_("bot", "edit", "1")
    assert done.exit_code == 2
    assert "`-`" in done.output


def test_pause_holds_everything_and_resume_lets_it_go(
    scene: Path, fake: FakeX, clock: Clock
) -> None:
    (scene / "rig.toml").write_text((scene / "rig.toml").read_text().replace("person", "auto"))
    ok("bot", "enable", "tick")
    ok("bot", "pause", "--all", "--reason", "on holiday")
    live(2, clock)
    assert not fake.attempts
    found = json.loads(ok("jobs", "--json"))[0]
    assert found["stopped"] == "on holiday"
    assert found["last"]["reason"] == "all is paused: on holiday"
    ok("bot", "resume", "--all")
    live(2, clock)
    assert len(fake.stored) == 2


def test_jobs_show_what_comes_and_what_came(scene: Path, fake: FakeX, clock: Clock) -> None:
    (scene / "rig.toml").write_text((scene / "rig.toml").read_text().replace("person", "auto"))
    ok("bot", "enable", "tick")
    live(3, clock)
    found = json.loads(ok("jobs", "--json"))[0]
    assert found["bot"] == "tick"
    assert found["enabled"] is True
    assert datetime.fromisoformat(found["next"]) > datetime.now(UTC)
    assert found["last"]["posts"] == {"x": "sent"}
    assert found["slots"] == {"drafted": 3}
    assert "3 drafted" in ok("jobs")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bot", "enable", "tock"], "did you mean 'tick'"),
        (["bot", "pause"], "Say one of"),
        (["bot", "pause", "--outlet", "y"], "There is no outlet 'y'"),
        (["bot", "resume", "tick"], "was not stopped"),
        (["bot", "reject", "99"], "There is no post 99"),
        (["bot", "resolve", "99", "--arrived"], "There is no post 99"),
        (["bot", "refresh", "--from", "nothing.json"], "There is no file nothing.json"),
    ],
)
def test_a_wrong_word_is_one_sentence(scene: Path, words: list[str], said: str) -> None:
    done = rig_(*words)
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_enable_says_at_once_that_credentials_are_missing(scene: Path) -> None:
    credentials.delete_credentials("x")
    done = rig_("bot", "enable", "tick")
    assert done.exit_code == 1
    assert "rig auth x" in done.output


def test_auth_tests_keeps_and_never_shows(scene: Path, own_home: Path) -> None:
    credentials.delete_credentials("x")
    done = rig_("auth", "x", stdin=json.dumps(SECRETS))
    assert done.exit_code == 0, done.output
    assert "@TweepyDev" in done.output
    path = credentials.credentials_path("x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    checked = ok("auth", "x", "--check")
    for text in (done.output, checked):
        assert not [secret for secret in SECRETS.values() if secret in text]
    assert "forgotten" in ok("auth", "x", "--forget")
    assert not path.exists()


def test_auth_refuses_what_the_platform_refuses(scene: Path) -> None:
    credentials.delete_credentials("x")
    done = rig_(
        "auth", "x", stdin=json.dumps({**SECRETS, "access_token_secret": "wrong-wrong-wrong"})
    )
    assert done.exit_code == 1
    assert "401" in done.output
    assert "wrong-wrong-wrong" not in done.output
    assert not credentials.credentials_path("x").exists()


@pytest.mark.parametrize("stdin", ["", "{}", '{"api_key": "a"}', "[1]", "no json"])
def test_auth_says_what_it_wants(scene: Path, stdin: str) -> None:
    done = rig_("auth", "x", stdin=stdin)
    assert done.exit_code == 2
    assert "api_key" in done.output


def test_a_database_with_a_password_is_kept_as_a_secret(elsewhere: Path, own_home: Path) -> None:
    ok("auth", "database", stdin=f"sqlite:///{elsewhere}/other.sqlite")
    assert (elsewhere / "other.sqlite").exists()
    ledger = process.open_ledger()
    assert str(ledger.engine.url).endswith("other.sqlite")
    ledger.close()
    assert os.environ.get("RIG_HOME")


def test_an_unclear_post_that_no_outlet_can_tell_waits_for_a_person(
    scene: Path, clock: Clock
) -> None:
    ledger = Ledger.open()
    with simulated(clock):
        daemon, scheduler = by_hand(settings.read_settings(), ledger, clock)
        ok("bot", "enable", "tick")
        scheduler.until(clock.now + timedelta(hours=1))
        scheduler.shutdown()
    from sqlalchemy import update

    from bots.ledger.tables import outbox

    with ledger.write_transaction() as connection:
        connection.execute(update(outbox).values(state="unknown"))
    ok("bot", "resolve", "1", "--arrived")
    assert review.find_post(ledger, 1).state == "sent"
    ledger.close()
    assert daemon


def test_nothing_of_this_shows_a_traceback(scene: Path) -> None:
    """Every command of the room with no argument ends in a sentence or does its work."""
    answers: dict[str, Any] = {}
    for words in (
        ["bot"],
        ["bot", "queue"],
        ["bot", "history"],
        ["jobs"],
        ["auth"],
        ["daemon"],
        ["daemon", "status"],
    ):
        done = rig_(*words)
        answers[" ".join(words)] = done.exit_code
        assert "Traceback" not in done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), words
    assert answers["bot queue"] == answers["jobs"] == 0
    assert answers["daemon status"] == 1
