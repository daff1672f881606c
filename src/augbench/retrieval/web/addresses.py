"""Addresses: decide which addresses may be connected to, and enforce it in the resolver and the sockets.

Refused URLs and addresses raise :class:`~augbench.retrieval.web.fates.Ended`, with the fate. Only http and
https are allowed, without credentials. The code that opens the socket checks every address, again at every
redirect. So a host name whose DNS answer changes between check and connection cannot get around the check.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urljoin

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
_BLANK = "".join(map(chr, range(0x21)))  # stripped from the ends of a URL (WHATWG's URL standard)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_TARGET = re.compile(r"[^:/?#]+://[^/?#]*([^#]*)", re.DOTALL)
_UNSENDABLE = re.compile(r"[^!-~]+")  # all that a request line cannot hold


def _carried(address: Address) -> Address:
    """Return the IPv4 address embedded in an IPv6 one (mapped, 6to4, NAT64), or else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


def may_connect(address: str, networks: Sequence[Network] = ()) -> bool:
    """Whether a numeric address is public unicast, or in one of ``networks``.

    An IPv6 address with an embedded IPv4 address is judged by the latter.
    """
    found = _carried(ipaddress.ip_address(address.partition("%")[0]))
    if any(found in network for network in networks):
        return True
    if found.is_multicast or not found.is_global:
        return False
    # is_global does not exclude IPv6 site-local, IPv4-compatible and unassigned addresses
    return isinstance(found, ipaddress.IPv4Address) or found in _GLOBAL_UNICAST


def check_literal(host: str, networks: Sequence[Network]) -> None:
    """Check a URL's host: names pass, and numeric addresses if :func:`may_connect` allows them.

    Raises
    ------
    Ended
        The address is refused, or its notation is one that only ``inet_aton`` reads.
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            socket.inet_aton(host)
        except OSError:
            return
        # 2130706433, 0x7f.1, 0177.0.0.1: legitimate URLs do not use these notations
        raise Ended(REFUSED_ADDRESS) from None
    if not may_connect(host, networks):
        raise Ended(REFUSED_ADDRESS)


def parse_url(text: str) -> URL:
    """Parse a URL and drop its fragment; path and query stay as they are written.

    Servers compare signed and proxied addresses character by character, so ``%2F`` must stay ``%2F``. Only
    what no request can hold (spaces, control characters, other alphabets) is percent-encoded. The path of the
    result includes the query, because ``yarl`` drops the question mark of an empty one.

    Raises
    ------
    Ended
        The text is not a URL, its scheme is neither http nor https, or it holds a user name or a password.
    """
    text = re.sub(r"[\t\r\n]", "", text.strip(_BLANK))
    try:
        address = URL(text)
        host, scheme = address.raw_host, address.scheme
        if scheme not in ("http", "https"):
            raise Ended(REFUSED_SCHEME)
        if not host or (written := _TARGET.match(text)) is None:
            raise Ended(BAD_URL)
        if address.raw_user is not None or address.raw_password is not None:
            raise Ended(REFUSED_CREDENTIALS)
        target = _UNSENDABLE.sub(_encoded, written[1])
    except ValueError:
        raise Ended(BAD_URL) from None
    return address.with_path(target if target.startswith("/") else f"/{target}", encoded=True)


def _encoded(part: re.Match[str]) -> str:
    # headers hold bytes that are not UTF-8 as lone surrogates
    return "".join(f"%{byte:02X}" for byte in part[0].encode("utf-8", "surrogateescape"))


def redirected(address: URL, location: str) -> URL:
    """Return the target of a redirect from ``address``; raises :class:`Ended` like :func:`parse_url`."""
    location = location.strip(_BLANK)
    if location.startswith("//"):
        location = f"{address.scheme}:{location}"
    elif location.startswith("/"):  # urljoin would merge the slashes of /http://host/a.jpg
        location = f"{address.origin()}{location}"
    elif not _SCHEME.match(location):
        location = urljoin(str(address), location)
    return parse_url(location)


def lookup(host: str, port: int) -> list[str]:
    """Return the numeric addresses of a host name, from the system's resolver.

    Raises
    ------
    OSError
        The host does not exist, or the resolver does not answer.
    """
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(str(address[0]) for *_, address in answers))


class GuardedResolver(AbstractResolver):
    """Resolves host names in its own threads, so that a slow name delays nothing else.

    A host is refused if one of its addresses is.
    """

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
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


def guarded_socket(networks: Sequence[Network]) -> Callable[[Any], socket.socket]:
    """Return a function that opens the socket of every connection, and checks its address first.

    It is the last check of an address, and no connection can bypass it.
    """

    def open_socket(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if not may_connect(str(address[0]), networks):
            raise Ended(REFUSED_ADDRESS)
        return socket.socket(family, kind, protocol)

    return open_socket
