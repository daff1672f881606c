"""Download the uv of bootstrap.lock with Python's standard library alone, for a Python without pip.

Usage: ``fetch_uv.py FOLDER`` writes ``FOLDER/uv``; Python 3.8 or newer. The index is
UV_DEFAULT_INDEX or PIP_INDEX_URL, else PyPI; HTTPS_PROXY and SSL_CERT_FILE hold.
Only a wheel whose hash is in bootstrap.lock is taken. setup.sh calls it.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import sys
import urllib.request
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

LOCK = Path(__file__).resolve().parent / "bootstrap.lock"


class Links(HTMLParser):
    """Collect the addresses of a page's links in ``found``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the address of a link."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def read(address: str) -> bytes:
    """Return the content of an address."""
    request = urllib.request.Request(address, headers={"Accept": "text/html, application/octet-stream"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def wheel_address(index: str, version: str) -> str:
    """Find the address of uv's wheel for this machine and C library; raise OSError if there is none."""
    page = index.rstrip("/") + "/uv/"
    links = Links()
    links.feed(read(page).decode())
    library = "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    wanted = re.compile(rf"uv-{re.escape(version)}-py3-none-.*{library}.*_{platform.machine()}\.whl")
    for link in links.found:
        address = urldefrag(urljoin(page, link)).url
        if wanted.fullmatch(urlsplit(address).path.rpartition("/")[2]):
            return address
    raise OSError(f"{page} has no uv {version} for {library} on {platform.machine()}")


def main(folder: Path) -> None:
    """Download, check and unpack uv to ``folder``."""
    lock = LOCK.read_text(encoding="utf-8")
    version = re.findall(r"^uv==([^\s;]+)", lock, re.MULTILINE)[0]
    index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    address = wheel_address(index, version)
    wheel = read(address)
    if hashlib.sha256(wheel).hexdigest() not in re.findall(r"--hash=sha256:(\w+)", lock):
        raise OSError(f"{address}: its hash is not in {LOCK.name}")
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        program = archive.read(f"uv-{version}.data/scripts/uv")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "uv").write_bytes(program)
    (folder / "uv").chmod(0o755)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except OSError as error:
        sys.exit(f"fetch_uv: {error}")
