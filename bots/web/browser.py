"""Renders a page with the Chromium that is installed: its scripts run in its sandbox, behind our proxy.

Nothing is installed or driven: `--dump-dom` prints the page as it stands once its scripts have rested.
As root (a container) Chromium runs as `nobody`, because its sandbox refuses root and we do not go without.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator

from bots.documents.article import Unreadable
from bots.web import browser_proxy, http, ssrf
from rig.errors import RigError

PROGRAMS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge",
)  # fmt: skip
SECONDS = 45.0
PAGE_TIME = 10_000
"""Milliseconds of the page's own clock, which runs ahead while it waits."""
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--incognito",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-pings",
    "--mute-audio",
    "--disable-extensions",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-client-side-phishing-detection",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--blink-settings=imagesEnabled=false",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--proxy-bypass-list=<-loopback>",  # loopback through the proxy as well
    f"--virtual-time-budget={PAGE_TIME}",
    "--dump-dom",
)


def render_page(url: str, *, allow_private: bool = False) -> str:
    """The page at `url` as HTML after its scripts ran; the address is checked as the fetcher does."""
    target = http.parse_url(url)
    ssrf.resolve_host(
        target.host, target.port or 443, timeout=http.CONNECT, allow_private=allow_private
    )
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise RigError("--browser needs Chromium or Chrome, and none is installed (no program "
                       f"{PROGRAMS[0]!r}): install it, or save the page and pass the file.")  # fmt: skip
    with browser_proxy.running_proxy(SECONDS, allow_private=allow_private) as door, _home() as home:
        command = [
            program,
            *FLAGS,
            f"--proxy-server=http://127.0.0.1:{door.server_address[1]}",
            f"--user-data-dir={home}",
            str(target),
        ]
        html = _run(command, home)
        if error := door.refused.get(target.host):
            raise error
    if not html.strip():
        raise Unreadable("shell", "The browser showed nothing: save the page and pass the file.")
    if 'id="main-frame-error"' in html:
        code = re.search(r"\bERR_[A-Z_]+", html)
        raise Unreadable(
            "network",
            f"The browser could not open the page ({code[0] if code else 'unknown reason'}).",
        )
    return html


def _run(command: list[str], home: str) -> str:
    """What the browser prints, at most `http.MAX_BYTES` of it; its whole family is gone afterwards."""
    nobody = _nobody()
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        **dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), home),
        **({**os.environ} if os.name == "nt" else {}),
    }
    late = threading.Event()
    with tempfile.TemporaryFile() as said:
        browser = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            start_new_session=True,
            user=nobody and nobody[0],
            group=nobody and nobody[1],
            extra_groups=nobody and [],
        )
        assert browser.stdout is not None

        def give_up() -> None:
            late.set()
            _end(browser)

        timer = threading.Timer(SECONDS, give_up)
        timer.start()
        try:
            content = browser.stdout.read(http.MAX_BYTES + 1)
        finally:
            timer.cancel()
            browser.stdout.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                browser.wait(2)
            _end(browser)
            browser.wait()
        said.seek(0)
        if not content and browser.returncode and b"sandbox" in said.read(100_000).lower():
            raise RigError(
                "Chromium's sandbox does not work for this user, and pages are not rendered without it: "
                "run as a user of a desktop, or save the page and pass the file."
            )
    if late.is_set():
        raise Unreadable("time", f"The page took longer than {SECONDS:.0f} s to render.")
    if len(content) > http.MAX_BYTES:
        raise Unreadable("size", "The rendered page is too large.")
    return content.decode("utf-8", "replace")


def _end(browser: subprocess.Popen[bytes]) -> None:
    if os.name == "nt":
        browser.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(browser.pid, signal.SIGKILL)


def _nobody() -> tuple[int, int] | None:
    """User and group to run as, where this process is root."""
    if os.name == "nt" or os.geteuid() != 0:
        return None
    import pwd

    found = pwd.getpwnam("nobody")
    return found.pw_uid, found.pw_gid


@contextlib.contextmanager
def _home() -> Iterator[str]:
    """A folder that is the browser's whole memory, and gone with it."""
    folder = tempfile.mkdtemp(prefix="rig-browser-")
    try:
        if nobody := _nobody():
            os.chown(folder, *nobody)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
