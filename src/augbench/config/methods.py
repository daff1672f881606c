"""The ``methods`` section: one class per mechanism that makes or finds added images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from augbench.config.base import Place, Positive, Section, key
from augbench.config.models import INTERVAL_SOURCE, GuidanceInterval, Scheduler
from augbench.config.use import CONCATENATED, REAL_KEYS, Use

ClassName = Literal["lemmas", "no_whitespace"]
TEMPLATE_SETS = ("simple", "clip", "textual_inversion", "sariyildiz", "empty")
CAPTION_SUFFIXES = (".parquet", ".csv", ".jsonl")


class Prompting(Section):
    """A prompt: the template and the class name that turn a class into text."""

    templates: Place = key(
        "simple",
        "Prompt templates: simple (1 template), clip (80), textual_inversion (27), sariyildiz (6), empty "
        "(1), or a text file (.txt) with one template per line.",
        source="paper, section 3.1",
    )
    draw: Literal["random", "cycle"] = key(
        "random",
        "Choice of the template for image i: random draws one with replacement, cycle takes each in turn.",
        source="paper, section 3.1",
    )
    class_name: ClassName = key(
        "no_whitespace",
        "Class name in the prompt: the class's lemmas joined by ', ', unchanged (lemmas) or without white "
        "space (no_whitespace).",
        source="paper, section 3.1",
    )
    captions: Place | None = key(
        None,
        "File of captions (.parquet, .csv or .jsonl) that are the prompts, instead of templates and class "
        "names. Columns: class_id, caption, and optionally index (the number of the image that a caption is "
        "for) and image_id (the training image that it describes, for `start: training_images`). An image "
        "without a caption of its own takes one of its class, as `draw` says. Not for rows that learn. "
        "Default: templates.",
        new=True,
    )

    @model_validator(mode="after")
    def _captions_alone(self) -> Prompting:
        if self.captions is None:
            return self
        if not self.captions.endswith(CAPTION_SUFFIXES):
            raise ValueError(f"captions: allowed: a file that ends in {', '.join(CAPTION_SUFFIXES)}")
        if given := sorted({"templates", "class_name"} & self.model_fields_set):
            raise ValueError(f"captions: allowed without {' and '.join(given)}, which captions replace")
        return self

    @model_validator(mode="after")
    def _known_templates(self) -> Prompting:
        if self.templates not in TEMPLATE_SETS and not self.templates.endswith(".txt"):
            raise ValueError(
                f"templates: allowed: {', '.join(map(repr, TEMPLATE_SETS))} or a text file (.txt)"
            )
        return self


IMAGE_QUERY_SOURCE = "not in the paper, which asks with the text alone"


class Query(Prompting):
    """A query of the corpus: a text, the class's training images, or both.

    Without `images`, it is the text alone. With `images` it is the images alone, unless `text_weight` says
    otherwise.
    """

    images: Literal["train"] | None = key(
        None,
        "Ask with images: train, those of the class in the training split. Default: with the text alone.",
        source=IMAGE_QUERY_SOURCE,
        new=True,
    )
    pool: Literal["mean", "clusters", "each"] = key(
        "mean",
        "Queries made of a class's images: mean of their CLIP embeddings, mean of each of `clusters` k-means "
        "clusters, or each image in turn. Several queries of a class take turns: first the nearest image of "
        "each, then the second of each, and so on; an image that several find counts once.",
        new=True,
    )
    clusters: Positive | None = key(
        None, "Clusters of a class's images; required with `pool: clusters`.", "clusters", new=True
    )
    text_weight: float | None = key(
        None,
        "Share w of the text in the query w x text + (1 - w) x images; both and the result have unit length. "
        "Default: 0 with `images` (the template is not used), 1 without.",
        ge=0,
        le=1,
        new=True,
    )

    @property
    def weight(self) -> float:
        """Share of the text in the query: ``text_weight``, or its default."""
        return (0.0 if self.images else 1.0) if self.text_weight is None else self.text_weight

    @model_validator(mode="after")
    def _images_have_their_keys(self) -> Query:
        fields = type(self).model_fields.items()
        given = {name for name, field in fields if getattr(self, name) != field.default}
        if self.images is None:
            for name in ("pool", "clusters", "text_weight"):
                if name in given:
                    raise ValueError(f"{name}: allowed only with images: train")
            return self
        if given & set(Prompting.model_fields) and self.text_weight is None:
            raise ValueError(
                "images: beside a text, needs text_weight, from 0 (images alone) to 1 (text alone)"
            )
        if self.pool == "clusters" and self.clusters is None:
            raise ValueError("pool: needs the number of clusters: `clusters`, a whole number of at least 1")
        if self.pool != "clusters" and self.clusters is not None:
            raise ValueError("clusters: allowed only with pool: clusters")
        return self


class PoolOf(Section):
    """The images of another row, in place of the training images."""

    pool: str = key(
        ...,
        "Row of `methods` whose images are used; it must generate, retrieve or draw images, and must not be "
        "built on this row itself.",
    )


SHARES_ADD_UP = 1e-6  # difference from 1 that is allowed for a sum of shares
Family = Literal[
    "real", "unconditional", "prompting", "personalised", "retrieval", "hybrid", "scaling", "control"
]
GENERATED = ("unconditional", "prompting", "personalised")  # families whose images a model generates
RealSplit = Literal["train", "train2x", "full"]
FillTo = Positive | Literal["largest"]


class _Method(Section):
    """A row of the comparison. Stages ask it through the properties below, never by its class."""

    label: str | None = key(None, "Name in tables and figures. Default: the row's key.")
    family: Family | None = key(
        None,
        "Group of the row in Figure 1, which omits the groups scaling and control. Default: derived from the "
        "mechanism; control for `labels: shuffled`, and for rows of real images with `repeat` above 1 or "
        "`use`.",
        source="paper, Table 1",
    )
    use: Use = key(
        CONCATENATED,
        "How classifiers are trained on the row's images. Default: all images alike, unmixed.",
        new=True,
    )

    adds_images: ClassVar[bool] = True
    # with the diffusion model, into a pool of its own
    generates_images: ClassVar[bool] = False
    # from the corpus, into a pool of its own
    retrieves_images: ClassVar[bool] = False
    # fine-tunes on the training images before it generates
    learns: ClassVar[bool] = False
    # name of the key that holds the Prompting
    prompt_key: ClassVar[str] = "prompt"
    default_family: ClassVar[Family]

    @property
    def group(self) -> Family:
        """Group of the row in figures: ``family``, or by default the mechanism's group."""
        return self.family or self.default_family

    @property
    def real_split(self) -> RealSplit:
        """Split with the real images that the row's classifiers are trained on."""
        return "train"

    @property
    def real_repeats(self) -> int:
        """How often each real image appears in one pass over the training set."""
        return 1

    @property
    def prompting(self) -> Prompting | None:
        """The row's prompt, or None if the row uses no text of its own."""
        return None

    @property
    def must_name_class(self) -> bool:
        """Whether every template needs a place for the class, as queries and pseudo-words do."""
        return self.retrieves_images or self.learns_words

    @property
    def learns_words(self) -> bool:
        """Whether the row learns pseudo-words, which its prompts contain."""
        return False

    @property
    def from_images(self) -> bool:
        """Whether sampling starts from images: training images, or those of another row."""
        return False

    @property
    def generator_name(self) -> str | None:
        """Name of the model in ``generators`` that makes the images; None for ``diffusion``."""
        return None

    @property
    def start_pool(self) -> str | None:
        """The row whose images sampling starts from; None if there is none."""
        return None

    @property
    def from_training_images(self) -> bool:
        """Whether sampling starts from training images."""
        return self.from_images and self.start_pool is None

    @property
    def depends_on_training_images(self) -> bool:
        """Whether other training images give the row other images, apart from the rows it is built on.

        They do if it starts from them, learns from them, chooses among candidates with their help, asks the
        corpus with them, or compares its images with them.
        """
        return self.from_training_images or self.learns

    @property
    def edges(self) -> Mapping[str, str]:
        """Rows whose pools this row reads, by the key that names them, such as ``start.pool``."""
        return {}

    @property
    def built_on(self) -> tuple[str, ...]:
        """Rows whose pools this row reads, each once."""
        return tuple(dict.fromkeys(self.edges.values()))

    def renaming_edges(self, renamed: Callable[[str], str]) -> Self:
        """The row with other names of the rows that it is built on."""
        return self

    @property
    def pool_rows(self) -> tuple[str, ...]:
        """Rows whose pools this row draws from; none if it has a pool of its own or adds nothing."""
        return ()

    @property
    def shares(self) -> Mapping[str, float]:
        """Shares of a mixture's added images by the rows that make them; empty for a single pool."""
        return {}

    @property
    def is_composed(self) -> bool:
        """Whether the images differ in kind from those of one pool: the row mixes pools, or filters."""
        return False

    @property
    def set_0_from_part_0(self) -> bool:
        """Whether training set 0 is drawn from part 0 of the pool alone (:mod:`augbench.resample`)."""
        return not self.pool_rows

    @property
    def shuffles_labels(self) -> bool:
        """Whether the labels of added images are shuffled, for a placebo."""
        return False


class RealMethod(_Method):
    """A baseline that trains on real images only."""

    mechanism: Literal["real"]
    split: RealSplit = key(
        "train",
        "Real images to train on: train (the training split), train2x (twice as many), or full (all except "
        "validation and test images).",
        source="paper, section 3",
    )
    repeat: Positive = key(
        1,
        "How often each real image appears in one pass over the training set, with another crop each time. 2"
        " makes a control: under `schedule: plateau` as many steps per epoch as a row that doubles the"
        " training set, and no new image; under `schedule: steps` a row that differs from its twin by chance"
        " alone. Not with `split: full`.",
        "times",
    )

    adds_images = False
    default_family = "real"

    @property
    def group(self) -> Family:
        """Group of the row in figures; by default ``control`` if it repeats its images or has a ``use``."""
        plain = self.repeat == 1 and self.use == CONCATENATED
        return self.family or (self.default_family if plain else "control")

    @property
    def real_split(self) -> RealSplit:
        """Split with the real images that the row's classifiers are trained on."""
        return self.split

    @property
    def real_repeats(self) -> int:
        """How often each real image appears in one pass over the training set."""
        return self.repeat

    @model_validator(mode="after")
    def _repeats_a_sample(self) -> RealMethod:
        if self.repeat > 1 and self.split == "full":
            raise ValueError("repeat: allowed with split: full: 1; a control repeats train or train2x")
        return self

    @model_validator(mode="after")
    def _uses_real_images(self) -> RealMethod:
        for name in self.use.needing_added:
            raise ValueError(
                f"use.{name}: goes with a row that adds images; allowed with mechanism: real: "
                f"{', '.join(REAL_KEYS)}"
            )
        return self


class _Added(_Method):
    added_per_training_image: float = key(
        1.0,
        "Images added per class, as a multiple of its training images; 1 doubles the training set.",
        source="paper, section 3; Figure 5B: 1, 5, 10, 25",
        gt=0,
    )
    fill_to: FillTo | None = key(
        None,
        "Fill every class up to this many training images, or to those of the largest class (largest), in"
        " place of added_per_training_image: a class with n real images gets the missing ones, one with"
        " enough gets none. Needs augmentation.images_per_class where images are generated.",
        "images, real and added",
        new=True,
    )

    @model_validator(mode="after")
    def _one_amount(self) -> _Added:
        if self.fill_to is not None and self.added_per_training_image != 1:
            raise ValueError(
                "added_per_training_image: not allowed with fill_to, which says how many images are added; "
                "give one of the two"
            )
        return self

    @model_validator(mode="after")
    def _replaces_what_it_adds(self) -> _Added:
        if self.use.replace and self.fill_to is not None:
            raise ValueError("use.replace: allowed without fill_to, which adds images to some classes only")
        if self.use.replace > self.added_per_training_image:
            raise ValueError(
                f"use.replace: allowed: at most added_per_training_image, {self.added_per_training_image:g}"
            )
        return self


class _Sampled(_Added):
    generates_images = True
    # keys of rows that retrieve
    ranked: ClassVar[bool] = False
    may_fall_short: ClassVar[bool] = False

    guidance_scale: float | None = key(
        None,
        "Classifier-free guidance scale of this method; 1 and less switches guidance off. Default: that of "
        "the row's model.",
        ge=0,
    )
    steps: Positive | None = key(
        None, "Sampling steps of this method. Default: those of the row's model.", "steps"
    )
    scheduler: Scheduler | None = key(
        None, "Sampler of this method. Default: diffusion.scheduler, or ddim if sampling starts from images."
    )
    guidance_interval: GuidanceInterval | None = key(
        None,
        "Noise levels between which this method is guided, lower one first. Default: "
        "diffusion.guidance_interval.",
        source=INTERVAL_SOURCE,
    )
    negative_prompt: str | None = key(
        None,
        "Text that guidance leads away from, the same for all images. Needs a guidance scale above 1, and a "
        "pipeline that takes one. Default: the empty text, or the pipeline's own.",
        new=True,
    )
    generator: str | None = key(
        None, "Model that makes the images: a name in `generators`. Default: `diffusion`.", new=True
    )

    @property
    def generator_name(self) -> str | None:
        """Name of the model in ``generators`` that makes the images; None for ``diffusion``."""
        return self.generator


class SampleMethod(_Sampled):
    """Images from the unchanged diffusion model, sampled from noise and prompts, or from images."""

    mechanism: Literal["sample"]
    prompt: Prompting = key(Prompting(), "Prompts of the images.")
    start: Literal["noise", "training_images"] | PoolOf = key(
        "noise",
        "Start of sampling: noise, training_images, or {pool: a row}, that row's images of the same class. "
        "Images are taken in turn so that each is used equally often.",
        source="Luzi et al., 2022 (Boomerang); Meng et al., 2022 (SDEdit)",
    )
    noise: float | None = key(
        None,
        "Share of the noise schedule that is added to an image before denoising. Allowed only if sampling "
        "starts from images. Default: 0.2.",
        source="Luzi et al., 2022; the paper does not say",
        gt=0,
        le=1,
    )

    default_family = "prompting"

    @property
    def group(self) -> Family:
        """Group of the row in figures; by default ``unconditional``, ``hybrid`` if it starts from images."""
        if self.start_pool is not None:
            return self.family or "hybrid"
        return self.family or ("unconditional" if self.from_training_images else self.default_family)

    @property
    def prompting(self) -> Prompting:
        """The row's prompt."""
        return self.prompt

    @property
    def from_images(self) -> bool:
        """Whether sampling starts from images: training images, or those of another row."""
        return self.start != "noise"

    @property
    def start_pool(self) -> str | None:
        """The row whose images sampling starts from; None if there is none."""
        return self.start.pool if isinstance(self.start, PoolOf) else None

    @property
    def edges(self) -> Mapping[str, str]:
        """The row whose images sampling starts from."""
        return {} if self.start_pool is None else {"start.pool": self.start_pool}

    def renaming_edges(self, renamed: Callable[[str], str]) -> Self:
        """The row with another name of the row that it starts from."""
        if self.start_pool is None:
            return self
        return self.model_copy(update={"start": PoolOf(pool=renamed(self.start_pool))})

    @property
    def set_0_from_part_0(self) -> bool:
        """Whether training set 0 is drawn from part 0 alone: not if sources or templates take turns."""
        return not self.from_images and self.prompt.draw == "random"

    @property
    def noise_share(self) -> float:
        """Share of the noise schedule that is added to images: ``noise``, or its default."""
        return 0.2 if self.noise is None else self.noise

    @model_validator(mode="after")
    def _noise_of_images(self) -> SampleMethod:
        if self.noise is not None and self.start == "noise":
            raise ValueError("noise: allowed only with start: training_images, or start: {pool: a row}")
        return self


Candidate = Literal["train_loss", "val_loss"] | Positive
Learned = Literal["train"] | PoolOf
ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")  # of diffusers' U-Nets and transformers
LORA_KEYS = ("rank", "alpha", "targets", "scope")
Target = Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")]


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters of a row, all defaults filled in.

    Each linear layer of ``targets`` with weights W gets W + alpha / rank x B A, where A has ``rank`` rows.
    ``scope`` says whether each class has an adapter (``class``) or all share one (``study``).
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    scope: Literal["class", "study"]


class PersonaliseMethod(_Sampled):
    """Images sampled after fine-tuning on the training images, or on those of other rows.

    The keys say what is learned, whether the U-Net trains too, and which prompts are used.
    """

    mechanism: Literal["personalise"]
    learn: Literal["conditioning", "pseudoword", "lora"] = key(
        ...,
        "What is learned: conditioning (all text states of a class), pseudoword (the token embedding of a"
        " new word for it), or lora (low-rank adapters of the denoiser, which is asked with class names).",
        source="paper, section 3.1; lora: Hu et al., 2021",
    )
    rank: Positive | None = key(
        None,
        "Rank of the adapters. Allowed only with `learn: lora`. Default: 4.",
        source="Hu et al., 2021; default of diffusers' DreamBooth-LoRA examples",
        new=True,
    )
    alpha: float | None = key(
        None,
        "Adapters are scaled by alpha / rank. Allowed only with `learn: lora`. Default: the rank.",
        source="Hu et al., 2021; default of diffusers' DreamBooth-LoRA examples",
        gt=0,
        new=True,
    )
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] | None = key(
        None,
        "Linear layers of the denoiser that get an adapter, by the end of their names. Allowed only with "
        "`learn: lora`. Default: to_q, to_k, to_v, to_out.0, the attention projections.",
        source="default of diffusers' DreamBooth-LoRA examples",
        new=True,
    )
    scope: Literal["class", "study"] | None = key(
        None,
        "What an adapter is for: class (each class has one, learned from its images), or study (all classes "
        "share one). Allowed only with `learn: lora`. Default: class.",
        source="Kim et al., 2024 (DataDream: cls and dset)",
        new=True,
    )
    clusters: Positive = key(
        1,
        "Conditionings or pseudo-words learned per class, one for each k-means cluster of the images that it "
        "learns from.",
        "clusters",
        "paper, section 3.1 (1, 5, 10, 15)",
    )
    train_unet: bool = key(
        False,
        "Train the U-Net too; all classes share one U-Net (Imagic, Pseudoword+DM).",
        source="paper, section 3.1",
    )
    learn_from: Learned | Annotated[tuple[Learned, ...], Field(min_length=1)] = key(
        "train",
        "Images that are learned from: train (the training images), {pool: a row} (that row's first training "
        "set, near-duplicates of validation and test images left out), or a list of these. Validation losses "
        "are those of real images.",
        new=True,
    )
    prompt: Prompting | None = key(
        None,
        "For conditioning, the prompt that it starts from (default: `templates: simple`). For pseudo-words,"
        " the templates that contain the word (default: `templates: textual_inversion`). For lora, the"
        " prompts that it learns with and that images are made of (default: `templates: simple`).",
        source="paper, section 3.1",
    )
    lr: float | None = key(
        None,
        "Learning rate of the conditioning, pseudo-word or adapter at lr_batch_size. Default: 0.001 for "
        "conditioning, 0.005 for pseudo-words, 0.0001 for lora.",
        source="Kawar et al., 2023; Gal et al., 2023; diffusers' DreamBooth-LoRA examples",
        gt=0,
    )
    unet_lr: float = key(
        2e-6,
        "Learning rate of the U-Net at batch size 1; it is multiplied by the square root of "
        "finetune.batch_size.",
        source="Stable Diffusion's fine-tuning code (1e-7 to 2e-6)",
        gt=0,
    )
    lr_batch_size: Positive | None = key(
        None,
        "Batch size that lr was chosen for; lr is multiplied by the square root of finetune.batch_size / "
        "lr_batch_size. Default: 1 for conditioning and lora, 4 for pseudo-words.",
        "images",
        "paper, section 3.2",
    )
    lr_grid: tuple[Annotated[float, Field(gt=0)], ...] = key(
        (1.0,),
        "Factors that multiply the learning rates, each listed once; the one with the lowest validation "
        "loss is used: that of val_loss, or without it the lowest at any candidate's epoch.",
        source="paper, section 3.2",
        min_length=1,
    )
    candidates: tuple[Candidate, ...] = key(
        ("train_loss", "val_loss", 1, 2, 3),
        "Checkpoints compared by validation accuracy: train_loss and val_loss (those with the best loss), "
        "and numbers of epochs up to finetune.max_epochs. Each is listed once. If all are epochs, training "
        "ends at the last.",
        "epochs",
        "paper, section 3.2 (Imagic: epochs 1 to 8)",
        min_length=1,
    )

    learns = True
    default_family = "personalised"

    @property
    def group(self) -> Family:
        """Group of the row in figures; by default ``hybrid`` if it learns from other rows' images."""
        return self.family or ("hybrid" if self.edges else self.default_family)

    @model_validator(mode="after")
    def _learns_from_templates(self) -> PersonaliseMethod:
        if self.prompt is not None and self.prompt.captions is not None:
            raise ValueError(
                "prompt.captions: allowed with mechanism: sample and retrieve; a row that learns "
                "needs templates, which say where its word stands"
            )
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> PersonaliseMethod:
        for name in ("lr_grid", "candidates", "targets"):
            entries = getattr(self, name) or ()
            if len(set(entries)) < len(entries):
                raise ValueError(f"{name}: an entry occurs twice")
        return self

    @model_validator(mode="after")
    def _adapters_have_their_keys(self) -> PersonaliseMethod:
        if self.learn != "lora":
            for name in LORA_KEYS:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: allowed only with learn: lora")
            return self
        if self.clusters > 1:
            raise ValueError("clusters: allowed with learn: lora: 1, since no vectors are learned")
        if self.train_unet:
            raise ValueError("train_unet: allowed with learn: lora: false, since the adapters train")
        if "unet_lr" in self.model_fields_set:
            raise ValueError("unet_lr: allowed without learn: lora; the adapters' learning rate is lr")
        return self

    @model_validator(mode="after")
    def _learns_from_each_once(self) -> PersonaliseMethod:
        if isinstance(self.learn_from, tuple) and len(set(self._learned)) < len(self._learned):
            raise ValueError("learn_from: an entry occurs twice")
        return self

    @property
    def _learned(self) -> tuple[Learned, ...]:
        return self.learn_from if isinstance(self.learn_from, tuple) else (self.learn_from,)

    @property
    def learns_from_training_images(self) -> bool:
        """Whether training images are among those that the row learns from."""
        return "train" in self._learned

    @property
    def edges(self) -> Mapping[str, str]:
        """Rows whose images the row learns from."""
        places = [f"{place}." for place in range(len(self._learned))]
        prefixes = places if isinstance(self.learn_from, tuple) else [""]
        return {
            f"learn_from.{prefix}pool": given.pool
            for prefix, given in zip(prefixes, self._learned, strict=True)
            if isinstance(given, PoolOf)
        }

    def renaming_edges(self, renamed: Callable[[str], str]) -> Self:
        """The row with other names of the rows that it learns from."""
        if not self.edges:
            return self
        learned = tuple(
            PoolOf(pool=renamed(given.pool)) if isinstance(given, PoolOf) else given
            for given in self._learned
        )
        return self.model_copy(
            update={"learn_from": learned if isinstance(self.learn_from, tuple) else learned[0]}
        )

    @property
    def prompting(self) -> Prompting:
        """The row's prompt, or the default for what it learns."""
        return self.prompt or Prompting(templates="textual_inversion" if self.learns_words else "simple")

    @property
    def learns_words(self) -> bool:
        """Whether the row learns pseudo-words, which its prompts contain."""
        return self.learn == "pseudoword"

    @property
    def learns_vectors(self) -> bool:
        """Whether each class learns vectors, which stand in prompts or for them."""
        return self.learn != "lora"

    @property
    def lora(self) -> Lora | None:
        """The row's adapters; None if it learns none."""
        if self.learn != "lora":
            return None
        rank = self.rank or 4
        return Lora(
            rank=rank,
            alpha=float(rank if self.alpha is None else self.alpha),
            targets=self.targets or ATTENTION_PROJECTIONS,
            scope=self.scope or "class",
        )

    @property
    def shares_weights(self) -> bool:
        """Whether all classes train the same weights: the U-Net, or one adapter."""
        return self.train_unet or (self.lora is not None and self.lora.scope == "study")

    @property
    def candidate_names(self) -> tuple[str, ...]:
        """Names of the candidates in the config's order: ``train_loss``, ``val_loss``, ``epoch1``, ..."""
        return tuple(f"epoch{value}" if isinstance(value, int) else value for value in self.candidates)

    def last_epoch(self, max_epochs: int) -> int:
        """Epoch after which no candidate comes: the last candidate if all are epochs, or ``max_epochs``"""
        epochs = [value for value in self.candidates if isinstance(value, int)]
        return max(epochs) if len(epochs) == len(self.candidates) else max_epochs


class RetrieveMethod(_Added):
    """Images retrieved from the corpus: the nearest neighbours of a query in CLIP space."""

    mechanism: Literal["retrieve"]
    query: Query = key(
        Query(),
        "The query: a text, of which only the first template is used, or training images, or both.",
        source="paper, section 3.1",
    )
    images_per_class: Positive | None = key(
        None,
        "Images to keep per class. Default: added_per_training_image x the class's training images.",
        "images",
        "paper, section 3.2 (ImageNet: 130)",
    )
    least_images: Positive | None = key(
        None,
        "Images that a class must keep to stay in the study (`retrieval.exclude`); at most images_per_class, "
        "which must be set, too. Not with may_fall_short. Default: as many as a training set adds.",
        "images",
        "paper, section 3 (ImageNet: 130, all that it asked for; inferred from 'sufficient samples')",
        new=True,
    )
    first_k: float = key(
        1.4, "Neighbours requested at first, per image to keep.", source="paper, section 3.2", ge=1
    )
    growth_limit: int = key(
        10,
        "While too few images are kept, the number of neighbours k grows in steps of the first k, up to "
        "this many times the first k.",
        source="paper, section 3.2",
        ge=1,
        le=1000,
    )
    duplicate_threshold: float | None = key(
        0.94,
        "Neighbours with a cosine similarity above this value count as one image; the one nearest to the "
        "query is kept. null switches this filter off.",
        source="clip-retrieval's detector; calibrated for ViT-L/14",
        gt=0,
        le=1,
    )
    drop_unsafe: bool = key(
        True,
        "Leave out images that the safety checker flags.",
        source="paper, section 3.2",
    )
    drop_tagged: bool | None = key(
        None,
        "Leave out images that the corpus's NSFW column calls unsafe, before any download. Default: as "
        "drop_unsafe.",
        source="not in the paper, which names only the checker",
        new=True,
    )
    max_punsafe: float | None = key(
        None,
        "Leave out images whose probability of being unsafe (the corpus's column punsafe) is above this "
        "value. Default: no limit.",
        ge=0,
        le=1,
    )
    min_side: Positive | None = key(
        None,
        "Leave out images whose shorter side is below this value, by the corpus's columns and again after "
        "download. Default: 32 pixels, after download only.",
        "pixels",
    )
    min_aesthetics: float | None = key(
        None,
        "Leave out images with an aesthetics score below this value (ImageNet: 5). The score is the corpus's "
        "column, or that of LAION's predictor V2 on its ViT-L/14 embeddings. Default: no limit.",
        source="paper, section 3.2",
    )
    one_class: bool = key(
        False,
        "Give each image only to the class with the most similar query (ties: the first class_id), before "
        "any download.",
    )
    corpus_share: float = key(
        1.0,
        "Search only a random share of the corpus; smaller shares are subsets of larger ones. Values below "
        "1 need exact search and are not allowed with manifest.",
        "share of the images",
        gt=0,
        le=1,
    )
    ranked: bool = key(
        False,
        "Fill every training set with the same images, those most similar to the query, instead of random "
        "draws from the pool.",
        source="paper, Figure 5B",
    )
    may_fall_short: bool = key(
        False,
        "Let a class with too few images use those it has, instead of leaving the class out because of this "
        "method.",
        source="paper, Figure 5B",
    )
    manifest: Place | None = key(
        None,
        "Manifest of an earlier study (retrieval/{method}/manifest.parquet); its images are fetched, and "
        "nothing is searched. Default: search the corpus.",
    )
    training_copies: Literal["drop", "count"] | None = key(
        None,
        "Near-duplicates of training images among the retrieved ones, by the limits in `leakage`: drop them, "
        "or count them and name them in the ledger. Default: drop if the query has images, which finds them "
        "first; else they are not looked for here (`leakage` counts them).",
        new=True,
    )
    select: Literal["nearest", "mmr", "k_center", "facility_location"] = key(
        "nearest",
        "Choice among the neighbours that passed the filters: the nearest; maximal marginal relevance (mmr); "
        "greedy k-center (k_center); facility location, which covers neighbours and training images. Images "
        "enter the pool in the order of their choice.",
        source="Carbonell and Goldstein, 1998; Sener and Savarese, 2018; Yue and Guestrin, 2011; COBRA, 2025",
        new=True,
    )
    select_from: float | None = key(
        None,
        "Neighbours to choose from that passed the filters, per image to keep. Allowed only with `select` "
        "other than nearest. Default: 3.",
        "per image",
        ge=1,
        new=True,
    )
    relevance: float | None = key(
        None,
        "Weight of the similarity to the query in mmr; the rest is that of the penalty for similarity to "
        "chosen images. 1 is nearest. Allowed only with `select: mmr`. Default: 0.7.",
        source="Carbonell and Goldstein, 1998 (their lambda)",
        ge=0,
        le=1,
        new=True,
    )
    target_weight: float | None = key(
        None,
        "Weight of the coverage of the class's training images in facility_location; the rest is that of the "
        "coverage of the neighbours. Allowed only with `select: facility_location`. Default: 0.5.",
        ge=0,
        le=1,
        new=True,
    )

    retrieves_images = True
    prompt_key = "query"
    default_family = "retrieval"

    @property
    def drops_tagged(self) -> bool:
        """Whether images with an unsafe NSFW tag are left out: ``drop_tagged``, or its default."""
        return self.drop_unsafe if self.drop_tagged is None else self.drop_tagged

    @property
    def prompting(self) -> Prompting | None:
        """Prompt of the query; None if it asks with images only."""
        return self.query if self.query.weight > 0 else None

    @property
    def asks_with_images(self) -> bool:
        """Whether the query has a share of training images."""
        return self.query.weight < 1

    @property
    def copies(self) -> Literal["drop", "count"] | None:
        """What happens to copies of training images: ``training_copies``, or its default."""
        return self.training_copies or ("drop" if self.asks_with_images else None)

    @property
    def penalty(self) -> float:
        """Weight of the penalty in mmr, as 1 minus ``relevance`` or its default."""
        return 1 - (0.7 if self.relevance is None else self.relevance)

    @property
    def selects(self) -> bool:
        """Whether images are chosen otherwise than nearest first; mmr without a penalty is nearest."""
        return self.select != "nearest" and not (self.select == "mmr" and self.penalty == 0)

    @property
    def candidates_per_image(self) -> float:
        """Neighbours that pass the filters, per image to keep, before the search ends."""
        return (3.0 if self.select_from is None else self.select_from) if self.selects else 1.0

    @property
    def target_share(self) -> float:
        """Share of the training images in what the chosen images cover."""
        if self.select != "facility_location":
            return 0.0
        return 0.5 if self.target_weight is None else self.target_weight

    @property
    def depends_on_training_images(self) -> bool:
        """Whether the row asks with training images, or compares retrieved images with them."""
        return self.asks_with_images or self.copies is not None or self.target_share > 0

    @model_validator(mode="after")
    def _replayed_as_it_was(self) -> RetrieveMethod:
        if self.manifest is None:
            return self
        if self.corpus_share < 1:
            raise ValueError("corpus_share: allowed with a manifest: 1, since nothing is searched")
        if self.query.images is not None:
            raise ValueError("query.images: allowed with a manifest: null, since nothing is searched")
        if self.select != "nearest":
            raise ValueError("select: allowed with a manifest: nearest, since all its images are taken")
        if self.training_copies is not None:
            raise ValueError("training_copies: allowed with a manifest: null, since all its images are taken")
        return self

    @model_validator(mode="after")
    def _selects_by_its_keys(self) -> RetrieveMethod:
        if self.select_from is not None and self.select == "nearest":
            raise ValueError("select_from: allowed only with select: mmr, k_center or facility_location")
        for name, select in (("relevance", "mmr"), ("target_weight", "facility_location")):
            if getattr(self, name) is not None and self.select != select:
                raise ValueError(f"{name}: allowed only with select: {select}")
        return self

    @model_validator(mode="after")
    def _can_be_reached(self) -> RetrieveMethod:
        if self.least_images is None:
            return self
        if self.may_fall_short:
            raise ValueError("least_images: allowed only without may_fall_short, which leaves no class out")
        if self.images_per_class is None or self.least_images > self.images_per_class:
            most = "which is not set" if self.images_per_class is None else str(self.images_per_class)
            raise ValueError(f"least_images: allowed: at most images_per_class, {most}")
        return self


class Keep(Section):
    """A filter: the part of a pool whose images agree best with their class."""

    by: Literal["clip", "classifier"] = key(
        ...,
        "Score of an image: the probability of its class against the study's other classes, by CLIP "
        "(zero-shot, OpenAI's 80 templates) or by a classifier that was trained on real images only.",
        source="He et al., 2023 (CLIP); Dunlap et al., 2023 (classifier)",
    )
    share: float = key(
        ...,
        "Share of the pool's images of each class that is kept, rounded up: those of the best scores.",
        "share of the images",
        gt=0,
        le=1,
    )
    row: str | None = key(
        None,
        "With `by: classifier`, the row of `mechanism: real` whose classifier (run 0, of the same draw) "
        "gives the scores. Default: the first with `split: train`.",
    )

    @model_validator(mode="after")
    def _row_of_a_classifier(self) -> Keep:
        if self.row is not None and self.by == "clip":
            raise ValueError("row: allowed only with by: classifier")
        return self

    def kept(self, images: int) -> int:
        """Number of ``images`` of a class in a pool that are kept."""
        return math.ceil(images * Fraction(repr(self.share)))

    def needed(self, kept: int) -> int:
        """Least number of images of a class in a pool of which ``kept``, at least 1, are kept."""
        return math.floor((kept - 1) / Fraction(repr(self.share))) + 1


class DrawMethod(_Added):
    """Training sets drawn from other rows' pools: of another size, mixed, or filtered.

    Nothing is learned, selected or searched again.
    """

    mechanism: Literal["draw"]
    pool: str | None = key(
        None,
        "Row whose images the sets are drawn from; it must generate or retrieve images. Either this key or "
        "pools.",
        source="paper, Figure 5B",
    )
    pools: dict[str, Annotated[float, Field(gt=0, le=1)]] | None = key(
        None,
        "A mixture: rows whose images the sets are drawn from, each with its share of the added images of "
        "every class; the shares sum to 1. Images are split by the largest remainder.",
        new=True,
        min_length=1,
    )
    keep: Keep | None = key(
        None, "Filter of each pool, before the draw. Default: all images are drawn from.", new=True
    )
    images_per_class: Positive | None = key(
        None,
        "Images per class to draw from; images beyond the pool's own are generated in further shards. "
        "Allowed only if the pool's row generates images, and with augmentation.images_per_class. Default: "
        "as many as the pool's row makes, or with augmentation.images_per_training_image as many as are "
        "added, divided by keep.share.",
        "images",
        "paper, Figure 5B",
    )
    ranked: bool = key(
        False,
        "As for `mechanism: retrieve`; allowed only if the pool's row retrieves, all of them in a mixture.",
        source="paper, Figure 5B",
    )
    may_fall_short: bool = key(
        False,
        "Let a class with too few images use those it has; allowed only if the pool's row retrieves, one of "
        "them in a mixture.",
        source="paper, Figure 5B",
    )
    labels: Literal["own", "shuffled"] = key(
        "own",
        "Labels of the drawn images: their own, or shuffled: permuted at random over the images of a"
        " set, so that an image's label says nothing about it, while each class keeps its number of images."
        " shuffled makes a placebo: the same pool and as many steps, without what the images show.",
    )

    default_family = "scaling"

    @model_validator(mode="after")
    def _one_pool_or_a_mixture(self) -> DrawMethod:
        if self.pool is None and self.pools is None:
            raise ValueError("allowed: with pool, or with pools for a mixture")
        if self.pool is not None and self.pools is not None:
            raise ValueError("pools: allowed only without pool")
        if self.pools is not None and abs(sum(self.pools.values()) - 1) > SHARES_ADD_UP:
            raise ValueError(
                f"pools: the shares sum to {sum(self.pools.values()):g}; allowed: shares that sum to 1"
            )
        return self

    @property
    def group(self) -> Family:
        """Group of the row in figures; by default ``control`` if its labels are shuffled."""
        return self.family or ("control" if self.labels == "shuffled" else self.default_family)

    @property
    def shares(self) -> Mapping[str, float]:
        """Shares of a mixture's added images by the rows that make them; empty for a single pool."""
        return self.pools or {}

    @property
    def pool_rows(self) -> tuple[str, ...]:
        """Rows whose pools this row draws from."""
        return (self.pool,) if self.pool is not None else tuple(self.shares)

    @property
    def is_composed(self) -> bool:
        """Whether the images differ in kind from those of one pool: the row mixes pools, or filters."""
        return self.keep is not None or self.pools is not None

    @property
    def depends_on_training_images(self) -> bool:
        """Whether a classifier that was trained on the training images filters the pool."""
        return self.keep is not None and self.keep.by == "classifier"

    @property
    def edges(self) -> Mapping[str, str]:
        """Rows whose pools this row draws from."""
        return {"pool": self.pool} if self.pool is not None else {f"pools.{row}": row for row in self.shares}

    def renaming_edges(self, renamed: Callable[[str], str]) -> Self:
        """The row with other names of the rows that it draws from."""
        if self.pool is not None:
            return self.model_copy(update={"pool": renamed(self.pool)})
        return self.model_copy(update={"pools": {renamed(row): share for row, share in self.shares.items()}})

    @property
    def shuffles_labels(self) -> bool:
        """Whether the labels of added images are shuffled, for a placebo."""
        return self.labels == "shuffled"


class ChooseMethod(_Method):
    """The one of several rows whose classifiers have the best validation accuracy."""

    mechanism: Literal["choose"]
    among: tuple[str, ...] = key(
        ...,
        "Rows that add images. The row adds what the best of them adds: that of the highest validation "
        "accuracy, mean over runs; of equal ones the first. With dataset.draws each draw has its choice.",
        source="as the paper chooses candidates, section 3.2",
    )

    default_family = "hybrid"

    @model_validator(mode="after")
    def _several_rows(self) -> ChooseMethod:
        if len(self.among) < 2:
            raise ValueError("among: allowed: at least 2 rows")
        if len(set(self.among)) < len(self.among):
            raise ValueError("among: an entry occurs twice")
        return self

    @property
    def edges(self) -> Mapping[str, str]:
        """Rows that are chosen among."""
        return {f"among.{place}": row for place, row in enumerate(self.among)}

    def renaming_edges(self, renamed: Callable[[str], str]) -> Self:
        """The row with other names of the rows that it chooses among."""
        return self.model_copy(update={"among": tuple(map(renamed, self.among))})

    @property
    def depends_on_training_images(self) -> bool:
        """Always: other training images may lead to another choice."""
        return True


Method = Annotated[
    RealMethod | SampleMethod | PersonaliseMethod | RetrieveMethod | DrawMethod | ChooseMethod,
    Field(discriminator="mechanism"),
]
AddingMethod = SampleMethod | PersonaliseMethod | RetrieveMethod | DrawMethod
