"""Addresses: which ones may be connected to, and the resolver and sockets that see to it.

Flows in: URLs as they were found or redirected to, and networks that are allowed although they are not public. Flows out: parsed URLs, and the
guards of a session's connections; or :class:`~augbench.retrieval.web.fates.Ended`, with the fate.

Only http and https; no credentials; every address that is connected to was checked, at every redirect anew, by the code that opens the socket, so
that a name that changes its address gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from augbench.retrieval.web.fates import (
    BAD_URL,
    REFUSED_ADDRESS,
    REFUSED_CREDENTIALS,
    REFUSED_SCHEME,
    Ended,
    Network,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _carried(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, NAT64), else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


def may_connect(address: str, networks: Sequence[Network] = ()) -> bool:
    """Whether a numeric address is public unicast, or in one of ``networks``; an IPv6 address that carries an IPv4 one is judged by that."""
    found = _carried(ipaddress.ip_address(address.partition("%")[0]))
    if any(found in network for network in networks):
        return True
    if found.is_multicast or not found.is_global:
        return False
    # what is_global leaves open in IPv6: site-local, compatible and unassigned addresses
    return isinstance(found, ipaddress.IPv4Address) or found in _GLOBAL_UNICAST


def check_literal(host: str, networks: Sequence[Network]) -> None:
    """Let names pass, and numeric addresses that :func:`may_connect` allows.

    Raises
    ------
    Ended
        Refused: another address, or one in a notation that only ``inet_aton`` reads.
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            socket.inet_aton(host)
        except OSError:
            return
        # 2130706433, 0x7f.1, 0177.0.0.1: no honest URL is written so
        raise Ended(REFUSED_ADDRESS) from None
    if not may_connect(host, networks):
        raise Ended(REFUSED_ADDRESS)


def parse_url(text: str) -> URL:
    """The URL that a text is, without its fragment.

    Raises
    ------
    Ended
        It is none, neither http nor https, or holds a user name or a password.
    """
    try:
        address = URL(text)
        host, scheme = address.raw_host, address.scheme
    except ValueError:
        raise Ended(BAD_URL) from None
    if scheme not in ("http", "https"):
        raise Ended(REFUSED_SCHEME)
    if not host:
        raise Ended(BAD_URL)
    if address.raw_user is not None or address.raw_password is not None:
        raise Ended(REFUSED_CREDENTIALS)
    return address.with_fragment(None)


def lookup(host: str, port: int) -> list[str]:
    """The numeric addresses of a host name, from the system's resolver.

    Raises
    ------
    OSError
        There is no such host, or no answer.
    """
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(str(address[0]) for *_, address in answers))


class GuardedResolver(AbstractResolver):
    """Resolves names in threads of its own, so that names that hang hold up nothing else; a host with one refused address is refused."""

    def __init__(self, networks: Sequence[Network], threads: int) -> None:
        self.networks, self.pool = networks, ThreadPoolExecutor(threads, "lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            addresses = await asyncio.get_running_loop().run_in_executor(self.pool, lookup, host, port)
        except UnicodeError:
            raise Ended(BAD_URL) from None
        if not all(may_connect(address, self.networks) for address in addresses):
            raise Ended(REFUSED_ADDRESS)
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET6 if ":" in address else socket.AF_INET, proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]  # fmt: skip

    async def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


def guarded_socket(networks: Sequence[Network]) -> Callable[[Any], socket.socket]:
    """Opens the sockets of all connections: the last place to look at an address, and the one that no way leads around."""

    def open_socket(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if not may_connect(str(address[0]), networks):
            raise Ended(REFUSED_ADDRESS)
        return socket.socket(family, kind, protocol)

    return open_socket
