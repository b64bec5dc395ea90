"""The bot of docs/your-own-bot.md, taken out of the page and run: `pytest tests/test_bots_docs.py`."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT

import rig.cli
from bots import settings
from bots.credentials import save_credentials
from bots.ledger import switches
from bots.ledger.store import Ledger
from rig.server.client import ModelClient
from support.daemons import by_hand
from support.fake_services import mastodon
from support.fakes_model import FakeModel
from support.simulated import Clock, simulated

PAGE = (ROOT / "docs" / "your-own-bot.md").read_text("utf-8")
CODE, HOOK = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(TOML,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_is_twenty_lines_or_so() -> None:
    body = CODE.partition("def proverb")
    assert len((body[1] + body[2]).strip().splitlines()) <= 14
    assert len(CODE.strip().splitlines()) <= 24


def saturday() -> datetime:
    """The coming Saturday, at midnight: approvals go by the wall clock, so the past will not do."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today + timedelta(days=(5 - today.weekday()) % 7 or 7)


def test_the_example_drafts_is_approved_and_arrives(
    elsewhere: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "proverb.py").write_text(f"{CODE}\n\n{HOOK}")
    save_credentials("mastodon", {"access_token": "right-token-0123456789"})
    with FakeModel() as model, mastodon() as server:
        toml = TOML.replace("https://mastodon.example", server.url).replace("[8]", "[]")
        more = f'[model]\nurl = "{model.url}"\n[daemon]\nheartbeat = "1h"\n'
        (elsewhere / "rig.toml").write_text(f"{toml}\n{more}")
        model.will_say("As an AI I cannot.", "A wet May fills the barn with hay.")
        done = CliRunner().invoke(rig.cli.main, ["bot", "preview", "proverb", "--json"])
        assert done.exit_code == 0, done.output
        shown = json.loads(done.stdout)
        assert (shown["post"], shown["attempts"]) == ("A wet May fills the barn with hay.", 2)

        model.will_say("Frost in June ruins the tune.")
        clock = Clock(saturday())
        with simulated(clock):
            ledger = Ledger.open()
            found = settings.read_settings()
            switches.set_enabled(ledger, "proverb", True, found.bots["proverb"].schedule, clock.now)
            _, scheduler = by_hand(
                found, ledger, clock, connect=lambda limit: ModelClient(model.url, timeout=limit)
            )
            scheduler.until(clock.now + timedelta(hours=34))
            assert not server.statuses  # type: ignore[attr-defined]
            assert CliRunner().invoke(rig.cli.main, ["bot", "approve", "1"]).exit_code == 0
            scheduler.until(clock.now + timedelta(hours=1))
            scheduler.shutdown()
            ledger.close()
        (status,) = server.statuses.values()  # type: ignore[attr-defined]
    assert status["content"] == "<p>Frost in June ruins the tune.</p>"
    assert "mastodon has 'Frost in June ruins the tune.' as 100" in capsys.readouterr().out


def test_in_a_silent_month_it_says_nothing(elsewhere: Path, own_home: Path) -> None:
    (elsewhere / "proverb.py").write_text(CODE)
    (elsewhere / "rig.toml").write_text(TOML.replace("[8]", "[1,2,3,4,5,6,7,8,9,10,11,12]"))
    done = CliRunner().invoke(rig.cli.main, ["bot", "preview", "proverb"])
    assert done.exit_code == 1
    assert "nothing to say" in done.output
