"""Models on the Hugging Face Hub that a config names: ids, pinned commits, known sizes and hashes.

Nothing here uses the network; :mod:`augbench.models.fetch` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import yaml

from augbench.files import RESOURCES

MARKER = "fetched.json"
HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
COMMIT = r"[0-9a-f]{40}"
TABLES = RESOURCES / "models"
Layout = Literal["diffusion", "clip", "safety_checker", "classifier"]


@dataclass(frozen=True)
class Expected:
    """Size and hash that a file must have.

    Attributes
    ----------
    origin : str
        Source of these values.
    size : int, optional
        In bytes.
    sha256, git_blob : str, optional
        SHA-256 of the file, or its name as a git blob: SHA-1 over a header and the content.
    """

    origin: str
    size: int | None = None
    sha256: str | None = None
    git_blob: str | None = None


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub at one commit, and the folder that keeps it locally.

    Attributes
    ----------
    repository : str
        ``owner/name``.
    revision : str
        The commit: 40 hexadecimal digits.
    mirrors : tuple of str
        Addresses that speak the Hub's protocol, or folders; tried before the Hub.
    downloads : str
        Folder that keeps all fetched models.
    weights : tuple of str
        Names that the file of an open_clip model's weights may have, best first; empty for other models.
    """

    repository: str
    revision: str
    mirrors: tuple[str, ...]
    downloads: str
    weights: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Path of the model below any folder of fetched models."""
        return f"{self.repository.replace('/', '--')}/{self.revision}{'-open_clip' if self.weights else ''}"

    @property
    def folder(self) -> str:
        """Path of the model's folder."""
        return f"{self.downloads}/{self.place}"

    @property
    def marker(self) -> str:
        """Path of the file that is written once all other files are there."""
        return f"{self.folder}/{MARKER}"


@cache
def _tables() -> dict[str, dict[str, Any]]:
    tables = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(TABLES.glob("*.yaml"))]
    return {table["repository"]: table for table in tables}


def known_model(model: str) -> Mapping[str, Any]:
    """What ``resources/models`` says of a model on the Hub; empty if it isn't there."""
    return _tables().get(model, {})


@cache
def known_models() -> dict[str, tuple[str, dict[str, Expected]]]:
    """Revision and known files of the models in ``resources/models``, by id."""
    return {
        model: (
            table["revision"],
            {
                name: Expected("our table", file["size"], file["sha256"])
                for name, file in table["files"].items()
            },
        )
        for model, table in _tables().items()
    }


def hub_model(
    model: str,
    revision: str | None,
    mirrors: Sequence[str],
    downloads: str,
    weights: tuple[str, ...] = (),
) -> HubModel | None:
    """The Hub model that ``model`` names, or None if it names a folder.

    ``owner/name`` is an id if ``resources/models`` pins it or a revision is given. Existing folders do not
    matter, because the plan of a study must not depend on what has been fetched. Write ``./owner/name`` for a
    folder with such a name.
    """
    if not re.fullmatch(HUB_ID, model):
        return None
    if revision is None and not weights and model in known_models():
        revision = known_models()[model][0]
    return None if revision is None else HubModel(model, revision, tuple(mirrors), downloads, weights)
