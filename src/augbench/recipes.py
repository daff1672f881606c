"""What shapes an artifact, and nothing else: the params of rules and the keys of the store come from here (invariant 7).

Flows in: the study. Flows out: plain values (dict, list, str, number, None). Each recipe carries a version that is raised when
the code's semantics change; execution settings (blocks, batches, devices) are in none of them.
"""

from __future__ import annotations

from typing import Any

from augbench.config import RealMethod, RetrieveMethod, SampleMethod, Study

Recipe = dict[str, Any]


def classes_recipe(study: Study) -> Recipe:
    """The class table."""
    dataset = study.dataset.model_dump(mode="json")
    return {"version": 1, "dataset": {name: dataset[name] for name in ("kind", "root", "classes", "train_folder") if name in dataset}}


def splits_recipe(study: Study) -> Recipe:
    """The split manifests."""
    wanted = sorted({"train", "val", "test"} | {m.split for m in study.methods.values() if isinstance(m, RealMethod)})
    images = study.corpus.images if study.corpus is not None else None
    return {"version": 1, "seed": study.seed, "dataset": study.dataset.model_dump(mode="json"), "splits": wanted, "corpus_images": images}


def corpus_recipe(study: Study) -> Recipe:
    """The miniature corpus."""
    assert study.corpus is not None
    return {"version": 1, "seed": study.seed, "corpus": study.corpus.model_dump(mode="json", exclude={"downloads"})}


def prompts_recipe(study: Study, name: str) -> Recipe:
    """The prompts of a method, one row per image to make (retrieval: one query per class)."""
    method = study.methods[name]
    recipe: Recipe = {"version": 1, "seed": study.seed}
    if isinstance(method, SampleMethod):
        sizes = study.augmentation.model_dump(include={"images_per_class", "images_per_training_image", "images_per_part"})
        return {**recipe, "prompt": method.prompt.model_dump(), "augmentation": sizes}
    assert isinstance(method, RetrieveMethod)
    return {**recipe, "query": method.query.model_dump()}


def image_recipe(study: Study) -> Recipe:
    """How images are encoded in shards."""
    return study.augmentation.model_dump(include={"image_format", "quality"})


def model_recipe(folder: str) -> Recipe:
    """Which folder a model is in; what it is comes in through its files."""
    return {"version": 1, "folder": folder}


def sampling_recipe(study: Study) -> Recipe:
    """How the diffusion model is sampled; the model itself comes in through its fingerprint."""
    return study.diffusion.model_dump(mode="json", exclude={"model"})


def generate_recipe(study: Study, name: str) -> Recipe:
    """How a sampled method's images are made from its prompts."""
    method = study.methods[name]
    assert isinstance(method, SampleMethod)
    diffusion = sampling_recipe(study)
    if method.guidance_scale is not None:
        diffusion["guidance_scale"] = method.guidance_scale
    return {"version": 1, "seed": study.seed, "method": name, "diffusion": diffusion, "image": image_recipe(study)}


def retrieve_recipe(study: Study, name: str) -> Recipe:
    """How a retrieval method's images are found and filtered."""
    method = study.methods[name]
    assert isinstance(method, RetrieveMethod)
    return {
        "version": 1,
        "method": name,
        "retrieve": method.model_dump(mode="json", exclude={"label", "family", "query", "mechanism"}),
        "resolution": study.diffusion.resolution,
        "image": image_recipe(study),
    }


def resample_recipe(study: Study) -> Recipe:
    """How the pools are resampled."""
    return {"version": 1, "seed": study.seed}


def classifier_recipe(study: Study, name: str) -> Recipe:
    """How a classifier is trained; the images come in through files."""
    method = study.methods[name]
    split = method.split if isinstance(method, RealMethod) else "train"
    return {"version": 1, "seed": study.seed, "split": split, "classifier": study.classifier.model_dump(mode="json")}


def table_recipe(study: Study) -> Recipe:
    """What the tables show beside the results; the config is in it because the footer lists cuts against the protocol."""
    return {"version": 1, "study": study.model_dump(mode="json", exclude={"execution", "pretrain"})}


def figure_recipe() -> Recipe:
    """How figures are drawn; their data comes in through the tables."""
    return {"version": 1}


def pretrain_recipe(study: Study, model: str) -> Recipe:
    """How a model of the miniature is pre-trained (``clip``, ``autoencoder``, ``unet``, ``reference``)."""
    return {"version": 1, "seed": study.seed, "pretrain": study.pretrain.model_dump(mode="json")[model]}


def measure_recipe(study: Study) -> Recipe:
    """How the pre-trained models are measured."""
    return {"version": 1, "sampling": sampling_recipe(study), "images_per_class": study.pretrain.measured_images_per_class}
