"""Sections with the settings of each stage, which hold for all methods."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from augbench.config.base import Fraction, Place, Positive, Section, WrittenPlace, key
from augbench.data.classes import id_meant

# Samples of an image that a study of an earlier version could take before it ended in an error.
ATTEMPTS_PER_IMAGE = 20


class Finetune(Section):
    """Fine-tuning of the `personalise` methods on the training split (paper, section 3.2)."""

    batch_size: Positive = key(
        4,
        "Images per step: of each class separately if the U-Net is frozen, of all classes together if it "
        "trains.",
        "images",
    )
    max_epochs: Positive = key(40, "Maximum number of epochs.", "epochs", "paper, section 3.2")
    patience: Positive = key(
        5,
        "Training stops after this many epochs without a better validation loss. The paper says only 'until "
        "it stagnates'.",
        "epochs",
    )
    flip: Fraction = key(
        0.5, "Probability that a training image is mirrored.", source="latent diffusion's fine-tuning code"
    )
    validation_draws: Positive = key(
        1,
        "Fixed pairs of noise and timestep that the loss of each validation image is measured on.",
        "draws",
    )
    weight_decay: float = key(0.0, "Decoupled weight decay of all parameters that train.", ge=0)
    lr_counts: Literal["batch", "own"] = key(
        "batch",
        "Images per step whose square root scales the learning rate of conditionings and pseudo-words: batch"
        " (batch_size, the literal reading of the paper), or own (those of a batch that the vector learns"
        " from, about one if the U-Net trains with many classes; the gradient's variance then stays"
        " constant, which is the paper's reason for scaling).",
        source="paper, section 3.2",
        new=True,
    )
    excluded_classes: Literal["learn", "leave_out"] = key(
        "learn",
        "Classes that `retrieval.exclude: auto` leaves out, where the U-Net or one adapter of all classes"
        " trains: learn trains it on their images, too. leave_out does not; fine-tuning then waits for"
        " retrieval, and trains again when another class is left out, for example because links have died.",
        source="the paper says only 'excluded from model training' (section 3)",
        new=True,
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = key(
        "float32",
        "Floating-point type of the frozen parts and of a trained U-Net's operations; parameters that train "
        "are float32. float16 trains with a gradient scaler. auto: bfloat16 on a GPU that has it (compute "
        "capability 8), float16 on older ones, float32 on the CPU.",
    )
    micro_batch: Positive | None = key(
        None,
        "Images that go through the networks together; gradients are summed over a step's micro-batches, so"
        " it changes nothing but rounding. It halves by itself where a GPU's memory does not suffice."
        " Default: execution.batch_size.",
        "images",
        new=True,
    )
    features: Literal["inception_v3", "clip"] = key(
        "inception_v3",
        "Features for the k-means clusters: Inception-v3's pool features, or the study's CLIP embeddings.",
        source="paper, section 3.1",
    )
    inception_weights: Place = key(
        "results/downloads/inception_v3_google-0cc3c7bd.pth",
        "File with torchvision's published Inception-v3 weights; it is fetched if missing.",
    )
    inception_mirrors: tuple[Place, ...] = key(
        (),
        "Places to try before the published address of these weights: web addresses or files.",
    )


class Download(Section):
    """Downloads of images from the web, and their limits."""

    concurrency: Positive = key(64, "Images fetched at the same time.", "images")
    per_host: Positive = key(4, "Images fetched at the same time from one host.", "images")
    timeout: float = key(
        20.0,
        "Time limit for one image, including redirects, retries and slow transfers.",
        "seconds",
        gt=0,
    )
    max_bytes: Positive = key(20_000_000, "Size limit of one file.", "bytes")
    max_pixels: Positive = key(
        64_000_000, "Size limit of one image, checked in its header before it is decoded.", "pixels"
    )
    max_redirects: int = key(5, "Redirects to follow for one image.", ge=0)
    retries: int = key(2, "Further attempts after a broken connection or the status 429 or 5xx.", ge=0)
    retry_transient: bool = key(
        False,
        "In a later run, try again to fetch images that timed out or whose server did not answer; by "
        "default they count as unavailable for good.",
    )
    allow_private: tuple[str, ...] = key(
        (),
        "Private networks that may be connected to, for example 127.0.0.0/8. Default: none.",
    )
    respect_opt_out: bool = key(
        True, "Leave out images whose X-Robots-Tag header forbids use for training or indexing."
    )
    user_agent: str = key("augbench", "Value of the User-Agent header.")
    keep: bool = key(
        True,
        "Keep the downloaded files, so that other filters need no second download (links die). false "
        "deletes them once a class is done.",
    )


class Retrieval(Section):
    """Settings that all `retrieve` methods share."""

    exclude: Literal["auto", "none"] | tuple[str, ...] = key(
        "auto",
        "Classes left out of all training and scoring: auto (those for which a `retrieve` method found too "
        "few images), a list of class_ids, or none (a class with too few images is an error). Of listed "
        "classes nothing is made: no prompts, fine-tuning or images.",
        source="paper, section 3 (ImageNet: 10 of 1000, Caltech256: 5 of 256)",
    )
    download: Download = key(Download(), "Downloads from the web.")
    safe_list: Place | None = key(
        None,
        "Text or Parquet file, or folder of them, with the addresses, hashes or ids of the images that may"
        " be downloaded; others are left out. Needed for LAION lists from before Re-LAION-5B. Default: none.",
        new=True,
    )
    download_without_safe_list: bool = key(
        False,
        "Download images of a LAION list from before Re-LAION-5B without a safe list, although it is known"
        " to link to unlawful images.",
        new=True,
    )
    takedown: Place | None = key(
        None,
        "Text or Parquet file with addresses or hashes (SHA-256 of the file, or the corpus's hash) of images "
        "that must not be used: they are left out, and removed from the store. Default: none.",
        new=True,
    )
    aesthetics_weights: Place | None = key(
        "results/downloads/sac+logos+ava1-l14-linearMSE.pth",
        "File with the published weights of LAION's aesthetics predictor V2; it is fetched if missing and "
        "if a method sets min_aesthetics. null: the corpus has scores of its own.",
    )
    aesthetics_mirrors: tuple[Place, ...] = key(
        (),
        "Places to try before the published address of these weights: web addresses or files.",
    )
    aesthetics_sha256: str | None = key(
        None,
        "SHA-256 that the file of these weights must have. Default: that of the published file.",
        pattern="^[0-9a-f]{64}$",
    )

    @property
    def listed(self) -> frozenset[str]:
        """Classes that ``exclude`` lists, which are left out before anything is made of them."""
        return frozenset(self.exclude) if isinstance(self.exclude, tuple) else frozenset()

    @field_validator("exclude")
    @classmethod
    def _ids_of_folders(cls, exclude: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Users name classes by their folders, or by the ids that they find in results."""
        return exclude if isinstance(exclude, str) else tuple(map(id_meant, exclude))


class Leakage(Section):
    """The search for added images that near-duplicate real images."""

    action: Literal["report", "drop", "off"] = key(
        "report",
        "report lists near-duplicates; drop also leaves them out of training sets (candidates that are only "
        "compared are not searched); off does not search.",
    )
    clip_threshold: float = key(
        0.9,
        "Lowest cosine similarity of CLIP embeddings at which the pixels of a pair are compared. A low "
        "value costs only time, since the pixels decide.",
        gt=0,
        le=1,
    )
    neighbours: Positive = key(
        5,
        "Nearest images of each split that an added image is compared with.",
        "images",
    )
    hash_threshold: int = key(
        24,
        "Largest distance between the perceptual hashes of the aligned images of a near-duplicate pair.",
        "bits of 256",
        ge=0,
        le=256,
    )
    correlation: Fraction = key(
        0.8, "Lowest correlation of fine detail at 32 x 32 pixels in a near-duplicate pair."
    )


MOST_PARTS = 10_000  # shard files of a class; each is a target of the workflow


class Augmentation(Section):
    """Number of images made per class, their storage, and the training sets drawn from them."""

    images_per_class: Positive | None = key(
        None,
        "Images made per class and method (ImageNet: 390). Set either this or images_per_training_image.",
        "images",
        "paper, section 3",
    )
    images_per_training_image: Positive | None = key(
        None,
        "Images made per class and method, as a multiple of the class's training images (Caltech256: 3).",
        "images",
        "paper, section 3",
    )
    images_per_part: Positive | None = key(
        None,
        "Images per shard file; allowed only with images_per_class. Make it at least a class's number of "
        "training images, because set 0 is drawn from the first file. Default: one file per class.",
        "images",
    )
    resamples: int = key(
        5,
        "Training sets drawn from the pool, each for one classifier; added_per_training_image sets their "
        "size.",
        "sets",
        "paper, section 3",
        ge=1,
        le=1000,
    )
    image_format: Literal["png", "jpeg", "webp"] = key(
        "png",
        "File format of the images in shards; png is lossless and small at 32 pixels, jpeg is 20 times "
        "faster at 512.",
    )
    quality: int = key(95, "Quality of jpeg and webp images.", ge=1, le=100)
    attempts_per_image: Positive = key(
        ATTEMPTS_PER_IMAGE,
        "Samples that a shard file may take per image, on average over its images, because the safety"
        " checker flags some. Images that are flagged then, too, are missing; their class stays in the"
        " study, and the footer of Table 1 counts them. Another value remakes only shards that it changes.",
        "samples",
        "our choice; the paper replaces flagged images without naming a limit (section 3.2)",
        new=True,
    )

    @model_validator(mode="after")
    def _one_size(self) -> Augmentation:
        if (self.images_per_class is None) == (self.images_per_training_image is None):
            raise ValueError("give exactly one of images_per_class and images_per_training_image")
        if self.images_per_part is not None and self.images_per_class is None:
            raise ValueError("images_per_part goes with images_per_class only")
        if self.parts > MOST_PARTS:
            name = "images_per_training_image" if self.images_per_class is None else "images_per_class"
            raise ValueError(f"{name}: gives {self.parts} files per class; allowed: at most {MOST_PARTS}")
        return self

    @property
    def parts(self) -> int:
        """Number of shard files per class and method."""
        if self.images_per_class is None:
            return self.images_per_training_image or 1
        return -(-self.images_per_class // (self.images_per_part or self.images_per_class))

    def part_range(self, part: int, training_images: int) -> range:
        """Indices of the images in ``part`` of a class with ``training_images`` real images.

        Parts beyond :attr:`parts` continue after the end of the pool.
        """
        if self.images_per_class is None:
            return range(part * training_images, (part + 1) * training_images)
        size = self.images_per_part or self.images_per_class
        if part >= self.parts:
            start = self.images_per_class + (part - self.parts) * size
            return range(start, start + size)
        return range(part * size, min((part + 1) * size, self.images_per_class))

    def parts_for(self, images: int | None, added: float) -> int:
        """Number of shard files per class that hold ``images`` images.

        With ``images_per_training_image`` they hold ``added`` images per training image instead.
        """
        if self.images_per_class is None:
            return max(1, math.ceil(added))
        size = self.images_per_part or self.images_per_class
        if images is None:
            return self.parts
        return (
            self.parts + -(-(images - self.images_per_class) // size)
            if images > self.images_per_class
            else -(-images // size)
        )


class Contrast(Section):
    """A comparison of two rows that is named before the study runs."""

    row: str = key(..., "Row of `methods` whose accuracy is compared.")
    against: str = key(..., "Row of `methods` that it is compared with.")
    name: str | None = key(None, "Name in tables. Default: the labels of both rows.", min_length=1)


class Report(Section):
    """Contents of the tables and the report beside the study's own accuracies."""

    contrasts: tuple[Contrast, ...] = key(
        (),
        "Comparisons that are tested; p values are corrected for all of them together, so few are better "
        "than many. Default: each row against the first row without added images; each row against the one "
        "with twice the real images; and the first row of retrieval against the best generating row of each "
        "family, chosen by validation accuracy.",
        new=True,
    )
    error: Literal["own", "pooled"] = key(
        "own",
        "Spread that intervals and tests of a difference use. own: that of the difference itself, run by "
        "run. pooled: one for all rows, the residual of rows x runs; it needs far fewer runs and assumes "
        "that all rows vary alike (docs/statistics.md).",
        new=True,
    )
    margin: float = key(
        1.0,
        "Differences smaller than this count as none: the margin of the equivalence test, and the "
        "difference that the needed runs are computed for.",
        "percentage points",
        gt=0,
        le=100,
        new=True,
    )

    class_changes: tuple[str, ...] | None = key(
        None,
        "Rows of Figure 5A, one or two that add images. Default: pseudoword_dm and retrieval, the paper's; "
        "where the study has no row of that name, the first that generates, or retrieves.",
        source="paper, Figure 5A",
        min_length=1,
        max_length=2,
        new=True,
    )
    paper_study: Literal["imagenet10", "imagenet_full", "caltech256"] | None = key(
        None,
        "Study of the paper whose results and protocol stand beside this study's. Default: none, and tables "
        "name what differs from the defaults here.",
        source="paper, Tables 1 ff.",
    )
    notes: tuple[str, ...] = key(
        (),
        "Further lines for the footer of the tables, for example departures from the paper's protocol.",
    )
    judge: Place | None = key(
        None,
        "Folder of a reference classifier that judges whether added images show their class; it must know "
        "the study's classes. Default: none.",
    )
    diagnosed_images_per_class: Positive = key(
        200,
        "Images per class for the diagnostics, drawn at random from each method's pool and from the splits.",
        "images",
    )
    page_megabytes: int = key(
        30,
        "Size limit of report.html. If the images of all classes do not fit, it shows the classes whose "
        "accuracy changed most.",
        "10^6 bytes",
        ge=5,
        le=50,
    )
    page_images_per_class: Positive = key(
        6,
        "Images per class and method that report.html shows, drawn at random from the method's first "
        "training set.",
        "images",
    )


JobCount = Annotated[int, Field(ge=1, le=1000)]


class Execution(Section):
    """Sizes of jobs and batches, and the hardware to use.

    These keys never change results, except for floating-point rounding.
    """

    classes_per_job: Positive = key(25, "Classes per job that generates or retrieves images.", "classes")
    finetune_classes_per_job: Positive | None = key(
        None,
        "Classes per fine-tuning job if the U-Net is frozen; they train together and should fill a GPU. "
        "Default: classes_per_job.",
        "classes",
    )
    runs_per_job: Positive = key(5, "Classifiers per classify job.", "runs")
    search_jobs: JobCount = key(
        1,
        "Jobs that share the exact search of each row: job i takes file i of the embeddings and every "
        "search_jobs-th file after it. One more job merges what they found.",
        "jobs",
        new=True,
    )
    embed_jobs: JobCount = key(
        1,
        "Jobs that share the CLIP embedding of a corpus of your own, in the same way, and of the added"
        " images that are compared with real ones.",
        "jobs",
        new=True,
    )
    batch_size: Positive = key(
        32,
        "Images that are generated together. Where they do not fit into the GPU's memory, the batch is"
        " halved, and the log says so.",
        "images",
    )
    device: Literal["auto", "cpu", "cuda"] = key(
        "auto",
        "Device of torch; auto is CUDA if there is a GPU, else the CPU. A GPU that torch can't use is an "
        "error.",
    )
    processes: Positive | None = key(
        None,
        "Processes that train one classifier together, each on its part of the batch. Default: one per "
        "GPU of the job, or one on the CPU.",
        "processes",
    )
    compile: bool = key(
        False,
        "Compile the classifier, the U-Net of fine-tuning, the U-Net and decoder that generate images and,"
        " on a GPU, the network that embeds the corpus with torch.compile, which needs a C compiler. It"
        " takes minutes in the first job and seconds in later ones, which share a cache below the study's"
        " results (or in $TORCHINDUCTOR_CACHE_DIR). Choose a batch_size that divides the images of a shard,"
        " because only whole batches run compiled.",
    )
    image_pool: Literal["auto", "device", "memory", "disk"] = key(
        "auto",
        "Place of a classifier's decoded images: on the GPU (device), in main memory (memory), or in a file "
        "that is read ahead of training (disk). auto: the first of these with enough room. device falls back "
        "to the others if they do not fit.",
    )
    scratch: WrittenPlace | None = key(
        None,
        "Folder for the file of image_pool, best on a fast local disk; several GPUs share images through "
        "it. Environment variables such as $TMPDIR are expanded. Default: the study's results.",
    )
    store: WrittenPlace = key(
        "results/.store",
        "Folder of finished artifacts. All studies that name it share them. On the file system of the "
        "results they are linked, elsewhere copied. Environment variables are expanded.",
    )
    keep_candidates: bool = key(
        True,
        "Keep the images of candidates that were not selected; false deletes them after the selection.",
    )
