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
    "classifier: {arch: resnet18, layers: [1, 1, 1, 1], base_width: 16, resolution: 32, evaluation_resize:"
    " 32, min_crop_area: 0.5, batch_size: 32, schedule: steps, steps: 200, keep: last}",
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


def mini_file(file: str) -> str:
    """File of the miniature's study, beside ``file``."""
    return f"{file.removesuffix('.yaml')}_mini.yaml"


def swap_command(file: str) -> str:
    """Command that writes the miniature's study beside ``file``."""
    return f"sed '/# full$/s/^/# /; /# mini$/s/# //' {shlex.quote(file)} > {shlex.quote(mini_file(file))}"


def study_text(facts: Facts) -> str:
    """Return the study's file."""
    lines: list[str] = []
    for section in (_head, _dataset, _corpus, _models, _methods, _augmentation, _classifier, _report):
        lines += [*section(facts), ""]
    return "\n".join(lines[:-1]) + "\n"


def _head(facts: Facts) -> Iterator[str]:
    yield from _comment(
        "`augbench init` has proposed this study. Decide what is marked DECIDE. docs/configuration.md"
        " explains every key; what is not set here has the paper's value, if it gives one."
    )
    yield from _comment(
        "Lines marked `full` need a GPU. After you have edited this file, the next line writes a study for a"
        " CPU, with those marked `mini`, whose models know garments and little else: its accuracies say"
        " nothing."
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
    for text in _sizes_texts(facts):
        yield from _comment(text, "  ")
    for key, value in facts.proposal.keys.items():
        yield f"  {key}: {value_text(value)}"
    if not facts.proposal.twice:
        return  # further draws need images that are in no split
    yield (
        "  # draws: 5  # results hold for these training images; 5 draws cost up to 5 times"
        " (docs/statistics.md)"
    )


def _sizes_texts(facts: Facts) -> Iterator[str]:
    proposal = facts.proposal
    train, validation, test = (proposal.images(split) for split in ("train", "validation", "test"))
    yield (
        f"DECIDE: images per class: {span(train)} train, {span(validation)} validate, {span(test)} test; one"
        f" test image is {100 / sum(test):.2g} points of accuracy."
    )
    if "shots" in proposal.keys:
        yield "shots takes as many from every class; train_fraction keeps their proportions."
    if "test_images_per_class" in proposal.keys:
        yield "test_images_per_class cuts the test images; remove it to score on all of them."
    if median(train) < 50:
        yield "The paper has 74 to 130 training images per class; with fewer, runs differ more."


def _corpus(facts: Facts) -> Iterator[str]:
    if facts.corpus is None:
        yield from _comment(
            "Retrieval, the paper's best way, needs a corpus: any folder with many images that may show your"
            " classes, without labels and without images of the data set, or published embeddings"
            " (docs/retrieval.md). `augbench init` with --corpus FOLDER writes a file that has it."
        )
        yield "# corpus: {kind: image_folder, root: data/web_images}"
        return
    yield from _comment(
        f"Retrieval searches {facts.corpus.text}. No image of the data set may be among them. Check the"
        " licences of retrieved images (docs/licences.md)."
    )
    if facts.corpus.is_embedded:
        yield from _comment(
            "DECIDE: which CLIP made the embeddings? Name it here and in the section clip below."
        )
    line = f"corpus: {_flow(facts.corpus.keys)}"
    yield _full(line) if facts.corpus.is_embedded else line


def _models(facts: Facts) -> Iterator[str]:
    yield from _comment(
        "Any Stable Diffusion 1.x or 2.x model, by its id on the Hub or its folder. Models are fetched once;"
        " read their licences (docs/licences.md)."
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
        "DECIDE: the table's rows; each costs its training. Remove what you don't need (more:"
        " docs/methods.md)."
    )
    yield "methods:"
    yield "  none: {mechanism: real, label: no added images}"
    twice = "real_2x: {mechanism: real, split: train2x, label: twice the real images}"
    if facts.proposal.twice:
        yield f"  {twice}"
    else:
        yield f"  # {twice}  # too few images"
    yield from _comment("each training image, changed a little by the diffusion model:", "  ")
    yield (
        "  boomerang: {mechanism: sample, label: Boomerang, start: training_images, noise: 0.2, steps: 100,"
        " guidance_scale: 1.0, prompt: {templates: empty}}"
    )
    yield from _comment('from 80 prompts such as "a photo of a {class name}":', "  ")
    yield (
        "  clip_prompts: {mechanism: sample, label: CLIP prompts,"
        " prompt: {templates: clip, class_name: lemmas}}"
    )
    yield from _comment("with a new word for each class, learned from its training images:", "  ")
    learned = "mechanism: personalise, label: Textual inversion, learn: pseudoword"
    if facts.learns_words:
        yield _full(f"  textual_inversion: {{{learned}}}")
        yield _mini(f"  textual_inversion: {{{learned}, candidates: [1]}}")
    else:
        yield from _comment("Left out, because names that differ by case alone would be one word.", "  ")
        yield f"  # textual_inversion: {{{learned}}}"
    yield from _comment("the corpus's images that are nearest to the class name in CLIP space:", "  ")
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
            f"The largest class asks for {wanted} images, more than the corpus has; with may_fall_short,"
            " classes use what there is.",
            "  ",
        )
    yield _full(f"  retrieval: {{{row}{', may_fall_short: true' if short else ''}}}")
    if not facts.corpus.is_embedded:  # the miniature's CLIP finds strangers alike
        yield _mini(f"  retrieval: {{{row}, may_fall_short: true, duplicate_threshold: null}}")


def _augmentation(facts: Facts) -> Iterator[str]:
    train = facts.proposal.images("train")
    made = TIMES * sum(train)
    yield from _comment(
        f"Each row that generates makes {made:,} images. Each of its 5 training sets (resamples; one"
        f" classifier each) adds {sum(train):,} of them, as many as there are real ones. `augbench plan` has"
        " the costs."
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
        f"All rows train for {steps:,} steps, {steps / per_epoch:,.0f} epochs of the real images alone."
        " resnet50, the paper's network, takes about twice as long. The resolution suits a shorter side of"
        f" about {facts.side} pixels."
    )
    schedule = f"batch_size: {batch}, schedule: steps, steps: {steps}, keep: last"
    yield _full(f"classifier: {{arch: resnet18, {size}, {schedule}}}")
    yield _mini(MINI[1])


def _report(facts: Facts) -> Iterator[str]:
    yield from _comment(
        "DECIDE: the comparisons to test, few: P values are corrected for all of them (docs/statistics.md)."
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
