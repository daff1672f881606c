"""Browse: all added images of a study, class by class and method by method, in a browser on this machine.

Flows in: the study's shards as they lie on the disk, also those of a study that is still running. Flows out: pages and images over HTTP, to this machine
alone. Nothing is written, and nothing is read but the class table, the models' fingerprints and shards of the config's own rows and classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property, lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pyarrow.parquet as pq

from augbench.artifacts.parquet import whole
from augbench.artifacts.shards import media_type
from augbench.data.classes import ClassInfo, read_class_table
from augbench.errors import UserError
from augbench.files import read_json
from augbench.plan.paths import Plan
from augbench.report.html.parts import Thumb, models_of, templates, thumb_of
from augbench.report.pictures import RECORDED, ImageRecord, short_name

logger = logging.getLogger(__name__)
HOST = "127.0.0.1"
PER_PAGE = 60
GROUPS_HELD = 16  # row groups of shards in memory: a page's images come from a few
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Place:
    """An image in a shard: the shard's part, and the row in it."""

    part: str
    row: int


@dataclass(frozen=True)
class Gallery:
    """A study's images: what there is of a class and a method, and single ones."""

    plan: Plan

    def check(self) -> None:
        """See that there is something to look at.

        Raises
        ------
        UserError
            The study has no class table, or no shard yet.
        """
        table = Path(self.plan.classes)
        pools = (Path(self.plan.pool(method)).parent for method in self.plan.study.pooled)
        if not table.is_file() or not any(path for pool in pools for path in pool.glob("*/*.parquet")):
            raise UserError(self.plan.root, "no images there yet", "run the study first: augbench run")

    @cached_property
    def classes(self) -> dict[str, ClassInfo]:
        """The classes by id, in label order."""
        return {info.class_id: info for info in read_class_table(self.plan.classes)}

    @cached_property
    def models(self) -> dict[str, str]:
        """What the study's models are called, by hash."""
        paths = (Path(self.plan.path("models", f"{model}.json")) for model in ("diffusion", "clip"))
        return models_of({path.stem: read_json(path) for path in paths if path.is_file()})

    def parts(self, method: str, class_id: str) -> list[tuple[str, int]]:
        """Shards of a class, by number, with the number of their images.

        Raises
        ------
        KeyError
            The study has no such row or class.
        UserError
            A shard is damaged.
        """
        if method not in self.plan.study.pooled or class_id not in self.classes:
            raise KeyError(f"{method}, {class_id}")
        folder = Path(self.plan.shard(method, class_id, "0")).parent
        found = []
        for path in sorted(
            (path for path in folder.glob("*.parquet") if path.stem.isdecimal()),
            key=lambda path: int(path.stem),
        ):
            with whole(path):
                found.append((path.stem, pq.read_metadata(path).num_rows))
        return found

    def places(self, method: str, class_id: str) -> list[Place]:
        """Every image of a class, in the order of the shards; raises as :meth:`parts`."""
        return [Place(part, row) for part, rows in self.parts(method, class_id) for row in range(rows)]

    def image(self, method: str, class_id: str, part: str, row: int) -> bytes:
        """An encoded image.

        Raises
        ------
        KeyError
            There is none.
        UserError
            The shard is damaged.
        """
        if not 0 <= row < dict(self.parts(method, class_id)).get(part, 0):
            raise KeyError(f"{method}, {class_id}, {part}, {row}")
        path = Path(self.plan.shard(method, class_id, part))
        return _encoded(path, path.stat().st_mtime_ns, row)

    def thumbs(self, method: str, class_id: str, places: list[Place]) -> list[Thumb]:
        """Images with all that their shards say of them; raises as :meth:`parts`."""
        tables: dict[str, list[dict[str, Any]]] = {}
        name, found = short_name(self.classes[class_id]), []
        for place in places:
            if place.part not in tables:
                path = self.plan.shard(method, class_id, place.part)
                with whole(path):
                    tables[place.part] = pq.read_table(path, columns=["index", *RECORDED]).to_pylist()
            known = dict(tables[place.part][place.row])
            picture = ImageRecord(
                panel=method,
                class_id=class_id,
                class_name=name,
                place=place.row,
                image=str(known.pop("index")),
                **known,
            )
            address = "/image?" + urlencode(
                {"method": method, "class": class_id, "part": place.part, "row": place.row}
            )
            found.append(thumb_of(picture, address, self.plan.study.label(method), self.models))
        return found


@lru_cache(maxsize=GROUPS_HELD)
def _images(path: Path, changed: int, group: int) -> list[bytes]:
    """The images of a row group; ``changed`` is the shard's time, so that one that was made anew is read anew."""
    with whole(path):
        rows = pq.ParquetFile(path).read_row_group(group, columns=["image"]).column("image").to_pylist()
    return [row["bytes"] for row in rows]


def _encoded(path: Path, changed: int, row: int) -> bytes:
    """The image in a row of a shard."""
    with whole(path):
        metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < rows:
            return _images(path, changed, group)[row]
        row -= rows
    raise KeyError(f"{path}, {row}")


def page(gallery: Gallery, query: dict[str, str]) -> str:
    """The page that ``query`` asks for: ``class``, ``method`` and ``page``, which counts from 1; the first of each where it says nothing.

    Raises
    ------
    KeyError
        There is no such class, method or page.
    """
    plan = gallery.plan
    class_ids, methods = [*gallery.classes], [*plan.study.pooled]
    class_id, method = query.get("class", class_ids[0]), query.get("method", methods[0])
    places = gallery.places(method, class_id)
    number, last = query.get("page", "1"), max(1, -(-len(places) // PER_PAGE))
    if not number.isdecimal() or not 1 <= int(number) <= last:
        raise KeyError(number)
    current = int(number)
    first = (current - 1) * PER_PAGE
    thumbs = gallery.thumbs(method, class_id, places[first : first + PER_PAGE])

    def address(**changes: str) -> str:
        return "/?" + urlencode({"class": class_id, "method": method, **changes})

    here = class_ids.index(class_id)
    pages = [
        (f"Page {other}", address(page=str(other)))
        for other in (current - 1, current + 1)
        if 1 <= other <= last
    ]
    pages += [
        (short_name(gallery.classes[class_ids[other]]), address(**{"class": class_ids[other]}))
        for other in (here - 1, here + 1)
        if 0 <= other < len(class_ids)
    ]
    name, label = short_name(gallery.classes[class_id]), plan.study.label(method)
    return (
        templates()
        .get_template("browse.html")
        .render(
            study=plan.study.study,
            hues={},
            title=f"{name}: {label}",
            lead=gallery.classes[class_id].definition or gallery.classes[class_id].name,
            classes=[(info.class_id, _name(info)) for info in gallery.classes.values()],
            methods=[(other, plan.study.label(other)) for other in methods],
            class_id=class_id,
            method=method,
            count=f"Images {first + 1:,} to {first + len(thumbs):,} of {len(places):,}"
            if thumbs
            else "No images",
            images=thumbs,
            pages=pages,
        )
    )


def _name(info: ClassInfo) -> str:
    """A class's name, and its id where that says something else."""
    name = short_name(info)
    return name if name == info.class_id else f"{name} ({info.class_id})"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, gallery: Gallery, port: int) -> None:
        gallery.check()
        self.gallery = gallery
        super().__init__((HOST, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "augbench", ""

    def do_GET(self) -> None:
        # a page elsewhere that has its own name point here must not read the images through the reader's browser
        if self.headers.get("Host", "") not in {
            f"{name}:{self.server.server_port}" for name in (HOST, "localhost")
        }:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"for this machine alone\n")
            return
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        try:
            if address.path == "/":
                self._send(HTTPStatus.OK, "text/html", page(self.server.gallery, query).encode())
            elif address.path == "/image":
                encoded = self.server.gallery.image(
                    query["method"], query["class"], query["part"], int(query["row"])
                )
                self._send(HTTPStatus.OK, media_type(encoded), encoded)
            else:
                raise KeyError(address.path)
        except (KeyError, ValueError):
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"no such page or image\n")
        except UserError as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{error}\n".encode())

    do_HEAD = do_GET

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {
            **HEADERS,
            "Content-Type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)


def open_server(plan: Plan, port: int) -> ThreadingHTTPServer:
    """A server of the study's images, on this machine alone; ``serve_forever`` runs it. Port 0 takes a free one.

    Raises
    ------
    UserError
        The study has no images yet, or the port is taken.
    """
    gallery = Gallery(plan)
    if not (0 <= port < 2**16):
        raise UserError("--port", port, "allowed: 0 to 65535")
    try:
        return _Server(gallery, port)
    except OSError as error:
        raise UserError(
            "--port", port, f"{error.strerror}: allowed: another one, or 0 for any that is free"
        ) from None
