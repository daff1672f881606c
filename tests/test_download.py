"""Downloads: each URL has one fate, is fetched once, and never leads into the local network."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from hostile_server import (
    BAD,
    GOOD,
    KINDS,
    NEVER_ASKED,
    HostileServer,
    encoded,
    hostile_server,
    kind_of,
    picture,
)
from PIL import Image
from yarl import URL

from augbench.errors import UserError
from augbench.progress import Progress
from augbench.retrieval.web import addresses, fetch
from augbench.retrieval.web.addresses import (
    GuardedResolver,
    guarded_socket,
    may_connect,
    parse_url,
    redirected,
)
from augbench.retrieval.web.cache import Cache, Fetched
from augbench.retrieval.web.download import download
from augbench.retrieval.web.fates import DEAD_HTTP, FATES, FETCHED, Ended, Limits, is_transient
from augbench.retrieval.web.fetch import Fetcher, open_session, opted_out

LOOPBACK = Limits(
    concurrency=64,
    per_host=64,
    timeout_s=5,
    max_bytes=1_000_000,
    backoff_s=0.05,
    allow_private=("127.0.0.1/32",),
)
QUICK = [kind for kind in KINDS if KINDS[kind] != "timeout"]


@dataclass(frozen=True)
class Visited:
    """A web server whose images were downloaded once."""

    web: HostileServer
    path: Path
    found: dict[str, Fetched]


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visited]:
    """2,000 URLs, one third of them bad."""
    path = tmp_path_factory.mktemp("visited") / "images.sqlite"
    with hostile_server(2000, seed=1) as web:
        with Cache(path) as cache:
            found = download(web.urls(), cache, LOOPBACK)
        yield Visited(web, path, found)


@pytest.fixture(scope="module")
def plain() -> Iterator[HostileServer]:
    """40 good images."""
    with hostile_server(40, kinds=["jpeg"]) as web:
        yield web


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    """An empty cache."""
    with Cache(tmp_path / "images.sqlite") as cache:
        yield cache


def fate(url: str, cache: Cache, limits: Limits = LOOPBACK) -> str:
    return download([url], cache, limits)[url].fate


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Run code with this file's imports in a separate process."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PROJECT / "src"), str(PROJECT / "tests")]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- fates ----------------------------------------------------------------------------------------


def test_every_one_of_2000_urls_has_its_fate(visited: Visited) -> None:
    web = visited.web
    wrong = {
        web.kind(i): (url, visited.found[url].fate)
        for i, url in enumerate(web.urls())
        if visited.found[url].fate != KINDS[web.kind(i)]
    }
    assert wrong == {}
    assert {web.kind(index) for index in range(web.count)} == set(KINDS), "every kind occurs"


def test_the_ledger_adds_up(visited: Visited) -> None:
    expected = Counter(visited.web.expected().values())
    assert expected.total() == len(visited.found) == 2000
    assert Counter(found.fate for found in visited.found.values()) == expected
    with Cache(visited.path) as cache:
        assert cache.fates() == expected
        assert {url: cache.get(url) for url in visited.found} == visited.found


def test_about_a_third_of_the_hostile_web_is_bad() -> None:
    bad = sum(kind_of(index, 1) in BAD for index in range(2000))
    assert 600 < bad < 733


def test_every_fate_has_a_meaning(visited: Visited) -> None:
    named = {
        found.fate if not found.fate.startswith("dead: HTTP") else DEAD_HTTP
        for found in visited.found.values()
    }
    assert named <= set(FATES)


def test_what_was_fetched_is_the_file_that_was_sent(visited: Visited) -> None:
    web = visited.web
    with Cache(visited.path, read_only=True) as cache:
        for index in range(web.count):
            found = visited.found[web.url(index)]
            if found.fate != FETCHED:
                assert not found.held and found.sha256 is None and found.size is None
                continue
            image = cache.image(found.url)
            assert (image.mode, image.size) == ("RGB", (found.width, found.height)) == ("RGB", (64, 48))
            if web.kind(index) not in ("png", "webp", "gif", "cmyk"):
                assert cache.content(found.url) == picture(index)


def test_rows_say_how_far_a_url_got(visited: Visited) -> None:
    web, seen = visited.web, set()
    for index in range(web.count):
        kind, found = web.kind(index), visited.found[web.url(index)]
        if kind in seen:
            continue
        seen.add(kind)
        if kind == "redirect":
            assert found.final_url == f"{web.base}/hop/1/{index}.jpg"
        if kind in ("404", "500"):
            assert found.status == int(kind)
        if kind == "html":
            assert (found.status, found.content_type) == (200, "image/jpeg")
        if kind == "private":
            assert (found.status, found.final_url) == (None, None)
        assert found.fetched_at.endswith("+00:00")
    assert {"redirect", "404", "500", "html", "private"} <= seen


def test_answers_that_invite_it_are_asked_for_again_and_no_others(visited: Visited) -> None:
    web, requests = visited.web, visited.web.stats()["requests"]
    by_kind: dict[str, set[int]] = {}
    for index in range(web.count):
        by_kind.setdefault(web.kind(index), set()).add(requests.get(index, 0))
    assert by_kind["500"] == {3} and by_kind["500_then_200"] == by_kind["429_then_200"] == {2}
    assert by_kind["429_for_an_hour"] == {1}, "an hour is beyond the deadline"
    once = (
        set(KINDS)
        - NEVER_ASKED
        - {
            "500",
            "500_then_200",
            "429_then_200",
            "reset",
            "cut",
            "not_http",
            "redirect_circle",
            "redirect_self",
        }
    )
    assert {kind: by_kind[kind] for kind in once} == {kind: {1} for kind in once}
    assert {kind: by_kind[kind] for kind in NEVER_ASKED} == {kind: {0} for kind in NEVER_ASKED}


def test_a_second_run_asks_nothing(visited: Visited) -> None:
    before = visited.web.stats()["total"]
    with Cache(visited.path) as cache:
        assert download(visited.web.urls(), cache, LOOPBACK) == visited.found
    assert visited.web.stats()["total"] == before


def test_https_on_a_port_without_tls_is_dead(plain: HostileServer, cache: Cache) -> None:
    assert fate(plain.url(0).replace("http:", "https:"), cache) == "dead: TLS"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "photo.jpg",
        "/etc/passwd",
        "C:\\photo.jpg",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "gopher://127.0.0.1/",
    ],
)
def test_only_http_and_https_are_asked(text: str, cache: Cache) -> None:
    assert fate(text, cache) == "refused scheme"


@pytest.mark.parametrize(
    "text",
    [
        "http://",
        "http:///photo.jpg",
        "http://host:99999/",
        "http://[::1/",
        "http://" + "a" * 64 + ".org/",
        "http://\udcff.org/",
    ],
)
def test_what_is_no_url_is_called_so(text: str, cache: Cache) -> None:
    assert fate(text, cache) == "bad URL"
    assert cache.get(text) is not None


def test_one_url_given_twice_is_fetched_once(cache: Cache) -> None:
    with hostile_server(1, kinds=["jpeg"]) as web:
        assert list(download([web.url(0)] * 3, cache, LOOPBACK)) == [web.url(0)]
        assert web.stats()["requests"] == {0: 1}


SIGNED = [
    "/sig/http%3A%2F%2Fcdn.example.org%2Fx.jpg",
    "/i.jpg?type=image%2Fjpeg&Signature=qZ0ARjdg%2BPP2g%3D",
    "/p%40x%27s%2C%7E%21.jpg",
    "/caf%c3%a9.jpg",
    "/a%zz%.jpg",
    "/x.jpg?a={b}|c&&d=1+2;e",
    "/e.jpg?",
    "/up/../dots/./a.jpg",
    "/unsafe/http://e.org//a.jpg;v=1",
    "?q=%2F",
]


def sent(address: URL) -> str:
    """The request target that aiohttp writes for an address."""
    return address.raw_path_qs


@pytest.mark.parametrize("target", SIGNED)
def test_an_address_is_sent_as_the_corpus_writes_it(target: str) -> None:
    whole = target if target.startswith("/") else f"/{target}"
    assert sent(parse_url(f"http://Host.example{target}#part")) == whole
    found = redirected(parse_url("http://host.example/a?b"), f"https://other.example{target}")
    assert (found.host, sent(found)) == ("other.example", whole)


@pytest.mark.parametrize(
    ("written", "target"),
    [
        (" http://h/a b.jpg\n", "/a%20b.jpg"),
        ("http://h/a\r\nHost: evil\t.jpg", "/aHost:%20evil.jpg"),
        ("http://h/a\x00\x7f.jpg", "/a%00%7F.jpg"),
        ("http://h/café.jpg?q=日", "/caf%C3%A9.jpg?q=%E6%97%A5"),
        ("http://h/caf\udce9.jpg", "/caf%E9.jpg"),
        ("http://h", "/"),
    ],
)
def test_only_what_a_request_cannot_hold_is_escaped(written: str, target: str) -> None:
    assert sent(parse_url(written)) == target


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/unsafe/http://e.org//a%2Fb.jpg", "http://h:8/unsafe/http://e.org//a%2Fb.jpg"),
        ("//other/a%40.jpg?", "http://other/a%40.jpg?"),
        ("?b=%2F", "http://h:8/one/two?b=%2F"),
        ("three%2F.jpg#x", "http://h:8/one/three%2F.jpg"),
        ("../up.jpg", "http://h:8/up.jpg"),
    ],
)
def test_redirects_keep_their_escapes(location: str, target: str) -> None:
    assert str(redirected(parse_url("http://h:8/one/two?a=1"), location)) == target


@pytest.mark.parametrize(
    ("location", "fate_of_it"),
    [
        ("file:///etc/passwd", "refused scheme"),
        ("http://user:word@h/", "refused credentials"),
        ("http://[::1/", "bad URL"),
        ("http:///a.jpg", "bad URL"),
        ("//h:99999/", "bad URL"),
        ("http://h/\ud800", "bad URL"),
    ],
)
def test_a_redirect_is_checked_like_an_address(location: str, fate_of_it: str) -> None:
    with pytest.raises(Ended, match=fate_of_it):
        redirected(parse_url("http://h/a"), location)


def test_what_was_refused_because_it_was_sent_decoded_is_asked_for_again(cache: Cache) -> None:
    with hostile_server(1, kinds=["jpeg"]) as web:
        escaped, plain = web.url(0).replace(".jpg", "%2Ejpg"), web.url(0)
        refused = Fetched(escaped, "dead: HTTP 403", final_url=plain, status=403)
        cache.put([(refused, None), (replace(refused, url=plain), None)])
        found = download([escaped, plain], cache, LOOPBACK)
    assert found[plain].status == 403 and found[plain].fetched_at == ""
    assert found[escaped].final_url == escaped and found[escaped].fetched_at != ""


# --- limits ---------------------------------------------------------------------------------------


def test_the_limit_on_bytes_is_the_largest_file_that_is_kept(plain: HostileServer, cache: Cache) -> None:
    size = len(picture(0))
    assert fate(plain.url(0), cache, replace(LOOPBACK, max_bytes=size - 1)) == "too large"
    assert fate(plain.url(0), cache, replace(LOOPBACK, max_bytes=size)) == FETCHED


def test_the_limit_on_bytes_counts_what_a_compressed_transfer_unpacks_to(cache: Cache) -> None:
    with hostile_server(1, kinds=["gzipped"]) as web:
        assert fate(web.url(0), cache, replace(LOOPBACK, max_bytes=len(picture(0)) - 1)) == "too large"
        assert cache.fates() == {"too large": 1}, "it was broken off, not only judged"


def test_limits_on_size_hold_at_their_edges(plain: HostileServer, cache: Cache) -> None:
    cases = [
        ({"min_side": 48}, FETCHED),
        ({"min_side": 49}, "too small"),
        ({"max_pixels": 3072}, FETCHED),
        ({"max_pixels": 3071}, "too many pixels"),
    ]
    for index, (limits, expected) in enumerate(cases):
        settings = replace(LOOPBACK, **limits)  # type: ignore[arg-type]
        assert fate(plain.url(index), cache, settings) == expected


def test_other_limits_judge_what_is_there_again(cache: Cache) -> None:
    with hostile_server(1, kinds=["jpeg"]) as web:
        url = web.url(0)
        assert fate(url, cache) == FETCHED
        assert fate(url, cache, replace(LOOPBACK, min_side=100)) == "too small"
        assert fate(url, cache, replace(LOOPBACK, max_bytes=10)) == "too large"
        assert fate(url, cache) == FETCHED
        assert web.stats()["total"] == 1


def test_what_was_refused_under_other_limits_is_asked_for_again(cache: Cache) -> None:
    with hostile_server(1, kinds=["opt_out"]) as web:
        url = web.url(0)
        assert [fate(url, cache) for _ in range(2)] == ["opt-out"] * 2 and web.stats()["total"] == 1
        assert fate(url, cache, replace(LOOPBACK, respect_opt_out=False)) == FETCHED
        assert fate(url, cache) == "opt-out", (
            "an image that was fetched in spite of its header is not used once headers count"
        )


def test_at_most_so_many_images_of_a_host_are_in_flight(cache: Cache) -> None:
    with hostile_server(60, kinds=["jpeg", "redirect"]) as web:
        found = download(web.urls(), cache, replace(LOOPBACK, per_host=3, concurrency=32))
        assert {row.fate for row in found.values()} == {FETCHED}
        assert web.stats()["most_in_flight"] <= 3


def test_waiting_for_a_hosts_turn_does_not_count_against_the_deadline() -> None:
    async def fetch_at_once(urls: list[str], limits: Limits) -> list[str]:
        resolver = GuardedResolver(limits.networks(), 1)
        async with open_session(limits, resolver) as session:
            with ThreadPoolExecutor(1) as decoders:
                fetcher = Fetcher(session, limits, decoders)
                return [row.fate for row, _ in await asyncio.gather(*map(fetcher.fetch, urls))]

    with hostile_server(4, kinds=["slow"]) as web:
        assert (
            asyncio.run(fetch_at_once(web.urls(), replace(LOOPBACK, timeout_s=2.5, per_host=1)))
            == [FETCHED] * 4
        )
        assert web.stats()["most_in_flight"] == 1


@pytest.mark.parametrize(
    "tags",
    [
        ["noai"],
        ["NoAI, NoImageAI"],
        ["max-snippet:5", "noindex"],
        ["otherbot: noimageindex"],
        ["none"],
        ["nofollow, otherbot: noai"],
        ["noml"],
        ["max-image-preview:large, noml"],
    ],
)
def test_an_opt_out_is_respected_however_it_is_written(tags: list[str]) -> None:
    assert opted_out(tags)


@pytest.mark.parametrize(
    "tags",
    [
        [],
        ["all"],
        ["nofollow"],
        ["max-image-preview:large"],
        ["max-image-preview:none"],
        ["googlebot: max-image-preview: none, max-video-preview:0"],
        ["unavailable_after: 25 Jun 2030 15:00:00 GMT"],
        ["noarchive, nosnippet"],
    ],
)
def test_other_robots_tags_are_no_opt_out(tags: list[str]) -> None:
    assert not opted_out(tags)


# --- addresses ------------------------------------------------------------------------------------

PUBLIC = [
    "8.8.8.8",
    "93.184.216.34",
    "172.15.0.1",
    "172.32.0.1",
    "100.63.0.1",
    "2001:4860:4860::8888",
    "64:ff9b::808:808",
    "2002:808:808::1",
    "::ffff:8.8.8.8",
]
NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.8.9.10", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.2.1", "192.168.1.1", "198.18.0.1", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::a00:1",
    "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1",
    "64:ff9b::a00:1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:a00:1::1", "2002:7f00:1::1",
    "2001::1", "2001:db8::1", "100::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_connected_to(address: str) -> None:
    assert may_connect(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_no_other_address_may_be_connected_to(address: str) -> None:
    assert not may_connect(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_in_a_url_is_refused_before_anything_is_sent(address: str, cache: Cache) -> None:
    host = f"[{address}]" if ":" in address else address
    assert fate(f"http://{host}/a.jpg", cache, replace(LOOPBACK, allow_private=())) == "refused address"


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0x7f.0.0.1",
        "017700000001",
        "0",
        "134744072",
        "①②⑦.0.0.1",
    ],
)
def test_an_address_in_disguise_is_refused(host: str, cache: Cache) -> None:
    assert fate(f"http://{host}/a.jpg", cache, replace(LOOPBACK, allow_private=())) == "refused address"


def test_a_network_that_is_allowed_allows_nothing_beside_it() -> None:
    networks = Limits(allow_private=("127.0.0.1/32", "10.1.0.0/16")).networks()
    assert (
        may_connect("127.0.0.1", networks)
        and may_connect("10.1.2.3", networks)
        and may_connect("::ffff:10.1.2.3", networks)
    )
    assert (
        not may_connect("127.0.0.2", networks)
        and not may_connect("10.2.0.1", networks)
        and not may_connect("::1", networks)
    )


def test_a_network_that_is_none_is_named(cache: Cache) -> None:
    with pytest.raises(
        UserError, match=r"allow_private: .*127\.0\.0\.1/33.*give networks such as 127\.0\.0\.0/8"
    ):
        download(["http://a/"], cache, Limits(allow_private=("127.0.0.1/33",)))


class Names:
    """A name server: the answers to successive lookups of each name; the last one repeats."""

    def __init__(self, **answers: list[list[str] | OSError]) -> None:
        self.answers = answers
        self.asked: Counter[str] = Counter()

    def __call__(self, host: str, port: int) -> list[str]:
        name = host.removesuffix(".test")
        answers = self.answers[name]
        answer = answers[min(self.asked[name], len(answers) - 1)]
        self.asked[name] += 1
        if isinstance(answer, OSError):
            raise answer
        return answer


def named(web: HostileServer, name: str, index: int = 0) -> str:
    """URL of an image with a host name instead of the server's address."""
    return web.url(index).replace("127.0.0.1", f"{name}.test")


def test_a_name_is_looked_up_and_its_address_checked(
    plain: HostileServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(
        good=[["127.0.0.1"]],
        private=[["10.0.0.1"]],
        mixed=[["127.0.0.1", "192.168.0.1"]],
        six=[["::1"]],
        mapped=[["::ffff:10.0.0.1"]],
    )
    monkeypatch.setattr(addresses, "lookup", names)
    found = download([named(plain, name) for name in names.answers], cache, LOOPBACK)
    assert [row.fate for row in found.values()] == [FETCHED, *["refused address"] * 4]


def test_localhost_is_refused_by_its_address(cache: Cache) -> None:
    assert fate("http://localhost/a.jpg", cache, replace(LOOPBACK, allow_private=())) in (
        "refused address",
        "dead: DNS",
    )


def test_a_name_that_changes_its_address_between_check_and_connection_gains_nothing(
    plain: HostileServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(flips=[["127.0.0.1"], ["127.0.0.2"]])
    monkeypatch.setattr(addresses, "lookup", names)
    opened: list[str] = []

    def watched(networks: object) -> object:
        open_socket = guarded_socket(networks)  # type: ignore[arg-type]

        def watch(info: object) -> socket.socket:
            opened.append(info[4][0])  # type: ignore[index]
            return open_socket(info)

        return watch

    monkeypatch.setattr(fetch, "guarded_socket", watched)
    assert fate(named(plain, "flips", 0), cache) == FETCHED
    assert (opened, names.asked["flips"]) == (["127.0.0.1"], 1), (
        "the address that was checked is the one that was connected to"
    )
    assert fate(named(plain, "flips", 1), cache) == "refused address"
    assert (opened, names.asked["flips"]) == (["127.0.0.1"], 2)


def test_no_socket_is_opened_to_a_refused_address_whoever_asks() -> None:
    open_socket = guarded_socket(LOOPBACK.networks())
    with open_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 80))) as allowed:
        assert allowed.family == socket.AF_INET
    for family, address in (
        (socket.AF_INET, ("10.0.0.1", 80)),
        (socket.AF_INET, ("127.0.0.2", 80)),
        (socket.AF_INET6, ("::1", 80, 0, 0)),
    ):
        with pytest.raises(Ended, match="refused address"):
            open_socket((family, socket.SOCK_STREAM, 0, "", address))


def test_a_redirect_to_a_private_address_is_refused_though_the_first_host_is_allowed(cache: Cache) -> None:
    with hostile_server(1, kinds=["redirect_private"]) as web:
        row = download([web.url(0)], cache, LOOPBACK)[web.url(0)]
        assert (row.fate, row.final_url, row.status) == ("refused address", web.url(0), 302)
        assert web.stats()["requests"] == {0: 1}


def test_names_without_a_host_are_dead_and_silent_name_servers_may_answer_another_day(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(
        gone=[socket.gaierror(socket.EAI_NONAME, "no such host")],
        silent=[socket.gaierror(socket.EAI_AGAIN, "no answer")],
    )
    monkeypatch.setattr(addresses, "lookup", names)
    assert fate("http://gone.test/a.jpg", cache) == "dead: DNS" and names.asked["gone"] == 1
    assert fate("http://silent.test/a.jpg", cache) == "dead: DNS, for now" and names.asked["silent"] == 3
    assert is_transient("dead: DNS, for now") and not is_transient("dead: DNS")


def test_no_proxy_of_the_environment_is_asked(
    plain: HostileServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{plain.closed_port}")
    assert fate(plain.url(0), cache) == FETCHED


def test_a_machine_without_a_way_to_the_web_is_told_so(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(addresses, "lookup", Names(a=[socket.gaierror(socket.EAI_AGAIN, "no answer")]))
    with caplog.at_level(logging.WARNING):
        download([f"http://a.test/{i}.jpg" for i in range(20)], cache, LOOPBACK)
    assert "none of 20 addresses could be reached" in caplog.text


# --- images ---------------------------------------------------------------------------------------


def test_images_are_turned_as_their_exif_block_says(cache: Cache, tmp_path: Path) -> None:
    with hostile_server(1, image_of=sideways, kinds=["jpeg"]) as web:
        found = download(web.urls(), cache, LOOPBACK)[web.url(0)]
        assert (found.width, found.height) == cache.image(found.url).size == (48, 64)


def sideways(index: int) -> bytes:
    exif, stream = Image.Exif(), BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def test_a_tiff_is_not_an_image_here(cache: Cache) -> None:
    with hostile_server(1, image_of=tiff, kinds=["jpeg"]) as web:
        assert fate(web.url(0), cache) == "not an image"


def tiff(index: int) -> bytes:
    return encoded(Image.new("RGB", (64, 48)), "TIFF")


# --- the cache ------------------------------------------------------------------------------------

KILLED = """
import json, sys
from augbench.retrieval.web.cache import Cache
from augbench.retrieval.web.download import download
from augbench.retrieval.web.fates import Limits
urls, limits = json.load(open(sys.argv[2]))
with Cache(sys.argv[1]) as cache:
    download(urls, cache, Limits(**{**limits, "allow_private": tuple(limits["allow_private"])}))
"""


def test_after_kill_9_only_what_was_in_flight_is_asked_for_again(tmp_path: Path) -> None:
    limits = replace(LOOPBACK, concurrency=16)
    path, job = tmp_path / "images.sqlite", tmp_path / "job.json"
    with hostile_server(600, seed=2, kinds=QUICK) as web:
        job.write_text(
            json.dumps([web.urls(), {name: getattr(limits, name) for name in limits.__dataclass_fields__}])
        )
        process = python(KILLED, str(path), str(job))
        while web.stats()["total"] < 250:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        while web.stats()["in_flight"]:
            time.sleep(0.02)
        before = web.stats()["requests"]
        with Cache(path) as cache:
            kept = {index for index in range(web.count) if cache.get(web.url(index)) is not None}
            in_flight = set(before) - kept
            assert kept and len(kept) < 600 and len(in_flight) <= limits.concurrency
            found = download(web.urls(), cache, limits)
        after = web.stats()["requests"]
        again = {index for index in before if after[index] > before[index]}
        assert again == in_flight
        assert {url: row.fate for url, row in found.items()} == web.expected()


def test_a_second_process_is_told_that_the_cache_is_in_use(cache: Cache) -> None:
    cache.get("http://a/")
    code = (
        "import sys; from augbench.retrieval.web.cache import Cache; "
        "Cache(sys.argv[1], read_only=sys.argv[2] == 'True').open()"
    )
    waiting = [python(code, str(cache.path), read_only) for read_only in ("False", "True")]
    for process in waiting:
        assert "another process has it open; wait until that has ended" in process.communicate()[1]


def test_readers_share_a_cache_that_nobody_writes(plain: HostileServer, tmp_path: Path) -> None:
    path = tmp_path / "images.sqlite"
    with Cache(path) as cache:
        download([plain.url(0)], cache, LOOPBACK)
    with Cache(path, read_only=True) as one, Cache(path, read_only=True) as two:
        assert one.content(plain.url(0)) == two.content(plain.url(0)) == picture(0)
        with pytest.raises(UserError, match="readonly"):
            one.put([(Fetched("http://a/", "timeout"), None)])


def test_forgotten_files_give_their_space_back_and_are_fetched_again_when_asked_for(cache: Cache) -> None:
    with hostile_server(60, image_of=large, kinds=["jpeg"]) as web:
        download(web.urls(), cache, LOOPBACK)
        before = cache.path.stat().st_size
        assert before > 60 * 100_000
        cache.forget_bytes(web.urls()[10:])
        assert cache.path.stat().st_size < before / 4
        forgotten = cache.get(web.url(20))
        assert forgotten is not None and (forgotten.fate, forgotten.held, forgotten.width) == (
            FETCHED,
            False,
            200,
        )
        with pytest.raises(KeyError):
            cache.image(web.url(20))
        assert cache.content(web.url(5)) == large(5)
        assert download([web.url(20)], cache, LOOPBACK)[web.url(20)].held
        assert web.stats()["requests"][20] == 2 and cache.content(web.url(20)) == large(20)


def large(index: int) -> bytes:
    """An incompressible image of 120 kB."""
    return encoded(
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (200, 200, 3), dtype=np.uint8)), "BMP"
    )


def test_transient_fates_are_tried_again_when_asked_for_and_final_ones_are_not(cache: Cache) -> None:
    with hostile_server(40, kinds=["500", "404"]) as web:
        first = download(web.urls(), cache, LOOPBACK)
        asked = web.stats()["requests"]
        assert download(web.urls(), cache, LOOPBACK) == first and web.stats()["requests"] == asked
        download(web.urls(), cache, LOOPBACK, retry_transient=True)
        assert web.stats()["requests"] == {
            index: count * 2 if web.kind(index) == "500" else count for index, count in asked.items()
        }


def test_a_cancelled_download_returns_what_it_has_and_goes_on_where_it_was(cache: Cache) -> None:
    with hostile_server(200, kinds=["jpeg"]) as web:
        found = download(
            web.urls(), cache, replace(LOOPBACK, concurrency=4), cancel=lambda: cache.fates().total() >= 50
        )
        assert 50 <= len(found) < 70 and {row.fate for row in found.values()} == {FETCHED}
        assert len(download(web.urls(), cache, LOOPBACK)) == 200
        assert sum(count - 1 for count in web.stats()["requests"].values()) <= 4


def test_progress_counts_urls_and_those_known_before_as_done(
    plain: HostileServer, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    download(plain.urls()[:30], cache, LOOPBACK)
    progress = Progress("web", 40, "image")
    with caplog.at_level(logging.INFO):
        download(plain.urls(), cache, LOOPBACK, progress)
    assert (progress.done, progress.first) == (40, 30)
    assert "web: 40/40 images" in caplog.text and "10 fetched" in caplog.text


def test_threads_with_a_cache_each_may_share_a_progress(tmp_path: Path) -> None:
    progress = Progress("web", 200, "image")

    def one(place: int) -> int:
        with Cache(tmp_path / f"{place}.sqlite") as cache:
            return len(download(web.urls()[50 * place : 50 * place + 50], cache, LOOPBACK, progress))

    with hostile_server(200, seed=4, kinds=QUICK) as web, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [50] * 4
    assert progress.done == 200


@pytest.mark.parametrize("content", [b"not a database" * 100, None])
def test_a_file_that_is_no_cache_is_left_alone_and_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "images.sqlite"
    if content is None:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE images (url TEXT)")
        other.close()
        content = path.read_bytes()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"images\.sqlite: .*delete the file, or give another path"):
        Cache(path).open()
    assert path.read_bytes() == content


def test_a_cache_that_is_missing_is_named_by_its_readers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images\.sqlite: missing; run the download first"):
        Cache(tmp_path / "images.sqlite", read_only=True).open()


FULL_DISK = """
import resource, sys
from hostile_server import hostile_server
from augbench.errors import UserError
from augbench.retrieval.web.cache import Cache
from augbench.retrieval.web.download import download
from augbench.retrieval.web.fates import Limits
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
with Cache(sys.argv[1]) as cache:
    try:
        download(sys.argv[2:], cache, Limits(allow_private=("127.0.0.1/32",), per_host=8))
    except UserError as error:
        print(error)
"""


def test_a_full_disk_ends_the_download_with_one_line_and_keeps_what_was_fetched(tmp_path: Path) -> None:
    with hostile_server(60, image_of=large, kinds=["jpeg"]) as web:
        printed, errors = python(FULL_DISK, str(tmp_path / "images.sqlite"), *web.urls()).communicate()
        assert "then run again; nothing fetched is lost" in printed and len(printed.splitlines()) == 1
        assert errors == ""
        with Cache(tmp_path / "images.sqlite") as cache:
            kept = cache.fates()[FETCHED]
            assert 0 < kept < 60
            assert len(download(web.urls(), cache, LOOPBACK)) == cache.fates()[FETCHED] == 60
        assert web.stats()["total"] < 60 + 60 - kept + 1


MEMORY = """
import resource, sys
from augbench.retrieval.web.cache import Cache
from augbench.retrieval.web.download import download
from augbench.retrieval.web.fates import Limits
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
limits = Limits(concurrency=8, per_host=8, allow_private=("127.0.0.1/32",))
with Cache(sys.argv[1]) as cache:
    download(sys.argv[2:10], cache, limits)
    before = peak()
    found = download(sys.argv[2:], cache, limits)
print(peak() - before, sum(row.size for row in found.values()) // 1024)
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    with hostile_server(160, image_of=megabyte, kinds=["jpeg"]) as web:
        printed, errors = python(MEMORY, str(tmp_path / "images.sqlite"), *web.urls()).communicate()
    grown, fetched = map(int, printed.split())
    assert fetched > 150_000, errors
    assert grown < 40_000, "kB, of 160,000 fetched"


def megabyte(index: int) -> bytes:
    return encoded(Image.new("RGB", (640, 540), (index % 256, 0, 0)), "BMP")


# --- at scale -------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.skipif(
    "AUGBENCH_LARGE" not in os.environ, reason="minutes of downloads; set AUGBENCH_LARGE=1 to run it"
)
def test_50000_urls_have_their_fates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = replace(LOOPBACK, timeout_s=6)
    with hostile_server(50_000, seed=3) as web, Cache(tmp_path / "images.sqlite") as cache:
        urls, start, before = web.urls(), time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = download(urls, cache, limits)
        seconds, peak = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        stats = web.stats()
        wrong = {
            url: (row.fate, fate)
            for (url, row), fate in zip(found.items(), web.expected().values(), strict=True)
            if row.fate != fate
        }
        size = cache.path.stat().st_size
    with capsys.disabled():
        print(
            f"\n50,000 URLs in {seconds:.0f} s, {50_000 / seconds:.0f} per second; "
            f"{stats['total']} requests, at most {stats['most_in_flight']} at a time"
        )
        print(
            f"peak memory {peak / 1024:.0f} MiB, {before / 1024:.0f} MiB before; cache {size / 2**20:.0f} MiB"
        )
        for name, count in Counter(row.fate for row in found.values()).most_common():
            print(f"{count:7d} {name}")
    assert wrong == {}
    assert set(GOOD) <= {web.kind(index) for index in range(web.count)}
