"""A small web site on loopback: pages and feeds by path, and a history of what was asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Site(ThreadingHTTPServer):
    """`pages` maps a path to (content type, content) or to a status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pages)
        self.pages: dict[str, tuple[str, str] | int] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def article(self, path: str, title: str, text: str) -> str:
        """Put an article at `path`; returns its address. In Markdown, which needs no child process."""
        self.pages[path] = ("text/markdown", f"# {title}\n\n{text}")
        return self.url + path

    def page(self, path: str, title: str, text: str) -> str:
        """The same in HTML."""
        paragraphs = "".join(f"<p>{part}</p>" for part in text.split("\n\n"))
        self.pages[path] = (
            "text/html",
            f"<!doctype html><html><head><title>{title}</title></head><body><main><article><h1>{title}</h1>"
            f"{paragraphs}</article></main></body></html>",
        )
        return self.url + path

    def feed(self, path: str, entries: list[tuple[str, str, str]]) -> str:
        """Put an RSS feed of (path, title, RFC 822 date) at `path`; returns its address."""
        items = "".join(
            f"<item><title>{title}</title><link>{where}</link><pubDate>{date}</pubDate></item>"
            for where, title, date in entries
        )
        self.pages[path] = (
            "application/rss+xml",
            f'<?xml version="1.0"?><rss version="2.0"><channel><title>News</title>{items}</channel></rss>',
        )
        return self.url + path

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client hangs up."""


class _Pages(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        found = self.server.pages.get(self.path, 404)
        status, (kind, content) = (
            (200, found) if not isinstance(found, int) else (found, ("text/html", "<p>No.</p>"))
        )
        body = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def running_site() -> Iterator[Site]:
    """A site for one test."""
    with Site() as site:
        threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
        yield site
        site.shutdown()
