"""The safety checker in a whole generate job: flagged images are replaced and counted, up to a limit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PROJECT, SMALL_STUDY
from PIL import Image

from augbench.artifacts.pool import build_index, load_images, read_index
from augbench.artifacts.store import Store
from augbench.config.study import parse_study
from augbench.data.classes import load_class_table
from augbench.errors import UserError
from augbench.files import write_json
from augbench.generate.sampler import MAX_ATTEMPTS
from augbench.generate.stage import generate
from augbench.models.folders import check_safety, fingerprint, load_pipeline
from augbench.prompts.stage import write_prompts
from augbench.report.tables.diagnostics import refused_per_image
from augbench.runtime.job import Job

MINI = PROJECT / "resources/mini/stable-diffusion"
CLASSES = load_class_table("fashion_mnist")[:3]
PER_CLASS = 8


class Study:
    """A study of one prompt method with a safety checker, in its own folder."""

    def __init__(self, folder: Path, checker: str) -> None:
        config = copy.deepcopy(SMALL_STUDY)
        config["diffusion"] = {
            **config["diffusion"],
            "model": str(MINI),
            "safety_checker": checker,
            "steps": 4,
        }
        config["methods"] = {"simple_prompt": SMALL_STUDY["methods"]["simple_prompt"]}
        config["augmentation"] = {"images_per_class": PER_CLASS}
        config["execution"] = {"batch_size": 5, "device": "cpu"}
        self.folder = folder
        self.job = Job(parse_study(config), Store(folder / ".store"), 1)
        self.shards = {
            info.class_id: folder / f"shards/simple_prompt/selected/{info.class_id}/0.parquet"
            for info in CLASSES
        }
        write_json(folder / "diffusion.json", fingerprint(MINI, checker))
        write_prompts(
            self.job.study,
            "simple_prompt",
            CLASSES,
            {info.class_id: ["x"] for info in CLASSES},
            folder / "prompts.parquet",
        )

    def generate(self) -> None:
        targets = {"": [str(path) for path in self.shards.values()]}
        generate(
            self.job,
            "simple_prompt",
            str(self.folder / "prompts.parquet"),
            str(self.folder / "diffusion.json"),
            "",
            targets,
        )

    @property
    def index(self) -> Any:
        build_index(list(self.shards.values()), self.folder, self.folder / "index.parquet")
        return read_index(self.folder / "index.parquet")

    @property
    def images(self) -> list[Image.Image]:
        return list(load_images(self.index, self.folder))

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            row
            for path in self.shards.values()
            for row in pq.read_table(path, columns=["seed", "safety_flags", "sha256"]).to_pylist()
        ]

    @property
    def pipeline(self) -> Any:
        return load_pipeline(self.job.study.diffusion, torch.device("cpu"))


def checker_like(pipeline: Any, folder: Path, concept: torch.Tensor, threshold: float) -> str:
    """Save the pipeline's checker with one concept; return its folder.

    It flags only images whose cosine with ``concept`` is above ``threshold``.
    """
    checker = pipeline.safety_checker
    with torch.no_grad():
        checker.concept_embeds.copy_(concept.expand_as(checker.concept_embeds))
        checker.concept_embeds_weights.fill_(threshold)
        checker.special_care_embeds_weights.fill_(2.0)
    checker.save_pretrained(folder)
    pipeline.feature_extractor.save_pretrained(folder)
    return str(folder)


def embedded(pipeline: Any, images: list[Image.Image]) -> torch.Tensor:
    """Unit vectors that the checker compares with its concepts."""
    pixels = pipeline.feature_extractor(images, return_tensors="pt").pixel_values
    with torch.inference_mode():
        vectors = pipeline.safety_checker.visual_projection(pipeline.safety_checker.vision_model(pixels)[1])
    return torch.nn.functional.normalize(vectors, dim=-1).clone()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study with a checker that flags nothing."""
    folder = tmp_path_factory.mktemp("plain")
    pipeline = load_pipeline(
        parse_study(SMALL_STUDY | {"diffusion": {**SMALL_STUDY["diffusion"], "model": str(MINI)}}).diffusion,
        torch.device("cpu"),
    )
    concept = torch.zeros(pipeline.safety_checker.concept_embeds.shape[1])
    concept[0] = 1.0
    study = Study(folder / "study", checker_like(pipeline, folder / "checker", concept, 2.0))
    study.generate()
    return study


def test_flagged_images_are_replaced_and_counted_and_the_others_stay_the_same(
    plain: Study, tmp_path: Path
) -> None:
    pipeline = plain.pipeline
    vectors = embedded(pipeline, plain.images)
    cosines = (vectors @ vectors[2]).sort(descending=True).values
    some = max(range(3, 12), key=lambda place: float(cosines[place - 1] - cosines[place]))
    threshold = float(cosines[some - 1] + cosines[some]) / 2
    known = set(np.flatnonzero((vectors @ vectors[2]).numpy() > threshold).tolist())
    assert len(known) == some

    study = Study(tmp_path / "study", checker_like(pipeline, tmp_path / "checker", vectors[2], threshold))
    study.generate()
    before, after = plain.rows, study.rows
    assert len(after) == len(CLASSES) * PER_CLASS, "full shards"
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        if place in known:
            assert new["safety_flags"] >= 1 and new["seed"] != old["seed"]
        else:
            assert (new["safety_flags"], new["seed"], new["sha256"]) == (0, old["seed"], old["sha256"])
    assert not any(check_safety(study.pipeline, study.images)), "nothing flagged is left"
    refused = sum(row["safety_flags"] for row in after)
    assert refused >= some and refused_per_image(study.index, study.folder) == pytest.approx(
        refused / len(after)
    )


def test_a_checker_that_flags_everything_ends_in_one_clear_error_and_leaves_no_shard(
    plain: Study, tmp_path: Path
) -> None:
    pipeline = plain.pipeline
    study = Study(
        tmp_path / "study",
        checker_like(pipeline, tmp_path / "checker", pipeline.safety_checker.concept_embeds[0].clone(), -2.0),
    )
    message = (
        rf"safety checker: {PER_CLASS} of {PER_CLASS} images flagged {MAX_ATTEMPTS} times each, "
        rf"first prompt 'A photo of T-shirt/top, tee shirt\.'; change the prompts"
    )
    with pytest.raises(UserError, match=message):
        study.generate()
    assert not list(study.folder.rglob("shards/**/*.parquet")) and not list(
        (study.folder / ".store").rglob("*.parquet")
    )
