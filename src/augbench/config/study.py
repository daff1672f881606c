"""The study as typed data: one YAML file, checked before anything runs.

Flows in: YAML files (later ones are merged over earlier ones) or the dictionary that Snakemake has merged. Flows out: a
frozen :class:`Study`. Each key carries its description, unit and source here and nowhere else; ``docs/configuration.md``
is generated from it. This module imports nothing heavy: every job of a cluster parses it twice.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from augbench.errors import UserError
from augbench.models.fetch import COMMIT, HUB_ID, HubModel, hub_model

DEMO = "config/demo.yaml"  # the study that runs where none is given, relative to the project
SLUG = r"^[a-z0-9][a-z0-9_]*$"
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


def key(default: Any, description: str, unit: str = "", source: str = "", **constraints: Any) -> Any:
    """A config key with all that the documentation says of it."""
    return Field(default, description=description, json_schema_extra={"unit": unit, "source": source}, **constraints)


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values are not coerced between kinds, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# --- data -----------------------------------------------------------------------------------------------------------


class _Splits(Section):
    train_fraction: float = key(0.1, "Share of each class's training pool that is the training split; ceil(share x n).", source="paper, section 3", gt=0, lt=1)
    validation_fraction: float | None = key(
        None,
        "Share that is the validation split. Default: train_fraction where test images are given, else half of what train leaves.",
        source="paper, section 3",
        gt=0,
        lt=1,
    )
    test_fraction: float | None = key(
        None,
        "Share that is the test split, where no test images are given. Default: half of what train leaves.",
        source="paper, section 3 (Caltech256)",
        gt=0,
        lt=1,
    )
    test_images_per_class: Positive | None = key(
        None, "Cut the test split to this many images per class (a cut against the protocol; the table's footer says so).", "images"
    )

    @model_validator(mode="after")
    def _fractions_fit(self) -> _Splits:
        given = {name: getattr(self, name) for name in ("train_fraction", "validation_fraction", "test_fraction")}
        total = sum(value for value in given.values() if value is not None)
        if total > 1:
            raise ValueError(f"the fractions sum to {total:g}; at most 1 is possible")
        return self


class FashionMnist(_Splits):
    """Fashion-MNIST; 10,000 of its training images are the target's pool, the others may be the miniature corpus."""

    kind: Literal["fashion_mnist"]
    classes: str = key("fashion_mnist", "Class table: the shipped one, or a YAML or TSV file with its ten classes in label order under other names.")
    downloads: str = key("results/downloads/fashion_mnist", "Folder that keeps the four published files.")


class ImageFolder(_Splits):
    """Any data set of the form ``root/class/*`` or ``root/split/class/*`` (ImageNet's layout is one)."""

    kind: Literal["image_folder"]
    root: str = key(..., "Folder of the data set.")
    classes: str | None = key(None, "Class table: the name of a shipped one, or a YAML or TSV file. Default: the folder names.")
    train_folder: str | None = key(None, "Folder under root that holds the training images, one folder per class. Default: root itself.")
    validation_folder: str | None = key(None, "Folder under root with given validation images. Default: sampled from the training images.")
    test_folder: str | None = key(None, "Folder under root with the test images (ImageNet: val). Default: sampled from the training images.")


class Caltech256(_Splits):
    """Caltech256 as published: ``root/001.ak47/*.jpg``; the clutter class (257) is left out."""

    kind: Literal["caltech256"]
    root: str = key(..., "Folder 256_ObjectCategories.")
    train_fraction: float = key(0.8, "Share of each class that is the training split.", source="paper, section 3", gt=0, lt=1)


Dataset = Annotated[FashionMnist | ImageFolder | Caltech256, Field(discriminator="kind")]


Search = Literal["exact", "clip_retrieval_index"]
_SEARCH = (
    "How it is searched: exact compares each query with every image, in one pass; clip_retrieval_index builds clip-retrieval's index and asks its service."
)


class MiniatureCorpus(Section):
    """The miniature web corpus made from Fashion-MNIST's training images."""

    kind: Literal["miniature"]
    search: Search = key("exact", _SEARCH)
    downloads: str = key("results/downloads/fashion_mnist", "Folder that keeps Fashion-MNIST's four published files.")
    images: int = key(50_000, "Garments in the corpus, disjoint from target and test.", "images", ge=100, le=59_000)
    shift: Literal["none", "mild", "strong"] = key("mild", "How far the corpus's style is from the target's.")
    distractors: int = key(5_000, "Images of other kinds.", "images", ge=0)
    wrong_captions: Fraction = key(0.05, "Share of garments whose caption names another class.")
    captions: dict[Literal["template", "wordnet", "shop", "hashtags", "unnamed"], Annotated[float, Field(ge=0)]] = key(
        {"template": 0.55, "wordnet": 0.2, "shop": 0.1, "hashtags": 0.05, "unnamed": 0.1},
        "Rates of the kinds of caption; `unnamed` ones do not name the class.",
    )

    @model_validator(mode="after")
    def _some_captions(self) -> MiniatureCorpus:
        if sum(self.captions.values()) <= 0:
            raise ValueError("captions: at least one rate must be above 0")
        return self


class ImageCorpus(Section):
    """A folder of images, searched through the study's CLIP."""

    kind: Literal["image_folder"]
    root: str = key(..., "Folder of the images; folders below it are looked into.")
    search: Search = key("exact", _SEARCH)


class _PublishedCorpus(Section):
    clip: str = key(..., "CLIP model that the embeddings were made with, written as clip.model is: a query through another model is refused.")


MetadataColumn = Literal["id", "url", "caption", "width", "height", "nsfw", "punsafe", "aesthetic"]


class EmbeddingCorpus(_PublishedCorpus):
    """CLIP embeddings on a disk, searched exactly in one pass: clip-retrieval's folders, DataComp's, or Parquet with a column of vectors."""

    kind: Literal["embeddings"]
    folder: str = key(
        ...,
        "Folder with img_emb/*.npy and metadata/*.parquet (clip-retrieval), *.npz and *.parquet of equal names (DataComp), or *.parquet with a column of vectors.",
    )
    vector_column: str | None = key(None, "Column of the vectors, where they are in Parquet (LAION-5B's 100-million-row subset: vector).")
    npz_key: str | None = key(None, "Name of the image embeddings in .npz files (DataComp: l14_img or b32_img).")
    columns: dict[MetadataColumn, str] = key({}, "Columns of the metadata by our names, where theirs are none of the usual.")


class IndexCorpus(_PublishedCorpus):
    """An index folder as `clip-retrieval index` makes it, searched through clip-retrieval's own service, in process."""

    kind: Literal["clip_retrieval_index"]
    folder: str = key(..., "Folder with image.index and metadata.")


class ServerCorpus(_PublishedCorpus):
    """A server that `clip-retrieval back` runs, anywhere; it gives no embeddings, so duplicates are found after download."""

    kind: Literal["clip_retrieval_server"]
    url: str = key(..., "Address of its knn-service, for example http://localhost:1234/knn-service.", pattern="^https?://")
    index: str = key(..., "Name of the index there.")


OwnCorpus = MiniatureCorpus | ImageCorpus
Corpus = Annotated[MiniatureCorpus | ImageCorpus | EmbeddingCorpus | IndexCorpus | ServerCorpus, Field(discriminator="kind")]


# --- models ---------------------------------------------------------------------------------------------------------


Scheduler = Literal["pndm", "ddim", "dpmsolver++"]


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] >= interval[1]:
        raise ValueError(f"allowed: two noise levels, the lower one first, not {list(interval)}")
    return interval


GuidanceInterval = Annotated[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], AfterValidator(_ascending)]
_INTERVAL_SOURCE = "Kynkäänniemi et al., 2024"


class _Model(Section):
    model: str
    revision: str | None = key(
        None, "Commit of a model on the Hub, 40 hexadecimal digits. Default: the one in resources/models; required for models that are not there."
    )
    mirrors: tuple[str, ...] = key((), "Where to look before the Hub: addresses that speak its protocol, or folders of fetched models.")
    downloads: str = key("results/downloads/models", "Folder that keeps fetched models.")

    @model_validator(mode="after")
    def _pinned(self) -> _Model:
        if self.revision is not None and not re.fullmatch(COMMIT, self.revision):
            raise ValueError("revision: allowed: a commit, 40 hexadecimal digits; a branch or tag may move")
        if self.revision is not None and not re.fullmatch(HUB_ID, self.model):
            raise ValueError("revision: goes with a model's id on the Hub (owner/name) only")
        return self

    @property
    def hub(self) -> HubModel | None:
        """The model on the Hub, or None where ``model`` is a folder."""
        return hub_model(self.model, self.revision, self.mirrors, self.downloads)

    @property
    def folder(self) -> str:
        """Where the model is, or will be once it is fetched."""
        return self.hub.folder if self.hub else self.model


class Diffusion(_Model):
    """The diffusion model and how it is sampled."""

    model: str = key(
        ...,
        "Folder of a Stable Diffusion 1.x or 2.x model in diffusers' layout, or its id on the Hub (owner/name), from where it is fetched once.",
        source="paper, section 3.2",
    )
    safety_checker: str | None = key(
        "model",
        "Safety checker: `model` is the model's own; else a folder with one and its feature extractor, or its id on the Hub. null switches it off.",
        source="paper, section 3.2",
    )
    safety_checker_revision: str | None = key(None, "Commit of a safety checker on the Hub, as `revision`.")
    resolution: int = key(512, "Side of the images made.", "pixels", "paper, section 3.2", ge=8, multiple_of=8)
    scheduler: Scheduler = key("pndm", "Sampler; pndm is the model's own default.", source="Stable Diffusion v1.4's model card")
    steps: Positive = key(50, "Sampling steps.", "steps", "Stable Diffusion v1.4's default")
    guidance_scale: float = key(7.5, "Classifier-free guidance; 1 means none. A method may set its own.", source="Stable Diffusion v1.4's default", ge=1)
    guidance_interval: GuidanceInterval | None = key(
        None,
        "Guide only where the noise level is above the first value and at most the second; elsewhere the prompt alone is evaluated, at half the cost. "
        "The paper has [0.28, 5.42] for a model with Stable Diffusion's noise schedule. It changes images. Default: everywhere.",
        "standard deviations of the noise, relative to the image",
        _INTERVAL_SOURCE,
    )
    dtype: Literal["float32", "float16", "bfloat16"] = key("float16", "Precision of sampling.")

    @model_validator(mode="after")
    def _pinned_checker(self) -> Diffusion:
        if self.safety_checker_revision is None:
            return self
        if not re.fullmatch(COMMIT, self.safety_checker_revision):
            raise ValueError("safety_checker_revision: allowed: a commit, 40 hexadecimal digits; a branch or tag may move")
        if self.safety_checker is None or not re.fullmatch(HUB_ID, self.safety_checker):
            raise ValueError("safety_checker_revision: goes with a safety checker's id on the Hub (owner/name) only")
        return self

    @property
    def safety_checker_hub(self) -> HubModel | None:
        """The safety checker on the Hub, or None where it is the model's own, off, or in a folder."""
        return hub_model(self.safety_checker or "", self.safety_checker_revision, self.mirrors, self.downloads)

    @property
    def safety_checker_folder(self) -> str | None:
        """Where the safety checker is, if it is not the model's own (``model``); None if it is off."""
        return self.safety_checker_hub.folder if self.safety_checker_hub else self.safety_checker


class Clip(_Model):
    """The CLIP model that compares texts with images."""

    model: str = key(
        ...,
        "Folder of a CLIP model in transformers' layout, or its id on the Hub (owner/name), from where it is fetched once; its text tower is the diffusion model's.",
        source="paper, section 3.2",
    )


# --- methods --------------------------------------------------------------------------------------------------------

ClassName = Literal["lemmas", "no_whitespace"]
TEMPLATE_SETS = ("simple", "clip", "textual_inversion", "sariyildiz", "empty")


class Prompting(Section):
    """How a class becomes text."""

    templates: str = key(
        "simple",
        "Templates: simple (1), clip (80), textual_inversion (27), sariyildiz (6), empty (1), or a text file (.txt) with one template per line.",
        source="paper, section 3.1",
    )
    draw: Literal["random", "cycle"] = key("random", "Which template image i gets: one drawn with replacement, or each in turn.", source="paper, section 3.1")
    class_name: ClassName = key("no_whitespace", "The class's lemmas joined by ', ', as they are or without white space.", source="paper, section 3.1")

    @model_validator(mode="after")
    def _known_templates(self) -> Prompting:
        if self.templates not in TEMPLATE_SETS and not self.templates.endswith(".txt"):
            raise ValueError(f"templates: allowed: {', '.join(map(repr, TEMPLATE_SETS))} or a text file (.txt)")
        return self


class _Method(Section):
    label: str | None = key(None, "Name in tables and figures. Default: the key.")
    family: Literal["real", "unconditional", "prompting", "personalised", "retrieval", "scaling"] | None = key(
        None, "Group in Figure 1, which leaves scaling out. Default: by mechanism.", source="paper, Table 1"
    )


class RealMethod(_Method):
    """A baseline: real images only."""

    mechanism: Literal["real"]
    split: Literal["train", "train2x", "full"] = key(
        "train", "Which real images: the training split, twice as many, or all but validation.", source="paper, section 3"
    )


class _Added(_Method):
    added_per_training_image: float = key(
        1.0,
        "Images added per class, as a multiple of its training images: 1 doubles the training set.",
        source="paper, section 3; Figure 5B: 1, 5, 10, 25",
        gt=0,
    )


class _Sampled(_Added):
    guidance_scale: float | None = key(None, "Classifier-free guidance of this method; 1 means none. Default: diffusion.guidance_scale.", ge=1)
    steps: Positive | None = key(None, "Sampling steps of this method. Default: diffusion.steps.", "steps")
    scheduler: Scheduler | None = key(None, "Sampler of this method. Default: diffusion.scheduler, or ddim with start: training_images.")
    guidance_interval: GuidanceInterval | None = key(
        None, "Noise levels between which this method is guided. Default: diffusion.guidance_interval.", source=_INTERVAL_SOURCE
    )


class SampleMethod(_Sampled):
    """Images sampled from the diffusion model as it is: from noise by prompts, or from the training images."""

    mechanism: Literal["sample"]
    prompt: Prompting = key(Prompting(), "How a class becomes text.")
    start: Literal["noise", "training_images"] = key(
        "noise", "What sampling starts from; training images are used in turn, so that each is used equally often.", source="Luzi et al., 2022 (Boomerang)"
    )
    noise: float | None = key(
        None, "With start: training_images, the share of the noise schedule that is added before denoising. Default: 0.2.",
        source="Luzi et al., 2022; the paper does not say", gt=0, le=1,
    )  # fmt: skip

    @property
    def from_images(self) -> bool:
        """Whether sampling starts from training images."""
        return self.start == "training_images"

    @property
    def noise_share(self) -> float:
        """Share of the noise schedule that is added to training images."""
        return 0.2 if self.noise is None else self.noise

    @model_validator(mode="after")
    def _noise_of_images(self) -> SampleMethod:
        if self.noise is not None and self.start == "noise":
            raise ValueError("noise: goes with start: training_images only")
        return self


Candidate = Literal["train_loss", "val_loss"] | Positive


class PersonaliseMethod(_Sampled):
    """Images sampled after fine-tuning on the training images: what is learned, whether the U-Net trains, from which prompts."""

    mechanism: Literal["personalise"]
    learn: Literal["conditioning", "pseudoword"] = key(
        ..., "What is learned per class: the conditioning (all text states), or the token embedding of a pseudo-word.", source="paper, section 3.1"
    )
    clusters: Positive = key(
        1, "How many are learned per class, one for each k-means cluster of its training images.", "clusters", "paper, section 3.1 (1, 5, 10, 15)"
    )
    train_unet: bool = key(False, "Whether the U-Net trains too, one for all classes (Imagic, Pseudoword+DM).", source="paper, section 3.1")
    prompt: Prompting | None = key(
        None,
        "Conditioning: the prompt that it starts from; default: simple, no_whitespace. Pseudo-word: the templates that it is put into; default: textual_inversion.",
        source="paper, section 3.1",
    )
    lr: float | None = key(
        None,
        "Learning rate of what is learned, at lr_batch_size. Default: 0.001 for conditioning, 0.005 for pseudo-words.",
        source="Kawar et al., 2023; Gal et al., 2023",
        gt=0,
    )
    unet_lr: float = key(2e-6, "Learning rate of the U-Net, at batch size 1.", source="Stable Diffusion's fine-tuning code (1e-7 to 2e-6)", gt=0)
    lr_batch_size: Positive | None = key(
        None, "Batch size that lr was chosen for; lr is multiplied by the square root of the ratio. Default: 1 for conditioning, 4 for pseudo-words.",
        "images", "paper, section 3.2",
    )  # fmt: skip
    lr_grid: tuple[Annotated[float, Field(gt=0)], ...] = key(
        (1.0,), "Factors on the learning rates; the one with the lowest validation loss is taken.", source="paper, section 3.2", min_length=1
    )
    candidates: tuple[Candidate, ...] = key(
        ("train_loss", "val_loss", 1, 2, 3),
        "Checkpoints to choose from by validation accuracy: those with the best training and validation loss, and numbers of epochs.",
        "epochs",
        "paper, section 3.2 (Imagic: epochs 1 to 8)",
        min_length=1,
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> PersonaliseMethod:
        for name in ("lr_grid", "candidates"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: an entry stands twice")
        return self

    @property
    def prompting(self) -> Prompting:
        """The prompt, or the default that goes with what is learned."""
        return self.prompt or Prompting(templates="simple" if self.learn == "conditioning" else "textual_inversion")

    @property
    def candidate_names(self) -> tuple[str, ...]:
        """``train_loss``, ``val_loss``, ``epoch1``, ... in the order of the config."""
        return tuple(f"epoch{value}" if isinstance(value, int) else value for value in self.candidates)


class RetrieveMethod(_Added):
    """Images retrieved from the corpus: nearest neighbours of a prompt in CLIP space."""

    mechanism: Literal["retrieve"]
    query: Prompting = key(Prompting(), "The query's text; the first template is used.", source="paper, section 3.1")
    images_per_class: Positive | None = key(
        None, "Images to keep per class. Default: as many as the class has training images.", "images", "paper, section 3.2 (ImageNet: 130)"
    )
    first_k: float = key(1.4, "Neighbours asked for at first, per image wanted.", source="paper, section 3.2", ge=1)
    growth_limit: Positive = key(10, "k grows in steps of the first k up to this many times.", source="paper, section 3.2")
    duplicate_threshold: float | None = key(
        0.94,
        "Neighbours of each other above this cosine similarity are one image; the nearest to the query is kept. null: off.",
        source="clip-retrieval's detector; calibrated for ViT-L/14",
        gt=0,
        le=1,
    )
    drop_unsafe: bool = key(True, "Leave out what the corpus's NSFW column or the safety checker marks.", source="paper, section 3.2")
    max_punsafe: float | None = key(None, "Leave out what the corpus says is unsafe with a higher probability (column punsafe).", ge=0, le=1)
    min_side: Positive | None = key(None, "Leave out images with a shorter side, by the corpus's columns and again once they are there.", "pixels")
    min_aesthetics: float | None = key(
        None,
        "Leave out images with a lower aesthetics score: the corpus's column, or LAION's predictor V2 on its ViT-L/14 embeddings (ImageNet: 5).",
        source="paper, section 3.2",
    )
    one_class: bool = key(False, "Give an image to the class with the most similar query only (ties: the first class_id), before anything is downloaded.")
    corpus_share: float = key(
        1.0,
        "Search a random share of the corpus only; a smaller share is part of a larger one. With exact search only: servers and indices can't do it.",
        "share of the images",
        gt=0,
        le=1,
    )
    ranked: bool = key(
        False, "Training sets hold the images most similar to the query, all the same ones, instead of random draws from the pool.", source="paper, Figure 5B"
    )
    may_fall_short: bool = key(
        False, "A class with too few images gets those that there are, and is not left out because of this method.", source="paper, Figure 5B"
    )
    manifest: str | None = key(
        None, "A manifest that an earlier study has frozen (retrieval/{method}/manifest.parquet): its images are fetched instead of searched."
    )

    @model_validator(mode="after")
    def _replayed_as_it_was(self) -> RetrieveMethod:
        if self.manifest is not None and self.corpus_share < 1:
            raise ValueError("corpus_share: nothing is searched with a manifest")
        return self


class DrawMethod(_Added):
    """Training sets of another size, drawn from the pool of another row: nothing is learned, selected or searched again."""

    mechanism: Literal["draw"]
    pool: str = key(..., "Row whose images the sets are drawn from.", source="paper, Figure 5B")
    images_per_class: Positive | None = key(
        None,
        "Images per class to draw from, where that row generates them; those that it does not make for itself are made in further shards. Default: as many as the"
        " row makes; with images_per_training_image: as many as are added.",
        "images",
        "paper, Figure 5B",
    )
    ranked: bool = key(False, "As in `retrieve`, for a row that retrieves.", source="paper, Figure 5B")
    may_fall_short: bool = key(False, "A class with too few images gets those that there are, for a row that retrieves.", source="paper, Figure 5B")


Method = Annotated[RealMethod | SampleMethod | PersonaliseMethod | RetrieveMethod | DrawMethod, Field(discriminator="mechanism")]


class Finetune(Section):
    """How the `personalise` methods are fine-tuned on the training split (paper, section 3.2)."""

    batch_size: Positive = key(
        4, "Images per step: of each class where the U-Net is frozen and classes are independent, of all classes together where it trains.", "images"
    )
    max_epochs: Positive = key(40, "Most epochs.", "epochs", "paper, section 3.2")
    patience: Positive = key(5, "Epochs without better validation loss after which training stops; the paper says only 'until it stagnates'.", "epochs")
    flip: Fraction = key(0.5, "Probability that a training image is mirrored.", source="latent diffusion's fine-tuning code")
    validation_draws: Positive = key(1, "Fixed pairs of noise and timestep per validation image that its loss is measured on.", "draws")
    weight_decay: float = key(0.0, "Decoupled weight decay of everything that trains.", ge=0)
    dtype: Literal["float32", "bfloat16"] = key("float32", "Precision of the frozen parts; what trains is kept in float32.")
    features: Literal["inception_v3", "clip"] = key(
        "inception_v3", "Features that clusters are found in: Inception-v3's pool features, or the study's CLIP.", source="paper, section 3.1"
    )
    inception_weights: str = key(
        "results/downloads/inception_v3_google-0cc3c7bd.pth", "File with torchvision's published Inception-v3 weights; fetched if it is not there."
    )
    inception_mirrors: tuple[str, ...] = key((), "Where to look for these weights before the published address: web addresses, or files.")


class Download(Section):
    """How images are fetched from the web, and what is refused."""

    concurrency: Positive = key(64, "Images fetched at a time.", "images")
    per_host: Positive = key(4, "Images fetched at a time from one host.", "images")
    timeout: float = key(20.0, "Longest time for one image: redirects, retries and slow bytes included.", "seconds", gt=0)
    max_bytes: Positive = key(20_000_000, "Largest file.", "bytes")
    max_pixels: Positive = key(64_000_000, "Largest image; its header is read before it is decoded.", "pixels")
    max_redirects: int = key(5, "Redirects that are followed.", ge=0)
    retries: int = key(2, "Further attempts after a broken connection, or an answer 429 or 5xx.", ge=0)
    retry_transient: bool = key(
        False, "In a later run, ask again for images that timed out or whose server did not answer; else such a fate stands, like any other."
    )
    allow_private: tuple[str, ...] = key((), "Networks that are asked although they are private, for example 127.0.0.0/8. Default: none.")
    respect_opt_out: bool = key(True, "Leave out images whose X-Robots-Tag header forbids their use for training or indexing.")
    user_agent: str = key("augbench", "How requests introduce themselves.")
    keep: bool = key(True, "Keep the files fetched, so that other filters fetch nothing again; links die. false frees the disk once a class is done.")


class Retrieval(Section):
    """What all `retrieve` methods share."""

    exclude: Literal["auto", "none"] | tuple[str, ...] = key(
        "auto",
        "Classes left out of all training and scoring: auto, those for which a `retrieve` method found too few images; a list of class_ids; or none.",
        source="paper, section 3 (ImageNet: 10 of 1000, Caltech256: 5 of 256)",
    )
    download: Download = key(Download(), "How images are fetched.")
    aesthetics_weights: str | None = key(
        "results/downloads/sac+logos+ava1-l14-linearMSE.pth",
        "File with the published weights of LAION's aesthetics predictor V2, fetched if it is not there and a method asks for scores. null: the corpus has them.",
    )
    aesthetics_mirrors: tuple[str, ...] = key((), "Where to look for these weights before the published address: web addresses, or files.")
    aesthetics_sha256: str | None = key(None, "SHA-256 that this file must have. Default: that of the published file.", pattern="^[0-9a-f]{64}$")


class Leakage(Section):
    """The guard against added images that are near-duplicates of validation or test images, retrieved or generated."""

    action: Literal["report", "drop", "off"] = key(
        "report", "Report them; leave them out of training sets, too (images of candidates that are only compared are not looked at); or don't look."
    )
    clip_threshold: float = key(0.9, "Cosine of CLIP embeddings from which a pair is looked at; a low one costs time, for pixels decide.", gt=0, le=1)
    neighbours: Positive = key(5, "Real images of a split that are looked at per added image, the nearest ones.", "images")
    hash_threshold: int = key(24, "Largest distance of the perceptual hashes of the aligned pictures.", "bits of 256", ge=0, le=256)
    correlation: Fraction = key(0.8, "Least correlation of their fine detail at 32 x 32 pixels.")


FAMILIES = {"real": "real", "sample": "prompting", "personalise": "personalised", "retrieve": "retrieval", "draw": "scaling"}


def family_of(method: Method) -> str:
    """Group of a method in Figure 1: the config's, else by mechanism; what starts from training images follows no prompt."""
    if method.family is None and isinstance(method, SampleMethod) and method.from_images:
        return "unconditional"
    return method.family or FAMILIES[method.mechanism]


class Augmentation(Section):
    """How much is added, and how it is resampled."""

    images_per_class: Positive | None = key(None, "Images made per class and method (ImageNet: 390).", "images", "paper, section 3")
    images_per_training_image: Positive | None = key(
        None, "The same as a multiple of the class's training images (Caltech256: 3).", "images", "paper, section 3"
    )
    images_per_part: Positive | None = key(
        None, "Images in one shard file, with images_per_class; part 0 should hold a class's training size. Default: all in one.", "images"
    )
    resamples: int = key(5, "Training sets drawn from the pool; each has as many added images per class as real ones.", "sets", "paper, section 3", ge=1)
    image_format: Literal["png", "jpeg", "webp"] = key(
        "png", "Encoding of images in shards; png is lossless and small at 32 pixels, jpeg is 20 times faster at 512."
    )
    quality: int = key(95, "Quality of jpeg and webp.", ge=1, le=100)

    @model_validator(mode="after")
    def _one_size(self) -> Augmentation:
        if (self.images_per_class is None) == (self.images_per_training_image is None):
            raise ValueError("give exactly one of images_per_class and images_per_training_image")
        if self.images_per_part is not None and self.images_per_class is None:
            raise ValueError("images_per_part goes with images_per_class only")
        return self

    @property
    def parts(self) -> int:
        """Shard files per class and method."""
        if self.images_per_class is None:
            return self.images_per_training_image or 1
        return -(-self.images_per_class // (self.images_per_part or self.images_per_class))

    def part_range(self, part: int, training_images: int) -> range:
        """Indices of the images in ``part`` of a class with ``training_images`` real images; parts beyond :attr:`parts` go on where the pool ends."""
        if self.images_per_class is None:
            return range(part * training_images, (part + 1) * training_images)
        size = self.images_per_part or self.images_per_class
        if part >= self.parts:
            start = self.images_per_class + (part - self.parts) * size
            return range(start, start + size)
        return range(part * size, min((part + 1) * size, self.images_per_class))

    def parts_for(self, images: int | None, added: float) -> int:
        """Shard files per class that hold ``images`` images, or a set with ``added`` images per training image where pools are measured so."""
        if self.images_per_class is None:
            return max(1, math.ceil(added))
        size = self.images_per_part or self.images_per_class
        if images is None:
            return self.parts
        return self.parts + -(-(images - self.images_per_class) // size) if images > self.images_per_class else -(-images // size)


class Classifier(Section):
    """The classifier that measures how much an augmentation helps: torchvision's ResNet and the paper's schedule."""

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = key(
        "resnet50", "torchvision's architecture: kind and number of blocks.", source="paper, section 3"
    )
    layers: tuple[Positive, Positive, Positive, Positive] | None = key(None, "Blocks per stage, where they differ from the architecture's.")
    base_width: int = key(64, "Channels of the first stage (64 in torchvision); the others follow.", "channels", ge=4)
    stem: Literal["imagenet", "small"] = key("imagenet", "First layer: 7x7 stride 2 with max-pooling, or 3x3 stride 1 for images of about 32 pixels.")
    resolution: int = key(224, "Side of the crop that the classifier sees.", "pixels", "torchvision's reference", ge=16)
    evaluation_resize: int | None = key(
        None, "Shorter side before the centre crop in evaluation. Default: resolution x 256 / 224.", "pixels", "torchvision's reference", ge=16
    )
    min_crop_area: float = key(0.08, "Smallest area of the random resized crop.", "share of the image", "torchvision's default", gt=0, le=1)
    batch_size: Positive = key(256, "Global batch.", "images", "paper, section 3")
    lr: float = key(0.1, "Initial learning rate.", source="paper, section 3", gt=0)
    momentum: Fraction = key(0.9, "SGD momentum.", source="torchvision's reference")
    weight_decay: float = key(1e-4, "SGD weight decay.", source="torchvision's reference", ge=0)
    plateau_patience: Positive = key(10, "Epochs without better validation accuracy after which lr is divided by 10.", "epochs", "paper, section 3")
    stop_patience: Positive = key(20, "Epochs without better validation accuracy after which training stops.", "epochs", "paper, section 3")
    max_epochs: Positive = key(270, "Most epochs.", "epochs", "paper, section 3")
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto", "Precision of the network's products; weights are kept in float32. auto: bfloat16 on CUDA, float32 on the CPU."
    )


class Report(Section):
    """What stands beside our numbers."""

    paper_study: Literal["imagenet10", "imagenet_full", "caltech256"] = key("imagenet10", "Rows of the paper shown beside ours.", source="paper, Tables 1 ff.")
    notes: tuple[str, ...] = key((), "Lines for the footer of the tables, for example cuts against the protocol.")
    judge: str | None = key(
        None, "Folder of a reference classifier that says whether added images show their class; it must know the study's classes. Default: none."
    )
    diagnosed_images_per_class: Positive = key(
        200, "Images per class that the diagnostics look at, drawn at random from each method's pool and from the splits.", "images"
    )
    page_megabytes: int = key(
        30, "Size of report.html at most; where images of all classes do not fit, it shows those that changed most.", "10^6 bytes", ge=5, le=50
    )
    page_images_per_class: Positive = key(6, "Images of each class that report.html shows per method, drawn at random from its first training set.", "images")


class Execution(Section):
    """How the work is cut into jobs and batches, and what it runs on. Nothing here changes a result, but in float rounding."""

    classes_per_job: Positive = key(25, "Classes whose shards one generate job makes.", "classes")
    finetune_classes_per_job: Positive | None = key(
        None, "Classes that one fine-tuning job learns, where the U-Net is frozen; together they fill a GPU. Default: classes_per_job.", "classes"
    )
    runs_per_job: Positive = key(5, "Classifiers that one job trains.", "runs")
    batch_size: Positive = key(32, "Images sampled together.", "images")
    device: Literal["auto", "cpu", "cuda"] = key("auto", "Where torch runs; auto takes CUDA where there is one.")
    processes: Positive | None = key(
        None, "Processes that train one classifier together, each its part of the global batch. Default: one per visible GPU; one on the CPU.", "processes"
    )
    compile: bool = key(
        False,
        "Compile the classifier, the U-Net while it is fine-tuned or learned through, and the U-Net and decoder that make images, with torch.compile: minutes "
        "at the start of the first job, seconds in later ones, which share a cache below the study's results (or in $TORCHINDUCTOR_CACHE_DIR); needs a C "
        "compiler. Images are compiled for batches of batch_size: let it divide the images of a shard.",
    )
    image_pool: Literal["auto", "device", "memory", "disk"] = key(
        "auto",
        "Where a classifier's images lie, decoded: on the GPU, in main memory, or in a file that is read ahead of training. auto: the first of them with room.",
    )
    scratch: str | None = key(
        None,
        "Folder for that file, best on a fast local disk; environment variables are expanded ($TMPDIR). Several GPUs share images through it. "
        "Default: the study's results.",
    )
    keep_candidates: bool = key(True, "Keep the images of candidates that were not selected; false deletes them once the choice is made.")


# --- pre-training (miniature studies only) ----------------------------------------------------------------------------


class PretrainClip(Section):
    """The small CLIP: OpenAI's architecture and vocabulary, fewer and narrower layers."""

    width: int = key(128, "Hidden size of both towers and of the shared space.", "channels", ge=16)
    vision_layers: Positive = key(4, "Layers of the image tower (patches of 4 pixels).", "layers")
    text_layers: Positive = key(3, "Layers of the text tower.", "layers")
    heads: Positive = key(4, "Attention heads.")
    epochs: Positive = key(8, "Passes over the corpus.", "epochs")
    batch_size: Positive = key(256, "Image-caption pairs per step.", "images")
    lr: float = key(1e-3, "Peak learning rate; linear warm-up, then cosine.", gt=0)
    image_epochs: Positive = key(3, "Passes of the image tower alone after that, against the finished text tower.", "epochs", "after Zhai et al., 2022")
    image_lr: float = key(5e-4, "Peak learning rate of the image tower alone.", gt=0)


class PretrainAutoencoder(Section):
    """The VAE: 32 pixels to 8 x 8 x 4 latents."""

    channels: tuple[Positive, Positive, Positive] = key((32, 64, 64), "Channels per resolution.", "channels")
    steps: Positive = key(2500, "Training steps.", "steps")
    batch_size: Positive = key(64, "Images per step.", "images")
    lr: float = key(2e-3, "Peak learning rate; linear warm-up, then cosine.", gt=0)
    kl_weight: float = key(1e-6, "Weight of the KL term, as in latent diffusion.", source="Rombach et al., 2022", ge=0)


class PretrainUnet(Section):
    """The conditional U-Net on 8 x 8 x 4 latents."""

    channels: tuple[Positive, Positive] = key((64, 128), "Channels per resolution.", "channels")
    layers_per_block: Positive = key(1, "ResNet blocks per resolution.")
    steps: Positive = key(8000, "Training steps.", "steps")
    batch_size: Positive = key(64, "Latents per step.", "images")
    lr: float = key(1e-3, "Peak learning rate; linear warm-up, then cosine.", gt=0)
    caption_dropout: Fraction = key(0.1, "Share of captions replaced by the empty one, for guidance.", source="Ho and Salimans, 2022")
    ema_decay: float = key(0.999, "Decay of the averaged weights that are kept.", gt=0, lt=1)


class PretrainReference(Section):
    """The reference classifiers that judge generated images: one saw the corpus's garments in clean form, one in web style, too."""

    epochs: Positive = key(3, "Passes over the garments.", "epochs")
    batch_size: Positive = key(128, "Images per step.", "images")
    lr: float = key(3e-3, "Peak learning rate; linear warm-up, then cosine.", gt=0)
    base_width: int = key(32, "Channels of the first stage of its ResNet-18.", "channels", ge=4)


class Pretrain(Section):
    """How the miniature's models are pre-trained on the corpus."""

    clip: PretrainClip = key(PretrainClip(), "The small CLIP.")
    autoencoder: PretrainAutoencoder = key(PretrainAutoencoder(), "The VAE.")
    unet: PretrainUnet = key(PretrainUnet(), "The U-Net.")
    reference: PretrainReference = key(PretrainReference(), "The reference classifier.")
    checkpoint_steps: Positive = key(250, "Steps between checkpoints, from which an interrupted run goes on.", "steps")
    measured_images_per_class: int = key(100, "Images generated per class to measure agreement and diversity.", "images", ge=4)


# --- the study --------------------------------------------------------------------------------------------------------


class Study(Section):
    """A study: one data set, one diffusion model, one corpus, and the methods to compare."""

    study: str = key(..., "Name of the study; results go to results/{study}.", pattern=SLUG)
    seed: int = key(0, "Every random choice derives from it.", ge=0)
    dataset: Dataset = key(..., "The target data set.")
    diffusion: Diffusion = key(..., "The diffusion model.")
    clip: Clip = key(..., "The CLIP model.")
    corpus: Corpus | None = key(None, "The pre-training corpus that retrieval searches; needed by `retrieve`, and by pre-training (miniature).")
    methods: dict[str, Method] = key(..., "Rows of the comparison by name; `null` in an overlay removes one.", source="paper, section 3.1", min_length=1)
    augmentation: Augmentation = key(..., "How much is added.")
    classifier: Classifier = key(Classifier(), "The classifier.")
    finetune: Finetune = key(Finetune(), "How the `personalise` methods are fine-tuned.")
    retrieval: Retrieval = key(Retrieval(), "What all `retrieve` methods share.")
    leakage: Leakage = key(Leakage(), "The guard against near-duplicates of validation and test images.")
    report: Report = key(Report(), "What stands beside our numbers.")
    execution: Execution = key(Execution(), "How the work is cut into jobs; changes no result.")
    pretrain: Pretrain = key(Pretrain(), "How the miniature's models are made (`snakemake pretrain`).")

    @model_validator(mode="after")
    def _methods_have_what_they_need(self) -> Study:
        import re

        folders = [section.downloads for section in (self.dataset, self.corpus) if isinstance(section, FashionMnist | MiniatureCorpus)]
        if len(set(folders)) > 1:
            raise ValueError(f"corpus.downloads: {folders[1]!r} differs from dataset.downloads; give the same folder")
        for name, method in self.methods.items():
            if not re.fullmatch(SLUG, name):
                raise ValueError(f"methods.{name}: a name may hold a-z, 0-9 and _ only")
            if isinstance(method, RetrieveMethod):
                self._check_retrieval(name, method)
            if isinstance(method, DrawMethod):
                self._check_draw(name, method)
            if isinstance(method, PersonaliseMethod):
                epochs = [value for value in method.candidates if isinstance(value, int)]
                if max(epochs, default=0) > self.finetune.max_epochs:
                    raise ValueError(f"methods.{name}.candidates: epoch {max(epochs)} is after finetune.max_epochs, {self.finetune.max_epochs}")
            if isinstance(method, RealMethod) and method.split == "train2x" and 3 * self.dataset.train_fraction > 1:
                raise ValueError(f"methods.{name}.split: train2x needs three disjoint train_fractions; {self.dataset.train_fraction:g} leaves no room")
        return self

    def _check_retrieval(self, name: str, method: RetrieveMethod) -> None:
        if self.corpus is None:
            raise ValueError(f"methods.{name}: retrieval needs a corpus section")
        if isinstance(self.corpus, _PublishedCorpus) and self.corpus.clip != self.clip.model:
            raise ValueError(
                f"corpus.clip: {self.corpus.clip!r} differs from clip.model, {self.clip.model!r}: queries and images must go through the same model"
            )
        exact = self.corpus.search == "exact" if isinstance(self.corpus, OwnCorpus) else isinstance(self.corpus, EmbeddingCorpus)
        if method.corpus_share < 1 and not exact:
            raise ValueError(f"methods.{name}.corpus_share: a server or an index searches all of its corpus; allowed: 1")

    def _check_draw(self, name: str, method: DrawMethod) -> None:
        pool = self.methods.get(method.pool)
        if pool is None or isinstance(pool, RealMethod | DrawMethod):
            rows = [other for other, row in self.methods.items() if not isinstance(row, RealMethod | DrawMethod)]
            raise ValueError(f"methods.{name}.pool: allowed: a row that makes or retrieves images: {', '.join(rows) or 'there is none'}")
        if isinstance(pool, RetrieveMethod):
            if method.images_per_class is not None:
                raise ValueError(f"methods.{name}.images_per_class: methods.{method.pool}.images_per_class says how many are retrieved")
            return
        for key_name in ("ranked", "may_fall_short"):
            if getattr(method, key_name):
                raise ValueError(f"methods.{name}.{key_name}: goes with a row that retrieves; {method.pool} generates its images")
        if method.images_per_class is not None and self.augmentation.images_per_class is None:
            raise ValueError(f"methods.{name}.images_per_class: goes with augmentation.images_per_class only")

    def parts_drawn(self, name: str) -> int:
        """Shard files per class that the training sets of row ``name`` are drawn from."""
        method = self.methods[name]
        if isinstance(method, RetrieveMethod) or (isinstance(method, DrawMethod) and isinstance(self.methods[method.pool], RetrieveMethod)):
            return 1
        return (
            self.augmentation.parts_for(method.images_per_class, method.added_per_training_image) if isinstance(method, DrawMethod) else self.augmentation.parts
        )

    def parts_made(self, name: str) -> int:
        """Shard files per class that row ``name`` makes: for itself, and for rows that draw from it."""
        drawing = [other for other, row in self.methods.items() if isinstance(row, DrawMethod) and row.pool == name]
        return max(map(self.parts_drawn, (name, *drawing)))

    @property
    def miniature(self) -> MiniatureCorpus | None:
        """The miniature corpus, where it is this study's."""
        return self.corpus if isinstance(self.corpus, MiniatureCorpus) else None


# --- loading ----------------------------------------------------------------------------------------------------------


def merge(base: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """``overlay`` over ``base``, mapping by mapping, as Snakemake merges several ``--configfile``."""
    merged = dict(base)
    for name, value in overlay.items():
        both = isinstance(merged.get(name), dict) and isinstance(value, Mapping)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, else :class:`UserError`."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(str(path), "no such file", "give a study's YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(str(path), "not readable as YAML: " + " ".join(str(error).split()), "fix the file") from None
    if not isinstance(data, dict):
        raise UserError(str(path), f"holds a {type(data).__name__}", "a mapping of config keys is needed")
    return data


def load_study(paths: Sequence[str | Path]) -> Study:
    """Merge the files, later over earlier, and check the result; raises :class:`UserError`."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged = merge(merged, read_yaml(path))
    return parse_study(merged)


def parse_study(data: Mapping[str, Any]) -> Study:
    """Check a merged config; every problem is one line of the :class:`UserError`.

    Strict, as JSON: YAML's ``lr: "0.1"`` and ``seed: yes`` are mistakes, which pydantic would convert otherwise.
    """
    if isinstance(data.get("methods"), Mapping):  # null in an overlay removes a row
        data = {**data, "methods": {name: row for name, row in data["methods"].items() if row is not None}}
    try:
        return Study.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(list(_describe(error))) from None


class ConfigError(UserError):
    """One or more problems in the config, a line each."""

    def __init__(self, problems: list[UserError]) -> None:
        self.problems = problems
        self.where, self.found, self.allowed = problems[0].where, problems[0].found, problems[0].allowed
        Exception.__init__(self, "\n".join(map(str, problems)))


@dataclass(frozen=True)
class _Place:
    """Where a problem is: the key as the user writes it, the section that holds it, and what the schema allows there."""

    where: str
    section: type[Section] | None
    annotation: Any


def _locate(location: Sequence[str | int]) -> _Place:
    """Follow pydantic's ``location`` through the schema; tags of unions are part of it, and of no user's key."""
    names: list[str] = []
    section: type[Section] | None = None
    current: Any = Study
    for step in location:
        options = _section_options(current)
        if len(options) > 1 and (tagged := [option for option in options if step in _tags(option)]):
            current = tagged[0]
            continue
        if step == "[key]":
            continue
        names.append(str(step))
        section = options[0] if len(options) == 1 else None
        if section is not None:
            field = section.model_fields.get(str(step))
            current = field.annotation if field else None
        else:
            inner = get_args(_required(current))
            current = inner[-1] if get_origin(_required(current)) is dict else inner[0] if inner else None
    return _Place(".".join(names) or "config", section, current)


def _tags(section: type[Section]) -> tuple[str, ...]:
    for name in ("kind", "mechanism"):
        if name in section.model_fields:
            return get_args(section.model_fields[name].annotation)
    return ()


def _required(annotation: Any) -> Any:
    """``annotation`` without ``| None`` and constraints."""
    if get_origin(annotation) is Annotated:
        return _required(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return _required(options[0]) if len(options) == 1 else annotation
    return annotation


def _section_options(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [option for inner in get_args(annotation) for option in _section_options(inner)]
    return []


def _expected(annotation: Any) -> str:
    """The kind of value that fits, in a user's words."""
    annotation = _required(annotation)
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)
        return "a list" if ... in inner else f"a list of {len(inner)} values, each {_expected(inner[0])}"
    if get_origin(annotation) is dict or _section_options(annotation):
        return "a mapping"
    if get_origin(annotation) is Literal:
        return ", ".join(map(repr, get_args(annotation)))
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(annotation, "another kind of value")


def _shown(value: Any) -> str:
    """A value on one short line."""
    text = " ".join(repr(value).split())
    if len(text) <= 80:
        return text
    return "does not fit" if isinstance(value, Mapping) else f"{text[:77]}..."


def _instead_of(value: Any, annotation: Any) -> str:
    """What is allowed instead of a value of the wrong kind, and how YAML came to read it so."""
    expected = _expected(annotation)
    if not isinstance(value, str) or expected not in ("a number", "a whole number"):
        return f"allowed: {expected}"
    if re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", value):
        mantissa, exponent = re.split("[eE]", value)
        written = f"{mantissa}{'' if '.' in mantissa else '.0'}e{exponent if exponent[0] in '+-' else '+' + exponent}"
        return f"allowed: {expected} (YAML reads {value} as text; write {written})"
    return f"allowed: {expected}{' without quotes' if re.fullmatch(r'[-+]?[0-9]*[.]?[0-9]+', value) else ''}"


_WRONG_KINDS = ("_type", "_parsing", "int_from_float", "too_long")


def _describe(error: ValidationError) -> Iterator[UserError]:
    incomplete: set[str] = set()  # lists of fixed length that have been named: pydantic names every missing item
    for problem in error.errors():
        location, kind, value, context = problem["loc"], problem["type"], problem["input"], problem.get("ctx", {})
        place = _locate(location)
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if kind == "extra_forbidden":
            names = sorted(place.section.model_fields) if place.section else []
            close = difflib.get_close_matches(str(location[-1]), names, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            yield UserError(place.where, "unknown key", f"{hint}allowed here: {', '.join(names)}")
        elif kind == "missing" and isinstance(location[-1], int):
            place = _locate(location[:-1])
            if place.where not in incomplete:
                incomplete.add(place.where)
                yield UserError(place.where, _shown(value), f"allowed: {_expected(place.annotation)}")
        elif kind == "missing":
            yield UserError(place.where, "missing", "this key is required")
        elif kind == "invalid_key":
            yield UserError(place.where, f"a key that is no text: {value!r}", "allowed: keys of text")
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            tag = str(context["discriminator"]).strip("'")
            found = value.get(tag) if isinstance(value, Mapping) else value
            allowed = ", ".join(repr(name) for option in _section_options(place.annotation) for name in _tags(option))
            yield UserError(f"{place.where}.{tag}", "missing" if found is None else _shown(found), f"allowed: {allowed}")
        elif kind == "value_error":
            yield _from_validator(location, value, message)
        elif kind.endswith(_WRONG_KINDS):
            yield UserError(place.where, _shown(value), _instead_of(value, place.annotation))
        elif kind == "too_short":
            yield UserError(place.where, _shown(value), "allowed: at least 1 entry")
        elif kind == "string_pattern_mismatch":
            yield UserError(place.where, _shown(value), f"allowed: text that matches {context['pattern']}")
        else:
            yield UserError(place.where, _shown(value), f"allowed: {message}")


def _from_validator(location: Sequence[str | int], value: Any, message: str) -> UserError:
    """What a validator of this module says of a section; ``key: reason`` is about one key of it."""
    name, separator, reason = message.partition(": ")
    inner, steps, rest = value, list(location), name
    while rest:
        step = rest if isinstance(inner, Mapping) and rest in inner else rest.partition(".")[0]  # a name may hold dots
        if not (separator and isinstance(inner, Mapping) and step in inner):
            return UserError(_locate(location).where, _shown(value), message)
        inner, rest = inner[step], rest[len(step) + 1 :]
        steps.append(step)
    return UserError(_locate(steps).where, _shown(inner), reason)


def sections() -> list[tuple[str, type[Section]]]:
    """Every section of the schema with the path of its keys, in the order of the documentation."""
    found: list[tuple[str, type[Section]]] = []

    def visit(prefix: str, section: type[Section]) -> None:
        found.append((prefix, section))
        for name, field in section.model_fields.items():
            annotation = field.annotation
            path = f"{prefix}.{name}" if prefix else name
            if get_origin(annotation) is dict:
                annotation, path = get_args(annotation)[1], f"{path}.<name>"
            for option in _section_options(annotation):
                visit(path, option)

    visit("", Study)
    return found


def describe_type(field: FieldInfo) -> str:
    """The type of a key as the documentation shows it."""

    def show(annotation: Any) -> str:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return show(arguments[0])
        if origin is Literal:
            return " \\| ".join(str(value) for value in arguments)
        if origin in (Union, types.UnionType):
            return " \\| ".join("null" if option is type(None) else show(option) for option in arguments)
        if origin is tuple:
            return f"list of {show(arguments[0])}"
        if origin is dict:
            return f"mapping to {show(arguments[1])}"
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return "section"
        return {"str": "text", "int": "integer", "float": "number", "bool": "true \\| false"}.get(getattr(annotation, "__name__", ""), str(annotation))

    return show(field.annotation)
