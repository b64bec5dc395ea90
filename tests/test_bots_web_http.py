"""The fetcher against a hostile network, on loopback: pytest tests/test_bots_web_http.py"""

from __future__ import annotations

import gzip
import itertools
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import needs

from bots.documents.article import Unreadable
from bots.web import http, ssrf

PAGE = b"<html><body><p>A page.</p></body></html>"


class HostileSite(ThreadingHTTPServer):
    """Serves every trick under its own path, and remembers who asked for what."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tricks)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client hangs up on purpose."""


class _Tricks(BaseHTTPRequestHandler):
    server: HostileSite

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        name, _, rest = self.path.lstrip("/").partition("/")
        getattr(self, f"_{name.replace('-', '_').partition('?')[0]}")(rest)

    def _send(self, content: bytes, *, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        fields = {"Content-Type": "text/html; charset=utf-8"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in fields.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _page(self, rest: str) -> None:
        self._send(PAGE, Set_Cookie="id=1; Path=/")

    def _typed(self, rest: str) -> None:
        self._send(PAGE, Content_Type=rest)

    def _to(self, rest: str) -> None:
        self._send(b"", status=302, Location=rest, Set_Cookie="id=1; Path=/")

    def _endless_redirect(self, rest: str) -> None:
        self._send(b"", status=302, Location=f"/endless-redirect/{int(rest or 0) + 1}")

    def _gzip(self, rest: str) -> None:
        self._send(gzip.compress(PAGE), Content_Encoding="gzip")

    def _deflate(self, rest: str) -> None:
        self._send(zlib.compress(PAGE), Content_Encoding="deflate")

    def _raw_deflate(self, rest: str) -> None:
        pack = zlib.compressobj(wbits=-15)
        self._send(pack.compress(PAGE) + pack.flush(), Content_Encoding="deflate")

    def _two_members(self, rest: str) -> None:
        self._send(gzip.compress(PAGE) + gzip.compress(b"<p>More.</p>"), Content_Encoding="gzip")

    def _half_gzip(self, rest: str) -> None:
        self._send(gzip.compress(PAGE)[:-12], Content_Encoding="gzip")

    def _brotli(self, rest: str) -> None:
        self._send(PAGE, Content_Encoding="br")

    def _bomb(self, rest: str) -> None:
        """Ten gigabytes in ten megabytes."""
        pack = zlib.compressobj(9, wbits=31)
        self._send(b"", Content_Encoding="gzip")
        for _ in range(10_000):
            piece = pack.compress(bytes(1_000_000))
            self.server.sent += 1_000_000
            self.wfile.write(piece)

    def _announced(self, rest: str) -> None:
        self._send(b"x", Content_Length=str(10 * 1024**3))

    def _stream(self, rest: str) -> None:
        """Ten gigabytes, without saying so."""
        self._send(b"")
        for _ in range(10_000):
            self.wfile.write(b"<p>words words" * 75_000)
            self.server.sent += 1_000_000

    def _drip(self, rest: str) -> None:
        """A byte now and then, for ever: no single wait is long."""
        self._send(b"")
        for _ in itertools.count():
            self.wfile.write(b"x")
            time.sleep(0.05)

    def _drip_headers(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for at in itertools.count():
            self.wfile.write(f"X-{at}: y\r\n".encode())
            time.sleep(0.05)

    def _half(self, rest: str) -> None:
        self._send(PAGE, Content_Length="1000")

    def _nonsense(self, rest: str) -> None:
        self.wfile.write(b"\x00\x01\x02 this is not HTTP\r\n\r\n")

    def _status(self, rest: str) -> None:
        self._send(PAGE, status=int(rest))


@pytest.fixture
def site() -> Iterator[HostileSite]:
    with HostileSite() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


def refused(url: str, **options: Any) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        http.fetch_page(url, **options)
    return caught.value


PRIVATE = [
    "127.0.0.1",
    "127.8.9.10",
    "localhost",
    "LOCALHOST",
    "2130706433",  # as one number
    "0x7f000001",  # in hexadecimal
    "0x7f.0.0.1",
    "017700000001",  # in octal
    "0177.0.0.1",
    "127.1",  # with fewer parts
    "127.0.1",
    "0",
    "0.0.0.0",
    "①②⑦.⓪.⓪.①",  # Unicode digits, which IDNA turns into plain ones
    "127。0。0。1",  # ideographic full stops
    "%31%32%37.0.0.1",  # percent-encoded
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",  # IPv4 in IPv6
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",  # the old compatible form
    "[64:ff9b::127.0.0.1]",  # through NAT64
    "[64:ff9b::a9fe:a9fe]",
    "[2002:7f00:1::]",  # through 6to4
    "[2001:0:7f00:1::]",  # through Teredo
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "3232235777",  # 192.168.1.1 as one number
    "100.64.0.1",  # carrier NAT
    "100.100.100.200",  # metadata at Alibaba
    "169.254.169.254",  # metadata nearly everywhere
    "0xa9fea9fe",
    "[fd00:ec2::254]",  # metadata at AWS over IPv6
    "168.63.129.16",  # Azure's own, though formally public
    "[fe80::1]",
    "[fc00::1]",
    "198.18.0.1",  # benchmarking
    "192.0.2.1",  # documentation
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_no_notation_leads_into_the_local_network(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: connected.append(a))
    for scheme in ("http", "https"):
        assert refused(f"{scheme}://{host}:81/latest/meta-data").reason == "address"
    assert not connected


def test_an_address_in_our_own_network_is_called_so(site: HostileSite) -> None:
    error = refused(site.url + "/page")
    assert error.message == "127.0.0.1 is this machine itself: refused; --allow-private permits it."
    assert not site.asked


@pytest.mark.parametrize("host", ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]"])
def test_metadata_is_refused_even_where_private_is_allowed(host: str) -> None:
    assert "metadata" in refused(f"http://{host}/", allow_private=True).message


def answers(monkeypatch: pytest.MonkeyPatch, *addresses_given: str) -> list[str]:
    """Let the resolver give these addresses, one for each question; returns the names it was asked."""
    asked: list[str] = []
    turns = itertools.cycle(addresses_given)

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(turns), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_public_name_with_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "169.254.169.254")
    error = refused("http://metadata.google.internal/computeMetadata/v1/")
    assert error.message.startswith(
        "metadata.google.internal leads to 169.254.169.254, which is a link-local"
    )


def test_a_name_that_changes_its_address_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, "93.184.215.14", "127.0.0.1")
    connected: list[Any] = []

    def create_connection(address: Any, *_: Any, **__: Any) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError("not in a test")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    assert refused("http://rebind.example/").reason == "network"
    assert asked == ["rebind.example"]  # asked once ...
    assert connected == [("93.184.215.14", 80)]  # ... and that answer was used, not a second one


def test_one_bad_address_among_good_ones_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
        for address in ("93.184.215.14", "10.0.0.7")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: entries)
    assert refused("http://mixed.example/").reason == "address"


def test_a_redirect_is_checked_like_the_first_address(
    site: HostileSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first hop is let through by hand, as a public site would be."""
    real, resolve = ssrf.refusal_reason, socket.getaddrinfo
    looked_up: list[str] = []

    def refusal(address: str, *, allow_private: bool = False) -> str | None:
        first_hop = looked_up[-1] == "public.example"
        return None if first_hop else real(address, allow_private=allow_private)

    def getaddrinfo(name: str, *more: Any, **named: Any) -> Any:
        if named:  # ours, not the one inside `create_connection`
            looked_up.append(name)
        return resolve("127.0.0.1" if name == "public.example" else name, *more, **named)

    monkeypatch.setattr(ssrf, "refusal_reason", refusal)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    port = site.server_address[1]
    targets = [
        f"http://127.0.0.1:{port}/page",
        f"http://2130706433:{port}/page",
        f"http://[::1]:{port}/",
    ]
    for target in targets:
        error = refused(f"http://public.example:{port}/to/{target}")
        assert error.reason == "address", error
    assert [path for path, _ in site.asked] == [f"/to/{target}" for target in targets]


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://a.example/x", "gopher://a.example/", "//"]
)
def test_a_redirect_leads_only_to_http(site: HostileSite, target: str) -> None:
    assert refused(f"{site.url}/to/{target}", allow_private=True).reason in ("address", "redirects")


def test_redirects_end(site: HostileSite) -> None:
    error = refused(site.url + "/endless-redirect", allow_private=True)
    assert (error.reason, len(site.asked)) == ("redirects", http.MAX_REDIRECTS + 1)


def test_a_cookie_comes_back_within_one_fetch_and_not_in_the_next(site: HostileSite) -> None:
    found = http.fetch_page(f"{site.url}/to//page", allow_private=True)
    assert found.content == PAGE
    assert (found.url, found.type, found.charset) == (f"{site.url}/page", "text/html", "utf-8")
    assert ["Cookie" in headers for _, headers in site.asked] == [False, True]
    http.fetch_page(f"{site.url}/page", allow_private=True)
    assert "Cookie" not in site.asked[-1][1]
    assert site.asked[0][1]["User-Agent"].startswith("rig/")


@pytest.mark.parametrize("path", ["gzip", "deflate", "raw-deflate"])
def test_packed_answers_are_unpacked(site: HostileSite, path: str) -> None:
    assert http.fetch_page(f"{site.url}/{path}", allow_private=True).content == PAGE


def test_gzip_members_follow_one_another(site: HostileSite) -> None:
    found = http.fetch_page(f"{site.url}/two-members", allow_private=True)
    assert found.content == PAGE + b"<p>More.</p>"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("stream", "size"),
        ("bomb", "size"),
        ("announced", "size"),
        ("half", "network"),
        ("half-gzip", "damaged"),
        ("nonsense", "network"),
        ("brotli", "kind"),
        ("typed/video/mp4", "kind"),
        ("typed/application/json", "kind"),
    ],
)
def test_what_is_no_article_is_refused_with_its_reason(
    site: HostileSite, path: str, reason: str
) -> None:
    error = refused(f"{site.url}/{path}", allow_private=True)
    assert error.reason == reason, error.message
    assert site.sent < 1_000_000_000  # gone long before the tenth gigabyte


@pytest.mark.parametrize("path", ["drip", "drip-headers"])
def test_a_drip_ends_at_the_deadline(site: HostileSite, path: str) -> None:
    assert refused(f"{site.url}/{path}", allow_private=True, total=0.4).reason == "time"


def test_a_bomb_does_not_unfold_in_memory(site: HostileSite) -> None:
    import tracemalloc

    tracemalloc.start()
    refused(f"{site.url}/bomb", allow_private=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * http.MAX_BYTES


def test_error_pages_come_with_their_status(site: HostileSite) -> None:
    assert http.fetch_page(f"{site.url}/status/403", allow_private=True).status == 403


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://", "names no machine"),
        ("http://user:secret@example.org/", "user name or password"),
        ("javascript:alert(1)", "Only http and https"),
        ("http://exa mple.org/", "is not an address"),
        ("http://[::1", "is not an address"),
        ("http://a.example:99999/", "is not an address"),
        ("http://\x00/", "is not an address"),
    ],
)
def test_what_is_no_address_is_said(url: str, words: str) -> None:
    error = refused(url)
    assert words in error.message
    assert "secret" not in error.message


@needs("openssl")
def test_a_certificate_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with HostileSite() as site:
        site.socket = context.wrap_socket(site.socket, server_side=True)
        threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
        error = refused(f"https://localhost:{site.server_address[1]}/page", allow_private=True)
        site.shutdown()
    assert error.message.startswith("The certificate of localhost is not valid")
    assert not site.asked
