"""Pages whose text only appears after scripts ran, rendered by the installed Chromium behind our proxy.

pytest tests/test_bots_web_browser.py
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bots.documents.article import Unreadable
from bots.web import browser, browser_proxy, ssrf
from rig.errors import RigError
from support.articles_command import rig
from support.articles_site import Site, running_site

needs_chromium = pytest.mark.skipif(
    not any(map(shutil.which, browser.PROGRAMS)), reason="needs Chromium or Chrome"
)
SHELL = (
    "<!doctype html><html><head><title>Shell</title></head><body><noscript>You need to enable JavaScript "
    "to run this app.</noscript><div id='root'></div><script>{script}</script></body></html>"
)
WRITES = (
    "setTimeout(() => {{ document.getElementById('root').innerHTML = '<article><h1>Late</h1><p>' + "
    "'It was written by a script. '.repeat(30) + '{more}</p></article>'; }}, {after});"
)


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site() as running:
        yield running


@needs_chromium
def test_a_script_heavy_page_is_named_and_rendered_when_asked(site: Site) -> None:
    site.pages["/app"] = (
        "text/html",
        SHELL.format(script=WRITES.format(more="The end.", after=1500)),
    )
    plain = rig("summarise", site.url + "/app", "--extract", "--allow-private")
    assert (plain.returncode, plain.stdout) == (1, "")
    assert "add --browser to render it" in plain.stderr
    done = rig("summarise", site.url + "/app", "--extract", "--allow-private", "--browser")
    assert done.returncode == 0, done.stderr
    assert "It was written by a script." in done.stdout
    assert "The end." in done.stdout


@needs_chromium
def test_a_page_in_the_local_network_is_not_rendered_unless_permitted(site: Site) -> None:
    site.pages["/app"] = ("text/html", SHELL.format(script=""))
    done = rig("summarise", site.url + "/app", "--extract", "--browser")
    assert (done.returncode, done.stdout) == (1, "")
    assert "this machine itself: refused" in done.stderr
    assert site.asked == []


@needs_chromium
def test_the_scripts_of_a_public_page_can_not_reach_the_local_network(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first page is let through by hand; what its script then asks for must pass the same gate."""
    port = site.server_address[1]
    steal = (
        "for (const host of ['127.0.0.1', 'localhost', '0x7f000001', '[::1]'])"
        f" fetch('http://' + host + ':{port}/secret')"
        ".then(r => r.text()).then(t => document.title = 'got ' + t);"
        f"new Image().src = 'http://127.0.0.1:{port}/secret?image';"
    )
    page = SHELL.format(script=steal + WRITES.format(more="The end.", after=1000))
    site.pages["/app"] = ("text/html", page)
    site.pages["/secret"] = ("text/plain", "the secret")
    real = ssrf.resolve_host

    def resolved(
        host: str, number: int, *, timeout: float, allow_private: bool = False
    ) -> list[str]:
        if host == "public.example":
            return ["127.0.0.1"]
        return real(host, number, timeout=timeout, allow_private=allow_private)

    monkeypatch.setattr(ssrf, "resolve_host", resolved)
    html = browser.render_page(f"http://public.example:{port}/app")
    assert "The end." in html
    assert "<title>got" not in html
    assert [path for path in site.asked if "secret" in path] == []
    browser.render_page(f"http://public.example:{port}/app", allow_private=True)
    assert [path for path in site.asked if "secret" in path]  # the test can fail


@needs_chromium
def test_nothing_is_left_behind(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    homes: list[str] = []
    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **kw: homes.append(make(**kw)) or homes[-1])  # type: ignore[func-returns-value]
    site.pages["/app"] = ("text/html", SHELL.format(script=WRITES.format(more="", after=10)))
    browser.render_page(site.url + "/app", allow_private=True)
    (home,) = homes
    listed = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout
    assert home not in listed
    assert not Path(home).exists()


@needs_chromium
def test_a_page_that_never_rests_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "SECONDS", 2.0)
    site.pages["/busy"] = ("text/html", SHELL.format(script="while (true) {}"))
    start = time.monotonic()
    with pytest.raises(Unreadable, match="longer than 2 s"):
        browser.render_page(site.url + "/busy", allow_private=True)
    assert time.monotonic() - start < 15


def test_without_a_browser_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RigError, match="needs Chromium or Chrome"):
        browser.render_page("http://127.0.0.1:9/", allow_private=True)


def test_the_proxy_tunnels_only_where_the_fetcher_may_go() -> None:
    heard = socket.create_server(("127.0.0.1", 0))
    port = heard.getsockname()[1]
    for allowed, answer in ((False, b"403"), (True, b"200")):
        with (
            browser_proxy.running_proxy(5, allow_private=allowed) as door,
            socket.create_connection(("127.0.0.1", door.server_address[1])) as client,
        ):
            client.sendall(f"CONNECT localhost:{port} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert client.recv(100).split()[1] == answer
            assert ("localhost" in door.refused) is not allowed
    heard.close()


def test_the_proxy_ends_with_its_time_and_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_proxy, "MAX_BYTES", 100_000)
    heard = socket.create_server(("127.0.0.1", 0))

    def pour() -> None:
        near, _ = heard.accept()
        with near:
            near.recv(1000)
            try:
                for _ in range(1000):
                    near.sendall(b"x" * 10_000)
            except OSError:
                return

    threading.Thread(target=pour, daemon=True).start()
    with (
        browser_proxy.running_proxy(5, allow_private=True) as door,
        socket.create_connection(("127.0.0.1", door.server_address[1])) as client,
    ):
        port = heard.getsockname()[1]
        client.sendall(f"GET http://127.0.0.1:{port}/x HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        received = sum(len(piece) for piece in iter(lambda: client.recv(65536), b""))
    heard.close()
    assert received < 300_000
