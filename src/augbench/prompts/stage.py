"""Prompts: one row per image to make, a function of (method, class, i) only (paper, section 3.1).

Input: the class table, the training images of each class, a method, the images of another row that it starts
from. Output: ``prompts/{method}.parquet`` with columns label, class_id, part, index, prompt, source; for
retrieval, the text of each class's query.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.origins import Start
from augbench.artifacts.shards import ORIGIN
from augbench.config.methods import PersonaliseMethod, Prompting
from augbench.config.problems import ConfigError
from augbench.config.study import Study
from augbench.data.classes import ClassInfo, folder_of
from augbench.errors import UserError, some
from augbench.files import atomic_path
from augbench.prompts.captions import caption_of, check_captions, load_captions, without_caption
from augbench.prompts.placeholders import placeholder
from augbench.prompts.templates import (
    check_prompting,
    fill,
    load_scenes,
    load_templates,
    placeholders_of,
    strip_whitespace,
)
from augbench.seeds import derive_seed

SCHEMA = pa.schema(
    [
        ("label", pa.int32()),
        ("class_id", pa.string()),
        ("part", pa.int32()),
        ("index", pa.int32()),
        ("prompt", pa.string()),  # null for queries by images only
        ("source", pa.string()),  # image that sampling starts from; null if it starts from noise
    ]
)
# with the column ORIGIN if sampling starts from another row's images
STARTED_SCHEMA = SCHEMA.append(ORIGIN)


def class_name(info: ClassInfo, how: str) -> str:
    """Name of a class in prompts: the paper's n or, for ``no_whitespace``, w(n) (paper, section 3.1).

    For n = "tiger shark, Galeocerdo cuvieri", w(n) is "tigershark,Galeocerdocuvieri".
    """
    return strip_whitespace(info.name) if how == "no_whitespace" else info.name


def template_of(prompting: Prompting, class_id: str, index: int, seed: int, clusters: int = 1) -> str:
    """Template of image ``index`` of a class: drawn with replacement, or each in turn.

    Parameters
    ----------
    clusters : int
        Image i belongs to cluster i mod ``clusters``. With ``draw: cycle``, each cluster takes the
        templates in turn.
    """
    templates = load_templates(prompting.templates)
    if prompting.draw == "cycle":
        return templates[index // clusters % len(templates)]
    if len(templates) == 1:
        return templates[0]
    rng = np.random.default_rng(derive_seed(seed, "template", class_id, index))
    return templates[int(rng.integers(len(templates)))]


def scene_of(class_id: str, index: int, seed: int) -> str:
    """Background of image ``index`` of a class, drawn with replacement from the 365 scenes.

    Source: Sariyildiz et al., 2023.
    """
    scenes = load_scenes()
    rng = np.random.default_rng(derive_seed(seed, "scene", class_id, index))
    return scenes[int(rng.integers(len(scenes)))]


def prompt_for(
    info: ClassInfo,
    index: int,
    prompting: Prompting,
    seed: int,
    name: str | None = None,
    clusters: int = 1,
    source: str | None = None,
) -> str:
    """Prompt of image ``index`` of a class.

    Parameters
    ----------
    name : str, optional
        Text that stands for the class, such as the placeholder of a pseudo-word. Default: the class's
        name, in the form that ``prompting.class_name`` says.
    clusters : int
        As in :func:`template_of`.
    source : str, optional
        Id of the training image that sampling starts from; captions may be of this image.

    Raises
    ------
    UserError
        Bad templates, or the class lacks the hypernyms, definition or caption that it needs;
        :func:`check_prompts` finds this before anything runs.
    """
    if prompting.captions is not None:
        captions = load_captions(prompting.captions).get(info.class_id, ())
        caption = caption_of(captions, index, prompting.draw, seed, info.class_id, source)
        if caption is None:
            image = f"image {index} of class {folder_of(info.class_id)!r}"
            found = f"no caption for {image}" + (f", which starts from {source}" if source else "")
            allowed = "add one, or captions of the class without index and image_id"
            raise UserError(prompting.captions, found, allowed)
        return caption
    template = template_of(prompting, info.class_id, index, seed, clusters)
    scene = scene_of(info.class_id, index, seed) if "scene" in placeholders_of(template) else ""
    return fill(template, class_name(info, prompting.class_name) if name is None else name, info, scene)


def check_prompts(study: Study, name: str, classes: Sequence[ClassInfo]) -> list[UserError]:
    """Problems with the prompts of method ``name``, for a check before anything runs.

    They are bad templates or captions, and classes that lack what templates ask for, or captions.
    """
    method = study.pooled[name]
    prompting, key = method.prompting, f"methods.{name}.{method.prompt_key}"
    if prompting is None:
        return []
    if prompting.captions is not None:
        ids = [info.class_id for info in classes]
        return check_captions(prompting.captions, f"{key}.captions", ids, study.retrieval.listed)
    if problems := check_prompting(classes, prompting, key):
        return problems
    if method.must_name_class and any(
        "" not in placeholders_of(template) for template in load_templates(prompting.templates)
    ):
        return [
            UserError(
                f"{key}.templates",
                repr(prompting.templates),
                "allowed: templates that name the class with {}, which queries and pseudo-words need",
            )
        ]
    return []


def images_without_caption(
    study: Study, name: str, training_images: Mapping[str, int]
) -> Iterator[UserError]:
    """Yield a problem if captions of method ``name`` are each for one image, and some image has none.

    ``training_images`` are the numbers of training images by class_id, which sizes of pools may depend on.
    """
    method = study.pooled[name]
    prompting = method.prompting
    if prompting is None or prompting.captions is None or not method.generates_images:
        return
    made = {
        class_id: [
            index
            for part in range(study.parts_made(name))
            for index in study.augmentation.part_range(part, size)
        ]
        for class_id, size in training_images.items()
    }
    key = f"methods.{name}.{method.prompt_key}.captions"
    yield from without_caption(prompting.captions, key, made, method.from_images)


def write_prompts(
    study: Study,
    name: str,
    classes: Sequence[ClassInfo],
    training_images: Mapping[str, Sequence[str]],
    path: str | Path,
    starts: Mapping[str, Sequence[Start]] | None = None,
    excluded: Collection[str] = (),
) -> None:
    """Write the prompts of method ``name``; classes that ``retrieval.exclude`` lists have none.

    Parameters
    ----------
    training_images : mapping
        Image ids of the training split by class id, in the split's order. Sizes of pools may depend on
        their number, and sampling may start from them.
    starts : mapping, optional
        Images of another row by class id, which sampling starts from if the method says so.
    excluded : collection of str
        Classes that training leaves out. They have no prompts if sampling starts from another row's images,
        because that row may have none of them.

    Raises
    ------
    ConfigError
        The problems that :func:`check_prompts` finds, one line each.
    UserError
        A class that is not left out has no image to start from.
    """
    made = [info for info in classes if info.class_id not in study.retrieval.listed]
    problems = check_prompts(study, name, made)
    if not problems:
        sizes = {info.class_id: len(training_images[info.class_id]) for info in made}
        problems = [*images_without_caption(study, name, sizes)]
    if problems:
        raise ConfigError(problems)
    if starts is not None:
        made = [info for info in made if info.class_id not in excluded]
        _check_starts(study, name, [info.class_id for info in made if not starts.get(info.class_id)])
    wanted = {info.class_id for info in made}
    rows = [
        {"label": label, "class_id": info.class_id, **row}
        for label, info in enumerate(classes)
        if info.class_id in wanted
        for row in _class_rows(study, name, info, training_images, starts)
    ]
    schema = SCHEMA if starts is None else STARTED_SCHEMA
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def _check_starts(study: Study, name: str, without: Sequence[str]) -> None:
    """Raise a UserError if there are classes without images to start from."""
    if without:
        pool = study.methods[name].start_pool
        raise UserError(
            f"methods.{name}.start.pool",
            f"{pool!r} has no image of {len(without)} class(es): {some(without)}",
            f"let {pool} have images of every class, or leave these classes out (retrieval.exclude)",
        )


def _class_rows(
    study: Study,
    name: str,
    info: ClassInfo,
    training_images: Mapping[str, Sequence[str]],
    starts: Mapping[str, Sequence[Start]] | None,
) -> Iterator[dict[str, object]]:
    method, personalised = study.pooled[name], study.personalised.get(name)
    if (prompting := method.prompting) is None:
        yield {"part": 0, "index": 0, "prompt": None, "source": None}
        return
    if method.retrieves_images and (path := prompting.captions) is not None:
        first_caption = load_captions(path)[info.class_id][0].text
        yield {"part": 0, "index": 0, "prompt": first_caption, "source": None}
        return
    if method.retrieves_images:
        first = prompting.model_copy(update={"draw": "cycle"})
        yield {"part": 0, "index": 0, "prompt": prompt_for(info, 0, first, study.seed), "source": None}
        return
    images = training_images[info.class_id]
    for part in range(study.parts_made(name)):
        for index in study.augmentation.part_range(part, len(images)):
            source = images[index % len(images)] if method.from_training_images else None
            if personalised is not None and personalised.learns_vectors:
                prompt = _personalised_prompt(personalised, info, index, study.seed_of(name))
            else:
                prompt = prompt_for(info, index, prompting, study.seed_of(name), source=source)
            row = {"part": part, "index": index, "prompt": prompt}
            if starts is not None:
                yield row | asdict(starts[info.class_id][index % len(starts[info.class_id])])
            else:
                yield row | {"source": source}


def _personalised_prompt(method: PersonaliseMethod, info: ClassInfo, index: int, seed: int) -> str:
    learned = placeholder(info.class_id, index % method.clusters, method.clusters)
    if not method.learns_words:
        return learned
    return prompt_for(
        info, index=index, prompting=method.prompting, seed=seed, name=learned, clusters=method.clusters
    )


def read_prompts(path: str | Path) -> dict[tuple[str, int], list[dict[str, object]]]:
    """Read the rows by (class_id, part), in order of index."""
    grouped: dict[tuple[str, int], list[dict[str, object]]] = {}
    for row in pq.read_table(path).to_pylist():
        grouped.setdefault((row["class_id"], row["part"]), []).append(row)
    return grouped
