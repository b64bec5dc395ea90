"""Which names a server answers to, and whose pages may ask it: against pages that a browser here has open.

A page can send requests to 127.0.0.1, and a foreign name can be pointed at this box: the Host header must be
a name of ours or a plain address, and an Origin must be this very machine.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable


class ServedNames:
    """This machine's names, and `hosts`."""

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        self._names = {"localhost", socket.gethostname().lower(), *(h.lower() for h in hosts)}
        self._names.discard("")

    def has_host(self, host: str) -> bool:
        """Whether a Host header means us; an address can't be pointed elsewhere as a name can."""
        name = host_name(host)
        return self._has_name(name) or read_address(name) is not None

    def has_origin(self, origin: str, served: str) -> bool:
        """Whether pages of an origin may ask: those of this machine, by a name or an address of it.

        `served` is the address at which the request came in.

        >>> ours = ServedNames(["nuc"])
        >>> [ours.has_origin(f"http://{name}", "192.0.2.7") for name in ("nuc:3000", "[::1]", "192.0.2.7")]
        [True, True, True]
        >>> [ours.has_origin(name, "192.0.2.7") for name in ("http://192.0.2.8", "https://a.example", "null")]
        [False, False, False]
        """
        name = host_name(origin.partition("://")[2])
        address = read_address(name)
        if address is not None and (address.is_loopback or address == read_address(served)):
            return True
        return self._has_name(name)

    def _has_name(self, name: str) -> bool:
        return name in self._names or name.removesuffix(".local") in self._names


def host_name(host: str) -> str:
    """The name or address in a Host header, or in an Origin behind its scheme.

    >>> [host_name(host) for host in ("Box.:8377", "[::1]:80", "[::1]", "127.0.0.1")]
    ['box', '::1', '::1', '127.0.0.1']
    """
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name.strip("[]").rstrip(".").lower()


def read_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address that is written out; None for a name."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
