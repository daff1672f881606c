"""Sources of models: the Hub, mirrors that speak its protocol, and folders."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from augbench.config.hub import COMMIT, MARKER, Expected, HubModel
from augbench.files import atomic_path, read_json

SECONDS_TO_ANSWER = 20


class Source(Protocol):
    """A place that may have the model; all its failures are raised as :class:`OSError`."""

    name: str

    def files(self, model: HubModel) -> dict[str, Expected]:
        """Map each file of the model to its expected size and hash."""

    def get(self, model: HubModel, name: str, folder: Path) -> None:
        """Fetch one file into ``folder``, under its own name."""


class Endpoint:
    """The Hub, or a mirror that speaks its protocol; interrupted downloads resume.

    Parameters
    ----------
    url : str
        Its address.
    is_hub : bool
        Whether it is the Hub itself. Only the Hub gets the user's access token.
    """

    def __init__(self, url: str, is_hub: bool) -> None:
        self.url, self.token = url.rstrip("/"), None if is_hub else False
        self.name = f"the Hub ({self.url})" if is_hub else self.url

    def files(self, model: HubModel) -> dict[str, Expected]:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.url, token=self.token)
        with _as_os_error():
            info = api.model_info(
                model.repository, revision=model.revision, files_metadata=True, timeout=SECONDS_TO_ANSWER
            )
        if info.sha != model.revision:
            raise OSError(f"answers with revision {info.sha}")
        return {
            file.rfilename: Expected(
                self.name,
                file.size,
                file.lfs.sha256 if file.lfs else None,
                None if file.lfs else file.blob_id,
            )
            for file in info.siblings or []
        }

    def get(self, model: HubModel, name: str, folder: Path) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        # hf_hub_download no longer resumes what another process began
        partial = partial_file(folder, name)
        partial.parent.mkdir(parents=True, exist_ok=True)
        address = hf_hub_url(model.repository, name, revision=model.revision, endpoint=self.url)
        with _as_os_error(), partial.open("ab") as stream:
            http_get(address, stream, resume_size=stream.tell(), headers=build_hf_headers(token=self.token))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        partial.replace(folder / name)


def partial_file(folder: Path, name: str) -> Path:
    """Place of a file of a model while it arrives."""
    return folder / ".cache" / f"{name}.part"


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn a broken connection, which the Hub's library passes on as httpx2 raises it, into an OSError."""
    import httpx2

    try:
        yield
    except httpx2.TransportError as error:
        raise OSError(f"connection broke off ({error})") from error


class Folder:
    """Models on disk: another folder of fetched models, or a cache of the Hub's own library."""

    def __init__(self, path: str) -> None:
        self.path, self.name = Path(path), path

    def _model(self, model: HubModel) -> Path:
        places = [
            self.path / model.place,
            self.path / f"models--{model.repository.replace('/', '--')}" / "snapshots" / model.revision,
        ]
        for place in places:
            if place.is_dir():
                return place
        raise FileNotFoundError(f"no folder {places[0]} or {places[1]}")

    def files(self, model: HubModel) -> dict[str, Expected]:
        folder = self._model(model)
        recorded = read_json(folder / MARKER)["files"] if (folder / MARKER).is_file() else {}
        found = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and not name.startswith(".cache/"):
                # in a cache, files are links to blobs that are named by their hash
                blob = path.resolve().name if path.is_symlink() else ""
                found[name] = Expected(
                    self.name,
                    path.stat().st_size,
                    recorded.get(name, {}).get("sha256") or (blob if len(blob) == 64 else None),
                    blob if re.fullmatch(COMMIT, blob) else None,
                )
        return found

    def get(self, model: HubModel, name: str, folder: Path) -> None:
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(self._model(model) / name, temporary)


def sources_of(model: HubModel) -> list[Source]:
    """Return the sources in the order in which they are asked for files: the user's mirrors, then the Hub."""
    # The library reads these when it is imported. Bars would fill log files. Plain HTTPS resumes at the
    # exact byte and passes more firewalls than Xet.
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    from huggingface_hub import constants

    mirrors: list[Source] = [
        Endpoint(mirror, False) if re.match("https?://", mirror) else Folder(mirror)
        for mirror in model.mirrors
    ]
    return [*mirrors, Endpoint(constants.ENDPOINT, True)]


def reason_of(error: OSError) -> str:
    """Return the reason why a source failed, on one line."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    kinds = {
        LocalEntryNotFoundError: "no answer",
        GatedRepoError: "access must be granted there first: accept the licence on the model's page, then log"
        " in with `hf auth login` or set HF_TOKEN",
        RepositoryNotFoundError: "no such model there",
        RevisionNotFoundError: "no such revision there",
        EntryNotFoundError: "no such file there",
    }
    for kind, text in kinds.items():
        if isinstance(error, kind):
            return text
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
