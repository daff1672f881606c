"""The shipped studies hold what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from augbench.config import load_study

PROJECT = Path(__file__).resolve().parents[1]
STUDIES = [*sorted((PROJECT / "config").glob("*.yaml")), PROJECT / "docs/examples/digits.yaml"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_is_valid(path: Path) -> None:
    assert load_study([path]).study == path.stem


def test_the_demo_is_no_toy() -> None:
    study = load_study([PROJECT / "config/demo.yaml"])
    target_pool = (60_000 - 50_000) // 10
    assert study.dataset.train_fraction * target_pool >= 50  # real images per class, and as many added ones
    assert study.augmentation.resamples >= 3
    assert study.diffusion.steps >= 20
    assert list(study.methods) == ["none", "real_20pct", "simple_prompt", "clip_prompts", "retrieval"]


def test_the_full_miniature_keeps_the_papers_sizes() -> None:
    study = load_study([PROJECT / "config/mini.yaml"])
    assert (study.augmentation.images_per_class, study.augmentation.resamples, study.diffusion.steps) == (390, 5, 50)
    assert (study.classifier.plateau_patience, study.classifier.stop_patience, study.classifier.max_epochs) == (10, 20, 270)


def test_an_overlay_changes_and_removes(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("augmentation: {resamples: 4}\nmethods: {retrieval: null}\n")
    study = load_study([PROJECT / "config/demo.yaml", overlay])
    assert study.augmentation.resamples == 4 and study.augmentation.images_per_class == 100
    assert "retrieval" not in study.methods
