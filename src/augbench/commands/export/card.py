"""The data card of an exported training set, ``README.md``: where its images come from, and what may be done.

Everything is read from the study's results; facts on licences are those of ``docs/licences.md``.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from augbench.commands.export.contents import ADDED, REAL, Contents
from augbench.commands.export.formats import DATA_FILES, IMAGES_PER_FILE
from augbench.config.corpus import ImageCorpus, MiniatureCorpus, ParquetCorpus
from augbench.config.data import Caltech256, FashionMnist
from augbench.data.classes import SHIPPED_TABLES, folder_of
from augbench.files import read_json
from augbench.leakage.records import read_leaks
from augbench.report.protocol import checker_of
from augbench.report.render import escape_markdown
from augbench.report.tables import table1

IMAGENET = [name for table in ("imagenet", "imagenet100") for name in (table, str(SHIPPED_TABLES[table]))]
HF_SPLITS = {"train": "train", "val": "validation", "test": "test"}
CITATION = """@article{burg2023image,
  title   = {Image retrieval outperforms diffusion models on data augmentation},
  author  = {Burg, Max F. and Wenzel, Florian and Zietlow, Dominik and Horn, Max and Makansi, Osama and
             Locatello, Francesco and Russell, Chris},
  journal = {Transactions on Machine Learning Research},
  year    = {2023},
  note    = {arXiv:2304.10253}
}"""
READING = {
    "imagefolder": "torchvision's `ImageFolder` and timm read `{first}` as it is; both number the classes by"
    " the sorted names of their folders, timm with `--class-map DIR/classes.txt` as below. Hugging Face's"
    ' `datasets`: `load_dataset("imagefolder", data_dir="DIR")`.',
    "webdataset": f"Each tar holds up to {IMAGES_PER_FILE:,} images by class: shuffle across tars. timm:"
    " `--dataset wds/NAME --data-dir DIR --val-split val`. Hugging Face's `datasets`:"
    ' `load_dataset("webdataset", data_dir="DIR")`, if all images have one format (PNG or JPEG).',
    "parquet": f"Each file holds up to {IMAGES_PER_FILE:,} images by class: shuffle across files. Hugging"
    ' Face\'s `datasets`: `load_dataset("parquet", data_files={{"train": "DIR/{first}-*.parquet"}})`.',
}


def card(contents: Contents, image_format: str, command: str, reason: str = "") -> str:
    """Write the card.

    Parameters
    ----------
    image_format : str
        One of :data:`augbench.commands.export.formats.FORMATS`.
    command : str
        The command that made the export.
    reason : str
        Why the row was chosen, if the statistics chose it.
    """
    plan = contents.plan
    title = f"{plan.study.study}: training set of {escape_markdown(plan.study.label(contents.row))}"
    sections = {
        "Read it": [*_reading(contents, image_format)],
        "Row": [*_row(contents, reason)],
        "Images": [*_images(contents)],
        "Recipe": [*_recipe(contents)],
        "Models and corpus": [*_models(contents)],
        "Filters and yields": [*_yields(contents)],
        "Near-duplicates of real images": [*_leaks(contents)],
        "Licences": [*_licences(contents)],
        "How to cite": [f"Cite the paper, augbench, and the data set.\n\n```bibtex\n{CITATION}\n```"],
        "Made by": [f"```sh\n{command}\n```"],
    }
    body = "\n".join(f"## {name}\n\n" + "\n\n".join(texts) + "\n" for name, texts in sections.items())
    return f"---\n{_head(contents, image_format)}---\n\n# {title}\n\n{body}"


def _reading(contents: Contents, image_format: str) -> Iterator[str]:
    yield READING[image_format].format(first=next(iter(contents.splits)))
    added = contents.written is not None and contents.written.num_rows > 0
    if image_format == "imagefolder" and added and contents.plan.study.augmentation.image_format == "webp":
        yield 'Added images are WebP, which timm leaves out unless told: `--input-key ".png;.jpg;.webp"`.'


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def _head(contents: Contents, image_format: str) -> str:
    files = [
        {"split": HF_SPLITS[split], "path": DATA_FILES[image_format].format(split)}
        for split in contents.splits
    ]
    return _yaml(
        {
            "pretty_name": f"{contents.plan.study.study}, {contents.plan.study.label(contents.row)}",
            "license": "other",
            "task_categories": ["image-classification"],
            "configs": [{"config_name": "default", "data_files": files}],
        }
    )


def _row(contents: Contents, reason: str) -> Iterator[str]:
    plan, row = contents.plan, contents.row
    name, draw = plan.study.row_and_draw(row)
    chosen = f" It chose the row `{contents.trained}`." if contents.trained != row else ""
    of_draw = f", draw {draw} of the training images" if plan.study.dataset.draws > 1 else ""
    yield (
        f"Study `{plan.study.study}`, row `{row}` ({escape_markdown(plan.study.label(row))}), set"
        f" {contents.run}{of_draw}.{chosen}"
    )
    entry = next((one for one in table1.read_rows(plan.table1["csv"]) if one.method == name), None)
    if entry is not None:
        error = "" if entry.stderr_percent is None else f" ± {entry.stderr_percent:.2f} (standard error)"
        over = "1 run" if entry.n == 1 else f"{entry.n} runs, each with a set of its own"
        yield f"Test accuracy of classifiers trained on such sets: {entry.top1_percent:.2f}%{error}, {over}."
    if reason:
        yield (
            f"Chosen by the study's statistics: {escape_markdown(reason)}. The best of several rows is partly"
            " lucky: expect a little less on other test images."
        )
    trained = plan.study.methods[contents.trained]
    if trained.real_repeats > 1:
        yield f"Each real image counted {trained.real_repeats} times in training; it is here once."
    if use := trained.use.model_dump(mode="json", exclude_defaults=True):
        yield (
            f"The row's classifiers used the images in a way of their own:\n\n```yaml\n{_yaml({'use': use})}"
            "```\n\nThe images here are those after `replace`; the other keys are for the training."
        )


def _images(contents: Contents) -> Iterator[str]:
    counts = {split: contents.counts(split) for split in contents.splits}
    columns = [
        (f"{split}, {kind}", counts[split][kind])
        for split in contents.splits
        for kind in (REAL, ADDED)
        if kind == REAL or counts[split][kind]
    ]
    table = [["label", "class", "name", *(name for name, _ in columns)]]
    for label, info in enumerate(contents.classes):
        numbers = [f"{found[info.class_id]:,}" for _, found in columns]
        names = (escape_markdown(text) for text in (folder_of(info.class_id), info.name))
        table.append([str(label), *names, *numbers])
    table.append(["", "all", "", *(f"{sum(found.values()):,}" for _, found in columns)])
    table.insert(1, ["--:", "---", "---", *["--:"] * len(columns)])
    yield "\n".join(f"| {' | '.join(line)} |" for line in table)
    yield "`classes.txt` names the classes by label. Each image's metadata say where it comes from."
    if contents.excluded:
        yield f"Left out by the study: {', '.join(sorted(map(folder_of, contents.excluded)))}."
    if lacks := contents.lacks:
        listed = ", ".join(
            f"{folder_of(name)} {lack.images} of {lack.wanted}" for name, lack in sorted(lacks.items())
        )
        yield f"Added images that the set lacks, because the pool has too few: {listed}."
    if contents.listed is not None:
        yield (
            f"{contents.listed.num_rows:,} retrieved images are not here: `addresses.parquet` lists their"
            " addresses, and the SHA-256, width, height and caption of each file as it was fetched."
        )


def _section(section: BaseModel) -> dict[str, Any]:
    found: dict[str, Any] = section.model_dump(mode="json", exclude_defaults=True)
    return found


def _recipe(contents: Contents) -> Iterator[str]:
    study = contents.plan.study
    names = dict.fromkeys([contents.row, contents.trained, *_sources(contents)])
    rows = {name: _section(study.methods[name]) for name in names}
    dataset = study.dataset.model_dump(mode="json", exclude_defaults=True)
    own = {key: value for key, value in dataset.items() if key not in ("root", "downloads", "further_tests")}
    recipe = {
        "seed": study.seed,
        "dataset": {"kind": study.dataset.kind, **own},
        "augmentation": _section(study.augmentation),
        "methods": rows,
    }
    yield f"Keys of the config that differ from their defaults:\n\n```yaml\n{_yaml(recipe)}```"


def _models(contents: Contents) -> Iterator[str]:
    plan, lines = contents.plan, []
    provenance = read_json(plan.provenance) if Path(plan.provenance).is_file() else {}
    for name, model in sorted(provenance.get("models", {}).items()):
        where = model.get("repository") or Path(model["folder"]).name
        revision = f", revision `{model['revision']}`" if "revision" in model else ""
        lines.append(f"- {name}: {where}{revision}, content `{model['id']}`")
    corpus = plan.study.corpus
    if corpus is not None and _has(contents, "retrieves_images"):
        name = next(
            (Path(str(getattr(corpus, key))).name for key in ("root", "folder") if hasattr(corpus, key)), ""
        )
        lines.append(f"- corpus: {corpus.kind}{f', {name}' if name else ''}")
    version = provenance.get("version")
    revision = f" ({provenance['revision']})" if provenance.get("revision") else ""
    lines.append(f"- code: augbench {version}{revision}" if version else "- code: augbench")
    yield "\n".join(lines)


def _sources(contents: Contents) -> list[str]:
    """Rows that made the set's images, and the rows whose images these started or learned from."""
    study = contents.plan.study
    return list(dict.fromkeys(name for pool in contents.pools for name in (pool, *study.all_built_on(pool))))


def _has(contents: Contents, what: str) -> bool:
    methods = contents.plan.study.methods
    return any(getattr(methods[name], what) for name in _sources(contents))


def _yields(contents: Contents) -> Iterator[str]:
    plan = contents.plan
    if contents.pools == []:
        yield "The set has no added images."
    if _has(contents, "generates_images"):
        made = [pool for pool in _sources(contents) if plan.study.methods[pool].generates_images]
        models = {pool: plan.study.generator_of(pool) for pool in made}
        checkers = "; ".join(f"`{pool}`: {Path(checker_of(model)).name}" for pool, model in models.items())
        yield (
            "`safety_flags` of an image counts the samples that the safety checker rejected before it"
            f" (checkers: {checkers})."
        )
    retrieved = [pool for pool in _sources(contents) if plan.study.methods[pool].retrieves_images]
    fates = plan.retrieval_summary.get("fates")
    if retrieved and fates is not None and Path(fates).is_file():
        with Path(fates).open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["class_id"] == "all classes"]
        for pool in retrieved:
            found = [f"{row['fate']} {int(row['candidates']):,}" for row in rows if row["method"] == pool]
            yield f"Candidates of `{pool}` in the corpus, by what became of them: {'; '.join(found)}."
    keep = plan.study.filters.get(contents.trained)
    if keep is not None:
        yield f"The pool was filtered:\n\n```yaml\n{_yaml({'keep': _section(keep)})}```"


def _searched(contents: Contents) -> list[str]:
    """Rows whose searches cover the set: the row, the one that it chose, or else all that made its images."""
    plan = contents.plan
    if plan.study.leakage.action == "off":
        return []
    covering = ([contents.row], [contents.trained], contents.pools)
    return next((names for names in covering if all(map(os.path.isfile, map(plan.leaks, names)))), [])


def _leaks(contents: Contents) -> Iterator[str]:
    """Count the set's images that show a real image of the study; a pool's pairs hold for all its rows."""
    plan = contents.plan
    if contents.added is None:
        yield "The set has no added images."
        return
    if not (names := _searched(contents)):
        yield f"Not searched for (`leakage.action: {plan.study.leakage.action}`)."
        return
    pairs = [path for name in names for path in (plan.leaks(name), plan.repeats(name))]
    hashes = Counter(contents.added.column("sha256").to_pylist())
    leaking: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for path in filter(os.path.isfile, pairs):
        for row in read_leaks(path).select(["sha256", "split"]).to_pylist():
            leaking.setdefault(row["split"], set()).add(row["sha256"])
    counts = {
        split: sum(hashes[one] for one in leaking[split] if one in hashes)
        for split in ("test", "val", "train")
    }
    yield (
        f"Of the {contents.added.num_rows:,} added images, {counts['test']:,} near-duplicate a test image,"
        f" {counts['val']:,} a validation image and {counts['train']:,} a training image"
        f" (`leakage.action: {plan.study.leakage.action}`)."
    )


def _licences(contents: Contents) -> Iterator[str]:
    study = contents.plan.study
    dataset, corpus = study.dataset, study.corpus
    if isinstance(dataset, FashionMnist):
        yield "Real images: Fashion-MNIST, MIT, (c) 2017 Zalando SE."
    elif isinstance(dataset, Caltech256):
        yield (
            "Real images: Caltech256. Its photographs belong to many owners, and no licence from them is"
            " known: do not redistribute them."
        )
    elif dataset.classes in IMAGENET:
        yield (
            "Real images: ImageNet, for non-commercial research and education only. Do not redistribute them,"
            " in this form or another. Class names: WordNet 3.0, (c) 2006 Princeton University."
        )
    else:
        yield "Real images: the terms of their data set hold. Read them before you pass the images on."
    if _has(contents, "generates_images"):
        yield (
            "Generated images: made by the model above. Stable Diffusion's licence (CreativeML OpenRAIL-M)"
            " claims no rights in them; you answer for them, under the use restrictions of its Attachment A."
            " For other models, read their cards; augbench's miniature models are MIT."
        )
    if _has(contents, "retrieves_images"):
        yield (
            "Retrieved images: crops of Fashion-MNIST (MIT) and drawn images, from the miniature corpus."
            if isinstance(corpus, MiniatureCorpus)
            else "Retrieved images: the terms of the corpus, a collection of images, hold."
            if isinstance(corpus, ImageCorpus | ParquetCorpus)
            else "Retrieved images, and what generated images take from them: works of other people; a"
            " corpus of links gives no licence for them. Keep the images inside your group and pass on their"
            " addresses (`--addresses`). A photograph of a person is personal data."
        )
    yield "The other files of this folder: MIT. This is not legal advice."
