"""The only door a rendering browser has: a proxy on loopback that lets it reach what the fetcher may reach.

A page's scripts ask for what they like. Chromium is told to resolve nothing itself and to send everything,
loopback too, through here, where each address is checked as it is connected to.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from bots.documents.article import Unreadable
from bots.web import ssrf

MAX_BYTES = 100_000_000
"""Bytes that one page may move in all."""


class BrowserProxy(socketserver.ThreadingTCPServer):
    """Serves one browser until `deadline` (monotonic seconds)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, deadline: float, allow_private: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.deadline = deadline
        self.allow_private = allow_private
        self.refused: dict[str, Unreadable] = {}
        """What was refused, by host."""
        self._left = MAX_BYTES
        self._lock = threading.Lock()

    def connect_upstream(self, host: str, port: int) -> socket.socket:
        """A connection to the first address of `host` that answers, if all of them are allowed."""
        try:
            found = ssrf.resolve_host(host, port, timeout=5, allow_private=self.allow_private)
        except Unreadable as error:
            self.refused[host] = error
            raise
        for address in found:
            with contextlib.suppress(OSError):
                return socket.create_connection((address, port), timeout=5)
        self.refused[host] = Unreadable("network", f"{host} refuses the connection.")
        raise self.refused[host]

    def spend_bytes(self, size: int) -> bool:
        """Whether `size` more bytes may pass."""
        with self._lock:
            self._left -= size
            return self._left > 0 and time.monotonic() < self.deadline

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that broke is the browser's business, not news."""


class _Request(socketserver.StreamRequestHandler):
    """One connection of the browser: a tunnel for https, one request for http."""

    server: BrowserProxy

    def handle(self) -> None:
        self.connection.settimeout(15)
        first = self.rfile.readline(8192).decode("latin-1").split()
        if len(first) != 3:
            return
        method, target, version = first
        headers = list(iter(lambda: self.rfile.readline(65536), b"\r\n"))
        if b"" in headers[-1:] or len(headers) > 200:
            return
        try:
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                upstream = self.server.connect_upstream(host.strip("[]"), int(port))
                self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                parts = urlsplit(target)
                upstream = self.server.connect_upstream(parts.hostname or "", parts.port or 80)
                path = parts.path or "/"
                path += f"?{parts.query}" if parts.query else ""
                kept = [h for h in headers if not h.lower().startswith((b"proxy-", b"connection:"))]
                head = f"{method} {path} {version}\r\n".encode("latin-1")
                upstream.sendall(head + b"".join(kept) + b"Connection: close\r\n\r\n")
        except (Unreadable, ValueError):
            self.wfile.write(
                b"HTTP/1.1 403 Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            return
        with upstream:
            self._pump(upstream)

    def _pump(self, upstream: socket.socket) -> None:
        """Carry bytes both ways until one side ends, the time is up or the page has had its share."""
        with selectors.DefaultSelector() as both:
            both.register(self.connection, selectors.EVENT_READ, upstream)
            both.register(upstream, selectors.EVENT_READ, self.connection)
            while ready := both.select(timeout=15):
                for key, _ in ready:
                    piece = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not piece or not self.server.spend_bytes(len(piece)):
                        return
                    key.data.sendall(piece)


@contextlib.contextmanager
def running_proxy(seconds: float, *, allow_private: bool) -> Iterator[BrowserProxy]:
    """A proxy for one page."""
    with BrowserProxy(time.monotonic() + seconds, allow_private) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
