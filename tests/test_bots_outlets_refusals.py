"""Refusals for good that come with a passing face: `pytest tests/test_bots_outlets_refusals.py`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from bots.outlets.base import Post
from bots.outlets.build import build_outlet
from bots.outlets.errors import Halt, NotSent, Rejected
from support import scripted_services

POST = Post("cards", datetime(2026, 11, 22, 12, tzinfo=UTC), "Moss Golem.", "key")
Answer = tuple[int, Any, dict[str, str]]


@pytest.mark.parametrize(
    ("status", "body", "meaning"),
    [
        (400, "Bad Request: not enough rights to send text messages to the chat", Halt),
        (400, "Bad Request: have no rights to send a message", Halt),
        (400, "Bad Request: CHAT_WRITE_FORBIDDEN", Halt),
        (400, "Bad Request: need administrator rights in the channel chat", Halt),
        (400, "Bad Request: chat not found", Halt),
        (400, "Bad Request: message is too long", Rejected),
        (400, "Bad Request: can't parse entities", Rejected),
    ],
)
def test_telegram_says_with_a_400_what_never_passes(
    status: int, body: str, meaning: type[Exception]
) -> None:
    answer = {"ok": False, "error_code": status, "description": body}
    outer = [status, 200]  # some gateways put the status inside only
    with scripted_services.serve(lambda path, sent: (outer.pop(), answer, {})) as service:
        table = {"telegram": {"api": service.url, "chat": "-5"}}
        for _ in range(2):
            with pytest.raises(meaning):
                build_outlet("telegram", table, {"token": "1:a"}).send_post(POST)


def test_a_group_that_became_a_supergroup_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    def answer(path: str, sent: Any) -> Answer:
        if sent["chat_id"] == "-5":
            said = "Bad Request: group chat was upgraded to a supergroup chat"
            more = {"migrate_to_chat_id": -1005}
            return (
                400,
                {"ok": False, "error_code": 400, "description": said, "parameters": more},
                {},
            )
        return 200, {"ok": True, "result": {"message_id": 9}}, {}

    with scripted_services.serve(answer) as service:
        table = {"telegram": {"api": service.url, "chat": "-5"}}
        outlet = build_outlet("telegram", table, {"token": "1:a"})
        assert [outlet.send_post(POST) for _ in range(2)] == ["9", "9"]
        assert [sent["chat_id"] for _, sent in service.history] == ["-5", "-1005", "-1005"]
        assert "-1005" in caplog.text


@pytest.mark.parametrize(
    ("status", "body", "where", "meaning"),
    [
        (301, "", "https://elsewhere.example/hook", Halt),
        (308, "", "https://elsewhere.example/hook", Halt),
        (302, "", "/login", Halt),
        (303, "", "/login", Halt),
        (405, "", "", Halt),
        (200, {"ok": False, "error": "invalid_auth"}, "", Halt),
        (200, {"ok": False, "error": "channel_is_archived"}, "", Halt),
        (200, {"ok": False, "error": "msg_too_long"}, "", Rejected),
        (200, {"ok": False, "error": "ratelimited"}, "", NotSent),
    ],
)
def test_a_webhook_s_refusals(status: int, body: Any, where: str, meaning: type[Exception]) -> None:
    headers = {"location": where} if where else {}
    with scripted_services.serve(lambda path, sent: (status, body, headers)) as service:
        outlet = build_outlet("webhook", {"webhook": {"url": f"{service.url}/hook"}})
        with pytest.raises(meaning, match=where or None):
            outlet.send_post(POST)


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_webhook_that_moved_on_its_own_host_is_followed(status: int) -> None:
    def answer(path: str, sent: Any) -> Answer:
        return (status, "", {"location": "/new"}) if path == "/hook" else (200, {"id": "7"}, {})

    with scripted_services.serve(answer) as service:
        outlet = build_outlet("webhook", {"webhook": {"url": f"{service.url}/hook"}})
        assert outlet.send_post(POST) == "7"
        assert service.history[1] == ("/new", service.history[0][1])


@pytest.mark.parametrize("name", ["AccountTakedown", "AccountDeactivated", "RepoTakendown"])
def test_an_account_that_was_taken_down_stops_its_outlet(own_home: Any, name: str) -> None:
    body = {"error": name, "message": "Account has been taken down"}
    with scripted_services.serve(lambda path, sent: (400, body, {})) as service:
        secrets = {"handle": "rig.test", "app_password": "right-app-password"}
        outlet = build_outlet("bluesky", {"bluesky": {"service": service.url}}, secrets)
        with pytest.raises(Halt, match="closed this account"):
            outlet.prepare_post(POST, "")
