"""Shipping the pre-trained models: ``python -m augbench.miniature.pretrain.card results/mini/pretrain resources/mini``.

Flows in: the results of the pretrain rules. Flows out: the models, the judge, the picture, the measurements, and a model card made from
them. A separate step, so that no timestamp makes a demo train.
"""

from __future__ import annotations

import shutil
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from augbench.files import read_json, write_json, write_text

COMMAND = "augbench run --configfile config/mini.yaml --target pretrain"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _history(name: str, rows: list[dict[str, float]]) -> list[str]:
    """A table per stage of training: rows of one stage have the same figures and count their steps under a name of their own."""
    lines = []
    for keys, stage in groupby(rows, key=lambda row: sorted(row)):
        of_stage = list(stage)
        step = next(key for key in keys if key.endswith("step"))
        figures = [key for key in keys if key != step]
        shown = (
            [of_stage[round(i * (len(of_stage) - 1) / 7)] for i in range(8)]
            if len(of_stage) > 8
            else of_stage
        )
        lines += [
            f"| {name}: {step.replace('_', ' ')} | {' | '.join(figures)} |",
            "|---:|" + "---:|" * len(figures),
        ]
        lines += [
            f"| {row[step]:.0f} | {' | '.join(f'{row[key]:.4g}' for key in figures)} |" for row in shown
        ]
        lines += [""]
    return lines


def render_card(record: dict[str, Any], quality: dict[str, Any], sizes: dict[str, int]) -> str:
    """The model card as Markdown.

    Parameters
    ----------
    record : dict
        ``training_record.json``: histories of every model, threshold of the safety checker.
    quality : dict
        ``quality.json``: what was measured.
    sizes : dict
        Bytes per model folder.
    """
    judges = quality["reference"]
    robust, clean = judges["robust"], judges["clean"]
    sampling = quality["sampling"]
    agreement = robust["generated"]["agreement"] / robust["target_test"]["agreement"]
    lines = [
        "# The miniature's models",
        "",
        "A small CLIP and a small Stable Diffusion (VAE, U-Net, CLIP text tower, safety checker), pre-trained from scratch on the miniature web corpus:",
        "50,000 Fashion-MNIST training images in web style at shift `mild`, and 5,000 images of other kinds. Plain `StableDiffusionPipeline.from_pretrained`",
        "and `CLIPModel.from_pretrained` load them. Half precision, safetensors, OpenAI's vocabulary; CLIP's text tower is stored once, in the pipeline.",
        "",
        "![Real test images (odd rows) and generated ones (even rows), a pair of rows per class](generated.png)",
        "",
        "Odd rows: real test images of the target. Even rows: images generated with CLIP's prompt templates. Web style is what the model was trained on.",
        "",
        "## How they were made",
        "",
        "```sh",
        COMMAND,
        "python -m augbench.miniature.pretrain.card results/mini/pretrain resources/mini",
        "```",
        "",
        f"Sizes: {', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in sizes.items())}.",
        "",
        "## Training record",
        "",
        *(line for name, rows in record["histories"].items() for line in _history(name, rows)),
        "## Measured quality",
        "",
        "CLIP's zero-shot top-1 on the 10,000 clean test images, by prompt family:",
        "",
        "| prompts | top-1 |",
        "|---|---:|",
        *(f"| {name} | {_percent(value)} |" for name, value in quality["zero_shot_top1"].items()),
        "",
        f"Generated images: {quality['generated_images']}, {sampling['scheduler']}, {sampling['steps']} steps, guidance {sampling['guidance_scale']:g}, CLIP prompts.",
        "They are judged by two ResNets trained on the corpus's garments with their true labels: `clean` saw them in clean form only, `robust` in clean and in web style.",
        "Agreement is the share that the judge gives its intended class; diversity the mean pairwise distance inside a class in the judge's features.",
        "The robust one is shipped in `judge`: a study that names it (`report.judge`) has its added images judged.",
        "",
        "| judge | images | agreement | diversity |",
        "|---|---|---:|---:|",
        *(
            f"| {judge} | {images} | {_percent(figures['agreement'])} | {figures['diversity']:.3g} |"
            for judge, rows in judges.items()
            for images, figures in rows.items()
        ),
        "",
        f"Generated images against the judge's own test accuracy (robust): {agreement:.2f} (aim: 0.9). Diversity against the corpus's real images:"
        f" {robust['generated']['diversity'] / robust['corpus']['diversity']:.2f} (robust), {clean['generated']['diversity'] / clean['corpus']['diversity']:.2f} (clean; aim: 0.5).",
        "",
        f"The safety checker flags warning signs, which stand in for unsafe images: {_percent(quality['safety_checker']['unsafe_flagged'])} of the signs and"
        f" {_percent(quality['safety_checker']['safe_flagged'])} of the other images in the half of the corpus that it was not calibrated on (threshold {record['safety_threshold']:.3f}).",
        "",
        "## Limits",
        "",
        "They know ten garments at 32 pixels. They say how the workflow behaves, nothing about Stable Diffusion, CLIP or LAION. Training images:",
        "Fashion-MNIST (MIT licence). The vocabulary is OpenAI's CLIP's (MIT licence).",
    ]
    return "\n".join(lines) + "\n"


def ship(pretrained: Path, target: Path) -> None:
    """Copy the models and the robust judge to ``target`` and write their card."""
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
