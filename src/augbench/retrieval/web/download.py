"""Download many URLs at a time, the hosts in turn; each result is on the disk before its slot is reused."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import Image
from yarl import URL

from augbench.progress import Progress
from augbench.retrieval.web.addresses import GuardedResolver, parse_url
from augbench.retrieval.web.cache import Cache, Fetched, Record
from augbench.retrieval.web.content import fate_of_size
from augbench.retrieval.web.fates import (
    DEAD_CONNECTION,
    DEAD_DNS,
    DEAD_DNS_FOR_NOW,
    FETCHED,
    LIMITED,
    TOO_LARGE,
    Limits,
    is_transient,
)
from augbench.retrieval.web.fetch import Fetcher, open_session

logger = logging.getLogger(__name__)


class _Turns:
    """URLs by host, taken from the hosts in turn, at most ``per_host`` of each at a time.

    So a host with many URLs delays no other.
    """

    def __init__(self, urls: Sequence[str], per_host: int) -> None:
        self.per_host = per_host
        self.waiting: dict[str, deque[str]] = {}
        self.running: Counter[str] = Counter()
        for url in urls:
            self.waiting.setdefault(_host(url), deque()).append(url)
        self.ready = deque(self.waiting)

    def take(self) -> str | None:
        """Return the next URL, or None if none may start now."""
        if not self.ready:
            return None
        host = self.ready.popleft()
        url = self.waiting[host].popleft()
        self.running[host] += 1
        if self.waiting[host] and self.running[host] < self.per_host:
            self.ready.append(host)
        return url

    def finished(self, url: str) -> None:
        """Free the slot of a URL."""
        host = _host(url)
        if self.running[host] == self.per_host and self.waiting[host]:
            self.ready.append(host)
        self.running[host] -= 1


def _host(url: str) -> str:
    try:
        return URL(url).authority
    except ValueError:
        return ""


class _Ledger:
    """Commits finished rows in batches; a URL stays in flight until its row is on the disk."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.queue: asyncio.Queue[tuple[Record, asyncio.Future[None]]] = asyncio.Queue()

    async def commit(self, record: Record) -> None:
        """Return when the row is on the disk."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((record, written))
        await written

    async def run(self) -> None:
        """Write until cancelled."""
        with ThreadPoolExecutor(1, "ledger") as writer:
            while True:
                batch = [await self.queue.get()]
                while not self.queue.empty():
                    batch.append(self.queue.get_nowait())
                try:
                    await asyncio.get_running_loop().run_in_executor(
                        writer, self.cache.put, [record for record, _ in batch]
                    )
                except Exception as error:
                    for _, written in batch:
                        if not written.done():
                            written.set_exception(error)
                for _, written in batch:
                    if not written.done():
                        written.set_result(None)


async def _download(
    urls: Sequence[str],
    cache: Cache,
    limits: Limits,
    ended: Callable[[Fetched], None],
    cancel: Callable[[], bool],
) -> None:
    turns, ledger, resolver = (
        _Turns(urls, limits.per_host),
        _Ledger(cache),
        GuardedResolver(limits.networks(), limits.concurrency),
    )
    threads = min(
        4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with ThreadPoolExecutor(threads, "decoder") as decoders:
        async with open_session(limits, resolver) as session:
            fetcher = Fetcher(session, limits, decoders)

            async def complete(url: str) -> Fetched:
                found, content = await fetcher.fetch(url)
                await ledger.commit((found, content))
                return found

            writing = asyncio.create_task(ledger.run())
            active: set[asyncio.Task[Fetched]] = set()
            done: set[asyncio.Task[Fetched]] = set()
            try:
                while not cancel():
                    while len(active) < limits.concurrency and (url := turns.take()) is not None:
                        active.add(asyncio.create_task(complete(url)))
                    if not active:
                        break
                    done, active = await asyncio.wait(
                        active, timeout=0.5, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        found = task.result()
                        turns.finished(found.url)
                        ended(found)
            finally:
                for running in (*active, writing):
                    running.cancel()
                await asyncio.gather(*done, *active, writing, return_exceptions=True)
                await resolver.close()


def _stands(found: Fetched, limits: Limits, retry_transient: bool) -> bool:
    """Whether a URL's cached row is valid under these limits, so that the URL need not be fetched again."""
    if found.fate == FETCHED:
        return found.held and (
            not limits.respect_opt_out or bool(json.loads(found.limits)["respect_opt_out"])
        )
    if is_transient(found.fate):
        return not retry_transient
    if found.status is not None and (
        found.final_url == str(URL(found.url).with_fragment(None)) != str(parse_url(found.url))
    ):
        return False  # an earlier version sent it with its escapes decoded, which some servers refuse
    return found.fate not in LIMITED or found.limits == limits.signature


def _under(found: Fetched, limits: Limits) -> Fetched:
    """Apply these limits to an image that was fetched under other limits."""
    if found.fate != FETCHED or found.size is None or found.width is None or found.height is None:
        return found
    fate = TOO_LARGE if found.size > limits.max_bytes else fate_of_size(found.width, found.height, limits)
    return replace(found, fate=fate)


_COUNTING = threading.Lock()


def download(
    urls: Sequence[str],
    cache: Cache,
    limits: Limits | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    retry_transient: bool = False,
) -> dict[str, Fetched]:
    """Fetch the URLs that the cache lacks, and return the result of every URL.

    Each distinct URL is fetched once. Its row is on the disk before its slot is reused, so after
    ``kill -9`` at most ``limits.concurrency`` images are fetched again. A cached URL is fetched again only if
    its file was deleted, opt-outs were ignored but now count, the limits that refused it have changed, or its
    fate is transient and ``retry_transient`` is set.

    The function runs its own event loop. Several threads may call it, each with its own cache. Limits hold
    per call, so together the threads may exceed ``per_host``.

    Parameters
    ----------
    urls : sequence of str
        Any strings; they need not be valid URLs.
    progress : Progress, optional
        Counts URLs; cached ones count as done before.
    cancel : callable, optional
        Called at least twice a second. Once it returns True, transfers in flight are dropped, and URLs
        without a fate are missing from the result.
    retry_transient : bool
        Fetch URLs again whose fate :func:`~augbench.retrieval.web.fates.is_transient`.

    Raises
    ------
    UserError
        The cache cannot be written, or an entry of ``limits.allow_private`` is not a network. No answer
        from the web raises.
    """
    limits = limits or Limits()
    known = {url: found for url in dict.fromkeys(urls) if (found := cache.get(url)) is not None}
    missing = [
        url
        for url in dict.fromkeys(urls)
        if url not in known or not _stands(known[url], limits, retry_transient)
    ]
    if progress is not None:
        before = len(set(urls)) - len(missing)
        with _COUNTING:
            progress.done, progress.first = progress.done + before, progress.first + before
    counts: Counter[str] = Counter()

    def ended(found: Fetched) -> None:
        counts[found.fate] += 1
        if progress is not None:
            with _COUNTING:
                progress.update(note=", ".join(f"{count} {fate}" for fate, count in counts.most_common(4)))

    if missing:
        # The fate reports such images. The filter is not reset afterwards, because it applies to the whole
        # process, and other threads may be downloading.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        asyncio.run(_download(missing, cache, limits, ended, cancel or (lambda: False)))
        unreachable = counts[DEAD_DNS] + counts[DEAD_DNS_FOR_NOW] + counts[DEAD_CONNECTION]
        if len(missing) >= 20 and unreachable == len(missing):
            logger.warning(
                "none of %d addresses could be reached: does this machine have internet access?", len(missing)
            )
        # from the file: a cancelled download may have written rows that its tasks never returned
        known.update((url, found) for url in missing if (found := cache.get(url)) is not None)
    return {url: _under(known[url], limits) for url in dict.fromkeys(urls) if url in known}
