"""Files that a study starts from (data set, models, corpus, splits), and the blocks of its work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from augbench.config.corpus import EmbeddingCorpus, MiniatureCorpus, OwnCorpus
from augbench.config.data import Caltech256, FashionMnist, ImageFolder
from augbench.config.draws import drawn_name
from augbench.config.hub import HubModel, Layout
from augbench.config.models import Diffusion
from augbench.config.study import Study
from augbench.data.classes import SHIPPED_TABLES
from augbench.data.fashion_mnist import FILES
from augbench.data.flat_folder import label_files
from augbench.models.folders import model_files
from augbench.models.open_clip_files import files_of
from augbench.plan.jobs import Block, blocks, job_name, numbers

CORPUS_ROWS_PER_PART = 5000


@dataclass(frozen=True)
class ToFetch:
    """A model to fetch from the Hub, the layout of its folder, and the pipeline class that it should be."""

    hub: HubModel
    layout: Layout
    pipeline: str | None = None


@dataclass(frozen=True)
class InputPaths:
    """Paths of a study's input files, relative to the working directory."""

    study: Study
    class_ids: tuple[str, ...]

    @property
    def root(self) -> str:
        """Folder of the study's results."""
        return f"results/{self.study.study}"

    def path(self, *parts: str) -> str:
        """Path below the study's folder."""
        return "/".join((self.root, *parts))

    def log(self, stage: str, method: str = "", block: str = "", factor: float | None = None) -> str:
        """Path of a job's log."""
        return self._job_file("logs", stage, job_name(method, block, factor), ".log")

    def benchmark(self, stage: str, method: str = "", block: str = "", factor: float | None = None) -> str:
        """Snakemake's file of a job's run time; :func:`augbench.plan.jobs.job_file` parses its name."""
        return self._job_file("benchmarks", stage, job_name(method, block, factor), ".tsv")

    def _job_file(self, folder: str, stage: str, name: str, suffix: str) -> str:
        return self.path(folder, *filter(None, (stage, name))) + suffix

    @cached_property
    def methods(self) -> list[str]:
        """All rows, in the order of the config."""
        return list(self.study.methods)

    @cached_property
    def made_ids(self) -> tuple[str, ...]:
        """Classes of which anything is made: all but those that ``retrieval.exclude`` lists."""
        return tuple(class_id for class_id in self.class_ids if class_id not in self.study.retrieval.listed)

    @cached_property
    def class_blocks(self) -> list[Block]:
        """Blocks of classes, one for each generate or retrieve job of a method."""
        return blocks(self.made_ids, self.study.execution.classes_per_job)

    @cached_property
    def runs(self) -> list[str]:
        """Numbers of the resampled training sets, and of the classifiers trained on them."""
        return [str(run) for run in range(self.study.augmentation.resamples)]

    @cached_property
    def run_blocks(self) -> list[Block]:
        """Blocks of runs, one for each classify job of a method."""
        return blocks(self.runs, self.study.execution.runs_per_job)

    @cached_property
    def fashion_mnist_files(self) -> list[str]:
        """Fashion-MNIST's files, if the data set or the miniature corpus is made from them."""
        for section in (self.study.dataset, self.study.corpus):
            if isinstance(section, FashionMnist | MiniatureCorpus):
                return [f"{section.downloads}/{file.name}.gz" for file in FILES]
        return []

    @cached_property
    def dataset_files(self) -> list[str]:
        """Input files of the class table and the splits.

        Folders of images and of Parquet files are scanned, not tracked file by file.
        """
        dataset = self.study.dataset
        table = None if isinstance(dataset, Caltech256) else dataset.classes
        files = [] if table is None else [self.class_table(table)]
        if isinstance(dataset, ImageFolder):
            root = Path(os.path.expanduser(dataset.root))
            for labels in filter(None, (dataset.validation_labels, dataset.test_labels)):
                files += label_files(root, labels)
        return [*(self.fashion_mnist_files if isinstance(dataset, FashionMnist) else []), *files]

    @staticmethod
    def class_table(name: str) -> str:
        """File of a class table, which is the name of a shipped table or a path."""
        return str(SHIPPED_TABLES.get(name, name))

    @property
    def classes(self) -> str:
        """Path of the class table, in label order."""
        return self.path("classes.parquet")

    @property
    def config(self) -> str:
        """Path of the study's config with all its defaults."""
        return self.path("config.yaml")

    @property
    def diffusion(self) -> str:
        """Path of the diffusion model's fingerprint, a content hash of its files."""
        return self.path("models/diffusion.json")

    def generator(self, name: str) -> str:
        """Path of the fingerprint of a model in ``generators``."""
        return self.path("models/generators", f"{name}.json")

    def sampled_model(self, method: str) -> str:
        """Path of the fingerprint of the diffusion model that makes a row's images."""
        generator = self.study.methods[method].generator_name
        return self.diffusion if generator is None else self.generator(generator)

    @property
    def model_fingerprints(self) -> list[str]:
        """Paths of the fingerprints of all models: the diffusion models' and CLIP's."""
        return [self.diffusion, *map(self.generator, self.study.used_generators), self.clip]

    @property
    def clip(self) -> str:
        """Path of the CLIP model's fingerprint."""
        return self.path("models/clip.json")

    @cached_property
    def fetched_corpus(self) -> dict[str, str]:
        """Web addresses by the path of the corpus's file that is fetched from them."""
        return self.study.corpus.fetched if isinstance(self.study.corpus, EmbeddingCorpus) else {}

    @property
    def corpus_index(self) -> str:
        """clip-retrieval's index of a corpus that the study embeds itself."""
        return self.path("corpus/index")

    def pretrained(self, name: str) -> str:
        """Path of an output of the miniature's pre-training: a model's folder, or a file about the models."""
        return self.path("pretrain", name)

    def prompts(self, method: str = "{method}") -> str:
        """Prompts of a method: one row per image to make, or one query per class."""
        return self.path("prompts", f"{method}.parquet")

    @cached_property
    def splits(self) -> dict[str, str]:
        """Split manifests that the study needs, by name."""
        draws = range(self.study.dataset.draws)
        return {name: path for draw in draws for name, path in self.splits_of(draw).items()}

    def splits_of(self, draw: int) -> dict[str, str]:
        """Split manifests by name that a draw of the training images adds; draw 0 has validation and test."""
        real = {"train"} | {method.split for method in self.study.real.values()}
        names = {drawn_name(name, draw) for name in real - {"full"}} if draw else real | {"val", "test"}
        return {name: self.path("splits", f"{name}.parquet") for name in sorted(names)}

    def split_of(self, method: str) -> str:
        """Manifest of the real images that a method's classifiers are trained on."""
        split = self.study.methods[method].real_split
        return self.splits[split if split == "full" else drawn_name(split, self.draw_of(method))]

    def draw_of(self, method: str) -> int:
        """Draw of the training images that a row belongs to."""
        return self.study.row_and_draw(method)[1]

    @cached_property
    def drawn_splits(self) -> list[str]:
        """Training splits of all draws of the training images; none if there is one draw."""
        draws = self.study.dataset.draws
        return [self.splits[drawn_name("train", draw)] for draw in range(draws)] if draws > 1 else []

    def train_of(self, method: str) -> str:
        """Manifest of the training split of a row's draw."""
        return self.splits[drawn_name("train", self.draw_of(method))]

    @cached_property
    def hub_models(self) -> dict[str, ToFetch]:
        """Models to fetch, each once, by the name of their rule without ``fetch_``."""
        study = self.study
        models: dict[str, tuple[HubModel | None, Layout, str | None]] = {
            "diffusion": (study.diffusion.hub, "diffusion", study.diffusion.pipeline_class),
            "safety_checker": (study.diffusion.safety_checker_hub, "safety_checker", None),
            "clip": (study.clip.hub, "clip", None),
            "classifier": (study.classifier_hub, "classifier", None),
        }
        for name, model in study.used_generators.items():
            models[f"generator_{name}"] = (model.hub, "diffusion", model.pipeline_class)
            models[f"safety_checker_of_{name}"] = (model.safety_checker_hub, "safety_checker", None)
        found: dict[str, ToFetch] = {}
        for rule, (hub, layout, pipeline) in models.items():
            if hub is not None and hub.folder not in {other.hub.folder for other in found.values()}:
                found[rule] = ToFetch(hub, layout, pipeline)
        return found

    @cached_property
    def diffusion_files(self) -> list[str]:
        """Files of the diffusion model, including its safety checker."""
        return self.files_of(self.study.diffusion)

    def files_of(self, diffusion: Diffusion) -> list[str]:
        """Files of a diffusion model, including its safety checker."""
        checker = diffusion.safety_checker_folder
        apart = (
            []
            if checker in (None, "model")
            else self._model_files(str(checker), diffusion.safety_checker_hub)
        )
        return [*self._model_files(diffusion.folder, diffusion.hub), *apart]

    @cached_property
    def clip_files(self) -> list[str]:
        """Files of the CLIP model."""
        clip = self.study.clip
        if clip.hub is None and clip.named.library == "open_clip":
            return files_of(clip.named, clip.folder)
        return self._model_files(clip.folder, clip.hub)

    @cached_property
    def classifier_weights(self) -> list[str]:
        """Files of the classifier's own first weights, if it has any."""
        place = self.study.classifier_weights
        if place is None:
            return []
        return [place] if Path(place).is_file() else self._model_files(place, self.study.classifier_hub)

    @property
    def classifier(self) -> str:
        """Path of the fingerprint of the classifier's own first weights."""
        return self.path("models/classifier.json")

    @property
    def first_weights(self) -> list[str]:
        """Fingerprint of the model that classifiers begin with: none for random weights."""
        if self.study.classifier.arch == "clip":
            return [self.clip]
        return [self.classifier] if self.study.classifier.pretrained is not None else []

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints of the models that make or find images, and of what classifiers begin with."""
        making = self.model_fingerprints if self.study.pooled else []
        return [*dict.fromkeys([*making, *self.first_weights])]

    @cached_property
    def judge_files(self) -> list[str]:
        """Files of the classifier that judges added images, if there is one."""
        return [] if self.study.report.judge is None else self._model_files(self.study.report.judge, None)

    @staticmethod
    def _model_files(folder: str, hub: HubModel | None) -> list[str]:
        """Files in a model's folder, or the one file it must have if it is to be fetched or is missing."""
        if hub is not None:
            return [hub.marker]
        found = [str(path) for path in model_files(folder)]
        return found or [f"{folder}/config.json"]

    @cached_property
    def corpus_parts(self) -> list[str]:
        """Files of the miniature corpus."""
        if self.study.miniature is None:
            return []
        rows = self.study.miniature.images + self.study.miniature.distractors
        return [
            self.path("corpus/images", f"part_{part:05d}.parquet")
            for part in range(-(-rows // CORPUS_ROWS_PER_PART))
        ]

    @cached_property
    def embeddings_folder(self) -> str:
        """Folder of embeddings and metadata of a corpus that the study embeds, in clip-retrieval's layout."""
        return self.path("corpus/embeddings")

    @cached_property
    def embed_blocks(self) -> list[str]:
        """Names of the jobs that share the embedding of many images; none if one job embeds them all."""
        return numbers(self.study.execution.embed_jobs)

    def embedded_block(self, block: str = "{block}") -> str:
        """Path of the number of images of a corpus that one of these jobs has embedded."""
        return self.path("corpus/embedded", f"{block}.json")

    @cached_property
    def searched(self) -> list[str]:
        """Input of a search in a corpus that the study embeds itself: its embeddings or their index."""
        corpus = self.study.corpus
        if not isinstance(corpus, OwnCorpus):
            return []
        return [self.embeddings_folder if corpus.search == "exact" else self.corpus_index]

    def template_files(self, method: str) -> list[str]:
        """The user's own file of templates or captions, if the method names one."""
        prompting = self.study.methods[method].prompting
        if prompting is not None and prompting.captions is not None:
            return [prompting.captions]
        return [prompting.templates] if prompting is not None and prompting.templates.endswith(".txt") else []
