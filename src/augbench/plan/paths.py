"""The plan: which files a study consists of, as a pure function of config and class ids (invariant 1).

Flows in: a :class:`~augbench.config.study.Study` and the class ids. Flows out: paths and blocks, which the rules use and the
tests check. Nothing here reads a file, so ``snakemake -n`` can show the whole study where the data is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from augbench.config.corpus import MiniatureCorpus, OwnCorpus
from augbench.config.data import FashionMnist, ImageFolder
from augbench.config.hub import HubModel, Layout
from augbench.config.study import Study
from augbench.data.classes import SHIPPED_TABLES
from augbench.data.fashion_mnist import FILES
from augbench.models.folders import model_files
from augbench.plan.jobs import Block, FolderBlock, ShardBlock, blocks, cut, job_name

CORPUS_ROWS_PER_PART = 5000
CLASSES_PER_FOLDER = 5
SELECTED = "selected"  # stands where a candidate's name stands: what the study goes on with
CLUSTER_ABLATION = "cluster_ablation"
BEST_ROWS = (
    "none",
    "clip_prompts",
    "pseudoword_dm",
    "retrieval",
)  # of the paper on full ImageNet and on Caltech256
RUN_FILES = ("result.json", "history.json", "predictions.parquet", "model.safetensors")


@dataclass(frozen=True)
class Plan:
    """Paths of a study, all relative to the working directory.

    ``{method}``, ``{candidate}``, ``{class_id}``, ``{part}`` and ``{run}`` in patterns are Snakemake's wildcards.
    """

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

    # --- methods ---

    @cached_property
    def methods(self) -> list[str]:
        """All rows, in the order of the config."""
        return list(self.study.methods)

    def parts(self, method: str) -> list[str]:
        """Numbers of the shards per class that a method's training sets are drawn from; a retrieved pool is one shard."""
        return [str(part) for part in range(self.study.parts_drawn(method))]

    # --- blocks ---

    @cached_property
    def class_blocks(self) -> list[Block]:
        """The classes of one generate or retrieve job."""
        return blocks(self.class_ids, self.study.execution.classes_per_job)

    def generate_blocks(self, method: str) -> list[ShardBlock]:
        """The shards of each generate job of a method: the pool of some classes, or as many of the shards that only rows which draw from it need."""
        own, made = len(self.parts(method)), self.study.parts_made(method)
        groups = [
            tuple(str(part) for part in range(start, min(start + own, made))) for start in range(0, made, own)
        ]
        return [
            ShardBlock(
                block.name if group[0] == "0" else f"{block.name}_part{group[0]}", block.members, group
            )
            for group in groups
            for block in self.class_blocks
        ]

    @cached_property
    def generate_jobs(self) -> list[tuple[str, ShardBlock]]:
        """Method and shards of every generate job."""
        return [(method, block) for method in self.study.generated for block in self.generate_blocks(method)]

    @cached_property
    def retrieve_jobs(self) -> list[tuple[str, Block]]:
        """Method and classes of every retrieve job."""
        return [(method, block) for method in self.study.retrieved for block in self.class_blocks]

    @cached_property
    def runs(self) -> list[str]:
        """Numbers of the resampled sets, and of the classifiers trained."""
        return [str(run) for run in range(self.study.augmentation.resamples)]

    @cached_property
    def run_blocks(self) -> list[Block]:
        """The runs of one classify job."""
        return blocks(self.runs, self.study.execution.runs_per_job)

    # --- files ---

    @cached_property
    def fashion_mnist_files(self) -> list[str]:
        """Fashion-MNIST's files, where the data set or the miniature corpus is made from them."""
        for section in (self.study.dataset, self.study.corpus):
            if isinstance(section, FashionMnist | MiniatureCorpus):
                return [f"{section.downloads}/{file.name}.gz" for file in FILES]
        return []

    @cached_property
    def judge_files(self) -> list[str]:
        """Files of the classifier that judges added images, where there is one."""
        return [] if self.study.report.judge is None else self._model_files(self.study.report.judge, None)

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

    @staticmethod
    def _model_files(folder: str, hub: HubModel | None) -> list[str]:
        """Files of a model's folder; one that is fetched, or not there yet, is named by the file it must have."""
        if hub is not None:
            return [hub.marker]
        found = [str(path) for path in model_files(folder)]
        return found or [f"{folder}/config.json"]

    @cached_property
    def splits(self) -> dict[str, str]:
        """Split manifests that the study needs, by name."""
        names = {"train", "val", "test"} | {method.split for method in self.study.real.values()}
        return {name: self.path("splits", f"{name}.parquet") for name in sorted(names)}

    def split_of(self, method: str) -> str:
        """The real images that a method's classifiers are trained on."""
        return self.splits[self.study.methods[method].real_split]

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
        return [self.embeddings_folder if corpus.search == "exact" else self.path("corpus/index")]

    def neighbours(self, method: str = "{method}") -> str:
        """The neighbours of every class's query."""
        return self.path("retrieval", method, "neighbours.parquet")

    def manifest(self, method: str) -> str:
        """Which images a retrieval method kept."""
        return self.path("retrieval", method, "manifest.parquet")

    def replayed(self, method: str) -> list[str]:
        """A manifest that is fetched instead of searched."""
        row = self.study.retrieved.get(method)
        return [row.manifest] if row is not None and row.manifest else []

    @cached_property
    def excluded(self) -> list[str]:
        """The file that names the classes that are left out, where there may be any."""
        exclude = self.study.retrieval.exclude
        wanted = exclude != "none" and (isinstance(exclude, tuple) or bool(self.study.retrieved))
        return [self.path("retrieval/excluded.json")] if wanted else []

    @cached_property
    def retrieval_summary(self) -> dict[str, str]:
        """What retrieval gave: a manifest per method, the yield, the classes that are left out."""
        if not self.study.retrieved and not self.excluded:
            return {}
        manifests = {f"manifest_{method}": self.manifest(method) for method in self.study.retrieved}
        return {
            **manifests,
            "fates": self.path("retrieval/yield.csv"),
            "excluded": self.path("retrieval/excluded.json"),
        }

    def ledgers(self, method: str) -> list[str]:
        """The ledgers of all classes of a retrieval method."""
        return [self.ledger(method, class_id) for class_id in self.class_ids]

    @cached_property
    def aesthetics_files(self) -> list[str]:
        """The weights of the aesthetics predictor, where a method asks for scores."""
        asked = any(
            row.min_aesthetics is not None and row.manifest is None for row in self.study.retrieved.values()
        )
        weights = self.study.retrieval.aesthetics_weights
        return [weights] if asked and weights is not None else []

    def shard(
        self,
        method: str = "{method}",
        class_id: str = "{class_id}",
        part: str = "{part}",
        candidate: str = SELECTED,
    ) -> str:
        """One class's images of one part."""
        return self.path("shards", method, candidate, class_id, f"{part}.parquet")

    def shards(self, method: str) -> list[str]:
        """All shards that a method's training sets are drawn from."""
        return [
            self.shard(self.study.pool_row(method), class_id, part)
            for class_id in self.class_ids
            for part in self.parts(method)
        ]

    @staticmethod
    def shards_among(paths: Iterable[str]) -> list[str]:
        """Those of a job's files that are shards: among thousands, inputs have no name."""
        return [path for path in paths if "/shards/" in path and Path(path).stem.isdigit()]

    def pool(self, method: str = "{method}", candidate: str = SELECTED) -> str:
        """The index of a method's pool: one row per image."""
        return self.path("shards", method, candidate, "index.parquet")

    def ledger(self, method: str = "{method}", class_id: str = "{class_id}") -> str:
        """What became of every candidate that was looked at for a class."""
        return self.path("retrieval", method, "ledgers", f"{class_id}.parquet")

    def resample(self, method: str = "{method}", run: str = "{run}", candidate: str = SELECTED) -> str:
        """The added images of one training set."""
        return self.path("resamples", method, candidate, f"{run}.parquet")

    def run_files(self, method: str, run: str, candidate: str = SELECTED) -> list[str]:
        """What one trained classifier leaves; a candidate's is never scored on the test split."""
        names = [name for name in RUN_FILES if candidate == SELECTED or name != "predictions.parquet"]
        return [self.path("classifiers", method, candidate, run, name) for name in names]

    def block_run_files(self, block: Block) -> list[str]:
        """Patterns of all files of a block of runs; ``{method}`` is the wildcard."""
        return [path for run in block.members for path in self.run_files("{method}", run)]

    def template_files(self, method: str) -> list[str]:
        """A user's own file of templates, where the method names one."""
        prompting = self.study.methods[method].prompting
        return [prompting.templates] if prompting is not None and prompting.templates.endswith(".txt") else []

    # --- fine-tuning and selection ---

    @cached_property
    def cluster_files(self) -> dict[int, str]:
        """Which cluster each training and validation image belongs to, by the number of clusters per class."""
        counts = sorted(
            {method.clusters for method in self.study.personalised.values() if method.clusters > 1}
        )
        return {count: self.path("finetune/clusters", f"k{count}.parquet") for count in counts}

    @cached_property
    def feature_files(self) -> list[str]:
        """Published weights that clusters are found with."""
        finetune = self.study.finetune
        return [finetune.inception_weights] if finetune.features == "inception_v3" else []

    @cached_property
    def folders(self) -> list[Block]:
        """Classes whose files of one kind are one target, for a plan's cost follows the number of targets; the same whatever the block size."""
        return blocks(self.class_ids, CLASSES_PER_FOLDER)

    def folders_among(self, paths: Iterable[str]) -> list[Block]:
        """Those whose folders are among a job's targets."""
        names = {Path(path).name for path in paths}
        return [folder for folder in self.folders if folder.name in names]

    def _folder_blocks(self, classes_per_job: int) -> list[FolderBlock]:
        size = max(1, classes_per_job // CLASSES_PER_FOLDER)
        return [FolderBlock(name, part) for name, part in cut(self.folders, size)]

    @cached_property
    def candidate_blocks(self) -> list[FolderBlock]:
        """The classes of one job that makes candidates' images."""
        return self._folder_blocks(self.study.execution.classes_per_job)

    def finetune_blocks(self, method: str) -> list[FolderBlock]:
        """The classes of one fine-tuning job: all of them where they share a U-Net that trains."""
        if self.study.personalised[method].train_unet:
            return [FolderBlock("all", tuple(self.folders))]
        return self._folder_blocks(
            self.study.execution.finetune_classes_per_job or self.study.execution.classes_per_job
        )

    def finetune_jobs(self, method: str) -> list[tuple[float, FolderBlock]]:
        """Factor of the learning rates and classes of every fine-tuning job of a method."""
        return [
            (factor, block)
            for factor in self.study.personalised[method].lr_grid
            for block in self.finetune_blocks(method)
        ]

    def lr_folder(self, method: str, factor: float | str) -> str:
        """What a method learned at one factor of its learning rates."""
        return self.path("finetune", method, f"lr{factor if isinstance(factor, str) else f'{factor:g}'}")

    def vectors_folder(self, method: str, factor: float | str, folder: Block) -> str:
        """What the classes of a folder learned at one learning rate."""
        return f"{self.lr_folder(method, factor)}/vectors/{folder.name}"

    def vectors(self, method: str, factor: float | str, folders: Iterable[Block]) -> list[str]:
        """What each class learned at one learning rate: every candidate's vectors."""
        return [
            f"{self.vectors_folder(method, factor, folder)}/{class_id}.safetensors"
            for folder in folders
            for class_id in folder.members
        ]

    def trained_unets(self, method: str, factor: float | str) -> dict[str, str]:
        """The U-Net of every candidate at one learning rate; none where it stays frozen."""
        row = self.study.personalised[method]
        return (
            {name: f"{self.lr_folder(method, factor)}/unet/{name}" for name in row.candidate_names}
            if row.train_unet
            else {}
        )

    def embeddings(self, method: str) -> dict[str, str]:
        """What all classes learned, by candidate."""
        return {
            name: self.path("finetune", method, name, "embeddings.safetensors")
            for name in self.study.personalised[method].candidate_names
        }

    def unets(self, method: str) -> dict[str, str]:
        """The candidates' U-Nets at the learning rate that was chosen; none where it stays frozen."""
        row = self.study.personalised[method]
        return (
            {name: self.path("finetune", method, name, "unet") for name in row.candidate_names}
            if row.train_unet
            else {}
        )

    def finetune_history(self, method: str) -> str:
        """Losses of every class, epoch and learning rate."""
        return self.path("finetune", method, "history.parquet")

    def lr(self, method: str) -> str:
        """Which learning rate was chosen, and by which losses."""
        return self.path("finetune", method, "lr.json")

    def candidate_folder(self, method: str, name: str, folder: Block) -> str:
        """Images of a candidate, of the classes of a folder."""
        return self.path("shards", method, name, folder.name)

    def candidate_shards(self, method: str, folders: Iterable[Block]) -> dict[str, list[str]]:
        """Part 0 of every candidate, which is what selection looks at."""
        classes = [(folder, class_id) for folder in folders for class_id in folder.members]
        names = self.study.personalised[method].candidate_names
        return {
            name: [
                f"{self.candidate_folder(method, name, folder)}/{class_id}/0.parquet"
                for folder, class_id in classes
            ]
            for name in names
        }

    def selected(self, method: str) -> str:
        """Which candidate was selected, and every candidate's validation accuracy."""
        return self.path("selected", f"{method}.json")

    # --- leakage ---

    @cached_property
    def guarded(self) -> list[str]:
        """Rows whose images are compared with validation and test images; what is drawn from another row's pool, only where such images are dropped."""
        return {"off": [], "report": list(self.study.pooled), "drop": list(self.study.augmented)}[
            self.study.leakage.action
        ]

    @cached_property
    def guarded_first(self) -> list[str]:
        """Rows whose training sets wait for the guard, which needs the index of the pool before them."""
        return list(self.study.augmented) if self.study.leakage.action == "drop" else []

    @cached_property
    def indexed_with_sets(self) -> list[str]:
        """Rows whose pool is indexed by the job that draws the training sets."""
        return [] if self.study.leakage.action == "drop" else list(self.study.augmented)

    def leaks(self, method: str) -> str:
        """Pairs of an added image and its near-duplicate."""
        return self.path("leakage", f"{method}.parquet")

    def leak_counts(self, method: str) -> str:
        """How many images of a method that are."""
        return self.path("leakage", f"{method}.json")

    def leaks_to_drop(self, method: str) -> list[str]:
        """The pairs whose added images are left out of a method's training sets."""
        return [self.leaks(method)] if self.study.leakage.action == "drop" else []

    @cached_property
    def embedded_splits(self) -> dict[str, str]:
        """CLIP embeddings of the images that added ones are compared with."""
        return (
            {name: self.path("leakage/splits", f"{name}.npy") for name in ("val", "test")}
            if self.guarded
            else {}
        )

    @cached_property
    def leakage_table(self) -> dict[str, str]:
        """The table of near-duplicates in its formats, and a picture of examples per method."""
        pictures = {
            f"pairs_{method}": self.path("figures/leakage", f"{method}.png") for method in self.guarded
        }
        return (
            {**{kind: self.path("tables", f"leakage.{kind}") for kind in ("csv", "md", "txt")}, **pictures}
            if self.guarded
            else {}
        )

    # --- results ---

    def predictions(self, method: str) -> list[str]:
        """Predictions of all of a method's classifiers."""
        return [self.path("classifiers", method, SELECTED, run, "predictions.parquet") for run in self.runs]

    def results(self) -> list[str]:
        """The result of every classifier, in the order of the table."""
        return [self.run_files(method, run)[0] for method in self.methods for run in self.runs]

    @cached_property
    def table1(self) -> dict[str, str]:
        """Table 1 in its formats."""
        names = {
            "csv": "table1.csv",
            "runs": "table1_runs.csv",
            "md": "table1.md",
            "tex": "table1.tex",
            "txt": "table1.txt",
        }
        return {kind: self.path("tables", name) for kind, name in names.items()}

    @cached_property
    def diagnostics(self) -> dict[str, str]:
        """The table of what the added images are like, in its formats; none where no row adds any."""
        return (
            {kind: self.path("tables", f"diagnostics.{kind}") for kind in ("csv", "md", "txt")}
            if self.study.pooled
            else {}
        )

    @cached_property
    def statistics(self) -> dict[str, str]:
        """The statistics of Table 1 in their formats."""
        return self._table("statistics")

    @property
    def per_class(self) -> str:
        """Accuracy of every classifier per class."""
        return self.path("tables/per_class.parquet")

    def _table(self, name: str) -> dict[str, str]:
        return {kind: self.path("tables", f"{name}.{kind}") for kind in ("csv", "md", "tex")}

    def _figure(self, name: str) -> dict[str, str]:
        return {kind: self.path("figures", f"{name}.{kind}") for kind in ("pdf", "png")}

    @cached_property
    def figure1(self) -> dict[str, str]:
        """Figure 1 in its formats."""
        return self._figure("figure1")

    @cached_property
    def clusters(self) -> dict[str, int]:
        """Vectors learned per class by the rows that learn conditioning of a frozen U-Net, fewest first."""
        learning = {
            name: row.clusters
            for name, row in self.study.personalised.items()
            if row.learn == "conditioning" and not row.train_unet
        }
        return dict(sorted(learning.items(), key=lambda item: item[1]))

    @cached_property
    def paper_tables(self) -> dict[str, list[str]]:
        """The paper's smaller tables that the study has rows for, and these rows; a miniature stands for each of the paper's data sets."""
        known = [name for name in BEST_ROWS if name in self.study.methods]
        rows = {
            ("imagenet10", CLUSTER_ABLATION): [*self.clusters] if len({*self.clusters.values()}) > 1 else [],
            ("imagenet_full", "imagenet_full"): known if len(known) > 1 else [],
            ("caltech256", "caltech256"): known if len(known) > 1 else [],
        }
        own = self.study.report.paper_study
        return {
            name: methods
            for (paper_study, name), methods in rows.items()
            if methods and (paper_study == own or self.study.miniature is not None)
        }

    @cached_property
    def paper_table_files(self) -> dict[str, str]:
        """These tables in their formats."""
        return {
            f"{name}_{kind}": path for name in self.paper_tables for kind, path in self._table(name).items()
        }

    @cached_property
    def cost(self) -> dict[str, str]:
        """What each method cost, in its formats."""
        return {kind: self.path("tables", f"cost.{kind}") for kind in ("csv", "md")}

    @cached_property
    def figures(self) -> dict[str, dict[str, str]]:
        """Figures 3 to 5B in their formats, by name: those that the study has rows for."""
        wanted = {
            "figure3": self.reconstructing,
            "figure4": self.exemplified,
            "figure5a": self.compared
            if any(self.split_of(method) == self.splits["train"] for method in self.study.real)
            else [],
            "figure5b": self.scaling,
        }
        return {name: self._figure(name) for name, rows in wanted.items() if rows}

    def figure_data(self, name: str) -> dict[str, str]:
        """What a figure is drawn from: its table, and the images in it."""
        images = {"images": self.path("figures", f"{name}_images.parquet")} if name != "figure5b" else {}
        return {"table": self.path("figures", f"{name}.csv"), **images}

    @property
    def report_images(self) -> str:
        """Thumbnails of the report's image browser."""
        return self.path("report_images.parquet")

    @property
    def report(self) -> str:
        """The report as one page."""
        return self.path("report.html")

    @cached_property
    def report_tables(self) -> dict[str, str]:
        """Tables in the report, as people see them, by name."""
        tables = {
            "table1": self.table1,
            "statistics": self.statistics,
            **{name: self._table(name) for name in self.paper_tables},
            "diagnostics": self.diagnostics,
            "leakage": self.leakage_table,
            "cost": self.cost,
        }
        return {name: files["md"] for name, files in tables.items() if files}

    @cached_property
    def report_figures(self) -> dict[str, str]:
        """Figures in the report, by name."""
        return {name: files["png"] for name, files in {"figure1": self.figure1, **self.figures}.items()}

    @cached_property
    def report_sources(self) -> list[str]:
        """All that the report is made from, but for :attr:`report_figures`, which show what is in these."""
        return [
            self.report_images,
            self.table1["csv"],
            self.statistics["csv"],
            self.per_class,
            *self.report_tables.values(),
            *(self.figure_data(name)["table"] for name in self.figures),
            *(path for kind, path in self.retrieval_summary.items() if kind in ("fates", "excluded")),
            self.path("classes.parquet"),
            self.path("config.yaml"),
            self.path("provenance.json"),
        ]

    @cached_property
    def report_jobs(self) -> list[list[str]]:
        """Files of every job that makes tables and figures, but for the guard's."""
        tables = (
            self.table1,
            self.statistics,
            self.paper_table_files,
            self.cost,
            self.diagnostics,
            self.retrieval_summary,
        )
        figures = (
            self.figure1,
            *(files for name, drawn in self.figures.items() for files in (self.figure_data(name), drawn)),
        )
        return [
            [self.per_class],
            [self.report_images],
            [self.report],
            *(list(files.values()) for files in (*tables, *figures) if files),
        ]

    @cached_property
    def reconstructing(self) -> list[str]:
        """Rows whose images start from training images."""
        return [name for name, method in self.study.methods.items() if method.from_images]

    @cached_property
    def exemplified(self) -> list[str]:
        """Rows that Figure 4 shows images of."""
        return [
            name
            for name, row in self.study.pooled.items()
            if row.group in ("prompting", "personalised", "retrieval")
        ]

    @cached_property
    def compared(self) -> list[str]:
        """Rows that Figure 5A may show: the best one that generates, and the best one that retrieves."""
        return [name for name, row in self.study.augmented.items() if row.group != "scaling"]

    @cached_property
    def scaling(self) -> dict[str, str]:
        """Rows of Figure 5B, and the row whose pool each draws from: rows of mechanism ``draw``, and these pools' own."""
        pools = {method.pool for method in self.study.drawn.values()}
        return {
            name: self.study.pool_row(name)
            for name in self.methods
            if name in pools or self.study.pool_row(name) != name
        }
