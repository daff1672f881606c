"""Fetch models from the Hugging Face Hub or a mirror at a pinned commit, and check every file.

Input: the id of a model, its commit, mirrors. Output: a folder in diffusers' or transformers' layout with
only the files that are needed, so that later loading needs no network. ``fetched.json`` in it records the
source and SHA-256 of each file. It is written last: a folder without it is unfinished, and the next attempt
resumes. This module is light to import.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from augbench.config.hub import MARKER, Expected, HubModel, Layout, known_models
from augbench.config.pipelines import PIPELINES_HERE, STABLE_DIFFUSION, pipelines
from augbench.errors import UserError
from augbench.files import read_json, sha256_file, write_json
from augbench.models.sources import Source, partial_file, reason_of, sources_of
from augbench.progress import Progress

logger = logging.getLogger(__name__)
INCEPTION_URL = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"
INCEPTION_SHA256 = "0cc3c7bd"  # the first digits, which torchvision publishes in the file's name
WEIGHTS = re.compile(r"(model|pytorch_model|diffusion_pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)")
SETTINGS = {".json", ".txt", ".model", ".jinja"}
WITHOUT_WEIGHTS = ("tokenizer", "scheduler", "feature_extractor", "image_processor", "processor")


def _known_files(model: HubModel) -> dict[str, Expected]:
    """Expected files of the model from our table of known models; empty if it lacks this revision."""
    revision, files = known_models().get(model.repository, ("", {}))
    return files if revision == model.revision and not model.weights else {}


def needed_files(
    layout: Layout,
    names: Iterable[str],
    index: Mapping[str, Any] | None = None,
    weights: Sequence[str] = (),
) -> list[str]:
    """List the files that loading needs: settings, vocabulary, and one format of weights for each component.

    Safetensors are preferred to pickled weights. Half-precision and other variants, and weights of other
    frameworks, are left out.

    Parameters
    ----------
    names : iterable of str
        All files of the model.
    index : mapping, optional
        ``model_index.json`` of a pipeline, which names its components.
    weights : sequence of str
        Names that the weights of an open_clip model may have, best first.

    Raises
    ------
    UserError
        The model is not a text-to-image pipeline that is known here, or a component has no weights.
    """
    present = set(names)
    if weights:
        return _of_open_clip(present, weights)
    if layout != "diffusion":
        return _of_folder("", present, needs_weights=True)
    assert index is not None
    if (kind := index.get("_class_name")) not in (STABLE_DIFFUSION, *pipelines()):
        raise UserError("diffusion.model", f"a {kind}", PIPELINES_HERE)
    components = [name for name, kind in index.items() if isinstance(kind, list) and None not in kind]
    found = {"model_index.json"}
    for name in components:
        found.update(_of_folder(f"{name}/", present, needs_weights=not name.startswith(WITHOUT_WEIGHTS)))
    return sorted(found)


def _of_folder(folder: str, present: set[str], needs_weights: bool) -> list[str]:
    names = sorted(
        name.removeprefix(folder)
        for name in present
        if name.startswith(folder) and "/" not in name.removeprefix(folder)
    )
    weights = [name for name in names if WEIGHTS.fullmatch(name)]
    chosen = [name for name in weights if name.endswith(".safetensors")] or weights
    if needs_weights and not chosen:
        raise UserError(
            folder.rstrip("/") or "model",
            "no weights in PyTorch's formats",
            "allowed: a model with .safetensors or .bin files",
        )
    kept = {re.sub(r"-\d{5}-of-\d{5}", "", name) + ".index.json" for name in chosen} & set(names)
    return [folder + name for name in sorted({*_settings(names), *chosen, *kept})]


def _of_open_clip(present: set[str], weights: Sequence[str]) -> list[str]:
    """Files of an open_clip model: its weights, and the settings and tokenizer beside them."""
    chosen = next((name for name in weights if name in present), None)
    if chosen is None:
        raise UserError("clip.model", f"no {' or '.join(weights)} there", "allowed: a model of open_clip")
    return sorted({chosen, *_settings(name for name in present if "/" not in name)})


def _settings(names: Iterable[str]) -> list[str]:
    return [
        name for name in names if Path(name).suffix in SETTINGS and ".index" not in name and name != MARKER
    ]


def fetch(model: HubModel, layout: Layout, pipeline: str | None = None) -> None:
    """Fetch a model into its folder; correct files that are already there are kept.

    Each file is checked against our table's SHA-256 if it has one, else against what the Hub lists for the
    revision, else against what the first mirror that has it lists. ``fetched.json`` records which.

    Raises
    ------
    UserError
        No source has the model at this revision, the model has another layout or is another ``pipeline``
        than the config says (default: Stable Diffusion), no source has an intact copy
        of a file, or the disk has too little space.
    """
    folder, sources = Path(model.folder), sources_of(model)
    if _is_complete(folder):
        logger.info("%s is already complete", folder)
        return
    (folder / MARKER).unlink(missing_ok=True)
    expected, sources = _expected_files(model, sources)
    index, origins = None, {}
    if layout == "diffusion":
        if "model_index.json" not in expected:
            raise UserError(
                model.repository,
                "no model_index.json",
                "allowed: a model in diffusers' layout",
            )
        origins["model_index.json"] = _bring(model, "model_index.json", expected["model_index.json"], sources)
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        found, wanted = index.get("_class_name"), pipeline or STABLE_DIFFUSION
        if found in (STABLE_DIFFUSION, *pipelines()) and found != wanted:
            raise UserError(
                model.repository,
                f"a {found}, not a {wanted}",
                f"set `pipeline: {found}` beside the model, for its defaults",
            )
    names = sorted({*needed_files(layout, expected, index, model.weights), *_known_files(model)})
    sizes = {name: expected[name].size or 0 for name in names}
    _check_space(folder, sum(size for name, size in sizes.items() if not (folder / name).is_file()))
    progress = Progress(f"fetch {model.repository}", -(-sum(sizes.values()) // 10**6), "MB")
    whole = 0
    for name in names:
        origins[name] = _bring(model, name, expected[name], sources)
        done, whole = whole, whole + sizes[name]
        progress.update(-(-whole // 10**6) - -(-done // 10**6), note=name)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    files = {
        name: {
            "size": (folder / name).stat().st_size,
            "sha256": sha256_file(folder / name),
            "from": origins[name],
            "checked_against": expected[name].origin,
        }
        for name in names
    }
    write_json(folder / MARKER, {"repository": model.repository, "revision": model.revision, "files": files})


def _is_complete(folder: Path) -> bool:
    if not (folder / MARKER).is_file():
        return False
    recorded = read_json(folder / MARKER)["files"]
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == file["size"]
        for name, file in recorded.items()
    )


def _expected_files(model: HubModel, sources: Sequence[Source]) -> tuple[dict[str, Expected], list[Source]]:
    """Return the expected files of the model, and the sources that answered or were not asked.

    Our table comes first, then the Hub's list, then that of the first mirror that has the revision.
    """
    problems, left = [], list(sources)
    for source in (sources[-1], *sources[:-1]):
        try:
            listed = source.files(model)
        except OSError as error:
            problems.append(f"{source.name}: {reason_of(error)}")
            left.remove(source)
            continue
        if problems:
            logger.warning(
                "files are checked against the list of %s, because other sources gave none (%s)",
                source.name,
                "; ".join(problems),
            )
        return {**listed, **_known_files(model)}, left
    raise UserError(
        model.repository,
        f"revision {model.revision} is not available ({'; '.join(problems)})",
        "check the revision, give a mirror, or a folder with the model",
    )


def _bring(model: HubModel, name: str, expected: Expected, sources: Sequence[Source]) -> str:
    """Fetch one file from the first source that has an intact copy; return where it came from."""
    folder = Path(model.folder)
    path, problems = folder / name, []
    if path.is_file():
        if (wrong := _mismatch(path, expected)) is None:
            return "an earlier attempt"
        _forget(folder, name)
        problems.append(f"existing file: {wrong}")
    for source in sources:
        try:
            source.get(model, name, folder)
        except OSError as error:
            problems.append(f"{source.name}: {reason_of(error)}")
            if expected.size is not None:
                _forget(folder, name, expected.size)
            continue
        if (wrong := _mismatch(path, expected)) is None:
            logger.info("fetched %s from %s, checked against %s", name, source.name, expected.origin)
            return source.name
        _forget(folder, name)
        problems.append(f"{source.name}: {wrong}")
    raise UserError(
        str(path),
        f"no intact copy found ({'; '.join(problems)})",
        "run again to resume, give another mirror, or a folder with the model",
    )


def _mismatch(path: Path, expected: Expected) -> str | None:
    """Describe the difference between a file and what is expected of it; None if there is none."""
    size = path.stat().st_size
    if expected.size is not None and size != expected.size:
        return f"{size} bytes, expected {expected.size}"
    if expected.sha256 is not None and (found := sha256_file(path)) != expected.sha256:
        return f"SHA-256 {found}, expected {expected.sha256}"
    if (
        expected.sha256 is None
        and expected.git_blob is not None
        and (found := git_blob(path)) != expected.git_blob
    ):
        return f"git blob {found}, expected {expected.git_blob}"
    return None


def git_blob(path: Path) -> str:
    """Git's hash of a file's content: SHA-1 over ``blob``, the size, a zero byte and the content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _forget(folder: Path, name: str, size: int | None = None) -> None:
    """Delete a wrong file, whole or partial.

    With ``size``, after a failed download, delete only a partial file that is not smaller than ``size``.
    """
    partial = partial_file(folder, name)
    if size is None:
        (folder / name).unlink(missing_ok=True)
    if size is None or (partial.exists() and partial.stat().st_size >= size):
        partial.unlink(missing_ok=True)


def _check_space(folder: Path, needed: int) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if (free := shutil.disk_usage(existing).free) < needed:
        raise UserError(
            str(folder),
            f"{free / 1e9:.1f} GB free",
            f"the model needs {needed / 1e9:.1f} GB; set downloads to a folder on a larger disk",
        )


def fetch_weights(target: str | Path, addresses: Sequence[str], sha256: str) -> None:
    """Fetch one file of published weights to ``target``; a correct file that is already there is kept.

    Parameters
    ----------
    addresses : sequence of str
        Web addresses or paths of files, tried in order.
    sha256 : str
        The first digits of the file's SHA-256, as many as are published.

    Raises
    ------
    UserError
        No address gave a file with this SHA-256.
    """
    from torch.hub import download_url_to_file

    target = Path(target)
    if target.is_file() and sha256_file(target).startswith(sha256):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    for address in addresses:
        url = address if "://" in address else Path(address).absolute().as_uri()
        try:
            download_url_to_file(url, str(target), hash_prefix=sha256, progress=False)
        except (OSError, RuntimeError) as error:  # RuntimeError: wrong hash
            problems.append(f"{address}: {' '.join(str(error).split())}")
        else:
            logger.info("fetched %s from %s, SHA-256 as published", target.name, address)
            return
    raise UserError(
        str(target),
        f"no intact copy found ({'; '.join(problems)})",
        f"put a file whose SHA-256 begins with {sha256} there by hand",
    )
