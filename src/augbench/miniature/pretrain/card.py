"""Copy the pre-trained models into the repository and write their model card.

``python -m augbench.miniature.pretrain.card results/mini/pretrain resources/mini`` copies the results of
the pretrain rules: the models, the judge, the picture, the measurements. This is no rule of the workflow,
so that no timestamp makes the demo train again.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from augbench.files import read_json, write_json, write_text

INTRODUCTION = """\
# The miniature's models

A small CLIP and a small Stable Diffusion (VAE, U-Net, CLIP text tower, safety checker),
pre-trained from scratch on the miniature web corpus: 50,000 Fashion-MNIST training images in web
style at shift `mild`, of which 60% show a look, a scene or a colour that captions state, and 5,000
distractors. `StableDiffusionPipeline.from_pretrained` and `CLIPModel.from_pretrained` load them. The
weights are in half precision, in safetensors files. The vocabulary is OpenAI's. CLIP's text tower is
stored once, in the pipeline.

![Real test images in odd rows, generated images in even rows, two rows per class](generated.png)

Odd rows: real test images of the target. Even rows: images generated with CLIP's prompt
templates. They are in web style because the model was trained on web style.

## How they were made

```sh
augbench run --configfile config/mini.yaml --target pretrain
python -m augbench.miniature.pretrain.card results/mini/pretrain resources/mini
```
"""
JUDGES = """\
Two ResNets judge them. Both were trained on the corpus's garments with their true labels:
`clean` on clean images only, `robust` on clean and web-style images. Agreement is the share of
images that the judge assigns to their intended class. Diversity is the mean pairwise distance
within a class in the judge's features. The robust judge is in the folder `judge`. It judges the
added images of a study that names it (`report.judge`).
"""
LIMITS = """\
## Limits

The models know ten garments at 32 pixels. Results with them show how the workflow behaves. They
say nothing about Stable Diffusion, CLIP or LAION. Training images: Fashion-MNIST (MIT licence).
Vocabulary: OpenAI's CLIP (MIT licence)."""
MOST_STEPS = 8  # lines of a table of a training's history


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> list[str]:
    """Render a table and an empty line; columns after the first ``text`` ones are right-aligned."""
    align = "|" + "---|" * text + "---:|" * (len(header) - text)
    return [f"| {' | '.join(header)} |", align, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _history(name: str, rows: list[dict[str, float]]) -> list[str]:
    """Render one table per stage of training: rows with the same keys, one of which ends in ``step``."""
    lines = []
    for keys, stage in groupby(rows, key=lambda row: sorted(row)):
        shown = list(stage)
        step = next(key for key in keys if key.endswith("step"))
        figures = [key for key in keys if key != step]
        if len(shown) > MOST_STEPS:
            last, gaps = len(shown) - 1, MOST_STEPS - 1
            shown = [shown[round(place * last / gaps)] for place in range(MOST_STEPS)]
        header = [f"{name}: {step.replace('_', ' ')}", *figures]
        cells = [[f"{row[step]:.0f}", *(f"{row[key]:.4g}" for key in figures)] for row in shown]
        lines += _table(header, cells, text=0)
    return lines


def _zero_shot(top1: dict[str, float]) -> list[str]:
    """Render CLIP's accuracy by prompt family."""
    return [
        "CLIP's zero-shot top-1 on the 10,000 clean test images, by prompt family:",
        "",
        *_table(("prompts", "top-1"), [(name, _percent(value)) for name, value in top1.items()]),
    ]


def _judged(quality: dict[str, Any]) -> list[str]:
    """Render what two judges say of real and generated images."""
    sampling, judges = quality["sampling"], quality["reference"]
    robust = judges["robust"]
    agreement = robust["generated"]["agreement"] / robust["target_test"]["agreement"]
    diversity = {
        name: rows["generated"]["diversity"] / rows["corpus"]["diversity"] for name, rows in judges.items()
    }
    cells = [
        (judge, images, _percent(figures["agreement"]), f"{figures['diversity']:.3g}")
        for judge, rows in judges.items()
        for images, figures in rows.items()
    ]
    return [
        f"Generated images: {quality['generated_images']}, {sampling['scheduler']},"
        f" {sampling['steps']} steps, guidance {sampling['guidance_scale']:g}, CLIP prompts.",
        JUDGES,
        *_table(("judge", "images", "agreement", "diversity"), cells, text=2),
        "Agreement of generated images, divided by the judge's own test accuracy:"
        f" {agreement:.2f} (robust; aim: 0.9).",
        "",
        "Diversity of generated images, divided by that of the corpus's garments:",
        f"{diversity['robust']:.2f} (robust), {diversity['clean']:.2f} (clean; aim: 0.5).",
        "",
    ]


def _attributes(measured: dict[str, Any] | None) -> list[str]:
    """Render how often CLIP tells an attribute in real and generated images."""
    if measured is None:
        return []
    real, generated = measured["real"], measured["generated"]
    told = [
        (images, _percent(shares["told"]), _percent(shares["held_out"]))
        for images, shares in (
            ("real test garments that show it", real),
            ("generated, the prompt names it", generated),
        )
    ]
    of_each = [(name, _percent(share), _percent(generated["of"][name])) for name, share in real["of"].items()]
    return [
        "Many images of the corpus show what prompts can name: a look, a scene or a colour. CLIP tells which"
        " of",
        f"the {len(real['of'])} it is, given the class (chance: {_percent(1 / len(real['of']))}). Each is"
        " held out for one class, whose",
        "garments never show it in the corpus.",
        "",
        *_table(("images", "told", "told, held out"), told),
        *_table(("attribute", "real", "generated"), of_each),
    ]


def _safety(rates: dict[str, float], threshold: float) -> list[str]:
    """Render the rates at which the safety checker flags images."""
    return [
        "Warning signs stand in for unsafe images. In the half of the corpus that the safety checker was",
        f"not calibrated on, it flags {_percent(rates['unsafe_flagged'])} of the signs and"
        f" {_percent(rates['safe_flagged'])} of the other images (threshold {threshold:.3f}).",
        "",
    ]


def render_card(record: dict[str, Any], quality: dict[str, Any], sizes: dict[str, int]) -> str:
    """Render the model card as Markdown.

    Parameters
    ----------
    record : dict
        ``training_record.json``: the history of every model, and the threshold of the safety checker.
    quality : dict
        ``quality.json``: the measurements.
    sizes : dict
        Bytes per model folder.
    """
    lines = [
        INTRODUCTION,
        *_table(("part", "MB"), [(name, f"{size / 1e6:.1f}") for name, size in sizes.items()]),
        "## Training record",
        "",
        *(line for name, rows in record["histories"].items() for line in _history(name, rows)),
        "## Measured quality",
        "",
        *_zero_shot(quality["zero_shot_top1"]),
        *_judged(quality),
        *_attributes(quality.get("attributes")),
        *_safety(quality["safety_checker"], record["safety_threshold"]),
        LIMITS,
    ]
    return "\n".join(lines) + "\n"


def ship(pretrained: Path, target: Path) -> None:
    """Copy the models and the robust judge to ``target``, which is deleted first, and write their card."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(pretrained / "models", target)
    shutil.copytree(pretrained / "reference" / "robust", target / "judge")
    shutil.copyfile(pretrained / "generated.png", target / "generated.png")
    record, quality = read_json(target / "training_record.json"), read_json(pretrained / "quality.json")
    write_json(target / "quality.json", quality)
    folders = [*sorted((target / "stable-diffusion").iterdir()), target / "clip", target / "judge"]
    sizes = {
        folder.name: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for folder in folders
        if folder.is_dir()
    }
    write_text(target / "README.md", render_card(record, quality, sizes))


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path(sys.argv[2]))
