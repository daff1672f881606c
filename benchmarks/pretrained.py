"""Measure what weights trained on one half of the classes bring for the other half.

Input: scikit-learn's handwritten digits (1,797 images of 8 x 8 pixels, shown at 64 x 64). For each seed a
network learns 0 to 4, and is tested on a fifth of them that it has not seen. Another one begins with its
weights (``classifier.pretrained``) or at random, learns 5 to 9 from a few images per class, and is tested
on the other images of 5 to 9. Output: a Markdown table with the mean accuracies, and the mean difference
with its 95% interval (Student's t, paired by seed); JSON with ``--json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import t
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from augbench.classifier.compute import Compute
from augbench.classifier.images import LabelledImages
from augbench.classifier.score import logits_of
from augbench.classifier.start import Start
from augbench.classifier.train import train_run
from augbench.config.classifier import Classifier
from augbench.files import sha256_file
from benchmarks.record import publish, surroundings, surroundings_line

ALONE = Compute(torch.device("cpu"))
CLASSES = 5
SIDE = 64  # pixels
HELD_OUT = 5  # one of so many images of 0 to 4 is held out
SOURCE, SCRATCH, BEGUN = "0 to 4, held out", "random", "0 to 4"


def labelled(rows: np.ndarray, pixels: np.ndarray, labels: np.ndarray, what: str) -> LabelledImages:
    """Return some of the digits as labelled images."""

    def load(wanted: slice) -> list[Image.Image]:
        return [Image.fromarray(pixels[row]).resize((SIDE, SIDE)).convert("RGB") for row in rows[wanted]]

    return LabelledImages([str(row) for row in rows], labels[rows] % CLASSES, load, what)


def config(arch: str, steps: int, lr: float, **changes: Any) -> Classifier:
    """Return the training of a network."""
    return Classifier(
        arch=arch, resolution=SIDE, evaluation_resize=SIDE, min_crop_area=0.6, batch_size=64, lr=lr,
        schedule="steps", steps=steps, decay="cosine", warmup_steps=steps // 10, keep="last", optimiser="adamw",
        weight_decay=0.05, validate_every=steps, **changes,
    )  # fmt: skip


def accuracy(
    state: Mapping[str, torch.Tensor], ours: Classifier, images: LabelledImages, start: Start | None
) -> float:
    """Share of the images whose label is predicted, in percent."""
    logits = logits_of(state, ours, CLASSES, images, ALONE, start)
    return 100 * float((logits.argmax(1).numpy() == images.labels).mean())


def measure(
    arch: str, seeds: int, per_class: int, steps: int, source_steps: int, lr: float, folder: Path
) -> dict[str, list[float]]:
    """Accuracies in percent by seed: on 0 to 4 of the first network, then on 5 to 9 of the two others."""
    digits = load_digits()
    pixels = (digits.images * 255 / 16).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    known, others = (np.flatnonzero((labels >= CLASSES) == late) for late in (False, True))
    found: dict[str, list[float]] = {SOURCE: [], SCRATCH: [], BEGUN: []}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        unseen, seen = np.split(rng.permutation(known), [len(known) // HELD_OUT])
        source, held_out = (labelled(rows, pixels, labels, "digits 0 to 4") for rows in (seen, unseen))
        ours = config(arch, source_steps, lr)
        first = train_run(ours, CLASSES, source, None, held_out, seed, 0, ALONE)
        found[SOURCE].append(accuracy(first.state, ours, held_out, None))
        path = folder / f"{seed}.safetensors"
        save_file(first.state, path)
        start = Start(sha256_file(path), str(path))
        order = rng.permutation(others)
        few = np.concatenate([order[labels[order] == label][:per_class] for label in range(CLASSES, 10)])
        real = labelled(few, pixels, labels, "few")
        test = labelled(np.setdiff1d(others, few), pixels, labels, "test")
        for name, begins in ((SCRATCH, None), (BEGUN, start)):
            ours = config(arch, steps, lr, **({"pretrained": str(path)} if begins else {}))
            trained = train_run(ours, CLASSES, real, None, real, seed, 0, ALONE, start=begins)
            found[name].append(accuracy(trained.state, ours, test, begins))
    return found


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95% interval."""
    spread = np.std(differences, ddof=1) / np.sqrt(len(differences))
    return float(np.mean(differences)), float(t.ppf(0.975, len(differences) - 1) * spread)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=["timm:test_convnext", "timm:test_vit"])
    parser.add_argument("--seeds", type=int, default=15, help="at least 2")
    parser.add_argument("--images", type=int, default=10, help="training images per class of 5 to 9")
    parser.add_argument("--steps", type=int, default=60, help="training steps on 5 to 9")
    parser.add_argument("--source-steps", type=int, default=600, help="training steps on 0 to 4")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds: allowed: at least 2, for an interval")
    lines = [
        "| network | on 0 to 4, held out | random weights | weights of 0 to 4 | difference |",
        "|---|---:|---:|---:|---:|",
    ]
    report: dict[str, Any] = {"measured": {}, **surroundings("benchmarks/pretrained.py", sys.argv[1:])}
    for arch in given.arch:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(
                arch, given.seeds, given.images, given.steps, given.source_steps, given.lr, Path(folder)
            )
        report["measured"][arch] = found
        scratch, begun = found[SCRATCH], found[BEGUN]
        mean, half = interval([after - before for before, after in zip(scratch, begun, strict=True)])
        means = " | ".join(f"{np.mean(values):.1f}%" for values in found.values())
        lines.append(f"| {arch} | {means} | {mean:+.1f} ± {half:.1f} |")
    publish(report, "\n".join([*lines, "", surroundings_line(report)]), given.json)


if __name__ == "__main__":
    main()
