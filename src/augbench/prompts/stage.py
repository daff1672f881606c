"""Prompts: one row per image to make, a function of (method, class, i) only (paper, section 3.1).

Flows in: the class table, the training images of each class, a method. Flows out: ``prompts/{method}.parquet`` with label,
class_id, part, index, prompt, source; for retrieval one query per class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.config.methods import PersonaliseMethod, Prompting
from augbench.config.problems import ConfigError
from augbench.config.study import Study
from augbench.data.classes import ClassInfo
from augbench.errors import UserError
from augbench.files import atomic_path
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
        ("prompt", pa.string()),
        (
            "source",
            pa.string(),
        ),  # the training image that sampling starts from; null where it starts from noise
    ]
)


def class_name(info: ClassInfo, how: str) -> str:
    """n ("tiger shark, Galeocerdo cuvieri") or w(n) ("tigershark,Galeocerdocuvieri"; paper, section 3.1)."""
    return strip_whitespace(info.name) if how == "no_whitespace" else info.name


def template_of(prompting: Prompting, class_id: str, index: int, seed: int, clusters: int = 1) -> str:
    """The template of image ``index`` of a class: drawn with replacement, or each in turn.

    Parameters
    ----------
    clusters : int
        Image i belongs to cluster i mod ``clusters``; templates that are taken in turn are taken in turn by each cluster.
    """
    templates = load_templates(prompting.templates)
    if prompting.draw == "cycle":
        return templates[index // clusters % len(templates)]
    if len(templates) == 1:
        return templates[0]
    rng = np.random.default_rng(derive_seed(seed, "template", class_id, index))
    return templates[int(rng.integers(len(templates)))]


def scene_of(class_id: str, index: int, seed: int) -> str:
    """The background of image ``index`` of a class, drawn with replacement from the 365 scenes (Sariyildiz et al., 2023)."""
    scenes = load_scenes()
    rng = np.random.default_rng(derive_seed(seed, "scene", class_id, index))
    return scenes[int(rng.integers(len(scenes)))]


def prompt_for(
    info: ClassInfo, index: int, prompting: Prompting, seed: int, name: str | None = None, clusters: int = 1
) -> str:
    """The prompt of image ``index`` of a class.

    Parameters
    ----------
    name : str, optional
        What stands for the class: the placeholder of a pseudo-word. Default: its name, as ``prompting.class_name`` says.
    clusters : int
        As in :func:`template_of`.

    Raises
    ------
    UserError
        Bad templates, or the class has no hypernyms or definition for them; :func:`check_prompts` says so early.
    """
    template = template_of(prompting, info.class_id, index, seed, clusters)
    scene = scene_of(info.class_id, index, seed) if "scene" in placeholders_of(template) else ""
    return fill(template, class_name(info, prompting.class_name) if name is None else name, info, scene)


def check_prompts(study: Study, name: str, classes: Sequence[ClassInfo]) -> list[UserError]:
    """What keeps method ``name`` from its prompts, before anything runs: bad templates, or classes that lack what templates ask for."""
    method = study.pooled[name]
    prompting, key = method.prompting, f"methods.{name}.{method.prompt_key}"
    if problems := check_prompting(classes, prompting, key):
        return problems
    if method.must_name_class and any(
        "" not in placeholders_of(template) for template in load_templates(prompting.templates)
    ):
        return [
            UserError(
                f"{key}.templates",
                repr(prompting.templates),
                "allowed: templates that name the class: a query and a pseudo-word need the place",
            )
        ]
    return []


def write_prompts(
    study: Study,
    name: str,
    classes: Sequence[ClassInfo],
    training_images: Mapping[str, Sequence[str]],
    path: str | Path,
) -> None:
    """Write the prompts of method ``name``.

    Parameters
    ----------
    training_images : mapping
        Image ids per class id in the training split, in its order: sizes of pools may depend on their number, and sampling may start from them.

    Raises
    ------
    ConfigError
        As :func:`check_prompts`, a line each.
    """
    if problems := check_prompts(study, name, classes):
        raise ConfigError(problems)
    rows = [
        {"label": label, "class_id": info.class_id, **row}
        for label, info in enumerate(classes)
        for row in _class_rows(study, name, info, training_images)
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)


def _class_rows(
    study: Study, name: str, info: ClassInfo, training_images: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, object]]:
    method, personalised = study.pooled[name], study.personalised.get(name)
    if method.retrieves_images:
        first = method.prompting.model_copy(update={"draw": "cycle"})
        yield {"part": 0, "index": 0, "prompt": prompt_for(info, 0, first, study.seed), "source": None}
        return
    images = training_images[info.class_id]
    for part in range(study.parts_made(name)):
        for index in study.augmentation.part_range(part, len(images)):
            if personalised is not None:
                prompt = _personalised_prompt(personalised, info, index, study.seed)
            else:
                prompt = prompt_for(info, index, method.prompting, study.seed)
            yield {
                "part": part,
                "index": index,
                "prompt": prompt,
                "source": images[index % len(images)] if method.from_images else None,
            }


def _personalised_prompt(method: PersonaliseMethod, info: ClassInfo, index: int, seed: int) -> str:
    learned = placeholder(info.class_id, index % method.clusters, method.clusters)
    return (
        prompt_for(
            info, index=index, prompting=method.prompting, seed=seed, name=learned, clusters=method.clusters
        )
        if method.learns_words
        else learned
    )


def read_prompts(path: str | Path) -> dict[tuple[str, int], list[dict[str, object]]]:
    """Rows by (class_id, part), in order of index."""
    grouped: dict[tuple[str, int], list[dict[str, object]]] = {}
    for row in pq.read_table(path).to_pylist():
        grouped.setdefault((row["class_id"], row["part"]), []).append(row)
    return grouped
