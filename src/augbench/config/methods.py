"""The ``methods`` section: one class per mechanism that makes or finds added images."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from augbench.config.base import Positive, Section, key
from augbench.config.models import INTERVAL_SOURCE, GuidanceInterval, Scheduler

ClassName = Literal["lemmas", "no_whitespace"]
TEMPLATE_SETS = ("simple", "clip", "textual_inversion", "sariyildiz", "empty")


class Prompting(Section):
    """How a class becomes text."""

    templates: str = key(
        "simple",
        "Templates: simple (1), clip (80), textual_inversion (27), sariyildiz (6), empty (1), or a text file (.txt) with one template per line.",
        source="paper, section 3.1",
    )
    draw: Literal["random", "cycle"] = key(
        "random",
        "Which template image i gets: one drawn with replacement, or each in turn.",
        source="paper, section 3.1",
    )
    class_name: ClassName = key(
        "no_whitespace",
        "The class's lemmas joined by ', ', as they are or without white space.",
        source="paper, section 3.1",
    )

    @model_validator(mode="after")
    def _known_templates(self) -> Prompting:
        if self.templates not in TEMPLATE_SETS and not self.templates.endswith(".txt"):
            raise ValueError(
                f"templates: allowed: {', '.join(map(repr, TEMPLATE_SETS))} or a text file (.txt)"
            )
        return self


Family = Literal["real", "unconditional", "prompting", "personalised", "retrieval", "scaling"]
RealSplit = Literal["train", "train2x", "full"]


class _Method(Section):
    """A row of the comparison. Stages ask a row what it is through the properties below, never by its class."""

    label: str | None = key(None, "Name in tables and figures. Default: the key.")
    family: Family | None = key(
        None, "Group in Figure 1, which leaves scaling out. Default: by mechanism.", source="paper, Table 1"
    )

    adds_images: ClassVar[bool] = True
    generates_images: ClassVar[bool] = False  # with the diffusion model, into a pool of its own
    retrieves_images: ClassVar[bool] = False  # from the corpus, into a pool of its own
    learns: ClassVar[bool] = False  # fine-tunes on the training images before it generates
    prompt_key: ClassVar[str] = "prompt"  # the key that holds its prompting
    default_family: ClassVar[Family]

    @property
    def group(self) -> Family:
        """Group of the row in figures: the config's, else by mechanism."""
        return self.family or self.default_family

    @property
    def real_split(self) -> RealSplit:
        """Split that holds the real images its classifiers are trained on."""
        return "train"

    @property
    def prompting(self) -> Prompting | None:
        """How it turns a class into text; None if it uses no text of its own."""
        return None

    @property
    def must_name_class(self) -> bool:
        """Whether each of its templates needs a place for the class: a query names it, a pseudo-word takes its place."""
        return self.retrieves_images or self.learns_words

    @property
    def learns_words(self) -> bool:
        """Whether it learns pseudo-words, which prompts contain."""
        return False

    @property
    def from_images(self) -> bool:
        """Whether sampling starts from training images."""
        return False

    @property
    def pool_row(self) -> str | None:
        """The other row whose pool it draws from; None if it has a pool of its own or adds nothing."""
        return None


class RealMethod(_Method):
    """A baseline: real images only."""

    mechanism: Literal["real"]
    split: RealSplit = key(
        "train",
        "Which real images: the training split, twice as many, or all but validation.",
        source="paper, section 3",
    )

    adds_images = False
    default_family = "real"

    @property
    def real_split(self) -> RealSplit:
        """Split that holds the real images its classifiers are trained on."""
        return self.split


class _Added(_Method):
    added_per_training_image: float = key(
        1.0,
        "Images added per class, as a multiple of its training images: 1 doubles the training set.",
        source="paper, section 3; Figure 5B: 1, 5, 10, 25",
        gt=0,
    )


class _Sampled(_Added):
    generates_images = True
    ranked: ClassVar[bool] = False  # keys of rows that retrieve
    may_fall_short: ClassVar[bool] = False

    guidance_scale: float | None = key(
        None,
        "Classifier-free guidance of this method; 1 means none. Default: diffusion.guidance_scale.",
        ge=1,
    )
    steps: Positive | None = key(None, "Sampling steps of this method. Default: diffusion.steps.", "steps")
    scheduler: Scheduler | None = key(
        None, "Sampler of this method. Default: diffusion.scheduler, or ddim with start: training_images."
    )
    guidance_interval: GuidanceInterval | None = key(
        None,
        "Noise levels between which this method is guided. Default: diffusion.guidance_interval.",
        source=INTERVAL_SOURCE,
    )


class SampleMethod(_Sampled):
    """Images sampled from the diffusion model as it is: from noise by prompts, or from the training images."""

    mechanism: Literal["sample"]
    prompt: Prompting = key(Prompting(), "How a class becomes text.")
    start: Literal["noise", "training_images"] = key(
        "noise",
        "What sampling starts from; training images are used in turn, so that each is used equally often.",
        source="Luzi et al., 2022 (Boomerang)",
    )
    noise: float | None = key(
        None, "With start: training_images, the share of the noise schedule that is added before denoising. Default: 0.2.",
        source="Luzi et al., 2022; the paper does not say", gt=0, le=1,
    )  # fmt: skip

    default_family = "prompting"

    @property
    def group(self) -> Family:
        """As for any row, but a row that starts from training images follows no prompt."""
        return self.family or ("unconditional" if self.from_images else self.default_family)

    @property
    def prompting(self) -> Prompting:
        """How it turns a class into text."""
        return self.prompt

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
        ...,
        "What is learned per class: the conditioning (all text states), or the token embedding of a pseudo-word.",
        source="paper, section 3.1",
    )
    clusters: Positive = key(
        1,
        "How many are learned per class, one for each k-means cluster of its training images.",
        "clusters",
        "paper, section 3.1 (1, 5, 10, 15)",
    )
    train_unet: bool = key(
        False,
        "Whether the U-Net trains too, one for all classes (Imagic, Pseudoword+DM).",
        source="paper, section 3.1",
    )
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
    unet_lr: float = key(
        2e-6,
        "Learning rate of the U-Net, at batch size 1.",
        source="Stable Diffusion's fine-tuning code (1e-7 to 2e-6)",
        gt=0,
    )
    lr_batch_size: Positive | None = key(
        None, "Batch size that lr was chosen for; lr is multiplied by the square root of the ratio. Default: 1 for conditioning, 4 for pseudo-words.",
        "images", "paper, section 3.2",
    )  # fmt: skip
    lr_grid: tuple[Annotated[float, Field(gt=0)], ...] = key(
        (1.0,),
        "Factors on the learning rates; the one with the lowest validation loss is taken.",
        source="paper, section 3.2",
        min_length=1,
    )
    candidates: tuple[Candidate, ...] = key(
        ("train_loss", "val_loss", 1, 2, 3),
        "Checkpoints to choose from by validation accuracy: those with the best training and validation loss, and numbers of epochs.",
        "epochs",
        "paper, section 3.2 (Imagic: epochs 1 to 8)",
        min_length=1,
    )

    learns = True
    default_family = "personalised"

    @model_validator(mode="after")
    def _no_repeats(self) -> PersonaliseMethod:
        for name in ("lr_grid", "candidates"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: an entry stands twice")
        return self

    @property
    def prompting(self) -> Prompting:
        """The prompt, or the default that goes with what is learned."""
        return self.prompt or Prompting(
            templates="simple" if self.learn == "conditioning" else "textual_inversion"
        )

    @property
    def learns_words(self) -> bool:
        """Whether it learns pseudo-words, which prompts contain."""
        return self.learn == "pseudoword"

    @property
    def candidate_names(self) -> tuple[str, ...]:
        """``train_loss``, ``val_loss``, ``epoch1``, ... in the order of the config."""
        return tuple(f"epoch{value}" if isinstance(value, int) else value for value in self.candidates)


class RetrieveMethod(_Added):
    """Images retrieved from the corpus: nearest neighbours of a prompt in CLIP space."""

    mechanism: Literal["retrieve"]
    query: Prompting = key(
        Prompting(), "The query's text; the first template is used.", source="paper, section 3.1"
    )
    images_per_class: Positive | None = key(
        None,
        "Images to keep per class. Default: as many as the class has training images.",
        "images",
        "paper, section 3.2 (ImageNet: 130)",
    )
    first_k: float = key(
        1.4, "Neighbours asked for at first, per image wanted.", source="paper, section 3.2", ge=1
    )
    growth_limit: Positive = key(
        10, "k grows in steps of the first k up to this many times.", source="paper, section 3.2"
    )
    duplicate_threshold: float | None = key(
        0.94,
        "Neighbours of each other above this cosine similarity are one image; the nearest to the query is kept. null: off.",
        source="clip-retrieval's detector; calibrated for ViT-L/14",
        gt=0,
        le=1,
    )
    drop_unsafe: bool = key(
        True,
        "Leave out what the corpus's NSFW column or the safety checker marks.",
        source="paper, section 3.2",
    )
    max_punsafe: float | None = key(
        None,
        "Leave out what the corpus says is unsafe with a higher probability (column punsafe).",
        ge=0,
        le=1,
    )
    min_side: Positive | None = key(
        None,
        "Leave out images with a shorter side, by the corpus's columns and again once they are there.",
        "pixels",
    )
    min_aesthetics: float | None = key(
        None,
        "Leave out images with a lower aesthetics score: the corpus's column, or LAION's predictor V2 on its ViT-L/14 embeddings (ImageNet: 5).",
        source="paper, section 3.2",
    )
    one_class: bool = key(
        False,
        "Give an image to the class with the most similar query only (ties: the first class_id), before anything is downloaded.",
    )
    corpus_share: float = key(
        1.0,
        "Search a random share of the corpus only; a smaller share is part of a larger one. With exact search only: servers and indices can't do it.",
        "share of the images",
        gt=0,
        le=1,
    )
    ranked: bool = key(
        False,
        "Training sets hold the images most similar to the query, all the same ones, instead of random draws from the pool.",
        source="paper, Figure 5B",
    )
    may_fall_short: bool = key(
        False,
        "A class with too few images gets those that there are, and is not left out because of this method.",
        source="paper, Figure 5B",
    )
    manifest: str | None = key(
        None,
        "A manifest that an earlier study has frozen (retrieval/{method}/manifest.parquet): its images are fetched instead of searched.",
    )

    retrieves_images = True
    prompt_key = "query"
    default_family = "retrieval"

    @property
    def prompting(self) -> Prompting:
        """How it turns a class into its query."""
        return self.query

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
    may_fall_short: bool = key(
        False,
        "A class with too few images gets those that there are, for a row that retrieves.",
        source="paper, Figure 5B",
    )

    default_family = "scaling"

    @property
    def pool_row(self) -> str:
        """The row whose pool it draws from."""
        return self.pool


Method = Annotated[
    RealMethod | SampleMethod | PersonaliseMethod | RetrieveMethod | DrawMethod,
    Field(discriminator="mechanism"),
]
AddingMethod = SampleMethod | PersonaliseMethod | RetrieveMethod | DrawMethod
