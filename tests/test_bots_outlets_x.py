"""X: every answer of its API has one meaning: `pytest tests/test_bots_outlets_x.py`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import SHARED

from bots.outlets import x as module
from bots.outlets.base import LOST, Outlet, Post
from bots.outlets.build import build_outlet
from bots.outlets.errors import Halt, NotSent, Rejected, Unclear
from bots.outlets.x_length import weighted_length
from support.fake_x import ERRORS, SECRETS, Event, FakeX


@pytest.fixture
def fake() -> Iterator[FakeX]:
    with FakeX() as server:
        yield server


@pytest.fixture
def x(fake: FakeX) -> Outlet:
    return build_outlet("x", {"x": {"api": fake.url}}, SECRETS)


def post(text: str = "Moss Golem: 900 ATK.", **more: Any) -> Post:
    return Post("cards", datetime.now(UTC).replace(microsecond=0), text, "key", **more)


def test_a_post_is_signed_sent_and_found_again(x: Outlet, fake: FakeX) -> None:
    one = post("“Curly” & <odd> – 苔")
    number = x.send_post(one)
    assert fake.texts() == [one.text]
    assert number == fake.stored[0]["id"]
    assert x.find_post(one) == number
    assert not fake.refused


def test_a_post_that_is_not_there_is_lost(x: Outlet, fake: FakeX) -> None:
    x.send_post(post("Another one."))
    assert x.find_post(post()) == LOST


def test_a_wrong_secret_is_noticed_by_the_signature(fake: FakeX) -> None:
    bad = build_outlet("x", {"x": {"api": fake.url}}, {**SECRETS, "access_token_secret": "nope"})
    with pytest.raises(Halt, match="401"):
        bad.send_post(post())
    assert fake.refused == ["wrong signature"]
    assert not fake.stored


def test_whoami_names_the_account(x: Outlet) -> None:
    assert x.account_name() == "@TweepyDev"


def test_a_picture_goes_up_once_with_its_words(x: Outlet, fake: FakeX, tmp_path: Path) -> None:
    picture = tmp_path / 'a "strange" name.jpg'
    picture.write_bytes(b"\xff\xd8\xff" + bytes(1000))
    one = post(image=picture, alt="A golem of moss.")
    media = x.prepare_post(one, "")
    assert x.prepare_post(one, media) == media
    assert fake.media == {media: "A golem of moss."}
    x.send_post(post(image=picture, media=media))
    assert fake.stored[0]["media"] == [media]
    uploads = [body for _, path, body in fake.requests if path == "/2/media/upload"]
    assert uploads == [{"bytes": 1003, "category": b"tweet_image"}]


def test_a_stale_picture_is_uploaded_anew(x: Outlet) -> None:
    with pytest.raises(NotSent) as told:
        x.send_post(post(media="99"))
    assert told.value.fresh


def test_a_duplicate_that_is_this_very_post_counts_as_sent(x: Outlet, fake: FakeX) -> None:
    fake.will(Event("service_unavailable", stored=True))  # X lied: it had taken the post
    with pytest.raises(NotSent):
        x.send_post(post())
    assert x.send_post(post(attempt=2)) == fake.stored[0]["id"]
    assert len(fake.stored) == 1


def test_a_duplicate_of_an_old_post_is_rejected(x: Outlet, fake: FakeX) -> None:
    fake._keep(post().text, [])
    fake.stored[0]["created_at"] = "2020-01-01T00:00:00.000Z"
    with pytest.raises(Rejected, match="same text before"):
        x.send_post(post())


@pytest.mark.parametrize(
    ("event", "meaning"),
    [
        (Event("drop"), Unclear),
        (Event("drop", stored=True), Unclear),
        (Event("hang", stored=True), Unclear),
        (Event("garbage", stored=True), Unclear),
        (Event("internal_error", stored=True), Unclear),
        (Event("service_unavailable"), NotSent),
        (Event("rate_limited"), NotSent),
        (Event("credits_depleted_v1"), Halt),
        (Event("forbidden_no_permission"), Halt),
    ],
    ids=lambda value: value.name if isinstance(value, Event) else value.__name__,
)
def test_each_failure_has_one_meaning(
    x: Outlet, fake: FakeX, event: Event, meaning: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ", 0.3)
    fake.will(event)
    with pytest.raises(meaning):
        x.send_post(post())


def test_nothing_listening_means_not_sent(fake: FakeX) -> None:
    fake.close()
    gone = build_outlet("x", {"x": {"api": fake.url}}, SECRETS)
    with pytest.raises(NotSent):
        gone.send_post(post())


def test_a_name_that_does_not_resolve_means_not_sent() -> None:
    gone = build_outlet("x", {"x": {"api": "http://nobody.invalid:1"}}, SECRETS)
    with pytest.raises(NotSent):
        gone.send_post(post())


def test_too_long_a_text_is_rejected_and_not_tried_again(x: Outlet) -> None:
    with pytest.raises(Rejected, match="too long"):
        x.send_post(post("苔" * 141))


def test_a_rate_limit_waits_for_the_latest_reset(x: Outlet, fake: FakeX) -> None:
    soon, late = int(time.time()) + 60, int(time.time()) + 9000
    fake.will(
        Event(
            "rate_limited",
            headers={
                "x-rate-limit-reset": str(soon),
                "x-rate-limit-remaining": "0",
                "x-user-limit-24hour-reset": str(late),
                "x-user-limit-24hour-remaining": "0",
            },
        )
    )
    with pytest.raises(NotSent) as told:
        x.send_post(post())
    assert told.value.again == datetime.fromtimestamp(late, UTC)


@pytest.mark.parametrize(
    ("text", "dollars"),
    [
        ("Moss Golem: 900 ATK.", 0.015),
        ("See https://example.com/a", 0.2),
        ("rig.dev is cool", 0.2),  # X makes a link of a bare domain
    ],
)
def test_a_link_costs_thirteen_times_as_much(x: Outlet, text: str, dollars: float) -> None:
    assert x.post_price(text) == round(dollars * 1_000_000)


def recorded() -> list[dict[str, Any]]:
    path = SHARED / "data" / "x" / "errors.json"
    return list(json.loads(path.read_text())["errors"]) if path.exists() else []


MEANINGS = {
    "credits_depleted_v1": Halt,
    "credits_depleted_v2": Halt,
    "forbidden_no_permission": Halt,
    "forbidden_not_permitted": Halt,
    "client_not_enrolled": Halt,
    "rate_limited": NotSent,
    "daily_cap": NotSent,
    "usage_cap": Halt,
    "unauthorized": Halt,
    "text_too_long_400": Rejected,
    "text_too_long_403": Rejected,
    "invalid_media_ids": NotSent,
    "service_unavailable": NotSent,
    "internal_error": Unclear,
    "invalid_request_docs": Rejected,
}


@pytest.mark.skipif(not recorded(), reason="needs the recorded answers in ../shared")
@pytest.mark.parametrize("entry", recorded(), ids=lambda entry: entry["id"])
def test_every_recorded_answer_means_what_it_should(entry: dict[str, Any]) -> None:
    if entry["id"] not in MEANINGS:
        assert entry["id"] == "duplicate" or "oauth2" in entry["id"] or "delete" in entry["id"]
        return  # not answers to a post (or, the duplicate, tested by itself)
    answer = requests.Response()
    answer.status_code = entry["status"]
    answer._content = json.dumps(entry["body"]).encode()
    reset = str(int(time.time()) + 7200)
    answer.headers.update(
        {k: v.replace("<unix seconds>", reset) for k, v in entry["headers"].items()}
    )
    with pytest.raises(MEANINGS[entry["id"]]) as told:
        module.raise_x_error(answer)
    if entry["id"] == "daily_cap":
        again = getattr(told.value, "again", None)
        assert again is not None
        assert again > datetime.now(UTC) + timedelta(hours=1)


@pytest.mark.skipif(not recorded(), reason="needs the recorded answers in ../shared")
@pytest.mark.parametrize("name", sorted(ERRORS))
def test_the_fake_answers_as_x_does(name: str) -> None:
    real = next(entry for entry in recorded() if entry["id"] == name)
    status, body = ERRORS[name]
    assert status == real["status"]
    assert body.keys() == real["body"].keys()
    assert {k: v for k, v in body.items() if k not in ("errors", "detail")} == {
        k: v for k, v in real["body"].items() if k not in ("errors", "detail")
    }


@pytest.mark.skipif(not recorded(), reason="needs X's OpenAPI file in ../shared")
def test_what_is_sent_is_what_the_api_describes(x: Outlet, fake: FakeX, tmp_path: Path) -> None:
    schemas = json.loads((SHARED / "data" / "x" / "openapi_posts.json").read_text())["components"][
        "schemas"
    ]
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"\xff\xd8\xff")
    one = post(image=picture, alt="Words.")
    x.send_post(post(media=x.prepare_post(one, "")))
    sent = {path: body for method, path, body in fake.requests if method == "POST"}
    request = schemas["CreatePostsRequest"]
    assert sent["/2/tweets"].keys() <= request["properties"].keys()
    assert sent["/2/tweets"]["media"].keys() <= schemas["CreatePostsMedia"]["properties"].keys()
    metadata = sent["/2/media/metadata"]
    assert metadata.keys() <= schemas["CreateMediaMetadataRequest"]["properties"].keys()
    assert (
        metadata["metadata"].keys() <= schemas["CreateMediaMetadataMetadata"]["properties"].keys()
    )


def conformance() -> list[tuple[str, int]]:
    path = SHARED / "data" / "twitter_text" / "sample.yml"
    if not path.exists():
        return []
    import yaml  # type: ignore[import-untyped]

    groups = yaml.safe_load(path.read_text("utf-8"))["tests"]
    cases = [
        case for group in groups.values() for case in group if isinstance(case["expected"], dict)
    ]
    return [(case["text"], case["expected"]["weightedLength"]) for case in cases]


@pytest.mark.skipif(not conformance(), reason="needs the conformance cases in ../shared")
@pytest.mark.parametrize(("text", "length"), conformance())
def test_the_weighted_length_is_x_s_own(text: str, length: int) -> None:
    assert weighted_length(text) == length
