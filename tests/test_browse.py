"""Browsing a study's images, through real HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from test_figures import CLASSES, METHODS, Squares, make_squares
from test_html_report import Page

from augbench.artifacts.shards import ShardRow, encode_image, write_shard
from augbench.commands import browse
from augbench.commands.browse import PER_PAGE, open_server
from augbench.errors import UserError
from augbench.plan.paths import Plan

EXTRA = 130  # images of a second shard: with the first, three pages


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    body: bytes


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> Answer:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    response = connection.getresponse()
    answer = Answer(response.status, response.headers.get_content_type(), response.read())
    connection.close()
    return answer


@contextmanager
def serving(plan: Plan) -> Iterator[int]:
    with open_server(plan, 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Squares:
    folder = tmp_path_factory.mktemp("squares")
    made, old = make_squares(folder), Path.cwd()
    os.chdir(folder)
    rows = [
        ShardRow(
            encode_image(Image.new("RGB", (16, 16), (number, 0, 0)), "png", 92),
            0,
            "class_a",
            8 + number,
            f"prompt {number}",
            "model",
            number,
        )
        for number in range(EXTRA)
    ]
    write_shard(made.plan.shard("clip_prompts", "class_a", "10"), rows, {})
    os.chdir(old)
    return made


@pytest.fixture(autouse=True)
def in_the_studys_folder(squares: Squares, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(squares.job.store.root.parents[2])


@pytest.fixture
def port(squares: Squares) -> Iterator[int]:
    with serving(squares.plan) as found:
        yield found


def test_every_image_of_every_class_and_method_is_shown_as_it_is(squares: Squares, port: int) -> None:
    for method in squares.plan.study.pooled:
        for class_id in CLASSES:
            shards = [
                path
                for part in ("0", "10")
                if (path := Path(squares.plan.shard(method, class_id, part))).exists()
            ]
            expected = [
                row["sha256"]
                for path in shards
                for row in pq.read_table(path, columns=["sha256"]).to_pylist()
            ]
            found: list[str] = []
            for number in range(1, -(-len(expected) // PER_PAGE) + 1):
                page = Page(ask(port, f"/?class={class_id}&method={method}&page={number}").body.decode())
                images = [known for known in page.all("img") if known["src"].startswith("/image")]
                assert len(images) <= PER_PAGE and all(known["alt"] for known in images)
                if class_id == "class_a":
                    found += [hashlib.sha256(ask(port, known["src"]).body).hexdigest() for known in images]
                else:
                    found += expected[: len(images)]
            assert found == expected


def test_pages_lead_to_each_other(port: int) -> None:
    first = Page(ask(port, "/?class=class_a&method=clip_prompts").body.decode())
    addresses = [known["href"] for known in first.all("a") if known["href"].startswith("/?")]
    assert addresses == ["/?class=class_a&method=clip_prompts&page=2", "/?class=class_b&method=clip_prompts"]
    assert f"Images 1 to 60 of {EXTRA + 8}" in first.text_of("h2")
    last = Page(ask(port, "/?class=class_a&method=clip_prompts&page=3").body.decode())
    assert f"Images 121 to {EXTRA + 8} of {EXTRA + 8}" in last.text_of("h2")
    options = [known["value"] for known in first.all("option")]
    assert options == [*CLASSES, *(name for name in METHODS if name not in ("none", "retrieval_200"))]


def test_details_are_those_of_the_shard(port: int) -> None:
    page = Page(ask(port, "/?class=class_a&method=clip_prompts&page=2").body.decode())
    details = [
        dict(json.loads(known["data-details"])) for known in page.all("button") if "data-details" in known
    ]
    # the second page begins with the 61st image, number 52 of the second shard
    assert (details[0]["Image"], details[0]["Prompt"], details[0]["Seed"]) == ("60", "prompt 52", "52")
    retrieved = Page(ask(port, "/?class=class_b&method=retrieval").body.decode())
    assert (
        dict(
            json.loads(
                next(known["data-details"] for known in retrieved.all("button") if "data-details" in known)
            )
        )["Found at"]
        == "https://example.org/0"
    )


def test_the_page_asks_nobody_else(port: int) -> None:
    page = Page(ask(port, "/").body.decode())
    addresses = [
        known[name] for _, known in page.elements for name in ("src", "href", "action") if name in known
    ]
    assert addresses and all(
        address.startswith(("/", "#", "data:")) and not address.startswith("//") for address in addresses
    )


@pytest.mark.parametrize(
    "query",
    [
        "class=../class_a&method=clip_prompts&part=0&row=0",
        "class=class_a&method=../retrieval&part=0&row=0",
        "class=class_a&method=clip_prompts&part=../class_b/0&row=0",
        "class=class_a&method=clip_prompts&part=/etc/passwd&row=0",
        "class=class_a&method=none&part=0&row=0",
        "class=class_a&method=clip_prompts&part=0&row=8",
        "class=class_a&method=clip_prompts&part=0&row=-1",
        "class=class_a&method=clip_prompts&part=0&row=x",
        "class=class_a&method=clip_prompts",
    ],
)
def test_nothing_but_images_of_the_study_can_be_asked_for(port: int, query: str) -> None:
    encoded = "&".join(
        f"{name}={quote(value, safe='')}" for name, value in (pair.split("=") for pair in query.split("&"))
    )
    for path in (f"/image?{query}", f"/image?{encoded}"):
        assert (ask(port, path).status, ask(port, path).kind) == (404, "text/plain")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/../../etc/passwd",
        "//etc/passwd",
        "/results/squares/config.yaml",
        "/?class=nobody",
        "/?method=none",
        "/?page=0",
        "/?page=99",
        "/?page=x",
    ],
)
def test_there_are_no_other_pages(port: int, path: str) -> None:
    assert ask(port, path).status == 404


def test_a_page_elsewhere_cannot_read_through_the_readers_browser(port: int) -> None:
    assert ask(port, "/", host=f"evil.example:{port}").status == 403
    assert ask(port, "/", host=f"localhost:{port}").status == 200


def test_it_is_for_reading_and_for_this_machine_alone(squares: Squares, port: int) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(squares.plan.root).rglob("*")}
    assert [ask(port, "/", method).status for method in ("POST", "PUT", "DELETE")] == [501] * 3
    head = ask(port, "/", "HEAD")
    assert head.status == 200 and head.body == b""
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=5):
        pass
    assert {path: path.stat().st_mtime_ns for path in Path(squares.plan.root).rglob("*")} == before


def test_a_damaged_shard_is_named_in_one_line_and_the_rest_is_shown(squares: Squares, port: int) -> None:
    path = Path(squares.plan.shard("boomerang", "class_f", "0"))
    content = path.read_bytes()
    path.write_bytes(content[:100])
    try:
        answer = ask(port, "/?class=class_f&method=boomerang")
        assert answer.status == 500 and answer.body.decode().startswith(f"{path}: not a whole Parquet file")
        assert ask(port, "/?class=class_e&method=boomerang").status == 200
    finally:
        path.write_bytes(content)


def test_a_class_without_images_yet_says_so(squares: Squares, port: int) -> None:
    path = Path(squares.plan.shard("boomerang", "class_f", "0"))
    aside = path.rename(path.with_suffix(".aside"))
    try:
        assert "There are no images of this class from this method yet." in Page(
            ask(port, "/?class=class_f&method=boomerang").body.decode()
        ).text_of("p")
    finally:
        aside.rename(path)


def test_a_study_without_images_is_one_clear_line(
    squares: Squares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="results/squares: no images there yet; run the study first"):
        open_server(squares.plan, 0)


def test_a_taken_port_is_one_clear_line(squares: Squares, port: int) -> None:
    with pytest.raises(UserError, match=f"--port: {port}; .*0 for any free port"):
        open_server(squares.plan, port)
    with pytest.raises(UserError, match="allowed: 0 to 65535"):
        open_server(squares.plan, 70000)


def test_the_command_says_where_to_look_and_ends_on_ctrl_c(squares: Squares, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(squares.job.study.model_dump(mode="json")))
    environment = {**os.environ, "PYTHONPATH": str(Path(browse.__file__).parents[2])}
    command = [sys.executable, "-m", "augbench.cli", "browse", "--port", "0", "--configfile", str(study)]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # a shell makes a process that it starts with "&" ignore this signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("squares: http://127.0.0.1:")
        assert ask(int(line.rsplit(":", 1)[1].partition("/")[0]), "/").status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
