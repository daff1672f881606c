"""A web server like the real web: a third of its images are missing, slow, broken, huge or forbidden.

Input: the number of images, a seed, optionally their pixels. Output: a real HTTP server on 127.0.0.1 in its
own process, and for each of its URLs the fate that a download must record: a pure function of the seed and
the image's number. The server counts its requests (``/_stats``).

The fates are right for clients that may connect to 127.0.0.1/32 and to no other private address, give up
after 5 to 20 s, :data:`MAX_BYTES`, 64 million pixels or 5 redirects, reject images with a side below 32
pixels, and retry twice.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import multiprocessing
import random
import re
import socket
import struct
import urllib.request
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from multiprocessing.connection import Connection
from typing import Any

MAX_BYTES = 20_000_000

PLAIN = ("jpeg", "png", "webp", "gif", "cmyk", "wrong_type", "no_type", "chunked", "gzipped", "traversal")
ROUNDABOUT = ("redirect", "redirect_relative", "429_then_200", "500_then_200", "slow")
GOOD = dict.fromkeys((*PLAIN, *ROUNDABOUT), "fetched")
BAD = {
    "404": "dead: HTTP 404",
    "410": "dead: HTTP 410",
    "500": "dead: HTTP 500",
    "429_for_an_hour": "dead: HTTP 429",
    "204": "dead: HTTP 204",
    "reset": "dead: connection",
    "cut": "dead: connection",
    "closed_port": "dead: connection",
    "not_http": "dead: not HTTP",
    "hangs": "timeout",
    "trickles": "timeout",
    "redirect_slowly": "timeout",
    "truncated_jpeg": "undecodable",
    "truncated_png": "undecodable",
    "corrupt_jpeg": "undecodable",
    "html": "not an image",
    "svg": "not an image",
    "empty": "not an image",
    "bomb_png": "too many pixels",
    "large_png": "too many pixels",
    "endless": "too large",
    "long": "too large",
    "gzip_bomb": "too large",
    "one_pixel": "too small",
    "opt_out": "opt-out",
    "opt_out_named": "opt-out",
    "redirect_circle": "redirect loop",
    "redirect_self": "redirect loop",
    "redirect_on_and_on": "too many redirects",
    "redirect_private": "refused address",
    "redirect_metadata": "refused address",
    "redirect_loopback": "refused address",
    "redirect_decimal": "refused address",
    "redirect_file": "refused scheme",
    "redirect_credentials": "refused credentials",
    "redirect_nonsense": "bad URL",
    "private": "refused address",
    "mapped": "refused address",
    "octal": "refused address",
    "file": "refused scheme",
    "ftp": "refused scheme",
    "credentials": "refused credentials",
}
KINDS = GOOD | BAD
"""Every kind of URL, and its fate."""

TARGETS = {
    "redirect_private": "http://10.0.0.1/secret.jpg",
    "redirect_metadata": "http://169.254.169.254/latest/meta-data/",
    "redirect_loopback": "http://127.0.0.2/secret.jpg",
    "redirect_decimal": "http://2130706433/secret.jpg",
    "redirect_file": "file:///etc/passwd",
    "redirect_credentials": "http://user:password@127.0.0.1/secret.jpg",
    "redirect_nonsense": "http://[/",
}
ELSEWHERE = {
    "private": "http://192.168.0.1/{name}",
    "mapped": "http://[::ffff:10.0.0.1]/{name}",
    "octal": "http://0177.0.0.1/{name}",
    "file": "file:///etc/passwd?{name}",
    "ftp": "ftp://127.0.0.1/{name}",
    "credentials": "http://user:password@127.0.0.1/{name}",
}
NEVER_ASKED = {*ELSEWHERE, "closed_port"}
"""Kinds whose URLs lead elsewhere: the server never hears of them."""

ImageOf = Callable[[int], bytes]


def kind_of(index: int, seed: int, kinds: Sequence[str] | None = None) -> str:
    """Kind of an image: one in three is bad, with all bad kinds equally likely; or any of ``kinds``."""
    chance = random.Random(f"{seed}/{index}")
    if kinds is not None:
        return chance.choice(kinds)
    if chance.random() < 1 / 3:
        return chance.choice(list(BAD))
    # most images on the web are plain
    return chance.choice([*GOOD, *["jpeg"] * 30, *["png"] * 10, *["webp"] * 6, *["gif"] * 3])


def picture(index: int) -> bytes:
    """The default image: a 64 x 48 JPEG of one colour with a bar, different for each index."""
    from PIL import Image

    image = Image.new("RGB", (64, 48), (index * 37 % 256, index * 101 % 256, index * 7 % 256))
    image.paste((255, 255, 255), (index % 48, 8, index % 48 + 16, 40))
    return encoded(image, "JPEG")


def encoded(image: Any, kind: str) -> bytes:
    """Encode a Pillow image as a file."""
    stream = BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


# --- the client's side ----------------------------------------------------------------------------


@dataclass(frozen=True)
class HostileServer:
    """A running server, as its clients see it."""

    port: int
    closed_port: int
    count: int
    seed: int
    kinds: tuple[str, ...] | None = None

    @property
    def base(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def kind(self, index: int) -> str:
        """The kind of an image."""
        return kind_of(index, self.seed, self.kinds)

    def url(self, index: int) -> str:
        """The URL of an image."""
        kind, name = self.kind(index), f"{index}.jpg"
        if kind in ELSEWHERE:
            return ELSEWHERE[kind].format(name=name)
        if kind == "closed_port":
            return f"http://127.0.0.1:{self.closed_port}/{name}"
        return f"{self.base}/..%2f..%2f..%2fetc%2f{name}" if kind == "traversal" else f"{self.base}/i/{name}"

    def urls(self) -> list[str]:
        """All URLs, in order."""
        return [self.url(index) for index in range(self.count)]

    def expected(self) -> dict[str, str]:
        """The fate of every URL."""
        return {self.url(index): KINDS[self.kind(index)] for index in range(self.count)}

    def stats(self) -> dict[str, Any]:
        """``requests`` by image (redirects count once), ``total``, ``in_flight``, ``most_in_flight``."""
        with urllib.request.urlopen(f"{self.base}/_stats") as answer:
            stats: dict[str, Any] = json.load(answer)
        return stats | {"requests": {int(index): count for index, count in stats["requests"].items()}}


@contextmanager
def hostile_server(
    count: int, seed: int = 0, image_of: ImageOf | None = None, kinds: Sequence[str] | None = None
) -> Iterator[HostileServer]:
    """Run a server.

    Parameters
    ----------
    image_of : callable, optional
        Function from an image's number to the bytes of a file that Pillow reads; a module's function, or a
        ``functools.partial`` of one, because it is pickled.
    kinds : sequence of str, optional
        Only these kinds of :data:`KINDS`.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    chosen = None if kinds is None else tuple(kinds)
    process = context.Process(target=_serve, args=(there, seed, image_of or picture, chosen), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(60):
            raise RuntimeError("the server did not start")
        port, closed_port = here.recv()
        yield HostileServer(port, closed_port, count, seed, chosen)
    finally:
        process.kill()
        process.join()


# --- the server's side ----------------------------------------------------------------------------


def _serve(pipe: Connection, seed: int, image_of: ImageOf, kinds: tuple[str, ...] | None) -> None:
    asyncio.run(_run(pipe, seed, image_of, kinds))


async def _run(pipe: Connection, seed: int, image_of: ImageOf, kinds: tuple[str, ...] | None) -> None:
    from aiohttp import web

    application = web.Application()
    application.router.add_route("GET", "/{tail:.*}", _Web(seed, image_of, kinds).answer)
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    await web.SockSite(runner, listening).start()
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # bound, so that no other process gets it, but not listening
    pipe.send((listening.getsockname()[1], closed.getsockname()[1]))
    orphaned = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), orphaned.set)
    await orphaned.wait()


class _Web:
    def __init__(self, seed: int, image_of: ImageOf, kinds: tuple[str, ...] | None) -> None:
        self.seed, self.image_of, self.kinds = seed, image_of, kinds
        self.requests: Counter[int] = Counter()
        self.in_flight = self.most_in_flight = 0

    @asynccontextmanager
    async def counted(self, index: int, first: bool) -> AsyncIterator[None]:
        self.requests[index] += first
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    async def answer(self, request: Any) -> Any:
        from aiohttp import web

        path = request.rel_url.raw_path
        if path == "/_stats":
            stats = {
                "requests": self.requests,
                "total": self.requests.total(),
                "in_flight": self.in_flight,
                "most_in_flight": self.most_in_flight,
            }
            return web.json_response(stats)
        found = re.search(r"(\d+)\.jpg$", path)
        if found is None:
            return web.Response(status=404)
        index = int(found.group(1))
        hop = re.match(r"/hop/(\d+)/", path)
        async with self.counted(index, first=hop is None):
            return await self.of_kind(
                request, index, kind_of(index, self.seed, self.kinds), int(hop.group(1)) if hop else 0
            )

    async def of_kind(self, request: Any, index: int, kind: str, hop: int) -> Any:
        from aiohttp import web

        if kind in ("404", "410", "500", "204"):
            return web.Response(status=int(kind))
        if kind.startswith("redirect"):
            return await self.redirect(request, index, kind, hop)
        if kind in ("reset", "not_http", "cut", "hangs", "trickles", "endless", "chunked"):
            return await self.odd(request, index, kind)
        if kind == "429_for_an_hour":
            return web.Response(status=429, headers={"Retry-After": "3600"})
        if kind in ("429_then_200", "500_then_200") and self.requests[index] == 1:
            return web.Response(
                status=int(kind[:3]), headers={"Retry-After": "1"} if kind.startswith("429") else {}
            )
        if kind == "slow":
            await asyncio.sleep(1)
        body, headers = self.file(index, kind)
        return web.Response(body=body, headers=headers)

    async def redirect(self, request: Any, index: int, kind: str, hop: int) -> Any:
        from aiohttp import web

        name = f"{index}.jpg"
        if kind in ("redirect", "redirect_relative") and hop:
            return web.Response(body=self.image_of(index), content_type="image/jpeg")
        if kind == "redirect_slowly":
            await asyncio.sleep(4)  # each hop is fast enough, all together are not
        target = {
            "redirect": f"http://{request.host}/hop/1/{name}",
            "redirect_relative": f"../hop/1/{name}",
            "redirect_self": f"/i/{name}",
            "redirect_circle": f"/i/{name}" if hop else f"/hop/1/{name}",
            "redirect_on_and_on": f"/hop/{hop + 1}/{name}",
            "redirect_slowly": f"/hop/{hop + 1}/{name}",
            **TARGETS,
        }[kind]
        return web.Response(status=302, headers={"Location": target})

    async def odd(self, request: Any, index: int, kind: str) -> Any:
        """Send answers that are not one complete message."""
        from aiohttp import web

        body = self.image_of(index)
        if kind == "reset":
            request.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            request.transport.abort()
            return web.Response()
        if kind == "not_http":
            request.transport.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
            request.transport.close()
            return web.Response()
        if kind == "hangs":
            await asyncio.sleep(3600)
        response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
        if kind in ("cut", "trickles"):
            response.content_length = 100_000
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            if kind == "cut":
                await response.write(body)
                request.transport.close()
            while kind == "trickles":
                await response.write(b"\xff")
                await asyncio.sleep(0.2)
            while kind == "endless":
                await response.write(bytes(65536))
            if kind == "chunked":
                for start in range(0, len(body), 500):
                    await response.write(body[start : start + 500])
                await response.write_eof()
        except ConnectionError:
            pass
        return response

    def file(self, index: int, kind: str) -> tuple[bytes, dict[str, str]]:
        """Return the body and the headers of a complete message."""
        headers = {"Content-Type": "image/jpeg"}
        if kind in ("png", "webp", "gif"):
            return _as(self.image_of(index), kind.upper()), {"Content-Type": f"image/{kind}"}
        if kind == "cmyk":
            return _as(self.image_of(index), "JPEG", "CMYK"), headers
        if kind == "wrong_type":
            return self.image_of(index), {"Content-Type": "text/html; charset=utf-8"}
        if kind == "no_type":
            return self.image_of(index), {"Content-Type": ""}
        if kind == "gzipped":
            return gzip.compress(self.image_of(index)), headers | {"Content-Encoding": "gzip"}
        if kind == "gzip_bomb":
            return _gzip_bomb(), headers | {"Content-Encoding": "gzip"}
        if kind == "long":
            return _zeros(), headers
        if kind == "truncated_jpeg":
            return _as(self.image_of(index), "JPEG")[:-100], headers
        if kind == "truncated_png":
            whole = _as(self.image_of(index), "PNG")
            return whole[: len(whole) // 2], {"Content-Type": "image/png"}
        if kind == "corrupt_jpeg":
            return b"\xff\xd8\xff\xe0" + random.Random(index).randbytes(500), headers
        if kind == "html":
            return b"<!DOCTYPE html><title>Gone</title><p>This picture is no longer here.", headers
        if kind == "svg":
            return b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>', {
                "Content-Type": "image/svg+xml"
            }
        if kind == "empty":
            return b"", headers
        if kind == "bomb_png":
            return _black_png(30_000), {"Content-Type": "image/png"}
        if kind == "large_png":
            return _black_png(9_000), {"Content-Type": "image/png"}
        if kind == "one_pixel":
            return _black_png(1), {"Content-Type": "image/png"}
        if kind == "opt_out":
            return self.image_of(index), headers | {"X-Robots-Tag": "noai, noimageai"}
        if kind == "opt_out_named":
            return self.image_of(index), headers | {"X-Robots-Tag": "somebot: noindex"}
        return self.image_of(index), headers


def _as(content: bytes, kind: str, mode: str = "RGB") -> bytes:
    from PIL import Image

    with Image.open(BytesIO(content)) as image:
        return encoded(image.convert(mode), kind)


@cache
def _zeros() -> bytes:
    return bytes(MAX_BYTES + 1)


@cache
def _gzip_bomb() -> bytes:
    return gzip.compress(_zeros(), 1)


@cache
def _black_png(side: int) -> bytes:
    """A black image of one bit per pixel, written by hand because no library writes decompression bombs."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer, row = zlib.compressobj(1), bytes(1 + (side + 7) // 8)
    pixels = (
        b"".join(packer.compress(row * 100) for _ in range(side // 100))
        + packer.compress(row * (side % 100))
        + packer.flush()
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )
