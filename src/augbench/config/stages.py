"""Sections that say how each stage works, whatever the method."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import model_validator

from augbench.config.base import Fraction, Positive, Section, key


class Finetune(Section):
    """How the `personalise` methods are fine-tuned on the training split (paper, section 3.2)."""

    batch_size: Positive = key(
        4,
        "Images per step: of each class where the U-Net is frozen and classes are independent, of all classes together where it trains.",
        "images",
    )
    max_epochs: Positive = key(40, "Most epochs.", "epochs", "paper, section 3.2")
    patience: Positive = key(
        5,
        "Epochs without better validation loss after which training stops; the paper says only 'until it stagnates'.",
        "epochs",
    )
    flip: Fraction = key(
        0.5, "Probability that a training image is mirrored.", source="latent diffusion's fine-tuning code"
    )
    validation_draws: Positive = key(
        1, "Fixed pairs of noise and timestep per validation image that its loss is measured on.", "draws"
    )
    weight_decay: float = key(0.0, "Decoupled weight decay of everything that trains.", ge=0)
    dtype: Literal["float32", "bfloat16"] = key(
        "float32", "Precision of the frozen parts; what trains is kept in float32."
    )
    features: Literal["inception_v3", "clip"] = key(
        "inception_v3",
        "Features that clusters are found in: Inception-v3's pool features, or the study's CLIP.",
        source="paper, section 3.1",
    )
    inception_weights: str = key(
        "results/downloads/inception_v3_google-0cc3c7bd.pth",
        "File with torchvision's published Inception-v3 weights; fetched if it is not there.",
    )
    inception_mirrors: tuple[str, ...] = key(
        (), "Where to look for these weights before the published address: web addresses, or files."
    )


class Download(Section):
    """How images are fetched from the web, and what is refused."""

    concurrency: Positive = key(64, "Images fetched at a time.", "images")
    per_host: Positive = key(4, "Images fetched at a time from one host.", "images")
    timeout: float = key(
        20.0, "Longest time for one image: redirects, retries and slow bytes included.", "seconds", gt=0
    )
    max_bytes: Positive = key(20_000_000, "Largest file.", "bytes")
    max_pixels: Positive = key(
        64_000_000, "Largest image; its header is read before it is decoded.", "pixels"
    )
    max_redirects: int = key(5, "Redirects that are followed.", ge=0)
    retries: int = key(2, "Further attempts after a broken connection, or an answer 429 or 5xx.", ge=0)
    retry_transient: bool = key(
        False,
        "In a later run, ask again for images that timed out or whose server did not answer; else such a fate stands, like any other.",
    )
    allow_private: tuple[str, ...] = key(
        (), "Networks that are asked although they are private, for example 127.0.0.0/8. Default: none."
    )
    respect_opt_out: bool = key(
        True, "Leave out images whose X-Robots-Tag header forbids their use for training or indexing."
    )
    user_agent: str = key("augbench", "How requests introduce themselves.")
    keep: bool = key(
        True,
        "Keep the files fetched, so that other filters fetch nothing again; links die. false frees the disk once a class is done.",
    )


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
    aesthetics_mirrors: tuple[str, ...] = key(
        (), "Where to look for these weights before the published address: web addresses, or files."
    )
    aesthetics_sha256: str | None = key(
        None,
        "SHA-256 that this file must have. Default: that of the published file.",
        pattern="^[0-9a-f]{64}$",
    )


class Leakage(Section):
    """The guard against added images that are near-duplicates of validation or test images, retrieved or generated."""

    action: Literal["report", "drop", "off"] = key(
        "report",
        "Report them; leave them out of training sets, too (images of candidates that are only compared are not looked at); or don't look.",
    )
    clip_threshold: float = key(
        0.9,
        "Cosine of CLIP embeddings from which a pair is looked at; a low one costs time, for pixels decide.",
        gt=0,
        le=1,
    )
    neighbours: Positive = key(
        5, "Real images of a split that are looked at per added image, the nearest ones.", "images"
    )
    hash_threshold: int = key(
        24, "Largest distance of the perceptual hashes of the aligned pictures.", "bits of 256", ge=0, le=256
    )
    correlation: Fraction = key(0.8, "Least correlation of their fine detail at 32 x 32 pixels.")


class Augmentation(Section):
    """How much is added, and how it is resampled."""

    images_per_class: Positive | None = key(
        None, "Images made per class and method (ImageNet: 390).", "images", "paper, section 3"
    )
    images_per_training_image: Positive | None = key(
        None,
        "The same as a multiple of the class's training images (Caltech256: 3).",
        "images",
        "paper, section 3",
    )
    images_per_part: Positive | None = key(
        None,
        "Images in one shard file, with images_per_class; part 0 should hold a class's training size. Default: all in one.",
        "images",
    )
    resamples: int = key(
        5,
        "Training sets drawn from the pool; each has as many added images per class as real ones.",
        "sets",
        "paper, section 3",
        ge=1,
    )
    image_format: Literal["png", "jpeg", "webp"] = key(
        "png",
        "Encoding of images in shards; png is lossless and small at 32 pixels, jpeg is 20 times faster at 512.",
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
        return (
            self.parts + -(-(images - self.images_per_class) // size)
            if images > self.images_per_class
            else -(-images // size)
        )


class Classifier(Section):
    """The classifier that measures how much an augmentation helps: torchvision's ResNet and the paper's schedule."""

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = key(
        "resnet50", "torchvision's architecture: kind and number of blocks.", source="paper, section 3"
    )
    layers: tuple[Positive, Positive, Positive, Positive] | None = key(
        None, "Blocks per stage, where they differ from the architecture's."
    )
    base_width: int = key(
        64, "Channels of the first stage (64 in torchvision); the others follow.", "channels", ge=4
    )
    stem: Literal["imagenet", "small"] = key(
        "imagenet",
        "First layer: 7x7 stride 2 with max-pooling, or 3x3 stride 1 for images of about 32 pixels.",
    )
    resolution: int = key(
        224, "Side of the crop that the classifier sees.", "pixels", "torchvision's reference", ge=16
    )
    evaluation_resize: int | None = key(
        None,
        "Shorter side before the centre crop in evaluation. Default: resolution x 256 / 224.",
        "pixels",
        "torchvision's reference",
        ge=16,
    )
    min_crop_area: float = key(
        0.08,
        description="Smallest area of the random resized crop.",
        unit="share of the image",
        source="torchvision's default",
        gt=0,
        le=1,
    )
    batch_size: Positive = key(256, "Global batch.", "images", "paper, section 3")
    lr: float = key(0.1, "Initial learning rate.", source="paper, section 3", gt=0)
    momentum: Fraction = key(0.9, "SGD momentum.", source="torchvision's reference")
    weight_decay: float = key(1e-4, "SGD weight decay.", source="torchvision's reference", ge=0)
    plateau_patience: Positive = key(
        10,
        "Epochs without better validation accuracy after which lr is divided by 10.",
        "epochs",
        "paper, section 3",
    )
    stop_patience: Positive = key(
        20,
        "Epochs without better validation accuracy after which training stops.",
        "epochs",
        "paper, section 3",
    )
    max_epochs: Positive = key(270, "Most epochs.", "epochs", "paper, section 3")
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto",
        "Precision of the network's products; weights are kept in float32. auto: bfloat16 on CUDA, float32 on the CPU.",
    )


class Report(Section):
    """What stands beside our numbers."""

    paper_study: Literal["imagenet10", "imagenet_full", "caltech256"] = key(
        "imagenet10", "Rows of the paper shown beside ours.", source="paper, Tables 1 ff."
    )
    notes: tuple[str, ...] = key(
        (), "Lines for the footer of the tables, for example cuts against the protocol."
    )
    judge: str | None = key(
        None,
        "Folder of a reference classifier that says whether added images show their class; it must know the study's classes. Default: none.",
    )
    diagnosed_images_per_class: Positive = key(
        200,
        "Images per class that the diagnostics look at, drawn at random from each method's pool and from the splits.",
        "images",
    )
    page_megabytes: int = key(
        30,
        "Size of report.html at most; where images of all classes do not fit, it shows those that changed most.",
        "10^6 bytes",
        ge=5,
        le=50,
    )
    page_images_per_class: Positive = key(
        6,
        "Images of each class that report.html shows per method, drawn at random from its first training set.",
        "images",
    )


class Execution(Section):
    """How the work is cut into jobs and batches, and what it runs on. Nothing here changes a result, but in float rounding."""

    classes_per_job: Positive = key(25, "Classes whose shards one generate job makes.", "classes")
    finetune_classes_per_job: Positive | None = key(
        None,
        "Classes that one fine-tuning job learns, where the U-Net is frozen; together they fill a GPU. Default: classes_per_job.",
        "classes",
    )
    runs_per_job: Positive = key(5, "Classifiers that one job trains.", "runs")
    batch_size: Positive = key(32, "Images sampled together.", "images")
    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", "Where torch runs; auto takes CUDA where there is one."
    )
    processes: Positive | None = key(
        None,
        "Processes that train one classifier together, each its part of the global batch. Default: one per visible GPU; one on the CPU.",
        "processes",
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
    keep_candidates: bool = key(
        True,
        "Keep the images of candidates that were not selected; false deletes them once the choice is made.",
    )
