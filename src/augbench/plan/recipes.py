"""Recipes: params of rules and keys of the store, made of the values that shape an artifact and no others.

Recipes are plain values (dict, list, str, number, None). Each has a version, which is raised when the
meaning of the code changes. No recipe contains settings of execution (blocks, batches, devices).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from augbench.classifier.sizes import evaluation_resize
from augbench.config.classifier import ORIGIN_KEYS, PLATEAU_KEYS, RESNET_KEYS, RESNETS, STEPS_KEYS, Classifier
from augbench.config.corpus import EmbeddingCorpus, ImageCorpus, OwnCorpus, ParquetCorpus
from augbench.config.hub import HubModel
from augbench.config.methods import Prompting, RetrieveMethod
from augbench.config.models import Clip, Diffusion
from augbench.config.study import Study

Recipe = dict[str, Any]


def images_origin(study: Study, stamped: bool = False) -> Recipe:
    """Where the data set's images come from: its kind, its folder, and the column of Parquet files.

    Parameters
    ----------
    stamped : bool
        Whether the key names images with the stamps of their files (:mod:`augbench.data.stamps`), which
        stand for the folder.
    """
    origin = study.dataset.model_dump(mode="json", include={"kind", "root", "image_column"})
    return {key: value for key, value in origin.items() if key != "root" or not stamped}


def data_set_recipe(study: Study, stamped: bool = False) -> Recipe:
    """Which data set images belong to, for keys that name images by their ids; ``stamped`` as above.

    A published data set's ids are unique. Those of a folder are paths in it, so the folder or the stamps
    belong to the key, and the column of Parquet files, which may have several with images.
    """
    return {"dataset": images_origin(study, stamped)} if "root" in images_origin(study) else {}


def dataset_recipe(study: Study) -> Recipe:
    """Recipe of the data set: its section without the draws and without test sets of other distributions."""
    return study.dataset.model_dump(mode="json", exclude={"draws", "further_tests"})


def classes_recipe(study: Study) -> Recipe:
    """Recipe of the class table."""
    dataset = study.dataset.model_dump(mode="json")
    return {
        "version": 1,
        "dataset": {
            name: dataset[name]
            for name in ("kind", "root", "classes", "train_folder", "train_split", "label_column")
            if name in dataset
        },
    }


def splits_recipe(study: Study) -> Recipe:
    """Recipe of the split manifests."""
    wanted = sorted({"train", "val", "test"} | {method.split for method in study.real.values()})
    images = study.miniature.images if study.miniature is not None else None
    return {
        "version": 1,
        "seed": study.seed,
        "dataset": dataset_recipe(study),
        "splits": wanted,
        "corpus_images": images,
    }


def further_split_recipe(study: Study, test: str) -> Recipe:
    """Recipe of the manifest of a further test set, which is in a folder of its own."""
    return {"version": 1, "test": study.dataset.further_tests[test].model_dump(mode="json")}


def further_images_recipe(study: Study, test: str, stamped: bool = False) -> Recipe:
    """Recipe of a further test set's images, without their ids; ``stamped`` as in :func:`images_origin`."""
    left_out = {"folders", "numbers_of", "classes", *(["root"] if stamped else [])}
    section = study.dataset.further_tests[test].model_dump(mode="json", exclude=left_out)
    if section["kind"] == "folder":
        return {"version": 1, "test": section}
    return {"version": 1, "test": section, "seed": study.seed, **data_set_recipe(study, stamped)}


def further_leakage_recipe(study: Study, test: str) -> Recipe:
    """Recipe of the search for near-duplicates in a further test set."""
    return {**leakage_recipe(study), "test": further_images_recipe(study, test)}


def further_table_recipe(study: Study) -> Recipe:
    """Recipe of the table of further tests; accuracies and near-duplicates enter through files."""
    return {"version": 1, "seed": study.seed, "error": study.report.error}


def corpus_recipe(study: Study) -> Recipe:
    """Recipe of the miniature corpus."""
    assert study.miniature is not None
    return {
        "version": 1,
        "seed": study.seed,
        "corpus": study.miniature.model_dump(mode="json", exclude={"downloads", "search"}),
    }


def embed_recipe(study: Study) -> Recipe:
    """Recipe of a corpus's embeddings; the miniature corpus enters through its files."""
    if isinstance(study.corpus, ParquetCorpus):
        return {"version": 1, "corpus": study.corpus.model_dump(mode="json", exclude={"search"})}
    return {"version": 1, "root": study.corpus.root if isinstance(study.corpus, ImageCorpus) else None}


def prompts_recipe(study: Study, name: str) -> Recipe:
    """Recipe of a method's prompts: one row per image to make, or one query per class for retrieval."""
    method = study.pooled[name]
    recipe: Recipe = {"version": 1, "seed": study.seed_of(name)}
    if method.generates_images:
        sizes = study.augmentation.model_dump(
            include={"images_per_class", "images_per_training_image", "images_per_part"}
        )
        recipe["augmentation"] = sizes
        if (parts := study.parts_made(name)) > study.augmentation.parts:
            recipe["parts"] = parts
    if study.retrieval.listed:
        recipe["exclude"] = sorted(study.retrieval.listed)
    # of these keys, the ones that the mechanism has
    shaping = method.model_dump(include={"start", "learn", "clusters"})
    prompting = method.prompting
    prompt = None if prompting is None else prompting.model_dump(include=set(Prompting.model_fields))
    return {**recipe, method.prompt_key: prompt, **shaping}


def image_recipe(study: Study) -> Recipe:
    """Recipe of the encoding of images in shards."""
    return study.augmentation.model_dump(include={"image_format", "quality"})


def model_recipe(model: Diffusion | Clip) -> Recipe:
    """Recipe of a model: its folder, and a separate safety checker's; their content enters through files."""
    recipe: Recipe = {"version": 1, "folder": model.folder}
    if isinstance(model, Clip) and model.named.library == "open_clip":
        recipe["open_clip"] = [model.named.architecture, model.named.tag, *model.named.weights]
    if isinstance(model, Diffusion) and model.safety_checker != "model":
        recipe["safety_checker"] = model.safety_checker_folder
    return recipe


def weights_recipe(study: Study) -> Recipe:
    """Recipe of the classifier's first weights: their place; the content enters through files."""
    return {"version": 1, "folder": study.classifier_weights}


def fetch_recipe(model: HubModel) -> Recipe:
    """Recipe of a fetched model; the place it comes from does not matter, because every file is checked."""
    recipe: Recipe = {"version": 1, "repository": model.repository, "revision": model.revision}
    return {**recipe, "weights": list(model.weights)} if model.weights else recipe


def sampling_recipe(model: Diffusion) -> Recipe:
    """Recipe of sampling a model; itself and its safety checker enter through the fingerprint."""
    where = {"model", "revision", "mirrors", "downloads", "safety_checker", "safety_checker_revision"}
    recipe = model.model_dump(mode="json", exclude=where | {"pipeline"})
    if recipe["guidance_interval"] is None:
        del recipe["guidance_interval"]
    return recipe


def method_sampling(study: Study, name: str) -> Recipe:
    """Recipe of one method's sampling: its model's settings, overridden by the method's own."""
    method, model = study.generated[name], study.generator_of(name)
    own = method.model_dump(
        mode="json",
        include={"guidance_scale", "steps", "scheduler", "guidance_interval", "negative_prompt"},
        exclude_none=True,
    )
    sampling = {**sampling_recipe(model), **own}
    if sampling["guidance_scale"] <= 1:
        sampling.pop("guidance_interval", None)
    if method.from_images:
        sampling["noise"] = study.sampled[name].noise_share
        if model.other is None:
            sampling["scheduler"] = method.scheduler or "ddim"
    return sampling


def generate_recipe(study: Study, name: str) -> Recipe:
    """Recipe of a method's generated images; prompts and learned vectors enter through files."""
    return {
        "version": 1,
        "seed": study.seed_of(name),
        "method": name,
        "diffusion": method_sampling(study, name),
        "image": image_recipe(study),
        **study.augmentation.model_dump(include={"attempts_per_image"}),
    }


def search_recipe(study: Study, name: str) -> Recipe:
    """Recipe of a retrieval method's search; queries and embeddings enter through files."""
    method = study.retrieved[name]
    assert study.corpus is not None
    sizes = {"images_per_class", "added_per_training_image", "first_k", "growth_limit"}
    if method.images_per_class is None:
        sizes.add("fill_to")
    asked = method.model_dump(mode="json", include=sizes | {"corpus_share", "manifest"})
    if method.candidates_per_image != 1:
        asked["candidates_per_image"] = method.candidates_per_image
    if method.asks_with_images:
        images = method.query.model_dump(mode="json", include={"images", "pool", "clusters"})
        asked["query"] = {**images, "text_weight": method.query.weight}
        if method.query.clusters is not None:
            asked["query"]["seed"] = study.seed_of(name)
    corpus = (
        study.corpus.model_dump(mode="json", exclude={"fetch", "vectors"})
        if not isinstance(study.corpus, OwnCorpus)
        else {"search": study.corpus.search}
    )
    retrieval = study.retrieval
    needed = {"hash": True} if retrieval.safe_list or retrieval.takedown else {}  # 0.1.0 kept no hashes
    return {"version": 1, "seed": study.seed, "asked": asked, "corpus": corpus, **needed}


DOWNLOAD_LIMITS = {"max_bytes", "max_pixels", "max_redirects", "respect_opt_out"}  # of what is fetched


def retrieve_recipe(study: Study, name: str) -> Recipe:
    """Recipe of the fetching and filtering of a retrieval method's neighbours."""
    method = study.retrieved[name]
    return {
        "version": 2,
        "method": name,
        "retrieve": method.model_dump(
            mode="json",
            exclude={
                *("label", "family", "query", "mechanism", "ranked", "may_fall_short", "corpus_share"),
                *("least_images", "fill_to", "use", "training_copies"),
            },
        ),
        **_copies_recipe(study, method),
        "limits": study.retrieval.download.model_dump(mode="json", include=DOWNLOAD_LIMITS),
        "resolution": study.diffusion.side,
        "image": image_recipe(study),
    }


def _copies_recipe(study: Study, method: RetrieveMethod) -> Recipe:
    """How copies of training images are found and what happens to them, if they are looked for."""
    if method.copies is None:
        return {}
    return {"copies": method.copies, "limits_of_copies": near_duplicates_recipe(study)}


def near_duplicates_recipe(study: Study) -> Recipe:
    """Recipe of the limits within which two images are near-duplicates."""
    return study.leakage.model_dump(mode="json", exclude={"action"})


def shortfall_recipe(study: Study) -> Recipe:
    """Recipe of the choice of classes that are left out because they have too few images."""
    rows = {
        name: row.model_dump(
            mode="json",
            include={"added_per_training_image", "fill_to", "may_fall_short", "least_images"},
        )
        for name, row in study.retrieved.items()
    }
    return {"version": 1, "exclude": study.retrieval.model_dump(mode="json")["exclude"], "methods": rows}


def cluster_recipe(study: Study) -> Recipe:
    """Recipe of the clusters of a class's images."""
    finetune = study.finetune.model_dump(mode="json", include={"features", "inception_weights"})
    listed = {"exclude": sorted(study.retrieval.listed)} if study.retrieval.listed else {}
    return {"version": 1, "seed": study.seed, "features": finetune, **listed}


def learned_images_recipe(study: Study, name: str) -> Recipe:
    """Recipe of the list of images that a row learns from; the images of other rows enter through files."""
    return {"version": 1, "train": study.personalised[name].learns_from_training_images}


def finetune_recipe(study: Study, name: str, factor: float) -> Recipe:
    """Recipe of fine-tuning at one factor of the learning rates, without the method's name and sampling."""
    method = study.personalised[name]
    shaping = {"learn", "clusters", "train_unet", "lr", "unet_lr", "lr_batch_size", "candidates"}
    learned = method.model_dump(mode="json", include=shaping)
    others = {"features", "inception_weights", "inception_mirrors", "micro_batch"}
    if not method.shares_weights:
        others.add("excluded_classes")
    if method.lora is not None:
        learned["lora"] = asdict(method.lora)
    training = study.finetune.model_dump(mode="json", exclude=others)
    return {
        "version": 1,
        "seed": study.seed_of(name),
        "learned": {**learned, "prompting": method.prompting.model_dump()},
        "factor": factor,
        "finetune": training,
        "resolution": study.generator_of(name).resolution,
    }


def latents_recipe(study: Study, stamped: bool = False) -> Recipe:
    """Recipe of the latents of a class's images, without these images, the VAE and its precision.

    ``stamped`` is as in :func:`images_origin`.
    """
    return {"version": 1, "resolution": study.diffusion.side, **data_set_recipe(study, stamped)}


def choose_lr_recipe(study: Study, name: str) -> Recipe:
    """Recipe of the choice of a learning rate; empty where version 2 chooses as version 1 did.

    Version 1 took the lowest validation loss of all epochs, whether or not that epoch was a candidate.
    """
    method = study.personalised[name]
    same = "val_loss" in method.candidates or len(method.lr_grid) == 1
    return {} if same else {"version": 2}


def score_recipe() -> Recipe:
    """Recipe of the scores of a pool's images; the images and the model that scores enter through files."""
    return {"version": 1}


def filter_recipe(study: Study, name: str) -> Recipe | None:
    """Recipe of the filter of a row's pools before they are indexed; None if the row has no filter."""
    keep = study.filters.get(name)
    return None if keep is None else {"version": 1, "keep": keep.model_dump(mode="json")}


def choice_recipe(study: Study, name: str) -> Recipe:
    """Recipe of the choice among rows, by validation accuracy alone."""
    return {"version": 1, "among": list(study.choosing[name].among)}


def select_recipe() -> Recipe:
    """Recipe of the selection of a candidate, by validation accuracy alone."""
    return {"version": 1}


def resample_recipe(study: Study, name: str) -> Recipe:
    """Recipe of the training sets drawn from a method's pool."""
    drawn = study.methods[name].model_dump(
        mode="json",
        include={
            *("added_per_training_image", "fill_to", "ranked", "may_fall_short", "pool", "pools", "keep")
        },
    )
    row = study.methods[name]
    if row.shuffles_labels:
        drawn["labels"] = "shuffled"
    if not row.pool_rows and not row.set_0_from_part_0 and study.parts_drawn(name) > 1:
        drawn["set_0"] = "whole pool"
    return {"version": 2, "seed": study.seed_of(name), **drawn}


def classifier_recipe(study: Study, name: str) -> Recipe:
    """Recipe of a classifier's training; the images and the first weights enter through files.

    It has the keys of the chosen network and schedule alone.
    """
    method, config = study.methods[name], study.classifier
    unused = {"schedule"} | STEPS_KEYS if config.schedule == "plateau" else PLATEAU_KEYS
    unused |= ORIGIN_KEYS | (set() if config.arch in RESNETS else RESNET_KEYS)
    recipe: Recipe = {
        "version": 1,
        "seed": study.seed_of(name),
        "split": method.real_split,
        "classifier": config.model_dump(mode="json", exclude=set(unused)),
    }
    if config.schedule == "steps":
        training = recipe["classifier"]
        training["validate_every"] = config.validation_interval
        training["lower_at"] = None if config.decay == "cosine" else list(config.lower_at_steps)
    if method.real_repeats > 1:
        recipe["repeat"] = method.real_repeats
    if use := method.use.model_dump(mode="json"):
        recipe["use"] = use
    return recipe


def features_recipe(config: Classifier) -> Recipe:
    """Recipe of the features of a frozen network, without its weights and the images."""
    seen = config.model_dump(mode="json", include={"arch", "resolution", "dtype"})
    return {"version": 1, **seen, "evaluation_resize": evaluation_resize(config)}


# keys that say how a study is computed and stored, not what it finds
COMPUTING: dict[str, Any] = {
    "execution": True,
    "pretrain": True,
    "finetune": {"micro_batch"},
    "dataset": {"further_tests"},
}
EMBEDDED = {"fetch", "vectors"}  # the same keys of a corpus of published embeddings
DECISIONS = {"contrasts", "error", "margin"}  # settings of the tests of differences


def _decisions(study: Study) -> Recipe:
    """Settings of the tests of differences, if they are set."""
    return study.report.model_dump(mode="json", include=DECISIONS)


def table_recipe(study: Study) -> Recipe:
    """Recipe of Table 1; it contains the config, because the footer lists departures from the protocol."""
    others: Any = {**COMPUTING, "report": DECISIONS}
    if isinstance(study.corpus, EmbeddingCorpus):
        others["corpus"] = EMBEDDED
    return {"version": 2, "study": study.model_dump(mode="json", exclude=others)}


def config_recipe(study: Study) -> Recipe:
    """Recipe of the resolved config."""
    config = table_recipe(study)["study"]
    return {
        **config,
        "dataset": study.dataset.model_dump(mode="json"),
        "report": {**config["report"], **_decisions(study)},
    }


def table1_text_recipe() -> Recipe:
    """Recipe of Table 1 as text; rows, footer and the study's answer enter through tables."""
    return {"version": 1}


def diagnostics_recipe(study: Study) -> Recipe:
    """Recipe of the diagnostics of added images and of their table."""
    rows = {
        name: method.model_dump(
            mode="json", include={"label", "family", "mechanism", "train_unet", "duplicate_threshold"}
        )
        for name, method in study.examined.items()
    }
    report = study.report.model_dump(mode="json", include={"judge", "diagnosed_images_per_class"})
    return {
        "version": 3,
        "seed": study.seed,
        "dataset": dataset_recipe(study),
        "report": report,
        "methods": rows,
    }


def leakage_recipe(study: Study) -> Recipe:
    """Recipe of the searches for near-duplicates."""
    return {
        "version": 1,
        "limits": near_duplicates_recipe(study),
        "dataset": dataset_recipe(study),
    }


def leakage_table_recipe(study: Study) -> Recipe:
    """Recipe of the table of near-duplicates."""
    return {"version": 2, "labels": {name: method.label for name, method in study.methods.items()}}


def statistics_recipe(study: Study) -> Recipe:
    """Recipe of the spread and the differences of Table 1, and of the tests."""
    return {"version": 2, "seed": study.seed, **_decisions(study)}


def class_groups_recipe(study: Study) -> Recipe:
    """Recipe of the sizes of the classes, and of macro, head, middle and tail accuracy."""
    labels = {name: study.label(name) for name in study.methods}
    replaced = {name: row.use.replace for name, row in study.methods.items() if row.use.replace}
    return {
        "version": 1,
        "seed": study.seed,
        **_decisions(study),
        "labels": labels,
        **({"replaced": replaced} if replaced else {}),
    }


def per_class_recipe() -> Recipe:
    """Recipe of the accuracies per class."""
    return {"version": 1}


def paper_tables_recipe(study: Study, tables: Mapping[str, Sequence[str]]) -> Recipe:
    """Recipe of the paper's smaller tables; accuracies and labels enter through Table 1."""
    return {
        "version": 1,
        "paper_study": study.report.paper_study,
        "miniature": study.miniature is not None,
        "tables": dict(tables),
    }


def cost_recipe() -> Recipe:
    """Recipe of the table of costs."""
    return {"version": 1}


def figure_data_recipe(study: Study, methods: Iterable[str]) -> Recipe:
    """Recipe of a figure's data: the choice of images, and the names of the rows."""
    rows = {
        name: study.methods[name].model_dump(
            mode="json", include={"label", "family", "added_per_training_image", "fill_to", "pool"}
        )
        for name in methods
    }
    return {
        "version": 1,
        "seed": study.seed,
        "dataset": dataset_recipe(study),
        "methods": rows,
    }


def learning_curves_recipe(study: Study) -> Recipe:
    """Recipe of the learning curves' data; the histories enter through files."""
    rows = {
        name: method.model_dump(mode="json", include={"label", "family"})
        for name, method in study.methods.items()
    }
    return {"version": 1, "methods": rows}


def figure_recipe() -> Recipe:
    """Recipe of the drawing of figures; their data enters through the tables."""
    return {"version": 2}


def report_images_recipe(study: Study, methods: Iterable[str]) -> Recipe:
    """Recipe of the images in the report; the names of rows enter with the page."""
    report = study.report.model_dump(include={"page_megabytes", "page_images_per_class"})
    return {
        "version": 1,
        "seed": study.seed,
        "dataset": dataset_recipe(study),
        "report": report,
        "methods": list(methods),
    }


def report_recipe() -> Recipe:
    """Recipe of the report's layout; config, tables, images and the data of figures enter through files."""
    return {"version": 3, "figures": figure_recipe()}


def pretrain_recipe(study: Study, model: str) -> Recipe:
    """Recipe of a model of the miniature (``clip``, ``autoencoder``, ``unet``, ``reference``)."""
    return {"version": 1, "seed": study.seed, "pretrain": study.pretrain.model_dump(mode="json")[model]}


def measure_recipe(study: Study) -> Recipe:
    """Recipe of the measurement of the pre-trained models."""
    return {
        "version": 1,
        "sampling": sampling_recipe(study.diffusion),
        "images_per_class": study.pretrain.measured_images_per_class,
    }
