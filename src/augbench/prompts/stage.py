"""Prompts: one row per image to make, a function of (method, class, i) only (paper, section 3.1).

Input: the class table, the training images of each class, a method. Output: ``prompts/{method}.parquet``
with columns label, class_id, part, index, prompt, source; for retrieval, the text of each class's query.
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
        ("prompt", pa.string()),  # null for queries by images only
        ("source", pa.string()),  # training image that sampling starts from; null if it starts from noise
    ]
)


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
    info: ClassInfo, index: int, prompting: Prompting, seed: int, name: str | None = None, clusters: int = 1
) -> str:
    """Prompt of image ``index`` of a class.

    Parameters
    ----------
    name : str, optional
        Text that stands for the class, such as the placeholder of a pseudo-word. Default: the class's
        name, in the form that ``prompting.class_name`` says.
    clusters : int
        As in :func:`template_of`.

    Raises
    ------
    UserError
        Bad templates, or the class lacks the hypernyms or definition that they need;
        :func:`check_prompts` finds this before anything runs.
    """
    template = template_of(prompting, info.class_id, index, seed, clusters)
    scene = scene_of(info.class_id, index, seed) if "scene" in placeholders_of(template) else ""
    return fill(template, class_name(info, prompting.class_name) if name is None else name, info, scene)


def check_prompts(study: Study, name: str, classes: Sequence[ClassInfo]) -> list[UserError]:
    """Problems with the prompts of method ``name``, for a check before anything runs.

    They are bad templates, and classes that lack what templates ask for.
    """
    method = study.pooled[name]
    prompting, key = method.prompting, f"methods.{name}.{method.prompt_key}"
    if prompting is None:
        return []
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


def write_prompts(
    study: Study,
    name: str,
    classes: Sequence[ClassInfo],
    training_images: Mapping[str, Sequence[str]],
    path: str | Path,
) -> None:
    """Write the prompts of method ``name``; classes that ``retrieval.exclude`` lists have none.

    Parameters
    ----------
    training_images : mapping
        Image ids of the training split by class id, in the split's order. Sizes of pools may depend on
        their number, and sampling may start from them.

    Raises
    ------
    ConfigError
        The problems that :func:`check_prompts` finds, one line each.
    """
    made = [info for info in classes if info.class_id not in study.retrieval.listed]
    if problems := check_prompts(study, name, made):
        raise ConfigError(problems)
    rows = [
        {"label": label, "class_id": info.class_id, **row}
        for label, info in enumerate(classes)
        if info.class_id not in study.retrieval.listed
        for row in _class_rows(study, name, info, training_images)
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)


def _class_rows(
    study: Study, name: str, info: ClassInfo, training_images: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, object]]:
    method, personalised = study.pooled[name], study.personalised.get(name)
    if (prompting := method.prompting) is None:
        yield {"part": 0, "index": 0, "prompt": None, "source": None}
        return
    if method.retrieves_images:
        first = prompting.model_copy(update={"draw": "cycle"})
        yield {"part": 0, "index": 0, "prompt": prompt_for(info, 0, first, study.seed), "source": None}
        return
    images = training_images[info.class_id]
    for part in range(study.parts_made(name)):
        for index in study.augmentation.part_range(part, len(images)):
            if personalised is not None:
                prompt = _personalised_prompt(personalised, info, index, study.seed_of(name))
            else:
                prompt = prompt_for(info, index, prompting, study.seed_of(name))
            yield {
                "part": part,
                "index": index,
                "prompt": prompt,
                "source": images[index % len(images)] if method.from_images else None,
            }


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
