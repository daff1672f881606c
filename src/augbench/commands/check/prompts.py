"""Check of the prompts as the models read them: classes whose tokens are the same cannot be told apart.

CLIP's tokenizer lowers letters and cuts a prompt after 77 tokens, so different prompts may be one.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from augbench.config.models import Clip
from augbench.config.problems import ConfigError
from augbench.config.study import Study
from augbench.data.classes import ClassInfo
from augbench.errors import UserError, some
from augbench.models.open_clip_files import describe
from augbench.prompts.captions import load_captions
from augbench.prompts.placeholders import placeholder
from augbench.prompts.stage import class_name
from augbench.prompts.templates import fill, load_scenes, load_templates, placeholders_of

if TYPE_CHECKING:
    from augbench.models.tokenizer import CleaningTokenizer

TOKENIZER_FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",))


def indistinct_prompts(study: Study, classes: tuple[ClassInfo, ...]) -> list[str]:
    """Return a line that says what was tokenised, and a warning for each set of classes with the same tokens.

    Rows that learn a conditioning are left out, because their text is only where learning starts.

    Raises
    ------
    ConfigError
        A template is the same for all classes, as if it named none; or a tokenizer is not readable.
    """
    found: dict[str, list[str]] = {}
    problems: list[UserError] = []
    folders: set[str] = set()
    for row, method in study.pooled.items():
        if (prompting := method.prompting) is None:
            continue
        folder = study.clip.folder if method.retrieves_images else _tokenizer_folder(study, row)
        if folder is None:
            continue
        clip = study.clip if method.retrieves_images and study.clip.named.library == "open_clip" else None
        learned = study.personalised.get(row)
        if not _has_tokenizer(folder, clip) or (learned is not None and learned.learn == "conditioning"):
            continue
        folders.add(folder)
        if prompting.captions is not None:
            key = f"methods.{row}.{method.prompt_key}.captions"
            try:
                for what in _caption_faults(folder, prompting.captions, clip):
                    found.setdefault(what, []).append(key)
            except UserError as error:
                problems.append(error)
            continue
        key = f"methods.{row}.{method.prompt_key}.templates"
        how = None if method.learns_words else prompting.class_name
        templates = load_templates(prompting.templates)[: 1 if method.retrieves_images else None]
        try:
            # pseudo-words differ, so two tell whether a template's is lost
            same = _same_tokens(folder, templates, classes if how else classes[:2], how, clip)
        except UserError as error:
            problems.append(error)
            continue
        for class_ids, template in same.items():
            template = textwrap.shorten(template, 80, placeholder="...")
            if how is None or len(class_ids) == len(classes):
                what = f"{template!r} gives all classes the same tokens"
                allowed = "allowed: names that differ by more than case, before token 77"
                problems.append(UserError(key, what, allowed))
            else:
                what = f"{some(class_ids)} have the same tokens in {template!r}: their images will not differ"
                found.setdefault(what, []).append(key)
    if problems:
        raise ConfigError(problems)
    notes = [f"prompts: tokenised with {', '.join(sorted(folders))}"] if folders else []
    return notes + [f"warning: {', '.join(keys)}: {what}" for what, keys in found.items()]


def _has_tokenizer(folder: str, clip: Clip | None) -> bool:
    """Whether a tokenizer is here: transformers' in ``folder``, or that of ``clip``, a model of open_clip."""
    if clip is not None:
        try:
            describe(clip.named, folder)
        except UserError:  # the check of the models names it
            return False
        return True
    return any(all(Path(folder, name).is_file() for name in names) for names in TOKENIZER_FILES)


def _open_clip_tokens(
    folder: str, clip: Clip, prompts: list[str], whole: bool = False
) -> tuple[list[list[int]], int]:
    """Tokens of prompts as a model of open_clip reads them, and the most that it reads.

    They are padded and cut; with ``whole``, neither, but for prompts of more than four times as many tokens.
    """
    from augbench.models.open_clip_model import load_tokenizer

    try:
        tokenizer = load_tokenizer(describe(clip.named, folder), folder)
        most = int(tokenizer.context_length or 0)
        found = tokenizer(["", *prompts], 4 * most if whole else most).tolist()
    except Exception as error:  # of transformers or of the file's parser
        raise _unreadable(folder, error) from None
    padding = found[0][-1]
    if whole:
        used = [max((at + 1 for at, token in enumerate(row) if token != padding), default=1) for row in found]
        found = [row[:length] for row, length in zip(found, used, strict=True)]
    return found[1:], most


def _unreadable(folder: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(folder, f"not readable as a tokenizer ({reason})", "download the model again")


def _tokenizer(folder: str) -> CleaningTokenizer:
    from augbench.models.tokenizer import CleaningTokenizer

    try:
        return CleaningTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of transformers or of the file's parser
        raise _unreadable(folder, error) from None


def _tokenizer_folder(study: Study, row: str) -> str | None:
    """Folder of the CLIP tokenizer that reads a row's prompts; None if its model has another, too."""
    model = study.generator_of(row)
    if model.other is not None:
        try:
            index = json.loads(Path(model.folder, "model_index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        kinds = [kind for part, kind in index.items() if part.startswith("tokenizer")]
        if not kinds or any("CLIPTokenizer" not in kind for kind in kinds):
            return None
    return f"{model.folder}/tokenizer"


@cache
def _caption_faults(folder: str, path: str, clip: Clip | None = None) -> tuple[str, ...]:
    """What is wrong with a file's captions as tokens: some are too long, or the same for several classes."""
    rows = [(class_id, one.text) for class_id, own in load_captions(path).items() for one in own]
    texts = [text for _, text in rows]
    if clip is not None:
        tokens, most = _open_clip_tokens(folder, clip, texts, whole=True)
    else:
        tokenizer = _tokenizer(folder)
        tokens, most = tokenizer(texts).input_ids, tokenizer.model_max_length
    faults = []
    if long := [text for (_, text), ids in zip(rows, tokens, strict=True) if len(ids) > most]:
        first = textwrap.shorten(long[0], 80, placeholder="...")
        faults.append(f"{len(long)} captions have more than {most} tokens and are cut: {first!r}")
    sharing: dict[tuple[int, ...], set[str]] = {}
    for (class_id, _), ids in zip(rows, tokens, strict=True):
        sharing.setdefault((*ids[: most - 1], ids[-1]), set()).add(class_id)
    same = {tuple(sorted(those)) for those in sharing.values() if len(those) > 1}
    faults += [f"{some(those)} share captions: these images will not differ" for those in sorted(same)]
    return tuple(faults)


@cache
def _same_tokens(
    folder: str,
    templates: tuple[str, ...],
    classes: tuple[ClassInfo, ...],
    how: str | None,
    clip: Clip | None = None,
) -> Mapping[tuple[str, ...], str]:
    """Class ids that share their tokens in a template, with the first such template.

    Parameters
    ----------
    how : str or None
        Form of the class's name, as in the config; None: a pseudo-word stands for it.
    clip : Clip or None
        The model of open_clip that reads the prompts; None: transformers' tokenizer in ``folder`` does.
    """
    names = [placeholder(info.class_id) if how is None else class_name(info, how) for info in classes]
    tokenizer = _tokenizer(folder) if clip is None else None
    if tokenizer is not None and how is None:
        tokenizer.add_tokens(names)
    scene = max(load_scenes(), key=len)
    same: dict[tuple[str, ...], str] = {}
    for template in templates:
        if not placeholders_of(template) - {"scene"}:  # it is meant for all classes
            continue
        prompts = [fill(template, name, info, scene) for name, info in zip(names, classes, strict=True)]
        if tokenizer is None:
            assert clip is not None
            encoded, _ = _open_clip_tokens(folder, clip, prompts)
        else:
            most = tokenizer.model_max_length
            encoded = tokenizer(prompts, truncation=True, max_length=most).input_ids
        sharing: dict[tuple[int, ...], list[str]] = {}
        for info, tokens in zip(classes, encoded, strict=True):
            sharing.setdefault(tuple(tokens), []).append(info.class_id)
        for class_ids in sharing.values():
            if len(class_ids) > 1:
                same.setdefault(tuple(class_ids), template)
    return same
