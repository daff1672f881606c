"""The safety checker in generate jobs and studies: flagged images are replaced and counted, up to a limit."""

from __future__ import annotations

import copy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PROJECT, SMALL_STUDY, Workspace
from PIL import Image

from augbench.artifacts.pool import Lack, build_index, lacks_of, load_images, read_index
from augbench.artifacts.shards import is_whole, read_lacking
from augbench.artifacts.store import Store
from augbench.config.study import parse_study
from augbench.data.classes import load_class_table
from augbench.errors import UserError
from augbench.files import read_json, write_json
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

    def __init__(self, folder: Path, checker: str, attempts: int = 20, store: Path | None = None) -> None:
        config = copy.deepcopy(SMALL_STUDY)
        config["diffusion"] = {
            **config["diffusion"],
            "model": str(MINI),
            "safety_checker": checker,
            "steps": 4,
        }
        config["methods"] = {"simple_prompt": SMALL_STUDY["methods"]["simple_prompt"]}
        config["augmentation"] = {"images_per_class": PER_CLASS, "attempts_per_image": attempts}
        config["execution"] = {"batch_size": 5, "device": "cpu"}
        self.folder = folder
        self.job = Job(parse_study(config), Store(store or folder / ".store"), 1)
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


def half_of_a_class(plain: Study, folder: Path) -> str:
    """A checker that flags half of the first class's images and no others; returns its folder."""
    pipeline, vectors = plain.pipeline, embedded(plain.pipeline, plain.images)
    flagged = torch.arange(len(vectors)) < PER_CLASS // 2
    concept = torch.linalg.lstsq(vectors, flagged.float()[:, None]).solution[:, 0]
    cosines = vectors @ torch.nn.functional.normalize(concept, dim=0)
    return checker_like(
        pipeline, folder, concept, float(cosines[flagged].min() + cosines[~flagged].max()) / 2
    )


def test_a_class_that_is_flagged_too_often_has_fewer_images_and_says_so(plain: Study, tmp_path: Path) -> None:
    checker = half_of_a_class(plain, tmp_path / "checker")
    study = Study(tmp_path / "study", checker, attempts=1)
    study.generate()
    first, *others = study.shards.values()
    lacking = read_lacking(first)
    assert lacking is not None and lacking.attempts_per_image == 1
    assert 0 < len(lacking.flagged) < PER_CLASS and set(lacking.flagged.values()) == {1}
    indices = pq.read_table(first, columns=["index"]).column(0).to_pylist()
    assert sorted([*indices, *lacking.flagged]) == list(range(PER_CLASS))
    # images that are there are those of a study whose checker flags nothing
    before = {
        row["index"]: row["sha256"] for row in pq.read_table(plain.shards[CLASSES[0].class_id]).to_pylist()
    }
    now = {row["index"]: row["sha256"] for row in pq.read_table(first).to_pylist()}
    assert now.items() <= before.items()
    assert [read_lacking(path) for path in others] == [None, None]
    assert lacks_of(study.index) == {
        CLASSES[0].class_id: Lack(len(lacking.flagged), PER_CLASS, len(lacking.flagged))
    }
    assert refused_per_image(study.index, study.folder) == len(lacking.flagged) / study.index.num_rows


def test_another_number_of_attempts_remakes_only_shards_that_it_changes(plain: Study, tmp_path: Path) -> None:
    checker, store = half_of_a_class(plain, tmp_path / "checker"), tmp_path / "store"
    made, missing = [], []
    for place, attempts in enumerate((1, 1, 50, 60, 1)):
        study = Study(tmp_path / f"study{place}", checker, attempts, store)
        study.generate()
        made.append(study.job.store.tally.made)
        missing.append(sum(lack.images for lack in lacks_of(study.index).values()))
    # the first class lacks images with 1; with 50 it is full, and 60 would make the same
    assert made == [3, 0, 1, 0, 0], "shards of different numbers of attempts lie side by side"
    assert missing[0] == missing[1] == missing[4] > 0 == missing[2] == missing[3]


def test_a_checker_that_flags_everything_leaves_shards_without_images_and_no_pool(
    plain: Study, tmp_path: Path
) -> None:
    pipeline = plain.pipeline
    concept = pipeline.safety_checker.concept_embeds[0].clone()
    study = Study(tmp_path / "study", checker_like(pipeline, tmp_path / "checker", concept, -2.0), attempts=2)
    study.generate()
    assert study.rows == [] and all(map(is_whole, study.shards.values()))
    samples = 2 * PER_CLASS * len(CLASSES)
    with pytest.raises(
        UserError, match=rf"no image: the safety checker flagged all {samples} samples; change"
    ):
        study.index  # noqa: B018


FLAGGED = "bag"


def made(workspace: Workspace, study: str) -> dict[str, list[tuple[int, str]]]:
    """Index and hash of every image of ``simple_prompt``, by class."""
    images: dict[str, list[tuple[int, str]]] = {}
    for path in sorted(
        workspace.folder.glob(f"results/{study}/shards/simple_prompt/selected/*/[0-9]*.parquet")
    ):
        rows = pq.read_table(path, columns=["index", "sha256"]).to_pylist()
        images.setdefault(path.parent.name, []).extend((row["index"], row["sha256"]) for row in rows)
    return images


@pytest.mark.full
def test_a_study_whose_checker_flags_most_images_of_a_class_ends_and_says_so(workspace: Workspace) -> None:
    """80% of one class flagged, and fewer attempts than that takes: the study ends without a stop."""
    config = copy.deepcopy(SMALL_STUDY)
    config["methods"] = {name: config["methods"][name] for name in ("none", "simple_prompt")}
    config["augmentation"]["attempts_per_image"] = 2
    # steps and guidance enough for classes that a checker can tell apart
    config["diffusion"] |= {"safety_checker": "checkers/none", "steps": 8, "guidance_scale": 5.0}
    config["study"], config["leakage"] = "without", {"action": "off"}
    config["execution"]["classes_per_job"] = 10
    pipeline = load_pipeline(
        parse_study(SMALL_STUDY | {"diffusion": {**SMALL_STUDY["diffusion"], "model": str(MINI)}}).diffusion,
        torch.device("cpu"),
    )
    concept = torch.eye(pipeline.safety_checker.concept_embeds.shape[1])[0]
    checker_like(pipeline, workspace.folder / "checkers/none", concept, 2.0)
    workspace.write_study(config)
    names = [info.class_id for info in load_class_table("fashion_mnist")]
    shards = [
        f"results/without/shards/simple_prompt/selected/{name}/{part}.parquet"
        for name in names
        for part in (0, 1)
    ]
    workspace.run(*(argument for path in shards for argument in ("--target", path)))

    # the direction in which this class differs from the others, and the quantile that flags 80% of it
    images = {
        name: [
            Image.open(BytesIO(row["image"]["bytes"])).convert("RGB")
            for path in shards
            if f"/{name}/" in path
            for row in pq.read_table(workspace.folder / path, columns=["image"]).to_pylist()
        ]
        for name in names
    }
    vectors = {name: embedded(pipeline, own) for name, own in images.items()}
    rest = torch.cat([own for name, own in vectors.items() if name != FLAGGED])
    concept = torch.nn.functional.normalize(vectors[FLAGGED].mean(0) - rest.mean(0), dim=0)
    threshold = float((vectors[FLAGGED] @ concept).quantile(0.2))
    assert float((rest @ concept).max()) < threshold - 0.01
    checker_like(pipeline, workspace.folder / "checkers/one_class", concept, threshold)

    config["study"], config["diffusion"]["safety_checker"] = "with_flags", "checkers/one_class"
    workspace.write_study(config)
    workspace.run()
    before, after = made(workspace, "without"), made(workspace, "with_flags")
    assert len(before) == len(after) == 10
    assert all(before[name] == after[name] for name in names if name != FLAGGED)
    # flagged images have other seeds, the others are the same
    assert 0 < len({*before[FLAGGED]} & {*after[FLAGGED]}) < len(after[FLAGGED]) < len(before[FLAGGED])
    index = read_index(workspace.folder / "results/with_flags/shards/simple_prompt/selected/index.parquet")
    (lack,) = lacks_of(index).values()
    # at 80%, 40 samples give 8 of 20 images
    assert lack.wanted == 20 and 6 <= lack.images <= 18
    results = [
        read_json(path)
        for path in sorted(workspace.folder.glob("results/with_flags/classifiers/*/*/*/result.json"))
    ]
    assert {result["classes"] for result in results} == {10}, "no class is left out"
    assert [result["n_lacking"] for result in results if result["method"] == "none"] == [0, 0]
    text = " ".join((workspace.folder / "results/with_flags/tables/table1.txt").read_text().split())
    short = [result for result in results if result["n_lacking"]]
    assert ("training sets have fewer images than wanted of 1 classes" in text) is bool(short)
    assert short and all(result["n_added"] == 80 - result["n_lacking"] for result in short)
