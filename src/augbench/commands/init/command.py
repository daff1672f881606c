"""``augbench init``: look at a folder of images and write a commented study for it."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from statistics import median

import yaml

from augbench.commands.check.dataset import ClassCounts
from augbench.commands.init.layout import (
    Layout,
    check_apart,
    class_table,
    find_corpus,
    find_layout,
    naming_note,
)
from augbench.commands.init.sizes import Proposal, dataset_of, propose_sizes
from augbench.commands.init.text import FULL_CLIP, Facts, mini_file, span, study_text, swap_command
from augbench.config.study import parse_study
from augbench.data.classes import ClassInfo, folder_of
from augbench.data.decode import in_order, stored_size
from augbench.data.image_folder import ImageFolderSource
from augbench.data.parquet_source import ParquetSource
from augbench.data.source import ClassImages, ImageSource
from augbench.data.sources import open_source
from augbench.data.walk import LeftOut, reasons
from augbench.errors import UserError, some
from augbench.files import write_text
from augbench.runtime.gpus import gpu_is_here
from augbench.texts import has_control_characters
from augbench.yaml_files import UniqueKeyLoader

NAMED_CLASSES = 10
LOOKED_AT = 300  # images whose sizes are read
LOOKED_AT_IN_PARQUET = 30
LONGEST_STUDY = 60  # characters of the study's name


def init_study(folder: str, corpus: str | None = None, to: str | None = None) -> list[str]:
    """Write a study for the images in ``folder``, and return what to tell the user, a line per item.

    Parameters
    ----------
    corpus : str, optional
        Folder that retrieval searches. Default: the study has no retrieval.
    to : str, optional
        File to write, which gives the study its name. Default: the folder's name with ``.yaml``, in the
        working folder.

    Raises
    ------
    UserError
        The file exists, the folder holds no data set, a class has too few images, or a folder is unusable.
    """
    for name in filter(None, (folder, corpus)):
        if has_control_characters(name):
            allowed = "allowed: a name in UTF-8 without control characters"
            raise UserError(ascii(name), "a folder that a config can't name", allowed)
    name = study_name(folder if to is None else to.removesuffix(".yaml"))
    file = Path(f"{name}.yaml" if to is None else to)
    if os.path.lexists(file):
        raise UserError(str(file), "there is such a file", "allowed: another file, with --to FILE")
    layout = find_layout(Path(folder))
    corpus_found = None
    if corpus is not None:
        check_apart(layout, Path(corpus))
        corpus_found = find_corpus(Path(corpus), FULL_CLIP)
    source, classes, images = _read(layout)
    proposal = propose_sizes(layout.keys, [_counts(one) for one in images])
    side, sizes_text = _sizes(source, images)
    found = [_classes_text(classes, images), sizes_text, *reasons(_ordered(source.left_out)), *layout.notes]
    words = [info.class_id.lower() for info in classes]
    facts = Facts(
        name=name,
        file=str(file),
        found=found,
        naming=_naming(layout, classes, name),
        layout=layout.keys,
        proposal=proposal,
        side=side,
        corpus=corpus_found,
        learns_words=len(set(words)) == len(words),
    )
    text = study_text(facts)
    parse_study(yaml.load(text, UniqueKeyLoader))
    write_text(file, text)
    told = [f"{layout.keys['root']}: {text}" for text in found]
    if corpus_found is not None:
        told.append(f"{corpus}: {corpus_found.text}, which retrieval searches")
    else:
        told.append(
            "no --corpus: the rows of retrieval are comments; to have them, delete"
            f" {file} and run init again with --corpus FOLDER"
        )
    return [*told, _proposed(proposal), *_next_steps(facts)]


def study_name(path: str) -> str:
    """Name of a study from that of a folder or file: ``My birds (2)`` gives ``my_birds_2``."""
    plain = unicodedata.normalize("NFKD", os.path.basename(os.path.realpath(path)))
    words = re.findall(r"[a-z0-9]+", plain.encode("ascii", "ignore").decode().lower())
    return "_".join(words)[:LONGEST_STUDY].strip("_") or "study"


def _read(layout: Layout) -> tuple[ImageSource, list[ClassInfo], list[ClassImages]]:
    """List the data set's classes and images; the layout gets a shipped class table if it fits."""
    source = open_source(dataset_of(layout.keys), seed=0)
    if isinstance(source, ImageFolderSource):
        table = class_table(source.class_names("train_folder"))
        if table is not None:
            layout.keys["classes"] = table
            source = open_source(dataset_of(layout.keys), seed=0)
    return source, source.classes(), source.scan()


def _counts(one: ClassImages) -> ClassCounts:
    given = (None if part is None else len(part) for part in (one.validation, one.test))
    return ClassCounts(one.class_id, len(one.pool), *given)


def _ordered(left_out: Sequence[LeftOut]) -> list[LeftOut]:
    return sorted(left_out, key=lambda one: one.name)


def _classes_text(classes: Sequence[ClassInfo], images: Sequence[ClassImages]) -> str:
    sizes = [len(one.pool) for one in images]
    names = some([info.lemmas[0] for info in classes], most=NAMED_CLASSES)
    text = f"{len(classes):,} classes ({names}) with {_spread(sizes)} images each, {sum(sizes):,} in all"
    for split in ("validation", "test"):
        given = [len(part) for one in images if (part := getattr(one, split)) is not None]
        text += f"; {_spread(given)} {split} images each, {sum(given):,} in all" if given else ""
    return text


def _spread(values: Sequence[int]) -> str:
    middle = median(values)
    return span(values) if min(values) == max(values) else f"{span(values)} (median {middle:,.0f})"


def _sizes(source: ImageSource, images: Sequence[ClassImages]) -> tuple[int, str]:
    """Read the sizes of some images, evenly spread; return the median shorter side and a text."""
    everything = [place for one in images for place in one.pool.sources]
    if isinstance(source, ParquetSource):
        chosen = _evenly(everything, LOOKED_AT_IN_PARQUET)
        found = [
            None if isinstance(content, UserError) else stored_size(BytesIO(content))
            for content in source.rows.read(chosen)
        ]
    else:
        assert isinstance(source, ImageFolderSource)
        chosen = _evenly(everything, LOOKED_AT)
        found = [*in_order(stored_size, (source.root / place for place in chosen))]
    sizes = [size for size in found if size is not None]
    if not sizes:
        allowed = "allowed: images that Pillow can read; `augbench check --images` says what is wrong"
        raise UserError(str(source.root), f"none of {len(chosen)} images can be read", allowed)
    sides = [min(size) for size in sizes]
    widths, heights = ([size[place] for size in sizes] for place in (0, 1))
    text = (
        f"images {span(widths)} pixels wide and {span(heights)} high, shorter side {_spread(sides)}"
        f" ({len(sizes)} images looked at)"
    )
    if len(sizes) < len(found):
        text += (
            f"; {len(found) - len(sizes)} more can't be read: `augbench check --images` names all of these"
        )
    return int(median(sides)), text


def _evenly(items: Sequence[str], most: int) -> list[str]:
    step = max(1, len(items) // most)
    return [*items[::step][:most]]


def _naming(layout: Layout, classes: Sequence[ClassInfo], study: str) -> str | None:
    """What there is to decide about the classes' names; None with a class table."""
    if "classes" in layout.keys:
        return None
    note = naming_note([folder_of(info.class_id) for info in classes], f"{study}_classes.tsv")
    return note or (
        f'good names for prompts ("a photo of a {classes[0].name}")? If not, rename the folders, or set'
        " dataset.classes (docs/own_data.md)."
    )


def _proposed(proposal: Proposal) -> str:
    train, validation, test = (span(proposal.images(split)) for split in ("train", "validation", "test"))
    twice = "" if proposal.twice else "; too few for a row with twice the real images"
    return f"proposed: {train} training, {validation} validation and {test} test images per class{twice}"


def _next_steps(facts: Facts) -> list[str]:
    """Say what to do next; the study for a CPU comes first if there is no GPU here."""
    file, small = shlex.quote(facts.file), shlex.quote(mini_file(facts.file))
    full = [f"  augbench {command} --configfile {file}" for command in ("check", "plan", "run")]
    mini = [f"  {swap_command(facts.file)}", f"  augbench run --configfile {small}"]
    text = "on a CPU, with the miniature's models (accuracies say nothing)"
    if gpu_is_here():
        steps = ["Then:", *full, f"or, to see all of it run {text}:", *mini]
    else:
        steps = [f"There is no GPU here. To see all of it run {text}:", *mini, "Where there is a GPU:", *full]
    return [
        *([f"classes: {facts.naming}"] if facts.naming else []),
        f"{facts.file} is written. First edit it, where it says DECIDE.",
        *steps,
    ]
