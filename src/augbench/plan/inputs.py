"""Files that a study starts from: data set, models, corpus, splits; and the blocks that its work is cut into."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from augbench.config.corpus import MiniatureCorpus, OwnCorpus
from augbench.config.data import FashionMnist, ImageFolder
from augbench.config.hub import HubModel, Layout
from augbench.config.study import Study
from augbench.data.classes import SHIPPED_TABLES
from augbench.data.fashion_mnist import FILES
from augbench.models.folders import model_files
from augbench.plan.jobs import Block, blocks, job_name

CORPUS_ROWS_PER_PART = 5000


@dataclass(frozen=True)
class InputPaths:
    """Paths of what a study starts from, relative to the working directory."""

    study: Study
    class_ids: tuple[str, ...]

    @property
    def root(self) -> str:
        """Folder of the study's results."""
        return f"results/{self.study.study}"

    def path(self, *parts: str) -> str:
        """A path below the study's folder."""
        return "/".join((self.root, *parts))

    def log(self, stage: str, method: str = "", block: str = "", factor: float | None = None) -> str:
        """Log of a job."""
        return self._job_file("logs", stage, job_name(method, block, factor), ".log")

    def benchmark(self, stage: str, method: str = "", block: str = "", factor: float | None = None) -> str:
        """File where Snakemake keeps the time that a job took; :func:`augbench.plan.jobs.job_file` reads its name back."""
        return self._job_file("benchmarks", stage, job_name(method, block, factor), ".tsv")

    def _job_file(self, folder: str, stage: str, name: str, suffix: str) -> str:
        return self.path(folder, *filter(None, (stage, name))) + suffix

    @cached_property
    def methods(self) -> list[str]:
        """All rows, in the order of the config."""
        return list(self.study.methods)

    @cached_property
    def class_blocks(self) -> list[Block]:
        """The classes of one generate or retrieve job."""
        return blocks(self.class_ids, self.study.execution.classes_per_job)

    @cached_property
    def runs(self) -> list[str]:
        """Numbers of the resampled sets, and of the classifiers trained."""
        return [str(run) for run in range(self.study.augmentation.resamples)]

    @cached_property
    def run_blocks(self) -> list[Block]:
        """The runs of one classify job."""
        return blocks(self.runs, self.study.execution.runs_per_job)

    @cached_property
    def fashion_mnist_files(self) -> list[str]:
        """Fashion-MNIST's files, where the data set or the miniature corpus is made from them."""
        for section in (self.study.dataset, self.study.corpus):
            if isinstance(section, FashionMnist | MiniatureCorpus):
                return [f"{section.downloads}/{file.name}.gz" for file in FILES]
        return []

    @cached_property
    def dataset_files(self) -> list[str]:
        """Files that a change of which changes class table or splits; image folders are scanned, not tracked file by file."""
        dataset = self.study.dataset
        if isinstance(dataset, FashionMnist):
            return [*self.fashion_mnist_files, self.class_table(dataset.classes)]
        if isinstance(dataset, ImageFolder) and dataset.classes is not None:
            return [self.class_table(dataset.classes)]
        return []

    @staticmethod
    def class_table(name: str) -> str:
        """File of a class table: a shipped one by name, or the path given."""
        return str(SHIPPED_TABLES.get(name, name))

    @property
    def classes(self) -> str:
        """The class table, in label order."""
        return self.path("classes.parquet")

    @property
    def config(self) -> str:
        """The study's config with all its defaults."""
        return self.path("config.yaml")

    @property
    def diffusion(self) -> str:
        """Fingerprint of the diffusion model: a content hash of its files."""
        return self.path("models/diffusion.json")

    @property
    def clip(self) -> str:
        """Fingerprint of CLIP."""
        return self.path("models/clip.json")

    @property
    def corpus_index(self) -> str:
        """clip-retrieval's index of a corpus that the study embeds itself."""
        return self.path("corpus/index")

    def pretrained(self, name: str) -> str:
        """What the miniature's pre-training makes: the folder of a model, or a file about them."""
        return self.path("pretrain", name)

    def prompts(self, method: str = "{method}") -> str:
        """Prompts of a method: one row per image to make, or one query per class."""
        return self.path("prompts", f"{method}.parquet")

    @cached_property
    def splits(self) -> dict[str, str]:
        """Split manifests that the study needs, by name."""
        names = {"train", "val", "test"} | {method.split for method in self.study.real.values()}
        return {name: self.path("splits", f"{name}.parquet") for name in sorted(names)}

    def split_of(self, method: str) -> str:
        """The real images that a method's classifiers are trained on."""
        return self.splits[self.study.methods[method].real_split]

    @cached_property
    def hub_models(self) -> dict[Layout, HubModel]:
        """The models that are fetched, by what they are."""
        study = self.study
        models: dict[Layout, HubModel | None] = {
            "diffusion": study.diffusion.hub,
            "safety_checker": study.diffusion.safety_checker_hub,
            "clip": study.clip.hub,
        }
        return {layout: model for layout, model in models.items() if model is not None}

    @cached_property
    def diffusion_files(self) -> list[str]:
        """Files that make the diffusion model, its safety checker included."""
        diffusion = self.study.diffusion
        checker = diffusion.safety_checker_folder
        apart = (
            []
            if checker in (None, "model")
            else self._model_files(str(checker), diffusion.safety_checker_hub)
        )
        return [*self._model_files(diffusion.folder, diffusion.hub), *apart]

    @cached_property
    def clip_files(self) -> list[str]:
        """Files that make the CLIP model."""
        return self._model_files(self.study.clip.folder, self.study.clip.hub)

    @cached_property
    def judge_files(self) -> list[str]:
        """Files of the classifier that judges added images, where there is one."""
        return [] if self.study.report.judge is None else self._model_files(self.study.report.judge, None)

    @staticmethod
    def _model_files(folder: str, hub: HubModel | None) -> list[str]:
        """Files of a model's folder; one that is fetched, or not there yet, is named by the file it must have."""
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
        """CLIP embeddings and metadata of a corpus that the study embeds itself, in clip-retrieval's layout."""
        return self.path("corpus/embeddings")

    @cached_property
    def searched(self) -> list[str]:
        """What a search reads of a corpus that the study embeds itself: its embeddings, or the index of them."""
        corpus = self.study.corpus
        if not isinstance(corpus, OwnCorpus):
            return []
        return [self.embeddings_folder if corpus.search == "exact" else self.corpus_index]

    def template_files(self, method: str) -> list[str]:
        """A user's own file of templates, where the method names one."""
        prompting = self.study.methods[method].prompting
        return [prompting.templates] if prompting is not None and prompting.templates.endswith(".txt") else []
