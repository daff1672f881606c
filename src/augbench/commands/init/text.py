"""Write a study for a data set as commented YAML."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import yaml

from augbench.commands.init.layout import CorpusFound
from augbench.commands.init.sizes import Proposal

WIDTH = 110
FULL_CLIP = "openai/clip-vit-large-patch14"
TIMES = 3  # images made per training image (README; the paper's Caltech256)
BATCH = 128
EPOCHS = 100  # of the training images alone
LEAST_STEPS = 1000
# classifier's keys by the median shorter side, in pixels, from which they fit
RESOLUTIONS = ((192, "resolution: 224"), (96, "resolution: 128"), (48, "resolution: 64"))
SMALL_IMAGES = "resolution: 32, evaluation_resize: 32, stem: small, min_crop_area: 0.5"
MINI = (
    "augmentation: {images_per_training_image: 1, resamples: 2}",
    "classifier: {arch: resnet18, layers: [1, 1, 1, 1], base_width: 16, resolution: 32, evaluation_resize: 32,"
    " min_crop_area: 0.5, batch_size: 32, schedule: steps, steps: 200, keep: last}",
)


@dataclass(frozen=True)
class Facts:
    """What a study is written for.

    Attributes
    ----------
    name : str
        The study's name.
    file : str
        The file that it is written to.
    found : list of str
        What was found in the folder, a line each.
    naming : str or None
        What there is to decide about the classes' names.
    layout : mapping
        Keys of the section ``dataset``, without the sizes of the splits.
    side : int
        Median shorter side of the images, in pixels.
    learns_words : bool
        Whether the classes' names may be learned as words.
    """

    name: str
    file: str
    found: Sequence[str]
    naming: str | None
    layout: Mapping[str, Any]
    proposal: Proposal
    side: int
    corpus: CorpusFound | None
    learns_words: bool


def value_text(value: Any) -> str:
    """Write a value of the config as YAML that stands in any place of a line."""
    if not isinstance(value, str):
        return json.dumps(value)
    plain = re.fullmatch(r"[A-Za-z0-9_./~+-]*[A-Za-z0-9_]", value) and yaml.safe_load(value) == value
    return value if plain and value[0] != "-" else json.dumps(value, ensure_ascii=False)


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
    )


def _flow(keys: Mapping[str, Any]) -> str:
    return f"{{{', '.join(f'{key}: {value_text(value)}' for key, value in keys.items())}}}"


def span(values: Sequence[int]) -> str:
    """Least and greatest of some numbers."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _full(line: str) -> str:
    return f"{line}  # full"


def _mini(line: str) -> str:
    """Comment a line out; the command of the file's head swaps it with those marked full."""
    body = line.lstrip()
    return f"{line[: len(line) - len(body)]}# {body}  # mini"


def swap_command(file: str) -> str:
    """Command that writes the miniature's study beside ``file``."""
    mini = f"{file.removesuffix('.yaml')}_mini.yaml"
    return f"sed '/# full$/s/^/# /; /# mini$/s/# //' {shlex.quote(file)} > {shlex.quote(mini)}"


def study_text(facts: Facts) -> str:
    """Return the study's file."""
    lines: list[str] = []
    for section in (_head, _dataset, _corpus, _models, _methods, _augmentation, _classifier, _report):
        lines += [*section(facts), ""]
    return "\n".join(lines[:-1]) + "\n"


def _head(facts: Facts) -> Iterator[str]:
    yield from _comment(
        "Which added images help a classifier of these classes? `augbench init` has proposed this study from"
        " what is in the folder. What you should decide is marked DECIDE. Every key is explained in"
        " docs/configuration.md; what is not set here has the paper's value, if it gives one."
    )
    yield "#"
    yield from _comment(
        "The lines marked `full` need a GPU. To see all of it on a CPU first, write the study with those"
        " marked `mini` in their place. The miniature's models know garments and little else, so its"
        " accuracies say nothing:"
    )
    yield f"#   {swap_command(facts.file)}"
    yield _full(f"study: {facts.name}")
    yield _mini(f"study: {facts.name}_mini")


def _dataset(facts: Facts) -> Iterator[str]:
    yield "dataset:"
    for text in facts.found:
        yield from _comment(f"Found: {text}.", "  ")
    if facts.naming is not None:
        yield from _comment(f"DECIDE: {facts.naming}", "  ")
    for key, value in facts.layout.items():
        yield f"  {key}: {value_text(value)}"
    yield from _comment(_sizes_text(facts), "  ")
    for key, value in facts.proposal.keys.items():
        yield f"  {key}: {value_text(value)}"
    if not facts.proposal.twice:
        return  # further draws need images that are in no split
    yield from _comment(
        "DECIDE: results hold for these training images. Remove the # to repeat the study with 5 draws of"
        " them, at up to 5 times the cost (docs/statistics.md).",
        "  ",
    )
    yield "  # draws: 5"


def _sizes_text(facts: Facts) -> str:
    proposal = facts.proposal
    train, validation, test = (proposal.images(split) for split in ("train", "validation", "test"))
    sampled = "validation_folder" not in facts.layout and "validation_split" not in facts.layout
    given = "test_folder" in facts.layout or "test_split" in facts.layout
    text = (
        f"DECIDE: how many images train, validate and test? Proposed for each class: {span(train)} for "
        "training"
        f" ({sum(train):,} in all), {span(validation)} for "
        f"validation{' (sampled)' if sampled and given else ''}"
        f" and {span(test)} for test{'' if given else ' (sampled)'}. One of the {sum(test):,} test images is"
        f" {100 / sum(test):.2g} points of accuracy."
    )
    if "shots" in proposal.keys:
        text += " shots takes the same number from every class; train_fraction keeps their proportions."
    if "shots" in proposal.keys and not given:
        text += " Half of each class is kept for the test."
    if "test_images_per_class" in proposal.keys:
        text += " test_images_per_class cuts the test images; remove it to score on all of them."
    if median(train) < 50:
        text += " The paper's ImageNet classes have 74 to 130 training images: fewer make runs differ more."
    return text


def _corpus(facts: Facts) -> Iterator[str]:
    if facts.corpus is None:
        yield from _comment(
            "DECIDE: retrieval, the paper's best way, searches a corpus of images: any folder with many "
            "images"
            " that may show your classes, such as pictures from the web. It needs no labels, and no image of "
            "the"
            " data set may be in it. Published embeddings do as well (docs/retrieval.md). If you have one, "
            "let"
            " `augbench init` write another file with --corpus FOLDER; or name the folder here, and remove "
            "the #"
            " before corpus, before the row retrieval, and before its comparisons at the end."
        )
        yield "# corpus: {kind: image_folder, root: data/web_images}"
        return
    yield from _comment(
        f"What retrieval searches: {facts.corpus.text}. No image of the data set may be in it; "
        "near-duplicates"
        " are reported. Licences of retrieved images are yours to check (docs/licences.md)."
    )
    if facts.corpus.is_embedded:
        yield from _comment(
            "DECIDE: clip must be the model that made the embeddings, and that of the section clip below."
        )
    line = f"corpus: {_flow(facts.corpus.keys)}"
    yield _full(line) if facts.corpus.is_embedded else line


def _models(facts: Facts) -> Iterator[str]:
    yield from _comment(
        "The models are fetched once. DECIDE: any Stable Diffusion 1.x or 2.x model, by its id on the Hub or"
        " its folder; read its licence (docs/licences.md)."
    )
    yield _full("diffusion: {model: CompVis/stable-diffusion-v1-4, dtype: auto}")
    mini = "resolution: 32, steps: 20, guidance_scale: 3.0, dtype: float32"
    yield _mini(f"diffusion: {{model: resources/mini/stable-diffusion, {mini}}}")
    yield _full(f"clip: {{model: {FULL_CLIP}}}")
    yield _mini("clip: {model: resources/mini/clip}")
    yield _full("finetune: {dtype: auto}")
    yield _mini("finetune: {features: clip, max_epochs: 2, patience: 2}")


def _methods(facts: Facts) -> Iterator[str]:
    yield from _comment(
        "DECIDE: one row of the table each. docs/methods.md has the paper's eleven methods and more; remove"
        " what you don't want to know, for each row is trained and paid for."
    )
    yield "methods:"
    yield "  none: {mechanism: real, label: no added images}"
    twice = "real_2x: {mechanism: real, split: train2x, label: twice the real images}"
    if facts.proposal.twice:
        yield f"  {twice}"
    else:
        yield from _comment("The classes have too few images for a row with twice the real ones:", "  ")
        yield f"  # {twice}"
    yield from _comment("Each training image, changed a little by the diffusion model:", "  ")
    yield (
        "  boomerang: {mechanism: sample, label: Boomerang, start: training_images, noise: 0.2, steps: 100,"
        " guidance_scale: 1.0, prompt: {templates: empty}}"
    )
    yield from _comment('Images from prompts such as "a photo of a {class name}" (80 templates):', "  ")
    yield (
        "  clip_prompts: {mechanism: sample, label: CLIP prompts, prompt: {templates: clip, class_name: lemmas}}"
    )
    yield from _comment("A new word is learned for each class from its training images:", "  ")
    learned = "mechanism: personalise, label: Textual inversion, learn: pseudoword"
    if facts.learns_words:
        yield _full(f"  textual_inversion: {{{learned}}}")
        yield _mini(f"  textual_inversion: {{{learned}, candidates: [1]}}")
    else:
        yield from _comment("Left out, because names that differ by case alone would be one word.", "  ")
        yield f"  # textual_inversion: {{{learned}}}"
    yield from _comment("Images of the corpus that are nearest to the class name in CLIP space:", "  ")
    yield from _retrieval(facts)


def _retrieval(facts: Facts) -> Iterator[str]:
    row = "mechanism: retrieve, label: Retrieval, query: {class_name: lemmas}"
    if facts.corpus is None:
        yield f"  # retrieval: {{{row}}}"
        return
    wanted = max(facts.proposal.images("train"))
    short = facts.corpus.images is not None and facts.corpus.images < wanted
    if short:
        yield from _comment(
            f"DECIDE: the corpus has fewer than the {wanted} images that the largest class asks for. With"
            " may_fall_short, classes use what there is; give a larger corpus if you can.",
            "  ",
        )
    yield _full(f"  retrieval: {{{row}{', may_fall_short: true' if short else ''}}}")
    if not facts.corpus.is_embedded:  # the miniature's CLIP finds strangers alike
        yield _mini(f"  retrieval: {{{row}, may_fall_short: true, duplicate_threshold: null}}")


def _augmentation(facts: Facts) -> Iterator[str]:
    train = facts.proposal.images("train")
    made = TIMES * sum(train)
    yield from _comment(
        f"DECIDE: images made per training image: {TIMES} are {made:,} images for each row that generates. A"
        f" training set adds as many as there are real ones ({sum(train):,}), drawn anew for each of the 5"
        " resamples: one classifier each, which measure the spread. `augbench plan` says what it costs."
    )
    yield _full(f"augmentation: {{images_per_training_image: {TIMES}, resamples: 5, image_format: jpeg}}")
    yield _mini(MINI[0])


def _classifier(facts: Facts) -> Iterator[str]:
    images = sum(facts.proposal.images("train"))
    batch = min(BATCH, 1 << max(1, images.bit_length() - 1))
    per_epoch = -(-images // batch)
    steps = max(LEAST_STEPS, EPOCHS * per_epoch)
    size = next((text for least, text in RESOLUTIONS if facts.side >= least), SMALL_IMAGES)
    yield from _comment(
        f"Every row is trained for the same number of steps; {steps:,} are {steps / per_epoch:,.0f} epochs of"
        " the real images alone. `augbench check` and Table 1 warn if accuracy was still rising at the end"
        " (docs/training.md). DECIDE: resnet50 is the paper's network and takes about twice as long. The"
        f" resolution is for images whose shorter side is about {facts.side} pixels."
    )
    schedule = f"batch_size: {batch}, schedule: steps, steps: {steps}, keep: last"
    yield _full(f"classifier: {{arch: resnet18, {size}, {schedule}}}")
    yield _mini(MINI[1])


def _report(facts: Facts) -> Iterator[str]:
    yield from _comment(
        "DECIDE: the comparisons that are tested. P values are corrected for all of them, so few are better"
        " than many (docs/statistics.md)."
    )
    yield "report:"
    yield "  error: pooled  # one spread for all rows: few runs decide more"
    yield "  contrasts:"
    rows = ["boomerang", "clip_prompts", *(["textual_inversion"] if facts.learns_words else [])]
    for row in [*["real_2x"], *rows] if facts.proposal.twice else rows:
        yield f"    - {{row: {row}, against: none}}"
    for against in ("none", "clip_prompts"):
        line = f"    - {{row: retrieval, against: {against}}}"
        if facts.corpus is None:
            yield line.replace("- ", "# - ", 1)
        else:
            yield _full(line) if facts.corpus.is_embedded else line
