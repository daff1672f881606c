"""``augbench browse``: show all added images of a study, by class and method, in a browser on this machine.

Pages and images are served over HTTP to this machine only. The study may still be running. Nothing is
written. The server reads only the class table, the models' fingerprints, and shards of the config's own
methods and classes.
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
GROUPS_HELD = 16  # row groups of shards in memory; the images of a page come from a few of them
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Place:
    """Position of an image: the shard's part, and the row in the shard."""

    part: str
    row: int


@dataclass(frozen=True)
class Gallery:
    """A study's added images: lists per class and method, and single images."""

    plan: Plan

    def check(self) -> None:
        """Check that there are images.

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
        """Classes by id, in label order."""
        return {info.class_id: info for info in read_class_table(self.plan.classes)}

    @cached_property
    def models(self) -> dict[str, str]:
        """Names of the study's models by hash."""
        paths = map(Path, self.plan.model_fingerprints)
        return models_of({path.stem: read_json(path) for path in paths if path.is_file()})

    def parts(self, method: str, class_id: str) -> list[tuple[str, int]]:
        """List the shards of a method's class, in order of part, with their number of images.

        Raises
        ------
        KeyError
            The study has no such method or class.
        UserError
            A shard is damaged.
        """
        if method not in self.plan.study.pooled or class_id not in self.classes:
            raise KeyError(f"{method}, {class_id}")
        folder = Path(self.plan.shard(method, class_id, "0")).parent
        found = []
        shards = [path for path in folder.glob("*.parquet") if path.stem.isdecimal()]
        for path in sorted(shards, key=lambda path: int(path.stem)):
            with whole(path):
                found.append((path.stem, pq.read_metadata(path).num_rows))
        return found

    def places(self, method: str, class_id: str) -> list[Place]:
        """List all images of a class in the order of the shards. Raises like :meth:`parts`."""
        return [Place(part, row) for part, rows in self.parts(method, class_id) for row in range(rows)]

    def image(self, method: str, class_id: str, part: str, row: int) -> bytes:
        """Return an encoded image.

        Raises
        ------
        KeyError
            There is no such image.
        UserError
            The shard is damaged.
        """
        if not 0 <= row < dict(self.parts(method, class_id)).get(part, 0):
            raise KeyError(f"{method}, {class_id}, {part}, {row}")
        path = Path(self.plan.shard(method, class_id, part))
        return _encoded(path, path.stat().st_mtime_ns, row)

    def thumbs(self, method: str, class_id: str, places: list[Place]) -> list[Thumb]:
        """Return images with all their metadata from the shards. Raises like :meth:`parts`."""
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
            query = {"method": method, "class": class_id, "part": place.part, "row": place.row}
            address = f"/image?{urlencode(query)}"
            found.append(thumb_of(picture, address, self.plan.study.label(method), self.models))
        return found


@lru_cache(maxsize=GROUPS_HELD)
def _images(path: Path, changed: int, group: int) -> list[bytes]:
    """Read the images of a row group.

    ``changed`` is the shard's modification time. As part of the cache's key, it makes a replaced shard be
    read again.
    """
    with whole(path):
        rows = pq.ParquetFile(path).read_row_group(group, columns=["image"]).column("image").to_pylist()
    return [row["bytes"] for row in rows]


def _encoded(path: Path, changed: int, row: int) -> bytes:
    """Return the encoded image in a row of a shard."""
    with whole(path):
        metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < rows:
            return _images(path, changed, group)[row]
        row -= rows
    raise KeyError(f"{path}, {row}")


def page(gallery: Gallery, query: dict[str, str]) -> str:
    """Render the page that ``query`` asks for.

    The keys of ``query`` are ``class``, ``method`` and ``page`` (counted from 1). The default of each is
    the first.

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
    info, label = gallery.classes[class_id], plan.study.label(method)
    shown = f"Images {first + 1:,} to {first + len(thumbs):,} of {len(places):,}"
    template = templates().get_template("browse.html")
    return template.render(
        study=plan.study.study,
        hues={},
        title=f"{short_name(info)}: {label}",
        lead=info.definition or info.name,
        classes=[(other.class_id, _name(other)) for other in gallery.classes.values()],
        methods=[(other, plan.study.label(other)) for other in methods],
        class_id=class_id,
        method=method,
        count=shown if thumbs else "No images",
        images=thumbs,
        pages=pages,
    )


def _name(info: ClassInfo) -> str:
    """Return a class's name, followed by its id if that differs."""
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
        # against DNS rebinding: a web page whose host name resolves to this machine must not read the images
        hosts = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        if self.headers.get("Host", "") not in hosts:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"only for this machine\n")
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
        content_type = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
        headers = {**HEADERS, "Content-Type": content_type, "Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)


def open_server(plan: Plan, port: int) -> ThreadingHTTPServer:
    """Return a server of the study's images for this machine only; ``serve_forever`` runs it.

    Port 0 takes a free port.

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
        allowed = f"{error.strerror}: allowed: another port, or 0 for any free port"
        raise UserError("--port", port, allowed) from None
