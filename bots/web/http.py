"""Our own fetcher: http and https, checked addresses, cookies for one fetch, limits after decompression.

Safe to run on a schedule: whatever a page or a feed names, only the public internet is asked, certificates
are always checked, and neither a slow, an endless nor a swollen answer takes more than its share.
"""

from __future__ import annotations

import ssl
import time
import typing
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpcore
import httpx

import rig
from bots.documents.article import Unreadable
from bots.documents.sniff import ACCEPTED_TYPES
from bots.web import ssrf

MAX_BYTES = 20_000_000
"""Bytes of one answer after decompression."""
MAX_REDIRECTS = 10
CONNECT, READ, TOTAL = 5.0, 10.0, 30.0
"""Seconds to connect, without a byte, and for everything together."""
USER_AGENT = f"rig/{rig.__version__} (reads articles for one person)"


@dataclass(frozen=True)
class FetchedPage:
    """An answer with its body decompressed, not yet decoded."""

    url: str
    """Where the last redirect led."""
    content: bytes
    type: str
    """The content type without its parameters, in lower case; empty when the server names none."""
    charset: str
    """As the server names it; empty when it does not."""
    status: int = 200


def fetch_page(
    url: str,
    *,
    allow_private: bool = False,
    accept: Iterable[str] = ACCEPTED_TYPES,
    max_bytes: int = MAX_BYTES,
    total: float = TOTAL,
) -> FetchedPage:
    """Return what stands at `url`; error pages too, so that the caller can tell a bot check.

    Raises `Unreadable` with the reason: address, network, redirects, size, kind, time, status.
    """
    deadline = time.monotonic() + total
    context: ssl.SSLContext | None = None
    cookies = (
        httpx.Cookies()
    )  # for this fetch alone: some sites set one and redirect to where they began
    for _ in range(MAX_REDIRECTS + 1):
        target = parse_url(url)
        if target.scheme == "https":
            context = context or httpx.create_ssl_context()
        with _sentences(target), _pool(deadline, allow_private, context) as pool:
            answer = _one(pool, target, deadline, tuple(accept), max_bytes, cookies)
        if isinstance(answer, FetchedPage):
            return answer
        url = answer
    raise Unreadable("redirects", f"{target.host} redirects more than {MAX_REDIRECTS} times.")


def parse_url(url: str) -> httpx.URL:
    """`url` as one that may be fetched: http or https, with a host, without a password."""
    try:
        found = httpx.URL(url.strip())
        host = found.host
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise Unreadable("address", f"{url[:200]!r} is not an address: {error}.") from error
    if found.scheme not in ("http", "https"):
        raise Unreadable(
            "address", f"Only http and https are fetched, not {found.scheme or url!r}."
        )
    if not host:
        raise Unreadable("address", f"{url[:200]!r} names no machine.")
    if "%" in host or not 0 < (found.port or 80) < 65536:
        raise Unreadable("address", f"{url[:200]!r} is not an address: its host or port is odd.")
    if found.userinfo:
        raise Unreadable("address", "The address holds a user name or password: take it out.")
    return found


def _one(
    pool: httpcore.ConnectionPool,
    target: httpx.URL,
    deadline: float,
    accept: tuple[str, ...],
    max_bytes: int,
    cookies: httpx.Cookies,
) -> FetchedPage | str:
    """Ask once; return the answer, or the address that a redirect names."""
    headers: dict[bytes | str, bytes | str] = {
        "User-Agent": USER_AGENT,
        "Accept": ", ".join(t for t in accept if t) + ", */*;q=0.1",
        "Accept-Encoding": "gzip, deflate",
        "Accept-Language": "en, *;q=0.5",
        "Connection": "close",
    }
    request = httpx.Request("GET", target)
    cookies.set_cookie_header(request)
    if cookie := request.headers.get("cookie"):
        headers["Cookie"] = cookie
    url = httpcore.URL(
        scheme=target.raw_scheme,
        host=target.raw_host,
        port=target.port,
        target=target.raw_path,
    )
    timeout = {"connect": CONNECT, "read": READ, "write": READ, "pool": READ}
    with pool.stream("GET", url, headers=headers, extensions={"timeout": timeout}) as answer:
        found = httpx.Headers(answer.headers)
        cookies.extract_cookies(httpx.Response(answer.status, headers=found, request=request))
        if answer.status in (301, 302, 303, 307, 308) and "location" in found:
            try:
                return str(target.join(found["location"]))
            except (httpx.InvalidURL, ValueError) as error:
                raise Unreadable("redirects", f"{target.host} redirects to nowhere.") from error
        kind, charset = parse_content_type(found.get("content-type", ""))
        if answer.status < 400 and kind not in accept:
            raise Unreadable("kind", f"{target.host} sent {kind}, which is not an article.")
        announced = found.get("content-length", "")
        if announced.isdigit() and int(announced) > max_bytes:
            raise _too_large(target, max_bytes)
        body = bytearray()
        for piece in decompress_body(
            answer.iter_stream(), found.get("content-encoding", ""), max_bytes
        ):
            body += piece
            if len(body) > max_bytes:
                raise _too_large(target, max_bytes)
            if time.monotonic() > deadline:
                raise Unreadable("time", f"{target.host} sends too slowly: given up.")
        return FetchedPage(str(target), bytes(body), kind, charset, answer.status)


def parse_content_type(header: str) -> tuple[str, str]:
    """Take a Content-Type header apart.

    >>> parse_content_type('Text/HTML; charset="UTF-8"')
    ('text/html', 'UTF-8')
    """
    kind, _, rest = header.partition(";")
    charset = ""
    for parameter in rest.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip("\"'")
    return kind.strip().lower(), charset


def decompress_body(pieces: Iterable[bytes], encoding: str, max_bytes: int) -> Iterator[bytes]:
    """Decompress in steps of at most `max_bytes`, so that a bomb never unfolds in memory."""
    names = [name.strip().lower() for name in encoding.split(",") if name.strip()]
    names = [name for name in names if name != "identity"]
    if not names:
        yield from pieces
        return
    if len(names) > 1 or names[0] not in ("gzip", "x-gzip", "deflate"):
        raise Unreadable("kind", f"The answer is packed as {encoding}, which was not asked for.")
    unpack = zlib.decompressobj(wbits=47)  # gzip or zlib, told by the header
    first = True
    for piece in pieces:
        if first and names[0] == "deflate" and piece[:1] and piece[0] & 0x0F != 8:
            unpack = zlib.decompressobj(
                wbits=-15
            )  # some servers send deflate without the zlib frame
        first = False
        while piece:
            if unpack.eof:  # gzip members may follow one another
                unpack = zlib.decompressobj(wbits=47)
            yield unpack.decompress(piece, max_bytes + 1)
            piece = unpack.unconsumed_tail or unpack.unused_data.lstrip(b"\0")
    if not first and not unpack.eof:
        raise Unreadable("damaged", "The answer ends in the middle: try again.")


def _too_large(target: httpx.URL, max_bytes: int) -> Unreadable:
    return Unreadable(
        "size",
        f"{target.host} sent more than {max_bytes // 1_000_000} MB: save the part you want as a file.",
    )


@contextmanager
def _sentences(target: httpx.URL) -> Iterator[None]:
    try:
        yield
    except httpcore.TimeoutException as error:
        raise Unreadable("time", f"{target.host} did not answer in time: try later.") from error
    except httpcore.ConnectError as error:
        if "certificate" in str(error).lower():
            raise Unreadable(
                "network", f"The certificate of {target.host} is not valid ({error}): not read."
            ) from error
        raise Unreadable("network", f"{target.host} refuses the connection ({error}).") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, zlib.error) as error:
        raise Unreadable("network", f"{target.host} sent a broken answer ({error}).") from error


@contextmanager
def _pool(
    deadline: float, allow_private: bool, context: ssl.SSLContext | None
) -> Iterator[httpcore.ConnectionPool]:
    """A connection pool that resolves, checks and connects by itself; no proxy, no cookies."""
    backend = CheckedBackend(deadline, allow_private)
    with httpcore.ConnectionPool(ssl_context=context, network_backend=backend) as pool:
        yield pool


class CheckedBackend(httpcore.NetworkBackend):
    """Connects only to addresses that pass `ssrf.resolve_host`, and until the deadline."""

    def __init__(self, deadline: float, allow_private: bool) -> None:
        self._deadline = deadline
        self._allow_private = allow_private
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: typing.Iterable[typing.Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Try the addresses in turn; TLS still checks the certificate against the name."""
        limit = _left(self._deadline, timeout)
        found = ssrf.resolve_host(host, port, timeout=limit, allow_private=self._allow_private)
        for at, address in enumerate(found):
            try:
                stream = self._backend.connect_tcp(
                    address, port, _left(self._deadline, timeout), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if at == len(found) - 1:
                    raise
                continue
            return _Watched(stream, self._deadline)
        raise httpcore.ConnectError(f"{host} has no address")


class _Watched(httpcore.NetworkStream):
    """A connection on which no single wait outlives the deadline of the whole."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        limit = _left(self._deadline, timeout)
        return _Watched(self._stream.start_tls(ssl_context, server_hostname, limit), self._deadline)

    def get_extra_info(self, info: str) -> typing.Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, timeout: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise Unreadable("time", "The page took too long altogether: given up.")
    return left if timeout is None else min(timeout, left)
