"""Fetch one URL, from its request to its fate.

There are no cookies, credentials or proxies. Bytes are counted while they are read, after any
decompression. One deadline covers redirects, retries and slow transfer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from augbench.retrieval.web.addresses import check_literal, guarded_socket, parse_url, redirected
from augbench.retrieval.web.cache import Fetched, Record
from augbench.retrieval.web.content import Verdict, judge
from augbench.retrieval.web.fates import (
    BAD_URL,
    DEAD_CONNECTION,
    DEAD_DNS,
    DEAD_DNS_FOR_NOW,
    DEAD_HTTP,
    DEAD_NOT_HTTP,
    DEAD_TLS,
    FETCHED,
    OPT_OUT,
    REDIRECT_LOOP,
    TIMEOUT,
    TOO_LARGE,
    TOO_MANY_REDIRECTS,
    Ended,
    Limits,
    is_transient,
)

_REDIRECTS = {301, 302, 303, 307, 308}
_OPT_OUTS = {"noai", "noimageai", "noml", "noindex", "noimageindex", "none"}
_VALUED = {"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"}


def opted_out(tags: Iterable[str]) -> bool:
    """Whether values of ``X-Robots-Tag`` forbid training on an image, or indexing it.

    Directives for named crawlers count as well. The value of a directive (``max-image-preview: none``) is no
    directive of its own.
    """
    directives = [
        [part.strip().lower() for part in directive.split(":")]
        for tag in tags
        for directive in tag.split(",")
    ]
    return any(parts[-1] in _OPT_OUTS and _VALUED.isdisjoint(parts[-2:-1]) for parts in directives)


def _seconds_until(retry_after: str | None) -> float:
    if retry_after is None:
        return 0.0
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()


@asynccontextmanager
async def _off_the_clock(deadline: asyncio.Timeout) -> AsyncIterator[None]:
    loop, when = asyncio.get_running_loop(), deadline.when()
    assert when is not None
    left = when - loop.time()
    deadline.reschedule(None)
    try:
        yield
    finally:
        deadline.reschedule(loop.time() + left)


def open_session(limits: Limits, resolver: AbstractResolver) -> aiohttp.ClientSession:
    """Open a session that checks the address of every connection, without cookies, credentials or proxies.

    It must be opened and used in the same event loop.

    Raises
    ------
    UserError
        An entry of ``limits.allow_private`` is not a network.
    """
    connector = aiohttp.TCPConnector(
        resolver=resolver,
        socket_factory=guarded_socket(limits.networks()),
        limit=0,
        ttl_dns_cache=300,
        keepalive_timeout=2,  # idle connections to thousands of hosts would use up the process's file handles
    )
    headers = {
        "User-Agent": limits.user_agent,
        "Accept": "image/jpeg, image/png, image/webp, image/gif;q=0.9, */*;q=0.1",
        "Accept-Encoding": "identity",
    }
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        trust_env=False,
    )


@dataclass
class _Transfer:
    """Progress of one URL's transfer."""

    final_url: str | None = None
    status: int | None = None
    content_type: str | None = None
    body: bytearray = field(default_factory=bytearray)


class Fetcher:
    """Fetches single URLs; all URLs in flight share one instance."""

    def __init__(self, session: aiohttp.ClientSession, limits: Limits, decoders: ThreadPoolExecutor) -> None:
        self.session, self.limits, self.decoders = session, limits, decoders
        self.networks = limits.networks()
        self._gates: WeakValueDictionary[tuple[str | None, int | None], asyncio.Semaphore] = (
            WeakValueDictionary()
        )

    async def fetch(self, url: str) -> Record:
        """Fetch a URL; return its row, and its file if it is an image that may be kept."""
        loop, transfer, content = asyncio.get_running_loop(), _Transfer(), b""
        start = loop.time()
        try:
            async with asyncio.timeout(self.limits.timeout_s) as deadline:
                await self._attempt(url, transfer, deadline)
            content = bytes(transfer.body)
            transfer.body.clear()
            verdict = await loop.run_in_executor(self.decoders, judge, content, self.limits)
        except TimeoutError:
            verdict = Verdict(TIMEOUT)
        except Ended as end:
            verdict = Verdict(end.fate)
        kept = content if verdict.fate == FETCHED else None
        found = Fetched(
            url=url,
            fate=verdict.fate,
            final_url=transfer.final_url,
            status=transfer.status,
            content_type=transfer.content_type,
            sha256=verdict.sha256,
            width=verdict.width,
            height=verdict.height,
            size=None if kept is None else len(kept),
            fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(loop.time() - start, 3),
            limits=self.limits.signature,
            held=kept is not None,
        )
        return found, kept

    async def _attempt(self, url: str, transfer: _Transfer, deadline: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        for attempt in range(self.limits.retries + 1):
            try:
                return await self._follow(parse_url(url), transfer, deadline)
            except Ended as end:
                pause, when = max(end.retry_after, self.limits.backoff_s * 2**attempt), deadline.when()
                hopeless = when is None or loop.time() + pause >= when
                if hopeless or attempt == self.limits.retries or not is_transient(end.fate):
                    raise
            await asyncio.sleep(pause)

    async def _follow(self, address: URL, transfer: _Transfer, deadline: asyncio.Timeout) -> None:
        seen = {address}
        for _ in range(self.limits.max_redirects + 1):
            check_literal(address.raw_host or "", self.networks)
            key = address.raw_host, address.port
            gate = self._gates.setdefault(key, asyncio.Semaphore(self.limits.per_host))
            async with _off_the_clock(deadline):
                await gate.acquire()
            try:
                target = await self._ask(address, transfer)
            finally:
                gate.release()
            if target is None:
                return
            if target in seen:
                raise Ended(REDIRECT_LOOP)
            seen.add(target)
            address = target
        raise Ended(TOO_MANY_REDIRECTS)

    async def _ask(self, address: URL, transfer: _Transfer) -> URL | None:
        """Read the answer of one address into ``transfer``; return the target of a redirect, or else None."""
        transfer.body.clear()
        transfer.final_url, transfer.status, transfer.content_type = str(address), None, None
        try:
            async with self.session.get(address, allow_redirects=False) as response:
                transfer.status, transfer.content_type = response.status, response.headers.get("Content-Type")
                location = response.headers.get("Location")
                if response.status in _REDIRECTS and location:
                    return redirected(address, location)
                await self._read(response, transfer)
        except aiohttp.ClientConnectorDNSError as error:
            raise Ended(DEAD_DNS_FOR_NOW if error.os_error.errno == socket.EAI_AGAIN else DEAD_DNS) from None
        except aiohttp.ClientSSLError:
            raise Ended(DEAD_TLS) from None
        except aiohttp.ClientResponseError:
            raise Ended(DEAD_NOT_HTTP) from None
        except aiohttp.InvalidURL:
            raise Ended(BAD_URL) from None
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError):
            raise Ended(DEAD_CONNECTION) from None
        return None

    async def _read(self, response: aiohttp.ClientResponse, transfer: _Transfer) -> None:
        if response.status != 200:
            raise Ended(
                DEAD_HTTP.format(status=response.status), _seconds_until(response.headers.get("Retry-After"))
            )
        if self.limits.respect_opt_out and opted_out(response.headers.getall("X-Robots-Tag", ())):
            raise Ended(OPT_OUT)
        if (response.content_length or 0) > self.limits.max_bytes:
            raise Ended(TOO_LARGE)
        async for piece in response.content.iter_any():
            transfer.body += piece
            if len(transfer.body) > self.limits.max_bytes:
                raise Ended(TOO_LARGE)
