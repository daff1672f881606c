"""The values of the paper's protocol, and a study's differences from them or from the defaults.

Input: the config, and the sizes of the data according to the results. Output: one line per difference, for
the footer of Table 1. A study that ``report.paper_study`` sets beside the paper is compared with the paper's
protocol, any other with the defaults of the settings that shape results. No other module holds the
protocol's values (paper, section 3 and appendix; ``docs/paper.md`` names the paper).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from augbench.classifier.sizes import evaluation_resize, training_side
from augbench.config.classifier import RESNETS, Classifier
from augbench.config.corpus import ImageCorpus, ParquetCorpus
from augbench.config.data import Caltech256, FashionMnist, ImageFolder, ParquetImages
from augbench.config.methods import AddingMethod, PersonaliseMethod, RetrieveMethod
from augbench.config.models import Diffusion
from augbench.config.stages import Finetune
from augbench.config.study import Study
from augbench.files import RESOURCES
from augbench.plan.recipes import method_sampling

TARGETS = RESOURCES / "paper" / "targets.csv"
MAIN_STUDY = "imagenet10"  # the paper's Table 1


@dataclass(frozen=True)
class Protocol:
    """Settings that a study is compared with; None where nothing is stated.

    ``name`` is the data set of the paper's study, empty for the defaults here.
    """

    name: str
    classes: int | None
    real_per_class: tuple[int, int] | None
    images_made: str
    images_retrieved: str
    validation_share: float | None
    test_images: int | None
    batch_size: int
    lr: float

    @property
    def is_papers(self) -> bool:
        """Whether these are the paper's settings."""
        return bool(self.name)


PROTOCOLS = {
    "imagenet10": Protocol(
        name="10% of ImageNet",
        classes=990,
        real_per_class=(74, 130),
        images_made="390 per class",
        images_retrieved="130 per class",
        validation_share=1,
        test_images=49_500,
        batch_size=256,
        lr=0.1,
    ),
    "imagenet_full": Protocol(
        name="ImageNet",
        classes=990,
        real_per_class=None,
        images_made="",
        images_retrieved="",
        validation_share=None,
        test_images=49_500,
        batch_size=256,
        lr=0.1,
    ),
    "caltech256": Protocol(
        name="Caltech256",
        classes=251,
        real_per_class=None,
        images_made="3 per training image",
        images_retrieved="1 per training image",
        validation_share=None,
        test_images=None,
        batch_size=1024,
        lr=0.003,
    ),
}
RESAMPLES = 5  # also the default
GPUS = 8  # each normalises its part of a batch (paper, section 3: DistributedDataParallel)
# The defaults of these three are the paper's values, where no pair below names them; a test checks that.
CLASSIFIER = Classifier()
DIFFUSION = Diffusion(model="Stable Diffusion v1.4")
PNDM, OWN = str(DIFFUSION.scheduler), "the model's own"
FINETUNE = Finetune()
DEFAULTS = Protocol(
    name="",
    classes=None,
    real_per_class=None,
    images_made="",
    images_retrieved="",
    validation_share=None,
    test_images=None,
    batch_size=CLASSIFIER.batch_size,
    lr=CLASSIFIER.lr,
)
TRAINED = {
    "all": "all weights",
    "head": "the last layer alone",
    "probe": "the last layer alone, on features of the centre crop (a linear probe)",
}
CANDIDATES: tuple[str | int, ...] = ("train_loss", "val_loss", 1, 2, 3)
IMAGIC_CANDIDATES: tuple[str | int, ...] = tuple(range(1, 9))
RETRIEVAL = RetrieveMethod(mechanism="retrieve")  # most of its defaults are the paper's
CORPUS = "LAION-5B"
CLIP = "clip-vit-large-patch14"  # Stable Diffusion 1.x's


@dataclass(frozen=True)
class PaperResult:
    """Top-1 accuracy in percent and its standard error; None where the paper gives no error."""

    top1: float
    stderr: float | None


@dataclass(frozen=True)
class Facts:
    """Sizes of the data, read from the results.

    Attributes
    ----------
    real_per_class : float, optional
        Mean number of real images per class in the training split; None if no row uses that split.
    dtypes : sequence of str
        Floating-point types that the classifiers' matrix products had, as far as it is known.
    """

    classes: int
    real_per_class: float | None
    validation_images: int
    test_images: int
    dtypes: Sequence[str] = ()


@dataclass(frozen=True)
class Deviation:
    """A difference between a study and what it is compared with, the paper or the defaults (``whose``).

    ``theirs`` is empty if ``what`` and ``ours`` are enough.
    """

    what: str
    ours: str
    theirs: str
    whose: str = "paper"

    def __str__(self) -> str:
        return f"{self.what}: {self.ours}" + (f" ({self.whose}: {self.theirs})" if self.theirs else "")


def differs(study: Study) -> str:
    """First words of each line of the footer that names a difference."""
    return f"Differs from the {'protocol' if study.report.paper_study is not None else 'defaults'}: "


def paper_results(paper_study: str | None, path: str | Path = TARGETS) -> dict[str, PaperResult]:
    """The paper's results in ``paper_study``, by method; empty for None."""
    with Path(path).open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["study"] == paper_study]
    return {
        row["method"]: PaperResult(float(row["top1"]), float(row["stderr"]) if row["stderr"] else None)
        for row in rows
    }


def differences(study: Study, facts: Facts) -> list[Deviation]:
    """Every difference between ``study`` and the paper's protocol: data, added images, classifier.

    Without ``report.paper_study``: every setting that shapes the added images or the classifiers and has
    another value than its default. Data and models have no default.
    """
    known = study.report.paper_study
    if known is None:
        pairs = [*_added_images(study, DEFAULTS), *_classifier(study.classifier, DEFAULTS)]
        return [Deviation(*pair, "default") for pair in pairs if pair[1] != pair[2]]
    paper = PROTOCOLS[known]
    pairs = [
        *_data(study, facts, paper),
        *_added_images(study, paper),
        *_classifier(study.classifier, paper),
    ]
    found = [Deviation(*pair) for pair in pairs if pair[1] != pair[2]]
    if halves := half_precision(facts):
        mixed = f"{', '.join(halves)}, which the paper does not state; weights are float32"
        found.append(Deviation("Matrix products in training and scoring", mixed, ""))
    if missing := [name for name in paper_results(known) if name not in study.methods]:
        found.append(Deviation("Rows of the paper not run", ", ".join(missing), ""))
    return found


def half_precision(facts: Facts) -> list[str]:
    """Types below float32 that the classifiers' matrix products had."""
    return [dtype for dtype in facts.dtypes if dtype != "float32"]


def _data(study: Study, facts: Facts, paper: Protocol) -> list[tuple[str, str, str]]:
    """(what, ours, paper's) for the data set."""
    dataset = study.dataset
    if isinstance(dataset, FashionMnist):
        name = "Fashion-MNIST"
    elif isinstance(dataset, Caltech256):
        name = "Caltech256"
    else:
        assert isinstance(dataset, ImageFolder | ParquetImages)
        name = (
            paper.name
            if dataset.classes == "imagenet" and "ImageNet" in paper.name
            else f"an image folder ({study.study})"
        )
    pairs = [("Data set", name, paper.name), ("Classes", str(facts.classes), str(paper.classes))]
    if facts.real_per_class is not None and paper.real_per_class is not None:
        low, high = paper.real_per_class
        span = f"{low} to {high}"
        pairs.append(
            (
                "Real images per class",
                span if low <= facts.real_per_class <= high else f"{facts.real_per_class:g}",
                span,
            )
        )
    if dataset.imbalance is not None:
        ours = f"long tail, the first class has {dataset.imbalance:g} times the images of the last"
        pairs.append(("Training images of the classes", ours, "as in the data set"))
    if facts.real_per_class is not None and paper.validation_share is not None:
        share = facts.validation_images / (facts.real_per_class * facts.classes)
        pairs.append(
            ("Validation images per training image", f"{share:.2g}", f"{paper.validation_share:.2g}")
        )
    if paper.test_images is not None:
        pairs.append(("Test images", f"{facts.test_images:,}", f"{paper.test_images:,}"))
    elif dataset.test_images_per_class is not None:
        pairs.append(("Test images per class", f"at most {dataset.test_images_per_class}", "all"))
    return pairs


def _interval(levels: tuple[float, float] | None) -> str:
    return "all" if levels is None else f"{levels[0]:g} to {levels[1]:g}"


def _added_images(study: Study, paper: Protocol) -> list[tuple[str, str, str]]:
    """(what, ours, paper's) for the pools of added images, their models and the resampled sets."""
    sampled = study.generated
    retrieved = {name: method for name, method in study.retrieved.items() if method.group != "scaling"}
    augmentation, diffusion = study.augmentation, study.diffusion
    pairs: list[tuple[str, str, str]] = []
    if sampled and paper.images_made:
        per_class, multiple = augmentation.images_per_class, augmentation.images_per_training_image
        made = f"{per_class} per class" if per_class else f"{multiple} per training image"
        pairs.append(("Images generated", made, paper.images_made))
    own = {name: method for name, method in sampled.items() if method.generator_name is None}
    if own:
        if paper.is_papers:
            model = Path(diffusion.model).name
            published = "stable-diffusion-v1-4" in diffusion.model.lower()
            pairs.append(("Diffusion model", DIFFUSION.model if published else model, DIFFUSION.model))
        pairs += [
            (
                "Resolution of generated images, pixels",
                str(diffusion.resolution or OWN),
                str(DIFFUSION.resolution),
            ),
            ("Sampler", diffusion.scheduler or OWN, PNDM),
            ("Sampling steps", str(diffusion.steps), str(DIFFUSION.steps)),
            ("Guidance scale", f"{diffusion.guidance_scale:g}", f"{DIFFUSION.guidance_scale:g}"),
            (
                "Noise levels with guidance",
                _interval(diffusion.guidance_interval),
                _interval(DIFFUSION.guidance_interval),
            ),
        ]
    pairs += _by_row(
        {name: _generator(study.generator_of(name), paper) for name in sampled if name not in own}
    )
    pairs += _by_row({name: _sampling(study, name) for name in sampled})
    if own or retrieved:
        pairs.append(("Safety checker", checker_of(diffusion), checker_of(DIFFUSION)))
    pairs += _fine_tuning(study, paper)
    filled = {name: row for name, row in study.augmented.items() if row.fill_to is not None}
    as_many = "as many as real ones"
    pairs += _by_row({name: [("Images added by {}", _amount(row), as_many)] for name, row in filled.items()})
    pairs += _by_row({name: _retrieval(method, paper) for name, method in retrieved.items()})
    if not isinstance(study.corpus, ImageCorpus | ParquetCorpus):  # which have no tags
        what = "Images of {} that the corpus tags as unsafe"
        theirs = not paper.is_papers and RETRIEVAL.drops_tagged
        tagged = {
            name: [(what, _kept(method.drops_tagged), _kept(theirs))] for name, method in retrieved.items()
        }
        pairs += _by_row(tagged)
    if retrieved and paper.is_papers:
        pairs += _sources(study)
    pairs.append(("Training sets per method", str(augmentation.resamples), str(RESAMPLES)))
    return pairs


def _sources(study: Study) -> list[tuple[str, str, str]]:
    """(what, ours, paper's) for the CLIP model and the corpus of retrieval."""
    name = study.clip.named.title
    pairs = [("CLIP model of the queries", CLIP if CLIP in name.lower() else name, CLIP)]
    if study.miniature is not None:
        size = study.miniature.images + study.miniature.distractors
        ours = f"miniature, {size:,} images, style shift {study.miniature.shift}"
        pairs.append(("Retrieval corpus", ours, CORPUS))
    elif study.corpus is not None:
        place = next(str(value) for name, value in study.corpus if name in ("root", "folder", "url"))
        pairs.append(("Retrieval corpus", place, CORPUS))
    return pairs


def _by_row(found: Mapping[str, Sequence[tuple[str, str, str]]]) -> list[tuple[str, str, str]]:
    """(what, ours, paper's) of all rows; ``{}`` becomes the names of the rows that share a difference."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name, pairs in found.items():
        for pair in pairs:
            rows.setdefault(pair, []).append(name)
    return [(what.format(", ".join(names)), ours, theirs) for (what, ours, theirs), names in rows.items()]


def checker_of(model: Diffusion) -> str:
    """A model's safety checker, in words."""
    checker = model.safety_checker
    return {"model": "the model's own", None: "none"}.get(checker, str(checker))


def _generator(model: Diffusion, paper: Protocol) -> list[tuple[str, str, str]]:
    """(what, ours, paper's) for a model in ``generators``, with ``{}`` in place of its rows."""
    side, theirs = str(model.resolution or OWN), str(DIFFUSION.resolution)
    named = [("Diffusion model of {}", Path(model.model).name, DIFFUSION.model)] if paper.is_papers else []
    return [
        *named,
        ("Resolution of the images of {}, pixels", side, theirs),
        ("Safety checker of {}", checker_of(model), checker_of(DIFFUSION)),
    ]


def _sampling(study: Study, name: str) -> list[tuple[str, str, str]]:
    """(what, ours, paper's) for a row's sampling settings, with ``{}`` in place of its name.

    They are the row's own, and those of its model if that is one of ``generators``. Boomerang (group
    ``unconditional``) always has its own settings, so only its guidance is compared.
    """
    method, sampling = study.generated[name], method_sampling(study, name)

    def is_said(key: str) -> bool:
        return method.generator_name is not None or getattr(method, key) is not None

    pairs: list[tuple[str, str, str]] = []
    if method.group != "unconditional":
        if is_said("scheduler"):
            pairs.append(("Sampler of {}", sampling["scheduler"] or OWN, PNDM))
        if is_said("steps"):
            pairs.append(("Sampling steps of {}", str(sampling["steps"]), str(DIFFUSION.steps)))
        if is_said("guidance_scale"):
            scale = f"{sampling['guidance_scale']:g}"
            pairs.append(("Guidance scale of {}", scale, f"{DIFFUSION.guidance_scale:g}"))
    if is_said("guidance_interval"):
        pairs.append(
            (
                "Noise levels with guidance in {}",
                _interval(sampling.get("guidance_interval")),
                _interval(DIFFUSION.guidance_interval),
            )
        )
    if method.negative_prompt is not None:
        pairs.append(("Negative prompt of {}", repr(method.negative_prompt), "none"))
    return pairs


def _fine_tuning(study: Study, paper: Protocol) -> list[tuple[str, str, str]]:
    """(what, ours, paper's) for the fine-tuned methods.

    Settings that the paper does not state (batch sizes, patience, rates) are not compared.
    """
    methods = study.personalised
    if not methods:
        return []
    pairs = [
        ("Maximum number of fine-tuning epochs", str(study.finetune.max_epochs), str(FINETUNE.max_epochs))
    ]
    if any(method.clusters > 1 for method in methods.values()):
        names = {"inception_v3": "Inception-v3", "clip": "the study's CLIP"}
        pairs.append(("Features for clustering", names[study.finetune.features], names[FINETUNE.features]))
    counted = {"batch": "all of a batch", "own": "the vector's own"}
    pairs.append(
        (
            "Images whose number scales the learning rates of vectors",
            counted[study.finetune.lr_counts],
            counted[FINETUNE.lr_counts],
        )
    )
    return [*pairs, *_by_row({name: _candidates(method, paper) for name, method in methods.items()})]


def _candidates(method: PersonaliseMethod, paper: Protocol) -> list[tuple[str, str, str]]:
    """(what, ours, paper's) for candidates and rates of a fine-tuned method, with ``{}`` for its name."""
    imagic = paper.is_papers and method.learn == "conditioning" and method.train_unet
    rates = {True: "searched", False: "not searched"}
    return [
        (
            "Candidates of {}",
            _listed(method.candidates),
            _listed(IMAGIC_CANDIDATES if imagic else CANDIDATES),
        ),
        ("Learning rate of {}", rates[len(method.lr_grid) > 1], rates[paper.is_papers]),
    ]


def _listed(candidates: Sequence[str | int]) -> str:
    words = {"train_loss": "best training loss", "val_loss": "best validation loss"}
    return ", ".join(f"epoch {name}" if isinstance(name, int) else words[name] for name in candidates)


def _retrieval(method: RetrieveMethod, paper: Protocol) -> list[tuple[str, str, str]]:
    """(what, ours, paper's) for a retrieval method, with ``{}`` in place of its name."""
    theirs = RETRIEVAL

    def threshold(value: float | None) -> str:
        return "off" if value is None else f"{value:g}"

    pairs = [
        ("Query of {}", _query(method), "text"),
        ("Choice among the suitable images of {}", _choice(method), "nearest"),
        (
            "Copies of training images retrieved by {}",
            {"drop": "left out", "count": "kept and counted", None: "kept"}[method.copies],
            "kept",
        ),
        (
            "Share of the corpus searched by {}",
            "all" if method.corpus_share == 1 else f"{method.corpus_share:.3g}",
            "all",
        ),
        (
            "Similarity threshold for duplicates in {}",
            threshold(method.duplicate_threshold),
            threshold(theirs.duplicate_threshold),
        ),
        ("First k of {}, per image wanted", f"{method.first_k:g}", f"{theirs.first_k:g}"),
        ("Largest k of {}, as a multiple of the first", str(method.growth_limit), str(theirs.growth_limit)),
        ("Images of {} that the safety checker flags", _kept(method.drop_unsafe), _kept(True)),
        (
            "Aesthetics filter of {}",
            "none" if method.min_aesthetics is None else f"score of at least {method.min_aesthetics:g}",
            "score of at least 5" if paper.is_papers else "none",
        ),
        (
            "Maximum unsafe probability (from the corpus) in {}",
            "none" if method.max_punsafe is None else f"{method.max_punsafe:g}",
            "none",
        ),
        (
            "Minimum side of images in {}, pixels",
            "none" if method.min_side is None else str(method.min_side),
            "none",
        ),
        (
            "Classes that get an image near several queries of {}",
            "the nearest only" if method.one_class else "all of them",
            "all of them",
        ),
        (
            "Training sets of {}",
            "the most similar images" if method.ranked else "random draws",
            "random draws",
        ),
    ]
    if paper.images_retrieved:
        added = _amount(method)
        kept = f"{method.images_per_class} per class" if method.images_per_class else added
        pairs.append(("Images kept by {}", kept, paper.images_retrieved))
        stays = "none" if method.may_fall_short else added
        if method.least_images is not None:
            stays = f"{method.least_images} per class"
        pairs.append(("Images of {} that a class needs to stay", stays, paper.images_retrieved))
    return pairs


def _amount(method: AddingMethod) -> str:
    """Images that a row adds to a class, in words."""
    if method.fill_to is None:
        return f"{method.added_per_training_image:g} per training image"
    return (
        f"those that fill the class up to {'the largest' if method.fill_to == 'largest' else method.fill_to}"
    )


def _query(method: RetrieveMethod) -> str:
    query = method.query
    if not method.asks_with_images:
        return "text"
    pool = f"{query.clusters} clusters of" if query.pool == "clusters" else f"{query.pool} of"
    images = f"{pool} the training images"
    return f"{query.weight:g} x text + {1 - query.weight:g} x {images}" if query.weight else images


def _choice(method: RetrieveMethod) -> str:
    if not method.selects:
        return "nearest"
    how = {
        "mmr": f"maximal marginal relevance, lambda {1 - method.penalty:g}",
        "k_center": "greedy k-center",
        "facility_location": f"facility location, weight of training images {method.target_share:g}",
    }[method.select]
    return f"{how}, from {method.candidates_per_image:g} per image"


def _kept(drop: bool) -> str:
    return "left out" if drop else "kept"


def _classifier(ours: Classifier, paper: Protocol) -> list[tuple[str, str, str]]:
    """(what, ours, paper's) for the classifier and its training."""

    def network(config: Classifier) -> str:
        layers = f" with {'-'.join(map(str, config.layers))} blocks" if config.layers else ""
        width = (
            f", {config.base_width} channels in its first stage"
            if config.base_width != CLASSIFIER.base_width
            else ""
        )
        stem = ", 3x3 stem" if config.stem == "small" else ""
        if config.arch not in RESNETS:
            return _other_network(config)
        return f"{config.arch.replace('resnet', 'ResNet-') if not layers else 'ResNet'}{layers}{width}{stem}"

    def centre(config: Classifier) -> str:
        return (
            "224/256"
            if config.evaluation_resize is None
            else f"{config.resolution}/{evaluation_resize(config)}"
        )

    theirs = CLASSIFIER
    return [
        ("Classifier", network(ours), network(theirs)),
        ("First weights of the classifier", _first_weights(ours), "random"),
        ("What is trained", TRAINED[ours.train], TRAINED["all"]),
        ("Classifier's input size, pixels", str(ours.resolution), str(theirs.resolution)),
        ("Centre crop in evaluation, share of the shorter side", centre(ours), centre(theirs)),
        (
            "Shorter side of images before random crops, pixels",
            _decoded(ours),
            "that of the file"
            if paper.is_papers
            else _decoded(ours.model_copy(update={"decoded_size": None})),
        ),
        ("Smallest area of the random crop", f"{ours.min_crop_area:g}", f"{theirs.min_crop_area:g}"),
        ("Batch size", str(ours.batch_size), str(paper.batch_size)),
        (
            "Images that are normalised together in training",
            f"{ours.batch_size / ours.batch_norm_groups:g}",
            f"{paper.batch_size / GPUS if paper.is_papers else ours.batch_size:g}",
        ),
        ("Learning rate", f"{ours.lr:g}", f"{paper.lr:g}"),
        ("Optimiser", _optimiser(ours), _optimiser(theirs)),
        ("Momentum", f"{ours.momentum:g}", f"{theirs.momentum:g}"),
        ("Weight decay", f"{ours.weight_decay:g}", f"{theirs.weight_decay:g}"),
        *_schedule(ours, theirs),
    ]


def _other_network(config: Classifier) -> str:
    return "CLIP's image tower" if config.arch == "clip" else f"timm's {config.timm_name}"


def _first_weights(config: Classifier) -> str:
    """What the classifier begins with and which labels that has seen, in words."""
    if not config.begins_trained:
        return "random"
    place = "CLIP's, the last layer from the class names" if config.arch == "clip" else str(config.pretrained)
    return f"{place}; labels seen: {config.labels_seen}"


def _optimiser(config: Classifier) -> str:
    rates = "" if config.layer_decay == 1 else f", lr x {config.layer_decay:g} from layer to layer"
    return f"{'SGD' if config.optimiser == 'sgd' else 'AdamW'}{rates}"


def _decoded(config: Classifier) -> str:
    """Sizes that random crops are cut from, in words."""
    side = training_side(config)
    return "that of the file" if side is None else f"at most {side}"


def _schedule(ours: Classifier, theirs: Classifier) -> list[tuple[str, str, str]]:
    """(what, ours, paper's) for the schedule of training."""
    if ours.schedule == "steps":
        warm = f"lr rises over {ours.warmup_steps} steps, " if ours.warmup_steps else ""
        lowered = warm + (
            "lr along a cosine to 0"
            if ours.decay == "cosine"
            else f"lr / 10 at {' and '.join(map(str, ours.lower_at_steps))}"
            if ours.lower_at_steps
            else "lr never lowered"
        )
        kept = "the last weights" if ours.keep == "last" else "the weights with the best validation accuracy"
        rule = (
            f"lr / 10 after {theirs.plateau_patience} epochs without a better validation accuracy, stop after"
            f" {theirs.stop_patience} or {theirs.max_epochs}, the best weights"
        )
        fixed = f"{ours.total_steps} steps in every row, {lowered}, {kept}"
        return [("Schedule of training", fixed, rule)]
    return [
        ("Epochs without progress before lr / 10", str(ours.plateau_patience), str(theirs.plateau_patience)),
        ("Epochs without progress before stopping", str(ours.stop_patience), str(theirs.stop_patience)),
        ("Maximum number of epochs", str(ours.max_epochs), str(theirs.max_epochs)),
    ]
