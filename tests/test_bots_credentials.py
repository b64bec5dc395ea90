"""Where secrets come from, and that none comes out: `pytest tests/test_bots_credentials.py`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bots import credentials
from bots.outlets.base import Post
from bots.outlets.build import build_outlet
from bots.outlets.errors import Halt
from bots.redact import redact_secrets
from rig.errors import RigError
from support.fake_x import SECRETS


def test_secrets_come_from_the_first_place_that_has_them(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"token": "a token"}
    with pytest.raises(RigError, match="rig auth telegram"):
        credentials.load_credentials("telegram", fields)
    monkeypatch.setenv("RIG_TELEGRAM_TOKEN", "from-environment")
    assert credentials.find_credentials("telegram", fields) == (
        {"token": "from-environment"},
        "the environment (RIG_TELEGRAM_*)",
    )
    path = credentials.save_credentials("telegram", {"token": "from-the-file"})
    assert credentials.load_credentials("telegram", fields) == {"token": "from-the-file"}
    (tmp_path / "rig-telegram").write_text('{"token": "from-systemd"}')
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert credentials.load_credentials("telegram", fields) == {"token": "from-systemd"}
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    path.chmod(0o644)
    with pytest.raises(RigError, match="chmod 600"):
        credentials.load_credentials("telegram", fields)


@pytest.mark.parametrize(("content", "advice"), [(None, "rig auth x"), ("[]", "set them again")])
def test_an_outlet_without_usable_secrets_stops_until_a_person_acts(
    own_home: Path, content: str | None, advice: str
) -> None:
    path = credentials.save_credentials("x", SECRETS)
    path.unlink() if content is None else path.write_text(content)
    outlet = build_outlet("x", {})
    with pytest.raises(Halt, match=advice):
        outlet.prepare_post(Post("cards", datetime.now(UTC), "Moss Golem", "key"), "")


def test_a_keyring_without_a_backend_is_no_error(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def get_password(self, *_: str) -> str:
            raise RuntimeError("no backend on a headless box")

    monkeypatch.setitem(sys.modules, "keyring", Broken())
    assert credentials.find_credentials("telegram", {"token": "a token"}) == ({}, "")


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Bearer AAAAsecretAAAA",
        'OAuth oauth_consumer_key="secretKey1234", oauth_signature="secretSig%3D"',
        "POST https://api.telegram.org/bot123456:AAsecretAAsecret/sendMessage",
        "postgresql://rig:secret@db/rig",
        '{"password": "secret-word"}',
        "access_token=secretToken&x=1",
        "known-secret-value in a sentence",
        "as known%2Dsecret quoted",
    ],
)
def test_no_secret_survives_in_a_line(line: str) -> None:
    from bots.redact import remember_secrets

    remember_secrets(["known-secret-value", "known%2Dsecret"])
    assert "secret" not in redact_secrets(line).replace("oauth_", "").lower().replace(
        "password", ""
    )
