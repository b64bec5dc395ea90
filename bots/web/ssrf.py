"""Which machines may be asked: the public internet, judged by the address that is really connected to.

A name is resolved once and the very address that passed is used: a second answer of a name server
(rebinding), a redirect, or a number written oddly ends at the same gate.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from typing import Any

from bots.documents.article import Unreadable

_METADATA = {
    ipaddress.ip_address(address)
    for address in ("169.254.169.254", "168.63.129.16", "100.100.100.200", "fd00:ec2::254")
}
"""Addresses at which clouds hand out credentials; refused even where private ones are allowed."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.ip_network("::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def refusal_reason(address: str, *, allow_private: bool = False) -> str | None:
    """Say why `address` (a number, as the resolver gave it) is not asked; None when it may be.

    >>> refusal_reason("127.0.0.1"), refusal_reason("::ffff:10.0.0.1"), refusal_reason("93.184.215.14")
    ('this machine itself', 'a private network', None)
    """
    found = [_parsed(address)]
    found += _inside(found[0])
    for one in found:
        if one in _METADATA or one.is_link_local:
            return "a link-local or cloud metadata address"
        if one.is_multicast or (one.is_unspecified and not allow_private):
            return "not the address of one machine"
    if allow_private:
        return None
    for one in found:
        if one.is_loopback:
            return "this machine itself"
        if not one.is_global:
            return "a private network" if one.is_private else "an address that is not public"
    return None


def _parsed(address: str) -> Address:
    return ipaddress.ip_address(address.partition("%")[0])


def _inside(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 one carries to wherever a gateway takes it."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address] = []
    if address.ipv4_mapped:
        found.append(address.ipv4_mapped)
    if address.sixtofour:
        found.append(address.sixtofour)
    if address.teredo:
        found += address.teredo
    embedded = any(address in network for network in (*_NAT64, _COMPATIBLE))
    if embedded and int(address) > 1:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return found


def resolve_host(host: str, port: int, *, timeout: float, allow_private: bool = False) -> list[str]:
    """Every address of `host` as a number, all of them allowed; one bad one refuses the name."""
    answer = _lookup(host, port, timeout)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in answer))
    for address in addresses:
        if why := refusal_reason(address, allow_private=allow_private):
            known = host.strip("[]") == address
            shown = host if known else f"{host} leads to {address}, which"
            hint = (
                ""
                if refusal_reason(address, allow_private=True)
                else "; --allow-private permits it"
            )
            raise Unreadable("address", f"{shown} is {why}: refused{hint}.")
    return addresses


def _lookup(host: str, port: int, timeout: float) -> list[Any]:
    """Ask the resolver with a time limit of our own: its own may be a minute."""
    box: list[Any] = []

    def ask() -> None:
        try:
            box.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            box.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    if not box:
        raise Unreadable("time", f"The name {host} was not found within {timeout:.0f} s.")
    if isinstance(box[0], Exception):
        raise Unreadable(
            "network", f"There is no machine called {host}: check the address and the network."
        )
    return list(box[0])
