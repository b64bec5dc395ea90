"""X through tweepy, OAuth 1.0a: each answer of its API has one meaning here, and each request an end.

Tokens of OAuth 1.0a do not expire, so there is nothing to refresh and nothing to lose in a power cut. tweepy
sets no timeout and knows one address only: an adapter gives it both after the request has been signed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bots.outlets.base import LOST, Outlet, Post
from bots.outlets.errors import Halt, NotSent, Rejected, Unclear
from bots.outlets.network_errors import (
    CONNECT,
    READ,
    clock_error,
    parse_unix_time,
    raise_network_error,
)
from bots.outlets.same_text import is_same_text
from bots.outlets.x_length import has_link, weighted_length
from rig.validation import FrozenModel

if TYPE_CHECKING:
    import requests
    import tweepy

HOST = "https://api.twitter.com"
LOOK_BACK = timedelta(minutes=5)
"""How long before its slot a post is looked for: clocks differ."""
MEMORY = timedelta(days=1)
"""How far back a text is looked for that X calls a duplicate."""
MOST_PAGES = 8
"""Pages of a hundred posts that are looked through."""


class XSettings(FrozenModel):
    """The table of an outlet of kind `x`; prices in dollars, as of April 2026."""

    api: str = HOST
    price: float = 0.015
    price_with_link: float = 0.2
    price_of_alt_text: float = 0.005
    settle: float = 60.0
    """Seconds that X may take to show a post in the timeline."""


class X(Outlet):
    """One account on X."""

    kind = "x"
    pictures = True
    finds_by_text = True
    settings = XSettings
    secrets = {  # noqa: RUF012
        "api_key": "API key (consumer key) of the app",
        "api_key_secret": "API key secret",
        "access_token": "access token of the account, made with Read and write permission",
        "access_token_secret": "access token secret",
    }
    limit = 280

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settle = float(self.options.settle)

    def measure_text(self, text: str) -> int:
        """The weighted length."""
        return weighted_length(text)

    def post_price(self, text: str, image: bool = False) -> int:
        """In millionths of a dollar: thirteen times as much with a link."""
        post: float = self.options.price_with_link if has_link(text) else self.options.price
        words: float = self.options.price_of_alt_text if image else 0.0
        return round((post + words) * 1_000_000)

    def prepare_post(self, post: Post, media: str) -> str:
        """Upload the picture and its alt text, once."""
        import requests

        try:
            with (
                self._client() as client
            ):  # credentials that are missing are noticed before the claim
                if post.image is None or media:
                    return media
                return self._uploaded(client, post.image, post.alt)
        except requests.RequestException as error:
            raise NotSent(f"the picture: {error}") from error
        except (KeyError, ValueError) as error:
            raise NotSent(f"the picture: X answered in a form of its own ({error!r})") from error

    def send_post(self, post: Post) -> str:
        """Post it; a duplicate is looked for, for it may be this very post."""
        import requests
        import tweepy

        media = [post.media] if post.media else None
        try:
            with self._client() as client:
                return str(client.create_tweet(text=post.text, media_ids=media).data["id"])
        except tweepy.HTTPException as error:
            if error.response.status_code == 403 and "duplicate content" in _detail(error.response):
                return self._duplicate(post)
            raise_x_error(error.response)
        except requests.RequestException as error:
            raise_network_error(error)
        except (tweepy.TweepyException, KeyError, TypeError, ValueError) as error:
            raise Unclear(f"X answered in a form of its own ({error!r})") from error

    def find_post(self, post: Post) -> str:
        """Look through the account's own newest posts."""
        return self._find_since(post, post.slot - LOOK_BACK)

    def _find_since(self, post: Post, begin: datetime) -> str:
        """The number of the newest post of this text since `begin`, or LOST."""
        import requests
        import tweepy

        try:
            with self._client() as client:
                for tweet in self._newest_posts(client, begin):
                    if _is_this(tweet, post.text):
                        return str(tweet["id"])
        except tweepy.HTTPException as error:
            raise NotSent(f"X: {error.response.status_code} {_detail(error.response)}") from error
        except (tweepy.TweepyException, requests.RequestException) as error:
            raise NotSent(f"X: {type(error).__name__}: {error}") from error
        return LOST

    def _newest_posts(self, client: tweepy.Client, begin: datetime) -> Iterator[Mapping[str, Any]]:
        """The account's posts since `begin`, as X gives them, page by page."""
        import tweepy

        options: dict[str, Any] = {"start_time": begin.strftime("%Y-%m-%dT%H:%M:%SZ")}
        number, page = self._account(client), None
        fields = ["created_at", "entities", "note_tweet"]
        for _ in range(MOST_PAGES):
            try:
                found = client.get_users_tweets(
                    number, max_results=100, user_auth=True, tweet_fields=fields,
                    pagination_token=page, **options,
                )  # fmt: skip
            except tweepy.BadRequest:
                if not options:
                    raise
                # to X this moment lies ahead: the clock was wrong when it was written down
                options = {}
                continue
            yield from (tweet.data for tweet in found.data or [])
            page = (found.meta or {}).get("next_token")
            if not page:
                return
            if not options:  # without a beginning X would list years; the newest page will do
                return

    def account_name(self) -> str:
        """The account's name."""
        import tweepy

        try:
            with self._client() as client:
                return f"@{client.get_me(user_auth=True).data.username}"
        except tweepy.HTTPException as error:
            raise_x_error(error.response)

    def _duplicate(self, post: Post) -> str:
        found = self.find_post(post)
        if found == LOST and post.attempt > 1:
            raise Unclear("X has this text already, but does not show it yet")
        if found == LOST:  # an earlier post of this text may have been taken for lost
            found = self._find_since(post, post.slot - MEMORY)
        if found != LOST:
            return found
        raise Rejected("X has had the same text before")

    def _account(self, client: tweepy.Client) -> str:
        """The account's number: an access token begins with it."""
        number = str(self.credentials["access_token"]).partition("-")[0]
        return number if number.isdigit() else str(client.get_me(user_auth=True).data.id)

    @contextmanager
    def _client(self) -> Iterator[tweepy.Client]:
        import tweepy

        secrets = self.credentials
        client = tweepy.Client(
            consumer_key=secrets["api_key"],
            consumer_secret=secrets["api_key_secret"],
            access_token=secrets["access_token"],
            access_token_secret=secrets["access_token_secret"],
        )
        with client.session:
            client.session.mount(HOST, _adapter(self.options.api))
            yield client

    def _uploaded(self, client: tweepy.Client, picture: Path, words: str) -> str:
        """The number of a picture that X has taken, its words with it."""
        files = {"media": (picture.name, picture.read_bytes(), "image/jpeg")}
        form = {"media_category": "tweet_image"}
        found = self._post(client, "/2/media/upload", files=files, data=form)
        number = str(found.json()["data"]["id"])
        alt = {"id": number, "metadata": {"alt_text": {"text": words[:1000]}}}
        self._post(client, "/2/media/metadata", json=alt)
        return number

    def _post(self, client: tweepy.Client, path: str, **content: Any) -> requests.Response:
        """A request that tweepy has no method for, signed as its own are."""
        from tweepy import OAuth1UserHandler

        secrets = self.credentials
        signer = OAuth1UserHandler(
            secrets["api_key"], secrets["api_key_secret"],
            secrets["access_token"], secrets["access_token_secret"],
        )  # fmt: skip
        answer = client.session.post(HOST + path, auth=signer.apply_auth(), **content)
        if not answer.ok:
            try:
                raise_x_error(answer)
            except Unclear as error:  # nobody sees a picture that no post shows: it may go up twice
                raise NotSent(str(error)) from error
        return answer


def raise_x_error(answer: requests.Response) -> NoReturn:
    """Say what an error answer of X means; facts/errors of the API in `tests/test_bots_outlets_x.py`."""
    status, detail = answer.status_code, _detail(answer)
    said = f"X: {status} {detail}"
    if status == 429:
        if "UsageCap" in answer.text or "usage-capped" in answer.text:
            raise Halt(f"{said}: the month's posts are used up")
        raise NotSent(said, latest_reset(answer.headers))
    if status == 402:
        raise Halt(f"{said}: buy credits in X's developer console")
    if status == 401:
        if wrong := clock_error(
            answer.headers
        ):  # a signature holds for five minutes around X's time
            raise NotSent(f"{said}: this box's clock is off by {wrong}")
        raise Halt(f"{said}: the keys are wrong or were revoked; set them with `rig auth`")
    if "too long" in detail:
        raise Rejected(said)
    if status == 400:
        if "media" in detail.lower():
            raise NotSent(said, fresh=True)
        raise Rejected(said)
    if status == 403:
        raise Halt(f"{said}: give the app Read and write permission and make new tokens")
    if status == 503:
        raise NotSent(said)
    if status >= 500 or status == 408:
        raise Unclear(said)
    raise Halt(f"{said}: an answer that rig does not know")


def latest_reset(headers: Any) -> datetime | None:
    """The latest reset among the limits that are used up (or among all, when none says so).

    >>> latest_reset({"x-rate-limit-reset": "100", "x-rate-limit-remaining": "3",
    ...     "x-user-limit-24hour-reset": "90000", "x-user-limit-24hour-remaining": "0"}).isoformat()
    '1970-01-02T01:00:00+00:00'
    """
    resets = {}
    for name in ("x-rate-limit", "x-app-limit-24hour", "x-user-limit-24hour"):
        if found := parse_unix_time(headers.get(f"{name}-reset")):
            resets[found] = str(headers.get(f"{name}-remaining", "0")) == "0"
    used_up = [reset for reset, empty in resets.items() if empty]
    return max(used_up or resets, default=None)


def _detail(answer: requests.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return str(answer.text)[:200]
    if not isinstance(body, dict):
        return str(body)[:200]
    errors = body.get("errors") or [{}]
    first = errors[0].get("message", "") if isinstance(errors[0], dict) else ""
    return str(first or body.get("detail") or body.get("title") or "")[:300]


def _is_this(tweet: Mapping[str, Any], text: str) -> bool:
    """Whether a post of the timeline has this text; a long one has its whole text beside the cut one."""
    forms = [tweet, tweet.get("note_tweet") or {}]
    return any(
        is_same_text(text, str(form["text"]), (form.get("entities") or {}).get("urls") or ())
        for form in forms
        if form.get("text")
    )


def _adapter(api: str) -> Any:
    from requests.adapters import HTTPAdapter

    class Wire(HTTPAdapter):  # type: ignore[misc]
        """A limit for each wait, and another address when one is configured."""

        def send(self, request: Any, **options: Any) -> Any:
            if not api.startswith(HOST):
                request.url = request.url.replace(HOST, api.rstrip("/"), 1)
                options["proxies"] = {}
            options["timeout"] = (CONNECT, READ)
            return super().send(request, **options)

    return Wire()
