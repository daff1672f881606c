"""What shapes an artifact, and nothing else: the params of rules and the keys of the store come from here (invariant 7).

Flows in: the study. Flows out: plain values (dict, list, str, number, None). Each recipe carries a version that is raised when
the code's semantics change; execution settings (blocks, batches, devices) are in none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from augbench.config.corpus import ImageCorpus, OwnCorpus
from augbench.config.hub import HubModel
from augbench.config.models import Clip, Diffusion
from augbench.config.study import Study

Recipe = dict[str, Any]


def classes_recipe(study: Study) -> Recipe:
    """The class table."""
    dataset = study.dataset.model_dump(mode="json")
    return {
        "version": 1,
        "dataset": {
            name: dataset[name] for name in ("kind", "root", "classes", "train_folder") if name in dataset
        },
    }


def splits_recipe(study: Study) -> Recipe:
    """The split manifests."""
    wanted = sorted({"train", "val", "test"} | {method.split for method in study.real.values()})
    images = study.miniature.images if study.miniature is not None else None
    return {
        "version": 1,
        "seed": study.seed,
        "dataset": study.dataset.model_dump(mode="json"),
        "splits": wanted,
        "corpus_images": images,
    }


def corpus_recipe(study: Study) -> Recipe:
    """The miniature corpus."""
    assert study.miniature is not None
    return {
        "version": 1,
        "seed": study.seed,
        "corpus": study.miniature.model_dump(mode="json", exclude={"downloads", "search"}),
    }


def embed_recipe(study: Study) -> Recipe:
    """Which images are embedded; the miniature corpus comes in through its files."""
    return {"version": 1, "root": study.corpus.root if isinstance(study.corpus, ImageCorpus) else None}


def prompts_recipe(study: Study, name: str) -> Recipe:
    """The prompts of a method, one row per image to make (retrieval: one query per class)."""
    method = study.pooled[name]
    recipe: Recipe = {"version": 1, "seed": study.seed}
    if method.generates_images:
        sizes = study.augmentation.model_dump(
            include={"images_per_class", "images_per_training_image", "images_per_part"}
        )
        recipe["augmentation"] = sizes
        if (parts := study.parts_made(name)) > study.augmentation.parts:
            recipe["parts"] = parts
    shaping = method.model_dump(include={"start", "learn", "clusters"})  # those that its mechanism has
    return {**recipe, method.prompt_key: method.prompting.model_dump(), **shaping}


def image_recipe(study: Study) -> Recipe:
    """How images are encoded in shards."""
    return study.augmentation.model_dump(include={"image_format", "quality"})


def model_recipe(model: Diffusion | Clip) -> Recipe:
    """Which folder a model is in, and which safety checker belongs to it if not its own; what they are comes in through their files."""
    recipe: Recipe = {"version": 1, "folder": model.folder}
    if isinstance(model, Diffusion) and model.safety_checker != "model":
        recipe["safety_checker"] = model.safety_checker_folder
    return recipe


def fetch_recipe(model: HubModel) -> Recipe:
    """Which model is fetched; from where changes nothing, for every file is checked."""
    return {"version": 1, "repository": model.repository, "revision": model.revision}


def sampling_recipe(study: Study) -> Recipe:
    """How the diffusion model is sampled; the model itself, its safety checker included, comes in through its fingerprint."""
    where = {"model", "revision", "mirrors", "downloads", "safety_checker", "safety_checker_revision"}
    recipe = study.diffusion.model_dump(mode="json", exclude=where)
    if recipe["guidance_interval"] is None:
        del recipe["guidance_interval"]
    return recipe


def method_sampling(study: Study, name: str) -> Recipe:
    """How one method's images are sampled: the study's settings, the method's own over them."""
    method = study.generated[name]
    own = method.model_dump(
        mode="json", include={"guidance_scale", "steps", "scheduler", "guidance_interval"}, exclude_none=True
    )
    sampling = {**sampling_recipe(study), **own}
    if sampling["guidance_scale"] <= 1:
        sampling.pop("guidance_interval", None)
    if method.from_images:
        sampling["noise"] = study.sampled[name].noise_share
        sampling["scheduler"] = method.scheduler or "ddim"
    return sampling


def generate_recipe(study: Study, name: str) -> Recipe:
    """How a method's images are made from its prompts; what was learned comes in through files."""
    return {
        "version": 1,
        "seed": study.seed,
        "method": name,
        "diffusion": method_sampling(study, name),
        "image": image_recipe(study),
    }


def search_recipe(study: Study, name: str) -> Recipe:
    """Which neighbours a retrieval method looks for, and where; queries and embeddings come in through files."""
    method = study.retrieved[name]
    assert study.corpus is not None
    asked = method.model_dump(
        mode="json",
        include={
            "images_per_class",
            "added_per_training_image",
            "first_k",
            "growth_limit",
            "corpus_share",
            "manifest",
        },
    )
    corpus = (
        study.corpus.model_dump(mode="json")
        if not isinstance(study.corpus, OwnCorpus)
        else {"search": study.corpus.search}
    )
    return {"version": 1, "seed": study.seed, "asked": asked, "corpus": corpus}


def retrieve_recipe(study: Study, name: str) -> Recipe:
    """How a retrieval method's neighbours are fetched and filtered."""
    method = study.retrieved[name]
    return {
        "version": 2,
        "method": name,
        "retrieve": method.model_dump(
            mode="json",
            exclude={"label", "family", "query", "mechanism", "ranked", "may_fall_short", "corpus_share"},
        ),
        "limits": study.retrieval.download.model_dump(
            mode="json", include={"max_bytes", "max_pixels", "max_redirects", "respect_opt_out"}
        ),
        "resolution": study.diffusion.resolution,
        "image": image_recipe(study),
    }


def shortfall_recipe(study: Study) -> Recipe:
    """Which classes are left out for want of images."""
    rows = {
        name: row.model_dump(mode="json", include={"added_per_training_image", "may_fall_short"})
        for name, row in study.retrieved.items()
    }
    return {"version": 1, "exclude": study.retrieval.model_dump(mode="json")["exclude"], "methods": rows}


def cluster_recipe(study: Study) -> Recipe:
    """How the images of a class are clustered."""
    finetune = study.finetune.model_dump(mode="json", include={"features", "inception_weights"})
    return {"version": 1, "seed": study.seed, "features": finetune}


def finetune_recipe(study: Study, name: str, factor: float) -> Recipe:
    """How a method is fine-tuned at one factor of its learning rates; its name does not matter, nor does sampling."""
    method = study.personalised[name]
    learned = method.model_dump(
        mode="json", include={"learn", "clusters", "train_unet", "lr", "unet_lr", "lr_batch_size", "candidates"}
    )  # fmt: skip
    training = study.finetune.model_dump(
        mode="json", exclude={"features", "inception_weights", "inception_mirrors"}
    )
    return {
        "version": 1,
        "seed": study.seed,
        "learned": {**learned, "prompting": method.prompting.model_dump()},
        "factor": factor,
        "finetune": training,
        "resolution": study.diffusion.resolution,
    }


def select_recipe() -> Recipe:
    """How a candidate is selected: by validation accuracy alone."""
    return {"version": 1}


def resample_recipe(study: Study, name: str) -> Recipe:
    """How a method's pool is resampled."""
    drawn = study.methods[name].model_dump(
        mode="json", include={"added_per_training_image", "ranked", "may_fall_short", "pool"}
    )
    return {"version": 2, "seed": study.seed, **drawn}


def classifier_recipe(study: Study, name: str) -> Recipe:
    """How a classifier is trained; the images come in through files."""
    return {
        "version": 1,
        "seed": study.seed,
        "split": study.methods[name].real_split,
        "classifier": study.classifier.model_dump(mode="json"),
    }


def table_recipe(study: Study) -> Recipe:
    """What the tables show beside the results; the config is in it because the footer lists cuts against the protocol."""
    return {"version": 1, "study": study.model_dump(mode="json", exclude={"execution", "pretrain"})}


def diagnostics_recipe(study: Study) -> Recipe:
    """What is said of the added images, and how it is shown."""
    rows = {
        name: method.model_dump(
            mode="json", include={"label", "family", "mechanism", "train_unet", "duplicate_threshold"}
        )
        for name, method in study.pooled.items()
    }
    report = study.report.model_dump(mode="json", include={"judge", "diagnosed_images_per_class"})
    return {
        "version": 2,
        "seed": study.seed,
        "dataset": study.dataset.model_dump(mode="json"),
        "report": report,
        "methods": rows,
    }


def leakage_recipe(study: Study) -> Recipe:
    """What makes a near-duplicate."""
    return {
        "version": 1,
        "limits": study.leakage.model_dump(mode="json", exclude={"action"}),
        "dataset": study.dataset.model_dump(mode="json"),
    }


def leakage_table_recipe(study: Study) -> Recipe:
    """How near-duplicates are shown."""
    return {"version": 1, "labels": {name: method.label for name, method in study.methods.items()}}


def statistics_recipe() -> Recipe:
    """How the spread and differences of Table 1 are computed."""
    return {"version": 1}


def per_class_recipe() -> Recipe:
    """How accuracies per class are counted."""
    return {"version": 1}


def paper_tables_recipe(study: Study, tables: Mapping[str, Sequence[str]]) -> Recipe:
    """What stands beside the paper's smaller tables; accuracies and labels come in through Table 1."""
    return {
        "version": 1,
        "paper_study": study.report.paper_study,
        "miniature": study.miniature is not None,
        "tables": dict(tables),
    }


def cost_recipe() -> Recipe:
    """How costs are added up."""
    return {"version": 1}


def figure_data_recipe(study: Study, methods: Iterable[str]) -> Recipe:
    """What a figure shows of some rows: which images, and what the rows are called."""
    rows = {
        name: study.methods[name].model_dump(
            mode="json", include={"label", "family", "added_per_training_image", "pool"}
        )
        for name in methods
    }
    return {
        "version": 1,
        "seed": study.seed,
        "dataset": study.dataset.model_dump(mode="json"),
        "methods": rows,
    }


def figure_recipe() -> Recipe:
    """How figures are drawn; their data comes in through the tables."""
    return {"version": 2}


def report_images_recipe(study: Study, methods: Iterable[str]) -> Recipe:
    """Which images the report shows; what rows are called comes in with the page."""
    report = study.report.model_dump(include={"page_megabytes", "page_images_per_class"})
    return {
        "version": 1,
        "seed": study.seed,
        "dataset": study.dataset.model_dump(mode="json"),
        "report": report,
        "methods": list(methods),
    }


def report_recipe() -> Recipe:
    """How the report is laid out; config, tables, images and what figures show come in through files."""
    return {"version": 1, "figures": figure_recipe()}


def pretrain_recipe(study: Study, model: str) -> Recipe:
    """How a model of the miniature is pre-trained (``clip``, ``autoencoder``, ``unet``, ``reference``)."""
    return {"version": 1, "seed": study.seed, "pretrain": study.pretrain.model_dump(mode="json")[model]}


def measure_recipe(study: Study) -> Recipe:
    """How the pre-trained models are measured."""
    return {
        "version": 1,
        "sampling": sampling_recipe(study),
        "images_per_class": study.pretrain.measured_images_per_class,
    }
