"""Models other than Stable Diffusion 1.x and 2.x: what a config may ask of them, and their images.

The models are tiny, with random weights (``tests/tiny_pipelines.py``).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import SMALL_STUDY

from augbench.artifacts.pool import build_index, load_images, read_index
from augbench.artifacts.store import Store
from augbench.config.pipelines import STABLE_DIFFUSION, pipelines
from augbench.config.study import Study, parse_study
from augbench.data.classes import load_class_table
from augbench.files import write_json
from augbench.generate.stage import generate
from augbench.models.folders import fingerprint
from augbench.prompts.stage import write_prompts
from augbench.runtime.job import Job

FAMILIES = {
    "sdxl": {"guidance_scale": 3.0},
    "turbo": {"guidance_scale": 0.0},
    "sd3": {},
    "flux": {"guidance_scale": 0.0},
    "pixart": {},
}
CLASSES = load_class_table("fashion_mnist")[:2]
PER_CLASS = 4
TOLERANCE = 2  # grey levels between batch sizes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny models, each of which is saved when it is first asked for."""
    return tmp_path_factory.mktemp("models")


def tiny(models: Path, name: str) -> str:
    import tiny_pipelines

    folder = models / name
    return str(folder if folder.is_dir() else tiny_pipelines.save(name, folder))


def study_of(model: str, row: Mapping[str, Any] = {}, batch_size: int = 4, **keys: Any) -> Study:
    """Study with one row of one model, at 32 pixels with 2 steps."""
    own = {"safety_checker": None, "steps": 2, "resolution": 32, "dtype": "float32"}
    config = {
        **SMALL_STUDY,
        "generators": {"other": {"model": model, **own, **keys}},
        "methods": {"row": {"mechanism": "sample", "generator": "other", **row}},
        "augmentation": {"images_per_class": PER_CLASS},
        "execution": {"batch_size": batch_size, "device": "cpu"},
    }
    return parse_study(config)


def made(study: Study, folder: Path) -> np.ndarray:
    """Images of a study's only row, made by the stage: ``(N, H, W, 3)``."""
    job = Job(study, Store(folder / ".store"), 1)
    model = study.generator_of("row")
    write_json(folder / "other.json", fingerprint(model.folder, model.safety_checker_folder))
    prompts = folder / "prompts.parquet"
    write_prompts(study, "row", CLASSES, {info.class_id: ["x"] for info in CLASSES}, prompts)
    shards = [folder / f"shards/row/selected/{info.class_id}/0.parquet" for info in CLASSES]
    generate(job, "row", str(prompts), str(folder / "other.json"), "", {"": [str(path) for path in shards]})
    build_index(shards, folder, folder / "index.parquet")
    images = load_images(read_index(folder / "index.parquet"), folder)
    return np.stack([np.asarray(image, dtype=int) for image in images])


# --- the table of pipelines -----------------------------------------------------------------------


@pytest.mark.full
def test_the_table_of_pipelines_is_diffusers_own() -> None:
    from diffusers.pipelines import auto_pipeline

    twins = auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING
    found = {}
    for kind, pipeline in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items():
        takes = inspect.signature(pipeline.__call__).parameters
        twin = inspect.signature(twins[kind].__call__).parameters if kind in twins else {}
        found[pipeline.__name__] = {
            "steps": getattr(takes.get("num_inference_steps"), "default", None),
            "guidance_scale": getattr(takes.get("guidance_scale"), "default", None),
            "negative_prompt": "negative_prompt" in takes and "true_cfg_scale" not in takes,
            "starts": "strength" in twin and "image" in twin,
            "safety_checker": "safety_checker" in inspect.signature(pipeline.__init__).parameters,
        }
    table = {name: vars(pipeline) for name, pipeline in pipelines().items()}
    assert table == {name: found[name] for name in table}
    assert STABLE_DIFFUSION in found and STABLE_DIFFUSION not in table


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_samples_its_generator_and_an_image_does_not_depend_on_its_batch(
    name: str, models: Path, tmp_path: Path
) -> None:
    model, own = tiny(models, name), FAMILIES[name]
    together = made(study_of(model, **own), tmp_path / "together")
    alone = made(study_of(model, batch_size=1, **own), tmp_path / "alone")
    assert together.shape == (2 * PER_CLASS, 32, 32, 3)
    assert np.abs(together - alone).max() <= TOLERANCE
    assert np.abs(together[0] - together[1]).mean() > 1  # the same prompt, another seed
    shard = tmp_path / f"alone/shards/row/selected/{CLASSES[0].class_id}/0.parquet"
    rows = pq.read_table(shard, columns=["model", "seed"])
    assert set(rows["model"].to_pylist()) == {fingerprint(model, None)["id"]}
    assert len(set(rows["seed"].to_pylist())) == PER_CLASS
