"""Fashion-MNIST (Xiao et al., 2017): 60,000 training and 10,000 test images, 28 x 28, grey, ten classes.

The four files are downloaded from the authors' site or, if that fails, taken from Debian's package
``dataset-fashion-mnist``, which needs no root. Both are checked by the MD5 sums that the authors publish.
Debian strips name and time from the gzip headers, which changes the sums. They are put back before the
check, so the bytes on disk are the published ones from either source.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import shutil
import struct
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from augbench.errors import UserError
from augbench.files import atomic_path

logger = logging.getLogger(__name__)

MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN_PACKAGE = "dataset-fashion-mnist"


@dataclass(frozen=True)
class PublishedFile:
    """A file as published: its name, its MD5, and the time in its gzip header (seconds since 1970)."""

    name: str
    md5: str
    gzip_time: int


FILES = (
    PublishedFile("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 1504176606),
    PublishedFile("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", 1504176606),
    PublishedFile("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", 1504176627),
    PublishedFile("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", 1504176627),
)


def published_bytes(data: bytes, file: PublishedFile) -> bytes:
    """Restore the published gzip header if a distribution has stripped it; other bytes stay unchanged."""
    stripped = data[:4] == b"\x1f\x8b\x08\x00"
    if not stripped:
        return data
    header = (
        b"\x1f\x8b\x08\x08" + struct.pack("<I", file.gzip_time) + b"\x00\x03" + file.name.encode() + b"\x00"
    )
    return header + data[10:]


def _from_mirror(file: PublishedFile) -> bytes:
    with urllib.request.urlopen(f"{MIRROR}{file.name}.gz", timeout=20) as response:
        return bytes(response.read())


class _DebianSource:
    """Debian's package, downloaded and unpacked once in a temporary folder.

    If the download fails, it is tried again with separate package lists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unpacked = folder / "unpacked"

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise OSError(
                f"{' '.join(command[:2])} failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}"
            )

    def _download(self) -> None:
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise OSError("apt-get or dpkg-deb is not installed")
        try:
            self._run("apt-get", "download", DEBIAN_PACKAGE)
        except OSError:
            own = []
            for key, name in (("Dir::State", "state"), ("Dir::Cache", "cache")):
                kept = "lists" if name == "state" else "archives"
                (self.folder / name / kept / "partial").mkdir(parents=True)
                own += ["-o", f"{key}={self.folder / name}"]
            (self.folder / "state" / "status").touch()
            own += ["-o", f"Dir::State::status={self.folder / 'state' / 'status'}"]
            self._run("apt-get", *own, "update")
            self._run("apt-get", *own, "download", DEBIAN_PACKAGE)
        (package,) = self.folder.glob(f"{DEBIAN_PACKAGE}_*.deb")
        self._run("dpkg-deb", "-x", str(package), str(self.unpacked))

    def __call__(self, file: PublishedFile) -> bytes:
        if not self.unpacked.exists():
            self._download()
        return (self.unpacked / "usr/share/datasets/fashion-mnist" / f"{file.name}.gz").read_bytes()


def fetch(folder: str | Path) -> None:
    """Download the four files into ``folder``; intact files that are already there are kept.

    Raises
    ------
    UserError
        No source gave a file with the published MD5.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        sources: list[tuple[str, Callable[[PublishedFile], bytes]]] = [
            ("the authors' site", _from_mirror),
            (f"Debian's {DEBIAN_PACKAGE}", _DebianSource(Path(scratch))),
        ]
        problems: list[str] = []  # of all sources, including those no longer tried
        for file in FILES:
            target = folder / f"{file.name}.gz"
            if target.exists() and hashlib.md5(target.read_bytes()).hexdigest() == file.md5:
                continue
            for name, source in list(sources):
                try:
                    data = published_bytes(source(file), file)
                except (OSError, urllib.error.URLError) as error:
                    problems.append(f"{name}: {error}")
                    sources.remove((name, source))
                    continue
                if (found := hashlib.md5(data).hexdigest()) != file.md5:
                    problems.append(f"{name}: MD5 {found}")
                    continue
                with atomic_path(target) as temporary:
                    temporary.write_bytes(data)
                logger.info("fetched %s from %s, MD5 as published", target.name, name)
                break
            else:
                raise UserError(
                    str(target),
                    f"could not be downloaded ({'; '.join(problems)})",
                    f"put a file with MD5 {file.md5} there by hand",
                )


def load(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Load the images ``uint8 (N, 28, 28)`` and labels ``int64 (N,)`` of a split.

    ``split`` is ``train`` (60,000 images) or ``test`` (10,000).
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    arrays = []
    for part, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = Path(folder) / f"{prefix}-{part}-ubyte.gz"
        if not path.is_file():
            raise UserError(str(path), "missing", "run the fetch_dataset rule first")
        arrays.append(np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header))
    images, labels = arrays
    return images.reshape(-1, 28, 28), labels.astype(np.int64)


def split_corpus_and_target(
    labels: np.ndarray, corpus_images: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split the 60,000 training images into web corpus and target set; returns sorted indices of each.

    The two are disjoint and stratified: every class gives the same share to the corpus, and the rest is
    the target set (50,000 and 10,000 images in the miniature study).
    """
    from augbench.seeds import derive_seed

    share = corpus_images / len(labels)
    corpus, target = [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rng = np.random.default_rng(derive_seed(seed, "fashion-mnist corpus", int(label)))
        order = rng.permutation(members)
        take = round(share * len(members))
        corpus.append(order[:take])
        target.append(order[take:])
    return np.sort(np.concatenate(corpus)), np.sort(np.concatenate(target))
