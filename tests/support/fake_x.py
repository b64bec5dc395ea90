"""X on loopback: real HTTP, OAuth 1.0a signatures checked, its own error bodies, and failures on demand.

Status codes, headers and bodies are those seen in public; `tests/test_bots_outlets_x.py` compares them
with the recorded ones where these are at hand. `will` queues what happens to the next posts, `stored` is
what X has.
"""

from __future__ import annotations

import base64
import email.parser
import email.policy
import hashlib
import hmac
import html
import itertools
import json
import re
import socket
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from bots.outlets.x_length import _links, weighted_length

SECRETS = {
    "api_key": "fakeApiKey0123456789abcdef",
    "api_key_secret": "fakeApiKeySecret0123456789abcdefghijklmnopqrstuv",
    "access_token": "1072250532645998596-fakeAccessToken0123456789",
    "access_token_secret": "fakeAccessTokenSecret0123456789abcdefghijklm",
}
USER = SECRETS["access_token"].partition("-")[0]


def problem(
    code: int, title: str, detail: str, kind: str = "about:blank", **more: Any
) -> tuple[int, Any]:
    """An error answer: its status and its body."""
    return code, {"title": title, "detail": detail, "type": kind, **more}


PROBLEMS = "https://api.twitter.com/2/problems"
INVALID = "One or more parameters to your request was invalid."


def invalid(parameter: str, message: str) -> tuple[int, Any]:
    """A 400 that names the parameter."""
    errors = [{"parameters": {parameter: ["..."]}, "message": message}]
    return problem(400, "Invalid Request", INVALID, f"{PROBLEMS}/invalid-request", errors=errors)


ERRORS: dict[str, tuple[int, dict[str, Any]]] = {
    "unauthorized": problem(401, "Unauthorized", "Unauthorized", status=401),
    "credits_depleted_v1": problem(
        402,
        "CreditsDepleted",
        "Your enrolled account [1234567890123456789] does not have any credits to fulfill this request.",
        f"{PROBLEMS}/credits",
        account_id=1234567890123456789,
    ),
    "duplicate": problem(
        403,
        "Forbidden",
        "You are not allowed to create a Tweet with duplicate content.",
        status=403,
    ),
    "forbidden_no_permission": problem(
        403,
        "Forbidden",
        "Your client app is not configured with the appropriate oauth1 app permissions for this endpoint.",
        f"{PROBLEMS}/oauth1-permissions",
        status=403,
    ),
    "rate_limited": problem(429, "Too Many Requests", "Too Many Requests", status=429),
    "text_too_long_400": invalid("text", "Your Tweet text is too long."),
    "invalid_media_ids": invalid("media.media_ids", "Your media IDs are invalid."),
    "service_unavailable": problem(503, "Service Unavailable", "Service Unavailable", status=503),
    "internal_error": problem(500, "Internal Server Error", "Something is broken.", status=500),
}


@dataclass
class Event:
    """What happens to one POST of a text: an answer of ERRORS, or one of the tricks below."""

    name: str
    stored: bool = False
    """Whether X keeps the post before it happens."""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """How long before X does anything; of `hang`: how long it says nothing afterwards."""


class Server(ThreadingHTTPServer):
    """Says nothing of clients that were killed while they listened."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Only what is no broken connection is worth a traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


INVENTED = re.compile(r"https?://[\w.-]+\.(?:example|invalid|test)(?:[/?#][^\s。、」]*[\w/=)])?")
"""X makes links of names that exist; in tests none does."""


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _kept(text: str) -> str:
    """What two texts are compared by."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _short(what: str) -> str:
    """The t.co link of an address: ten letters and digits."""
    letters = base64.b32encode(hashlib.sha256(what.encode()).digest()).decode()
    return f"https://t.co/{letters[:10]}"


class FakeX:
    """One account. Tricks besides the names of ERRORS: `drop`, `hang`, `drip`, `garbage`, `ok`."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.clock = clock
        self.stored: list[dict[str, Any]] = []
        self.attempts: list[str] = []
        """The text of each POST whose signature was right, in order."""
        self.queue: deque[Event] = deque()
        self.requests: list[tuple[str, str, Any]] = []
        self.media: dict[str, str] = {}
        self.duplicates = 0
        """Posts that X had already: an outbox that works never sends one."""
        self.refused: list[str] = []
        """Why a signature was wrong."""
        self.noise: Callable[[], Event | None] = lambda: None
        """Asked for the fate of a post when the queue is empty."""
        self.on: Callable[[str], None] = lambda stage: None
        """Told of each stage of a post: received, stored, answered."""
        self.page = 7
        """Posts that one page of the timeline holds, whatever was asked for: X gives fewer than that, too."""
        self.cut = 0
        """Weighted characters after which the timeline cuts a text short; 0 = never."""
        self.explains = True
        """Whether a post's entities say where its links lead."""
        self.lag = timedelta(0)
        """How long X doesn't show a post that it has."""
        self._nonces: set[str] = set()
        self._numbers = itertools.count(1456012973835788293)
        self._lock = threading.Lock()
        self._server = Server(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def will(self, *events: Event | str) -> None:
        """Queue what happens to the next posts."""
        self.queue.extend(Event(e) if isinstance(e, str) else e for e in events)

    def texts(self) -> list[str]:
        """What X has, the oldest first."""
        return [post["text"] for post in self.stored]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> FakeX:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signed(self, method: str, url: str, header: str) -> str | None:
        """Why the signature is wrong; None when it is right (RFC 5849, HMAC-SHA1)."""
        if not header.startswith("OAuth "):
            return "no OAuth header"
        given = {
            key.strip(): unquote(value.strip('"'))
            for key, value in (part.split("=", 1) for part in header[6:].split(","))
        }
        signature = given.pop("oauth_signature", "")
        given.pop("realm", None)
        if given.get("oauth_consumer_key") != SECRETS["api_key"]:
            return "wrong consumer key"
        if given.get("oauth_token") != SECRETS["access_token"]:
            return "wrong token"
        if abs(time.time() - int(given.get("oauth_timestamp", "0"))) > 300:
            return "old timestamp"
        with self._lock:
            if given["oauth_nonce"] in self._nonces:
                return "nonce used twice"
            self._nonces.add(given["oauth_nonce"])
        parts = urlsplit(url)
        pairs = [*parse_qsl(parts.query, keep_blank_values=True), *given.items()]
        plain = "&".join(
            f"{k}={v}" for k, v in sorted((quote(k, ""), quote(v, "")) for k, v in pairs)
        )
        base = "&".join(
            quote(piece, "") for piece in (method, f"https://api.twitter.com{parts.path}", plain)
        )
        key = f"{quote(SECRETS['api_key_secret'], '')}&{quote(SECRETS['access_token_secret'], '')}"
        digest = hmac.new(key.encode(), base.encode(), hashlib.sha1).digest()
        right = base64.b64encode(digest).decode()
        return None if hmac.compare_digest(right, signature) else "wrong signature"

    def _keep(self, text: str, media: list[str]) -> dict[str, Any]:
        with self._lock:
            post = {
                "id": str(next(self._numbers)),
                "text": text,
                "created_at": _stamp(self.clock()),
                "media": media,
            }
            self.stored.append(post)
            return post

    def _timeline(self, options: dict[str, str]) -> tuple[int, Any]:
        """A page of the account's posts, the newest first."""
        begin, now = options.get("start_time", ""), self.clock()
        if begin and begin >= _stamp(now):
            return invalid(
                "start_time", f"Invalid 'start_time':'{begin}'. 'start_time' must be ..."
            )
        shown = [p for p in self.stored if begin <= p["created_at"] <= _stamp(now - self.lag)]
        shown = shown[::-1]
        first = int(options.get("pagination_token", "p0")[1:])
        last = first + min(self.page, int(options.get("max_results", 10)))
        wanted = set(options.get("tweet.fields", "").split(","))
        data = [self.shown(post, wanted) for post in shown[first:last]]
        meta: dict[str, Any] = {"result_count": len(data)}
        if last < len(shown):
            meta["next_token"] = f"p{last}"
        return 200, {"data": data, "meta": meta} if data else {"meta": meta}

    def shown(self, post: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
        """A post as X shows it: trimmed, composed, its links short ones, its picture a link at the end."""
        text = unicodedata.normalize("NFC", post["text"]).strip()
        urls: list[dict[str, Any]] = []
        found: list[tuple[int, int]] = []
        spans = [(u["indices"], u["url"]) for u in _links()(text)]
        spans += [([m.start(), m.end()], m[0]) for m in INVENTED.finditer(text)]
        for (begin, end), url in sorted(spans):
            if found and begin < found[-1][1]:
                continue  # the same link, found twice
            found.append((begin, end))
            whole = url if "://" in url else f"http://{url}"
            urls.append({"url": _short(url), "expanded_url": whole, "display_url": whole[8:33]})
        for (begin, end), link in reversed(list(zip(found, urls, strict=True))):
            text = text[:begin] + link["url"] + text[end:]
        own = "https://twitter.com/TweepyDev/status/" + post["id"]
        for number, media in enumerate(post["media"], 1):
            link = {"url": _short(media), "expanded_url": f"{own}/photo/{number}"}
            urls.append({**link, "media_key": f"3_{media}"})
        if post["media"]:
            text += f" {_short(post['media'][0])}"
        given = {"id": post["id"], "edit_history_tweet_ids": [post["id"]]}
        if self.cut and len(text) > self.cut:
            if "note_tweet" in wanted:
                given["note_tweet"] = {"text": html.escape(text, quote=False)}
                if "entities" in wanted:
                    given["note_tweet"]["entities"] = {"urls": urls[::-1]}
            text = text[: self.cut].rstrip() + "… " + _short(post["id"])
            urls = [
                {
                    "url": _short(post["id"]),
                    "expanded_url": f"https://x.com/i/web/status/{post['id']}",
                }
            ]
        if "entities" in wanted and urls and self.explains:  # in no order that one may count on
            given["entities"] = {"urls": urls[::-1]}
        if "created_at" in wanted:
            given["created_at"] = post["created_at"]
        return {**given, "text": html.escape(text, quote=False)}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Be quiet."""

            def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json; charset=utf-8")
                self.send_header("content-length", str(len(data)))
                self.send_header("api-version", "2.167")
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def drop(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def error(self, name: str, headers: dict[str, str] | None = None) -> None:
                status, body = ERRORS[name]
                self.reply(status, body, headers)

            def allowed(self) -> bool:
                why = fake._signed(self.command, self.path, self.headers.get("authorization", ""))
                if why:
                    fake.refused.append(why)
                    self.error("unauthorized")
                return why is None

            def do_GET(self) -> None:
                fake.requests.append(("GET", self.path, None))
                if not self.allowed():
                    return
                path, _, query = self.path.partition("?")
                if path == "/2/users/me":
                    me = {"id": USER, "name": "Tweepy Testing", "username": "TweepyDev"}
                    self.reply(200, {"data": me})
                elif path == f"/2/users/{USER}/tweets":
                    self.reply(*fake._timeline(dict(parse_qsl(query))))
                else:
                    self.reply(404, {"title": "Not Found", "status": 404})

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                if not self.allowed():
                    return
                if self.path == "/2/tweets":
                    self.post(json.loads(raw))
                elif self.path == "/2/media/upload":
                    self.upload(raw)
                elif self.path == "/2/media/metadata":
                    body = json.loads(raw)
                    fake.requests.append(("POST", self.path, body))
                    fake.media[body["id"]] = body["metadata"]["alt_text"]["text"]
                    self.reply(200, {"data": {"id": body["id"]}})
                else:
                    self.reply(404, {"title": "Not Found", "status": 404})

            def upload(self, raw: bytes) -> None:
                head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
                form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + raw)
                parts = {
                    p.get_param("name", header="content-disposition"): p for p in form.iter_parts()
                }
                picture = parts["media"].get_payload(decode=True)
                category = parts["media_category"].get_payload(decode=True)
                fake.requests.append(
                    ("POST", self.path, {"bytes": len(picture or b""), "category": category})
                )
                number = str(next(fake._numbers))
                fake.media[number] = ""
                self.reply(
                    200,
                    {
                        "data": {
                            "id": number,
                            "media_key": f"3_{number}",
                            "size": len(picture or b""),
                        }
                    },
                )

            def post(self, body: dict[str, Any]) -> None:
                fake.requests.append(("POST", self.path, body))
                text = body["text"]
                with fake._lock:
                    fake.attempts.append(text)
                    event = fake.queue.popleft() if fake.queue else fake.noise() or Event("ok")
                    known = any(_kept(p["text"]) == _kept(text) for p in fake.stored)
                fake.on("received")
                if event.name != "hang":
                    time.sleep(event.seconds)
                if known:
                    fake.duplicates += 1
                    self.error("duplicate")
                    return
                if weighted_length(text) > 280:
                    self.error("text_too_long_400")
                    return
                media = (body.get("media") or {}).get("media_ids") or []
                if any(number not in fake.media for number in media):
                    self.error("invalid_media_ids")
                    return
                kept = fake._keep(text, media) if event.stored or event.name == "ok" else None
                fake.on("stored")
                if event.name in ERRORS:
                    self.error(event.name, event.headers)
                elif event.name == "drop":
                    self.drop()
                elif event.name == "hang":
                    time.sleep(event.seconds or 5)
                    self.drop()
                elif event.name == "drip":
                    self.drip()
                elif event.name == "garbage":
                    self.reply(201, b"<html>Over capacity</html>")
                else:
                    assert kept is not None
                    headers = {"x-rate-limit-limit": "200", "x-rate-limit-remaining": "199"}
                    self.reply(201, {"data": {"id": kept["id"], "text": text}}, headers)
                fake.on("answered")

            def drip(self) -> None:
                """A byte now and then: every wait is short, and there is no end."""
                self.send_response(201)
                self.send_header("content-length", "100000")
                self.end_headers()
                try:
                    for _ in range(100):
                        self.wfile.write(b" ")
                        self.wfile.flush()
                        time.sleep(0.1)
                except OSError:
                    self.close_connection = True

        return Handler
