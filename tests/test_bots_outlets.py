"""The outlets besides X, each through its own library: `pytest tests/test_bots_outlets.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bots.outlets import bluesky, mastodon, telegram, webhook
from bots.outlets.base import LOST, UNKNOWN, Outlet, Post
from bots.outlets.build import build_outlet
from bots.outlets.errors import Halt, NotSent, Rejected, Unclear
from rig.errors import WrongUse
from support import fake_services
from support.fake_services import Service

SECRETS = {
    "bluesky": {"handle": "rig.test", "app_password": "right-app-password"},
    "mastodon": {"access_token": "right-token-0123456789"},
    "telegram": {"token": "123456:right-token-of-telegram"},
    "webhook": {"token": "right-bearer-token-0123"},
}
ADDRESS: dict[str, Callable[[str], dict[str, Any]]] = {
    "bluesky": lambda url: {"service": url},
    "mastodon": lambda url: {"server": url},
    "telegram": lambda url: {"api": url, "chat": "@cards"},
    "webhook": lambda url: {"url": f"{url}/hook", "token": True, "idempotent": True},
}
KINDS = sorted(SECRETS)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bluesky, mastodon, telegram, webhook):
        monkeypatch.setattr(module, "READ", 0.7)


@pytest.fixture
def service(kind: str) -> Iterator[Service]:
    with getattr(fake_services, kind)() as running:
        yield running


def built(kind: str, url: str, secrets: dict[str, str] | None = None) -> Outlet:
    return build_outlet(kind, {kind: ADDRESS[kind](url)}, secrets or SECRETS[kind])


SLOT = datetime.now(UTC).replace(microsecond=0)


def post(text: str = "Moss Golem & friends: 900 ATK.", **more: Any) -> Post:
    return Post("cards", SLOT, text, "key-of-this-post", claimed=SLOT, **more)


def kept(kind: str, service: Service) -> int:
    """How many posts the service has."""
    names = {
        "bluesky": "records",
        "mastodon": "statuses",
        "telegram": "messages",
        "webhook": "taken",
    }
    return len(getattr(service, names[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_post_arrives_once_and_has_a_name(kind: str, service: Service) -> None:
    outlet = built(kind, service.url)
    one = post()
    media = outlet.prepare_post(one, "")
    assert outlet.send_post(one)
    assert kept(kind, service) == 1
    assert media == ""


@pytest.mark.parametrize("kind", ["bluesky", "mastodon", "webhook"])
def test_sent_again_it_is_still_one_post(kind: str, service: Service) -> None:
    outlet = built(kind, service.url)
    assert outlet.send_post(post()) == outlet.send_post(post())
    assert kept(kind, service) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_after_it_arrived_it_is_unclear_and_then_found(
    kind: str, service: Service, short: None
) -> None:
    outlet = built(kind, service.url)
    service.will("drop")
    with pytest.raises(Unclear):
        outlet.send_post(post())
    found = outlet.find_post(post())
    if kind == "telegram":
        assert found == UNKNOWN  # a bot can't read its own chat
    elif kind == "webhook":
        assert found == LOST  # the other side knows the key: sending again is safe
        outlet.send_post(post())
    else:
        assert found not in (LOST, UNKNOWN)
    assert kept(kind, service) == 1


@pytest.mark.parametrize("kind", ["bluesky", "mastodon"])
def test_cut_off_before_it_arrived_it_is_found_to_be_lost(
    kind: str, service: Service, short: None
) -> None:
    outlet = built(kind, service.url)
    service.will("lost")
    with pytest.raises(Unclear):
        outlet.send_post(post())
    assert outlet.find_post(post()) == LOST


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("event", "meaning"),
    [
        (400, Rejected),
        (401, Halt),
        (403, Halt),
        (429, NotSent),
        (500, Unclear),
        (502, Unclear),
        (503, NotSent),
        ("hang", Unclear),
    ],
)
def test_each_failure_has_one_meaning(
    kind: str, service: Service, event: int | str, meaning: type[Exception], short: None
) -> None:
    outlet = built(kind, service.url)
    outlet.prepare_post(post(), "")
    service.will(event)
    with pytest.raises(meaning):
        outlet.send_post(post())


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_listening_means_not_sent(kind: str, service: Service) -> None:
    outlet = built(kind, "http://127.0.0.1:9")
    with pytest.raises(NotSent):
        outlet.send_post(post())


@pytest.mark.parametrize("kind", ["bluesky", "mastodon", "telegram"])
def test_wrong_credentials_halt_the_outlet(kind: str, service: Service) -> None:
    wrong = dict.fromkeys(SECRETS[kind], "123456:wrong-secret")
    with pytest.raises(Halt, match="rig auth"):
        built(kind, service.url, wrong).send_post(post())


@pytest.mark.parametrize(
    ("kind", "name"), [("bluesky", "@rig.test"), ("mastodon", "@rig"), ("telegram", "@rig_bot")]
)
def test_whoami_names_the_account(kind: str, name: str, service: Service) -> None:
    assert built(kind, service.url).account_name() == name


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # atproto's own
@pytest.mark.parametrize("kind", ["bluesky", "mastodon", "telegram"])
def test_a_picture_goes_along_with_its_words(kind: str, service: Service, tmp_path: Path) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"\xff\xd8\xff" + bytes(100))
    outlet = built(kind, service.url)
    one = post(image=picture, alt="A golem of moss.")
    media = outlet.prepare_post(one, "")
    assert outlet.send_post(post(image=picture, alt="A golem of moss.", media=media))
    if kind == "bluesky":
        embed = next(iter(service.records.values()))["embed"]  # type: ignore[attr-defined]
        assert embed["images"][0]["alt"] == "A golem of moss."
        assert embed["images"][0]["image"]["ref"]
    elif kind == "mastodon":
        assert any(
            body.get("media_ids[]") == "55"
            for _, path, body in service.history
            if path == "/api/v1/statuses"
        )
    else:
        assert b"A golem of moss" not in service.messages[0]  # type: ignore[attr-defined]
        assert b"Moss Golem & friends" in service.messages[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["bluesky"])
def test_bluesky_keeps_its_session_and_makes_links(
    kind: str, service: Service, own_home: Path
) -> None:
    outlet = built(kind, service.url)
    outlet.send_post(post("é see https://example.com/a. #Golem"))
    outlet.find_post(post())
    logins = [path for _, path, _ in service.history if path.endswith("createSession")]
    assert len(logins) == 1
    kept = own_home / "state" / "bluesky-bluesky.session"
    assert kept.stat().st_mode & 0o077 == 0
    record = next(iter(service.records.values()))  # type: ignore[attr-defined]
    features = [(f["index"]["byteStart"], f["features"][0]) for f in record["facets"]]
    assert features[0] == (
        7,
        {"$type": "app.bsky.richtext.facet#link", "uri": "https://example.com/a"},
    )
    assert features[1][1]["tag"] == "Golem"


@pytest.mark.parametrize("kind", ["bluesky"])
def test_bluesky_logs_in_again_when_its_session_has_ended(
    kind: str, service: Service, own_home: Path
) -> None:
    outlet = built(kind, service.url)
    outlet.send_post(post())
    session = own_home / "state" / "bluesky-bluesky.session"
    session.write_text("rubbish")
    assert outlet.find_post(post()) != LOST


@pytest.mark.parametrize(
    ("kind", "text", "length"),
    [
        ("bluesky", "👨‍👩‍👧" * 300, 300),  # one family is one character
        ("mastodon", "see https://example.com/" + "a" * 100, 4 + 23),
        ("telegram", "😀", 2),  # UTF-16
        ("x", "苔", 2),
        ("screen", "苔", 2),
        ("file", "苔", 1),
        ("webhook", "苔", 1),
    ],
)
def test_each_outlet_measures_by_its_own_rule(kind: str, text: str, length: int) -> None:
    tables = {kind: ADDRESS[kind]("http://127.0.0.1:9")} if kind in ADDRESS else {}
    assert build_outlet(kind, tables, {}).measure_text(text) == length


def test_bluesky_counts_bytes_too() -> None:
    outlet = built("bluesky", "http://127.0.0.1:9")
    assert "bytes" in outlet.text_faults("👨‍👩‍👧" * 200)[0]


def test_a_file_line_is_whole_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "posts.jsonl"
    outlet = build_outlet("file", {"file": {"path": str(path)}})
    assert outlet.find_post(post()) == LOST
    outlet.send_post(post())
    with path.open("ab") as file:
        file.write(b'{"key": "cut o')  # what a power cut leaves
    other = Post("cards", datetime.now(UTC), "Another.", "other-key")
    assert outlet.find_post(other) == LOST
    outlet.send_post(other)
    assert outlet.find_post(post()) == "key-of-this-post"
    assert outlet.find_post(other) == "other-key"
    whole = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [line["text"] for line in whole] == [post().text, "Another."]


def test_an_address_that_is_a_secret_is_asked_for() -> None:
    assert set(
        build_outlet("discord", {"discord": {"kind": "webhook", "field": "content"}}).secrets
    ) == {"url"}


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({}, "There is no outlet 'mastodom'; did you mean 'mastodon'?"),
        ({"mastodom": {"kind": "mastodon"}}, "the key 'server' is missing"),
        ({"mastodom": {"kind": "matrix"}}, "kind: 'matrix'"),
        (
            {"mastodom": {"kind": "mastodon", "server": "https://a", "limits": 5}},
            "did you mean 'limit'",
        ),
    ],
)
def test_a_mistake_in_an_outlet_is_one_sentence(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongUse) as told:
        build_outlet("mastodom", tables)
    assert said in told.value.message


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("A page. https://a.example/Heron_(bird)", ["https://a.example/Heron_(bird)"]),
        ("Docs https://a.example/guide/#install", ["https://a.example/guide/#install"]),
        ("詳しくは https://a.example/a。次", ["https://a.example/a"]),
        ("「https://a.example/b」、", ["https://a.example/b"]),
        ("See (https://a.example/x). #Golem", ["https://a.example/x", "#Golem"]),
        ("[https://a.example/y]!", ["https://a.example/y"]),
        ("https://a.example/x?b=1&c=2#frag done", ["https://a.example/x?b=1&c=2#frag"]),
    ],
)
def test_a_link_is_marked_as_far_as_it_reaches(text: str, marked: list[str]) -> None:
    raw = text.encode()
    spans = [facet["index"] for facet in bluesky.build_facets(text)]
    assert [raw[s["byteStart"] : s["byteEnd"]].decode() for s in spans] == marked
