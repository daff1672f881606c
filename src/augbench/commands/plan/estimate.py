"""What a study costs, before and during a run: jobs, images, GPU-hours, disk and downloads per stage and method; what is done, what is left.

Flows in: the plan, a table of figures per device (``resources/throughput.yaml`` and measured ones over it), and what is on the disk already: targets, and
the benchmark files of finished jobs, whose rate takes the place of the table's. Flows out: steps, as aligned text or JSON. Nothing is imported that takes
long, and no data set is needed: sizes that are not known yet are the published ones.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from augbench.commands.plan.sizes import sizes_of
from augbench.commands.plan.throughput import Throughput, guided_share, read_throughput
from augbench.config.hub import known_models
from augbench.config.methods import PersonaliseMethod, RetrieveMethod
from augbench.config.study import Study
from augbench.data.sources import open_source
from augbench.errors import UserError
from augbench.plan.jobs import job_file, read_seconds
from augbench.plan.paths import Plan
from augbench.plan.recipes import method_sampling
from augbench.resample import needed_images
from augbench.retrieval.stage import prefix_sizes, wanted_images

REFERENCE_CALLS = (
    51 * 2
)  # of the U-Net, for an image with PNDM, 50 steps and guidance: what the table's rate is for


REFERENCE_SIDE, CLASSIFIER_SIDE, CLASSIFIER_WIDTH = 512, 224, 64


RESNET_WORK = {
    "resnet18": 0.44,
    "resnet34": 0.89,
    "resnet50": 1.0,
    "resnet101": 1.9,
    "resnet152": 2.8,
}  # multiplications, in ResNet-50's
FORWARD_SHARE = 1 / 3  # of a training step's work, that evaluation takes per image
VECTOR_BYTES = {"conditioning": 77 * 768 * 4, "pseudoword": 768 * 4}
NEIGHBOUR_BYTES = 768 * 2 + 300
STAGES = (
    "fetch",
    "prepare",
    "search",
    "retrieve",
    "finetune",
    "candidates",
    "generate",
    "select",
    "resample",
    "classify",
    "report",
)


@dataclass(frozen=True)
class Step:
    """One stage of one method.

    Attributes
    ----------
    jobs, jobs_done : int
        A job is done when all its files are there.
    files, files_done : int
        Targets.
    images : int
        Images that it makes, downloads, trains on or looks at, each once; 0 where images are not the measure.
    gpu_hours : float, optional
        Of all of it; None where there is no figure for the study's models.
    disk_bytes, download_bytes : float
        Of all of it.
    measured : bool
        The hours come from this study's own finished jobs.
    """

    stage: str
    method: str
    jobs: int
    jobs_done: int
    files: int
    files_done: int
    images: int = 0
    gpu_hours: float | None = 0.0
    disk_bytes: float = 0.0
    download_bytes: float = 0.0
    measured: bool = False

    @property
    def share_left(self) -> float:
        """Share of the files that are not there."""
        return 1 - self.files_done / self.files if self.files else 0.0

    @property
    def gpu_hours_left(self) -> float | None:
        """GPU-hours of what is not there."""
        return None if self.gpu_hours is None else self.gpu_hours * self.share_left


class _Disk:
    """Which targets are there; a folder that is not is asked for once."""

    def __init__(self) -> None:
        self._folders: dict[str, bool] = {"": True}

    def _has_folder(self, folder: str) -> bool:
        if folder not in self._folders:
            parent = os.path.dirname(folder)
            self._folders[folder] = (parent == folder or self._has_folder(parent)) and os.path.isdir(folder)
        return self._folders[folder]

    def count(self, paths: Iterable[str]) -> int:
        """How many of ``paths`` there are."""
        return sum(self._has_folder(os.path.dirname(path)) and os.path.exists(path) for path in paths)


class Estimate:
    """The steps of a study.

    Parameters
    ----------
    plan : Plan
        Of the study, with its class ids.
    throughput : Throughput
        Figures of the device that it runs on.
    """

    def __init__(self, plan: Plan, throughput: Throughput) -> None:
        self.plan, self.study, self.throughput = plan, plan.study, throughput
        self.sizes = sizes_of(plan)
        self._disk = _Disk()

    # --- figures ---

    def _rate(self, name: str) -> float:
        return self.throughput.rates[name].value

    def _assume(self, name: str) -> float:
        return self.throughput.assumed[name].value

    @cached_property
    def knows_diffusion(self) -> bool:
        """Whether the table's figures are of the study's diffusion model: Stable Diffusion 1.x, or a U-Net of its size."""
        config = Path(self.study.diffusion.folder) / "unet/config.json"
        if config.is_file():
            from augbench.files import read_json

            return bool(read_json(config).get("block_out_channels") == [320, 640, 1280, 1280])
        return self.study.diffusion.hub is not None

    @cached_property
    def _area(self) -> float:
        """Pixels of an image made, in those of the table's."""
        return (self.study.diffusion.resolution / REFERENCE_SIDE) ** 2

    @cached_property
    def _image_bytes(self) -> float:
        return self._assume(f"{self.study.augmentation.image_format}_bytes") * self._area

    def unet_calls(self, method: str) -> float:
        """Calls of the U-Net per image of a method, guidance counted twice; PNDM makes one more than it has steps."""
        sampling = method_sampling(self.study, method)
        steps = sampling["steps"] * sampling.get("noise", 1.0) + (sampling["scheduler"] == "pndm")
        guided = (
            0.0
            if sampling["guidance_scale"] <= 1
            else guided_share(sampling.get("guidance_interval", (0.0, math.inf)))
        )
        return float(steps * (1 + guided))

    def _generate_hours(self, method: str, images: float) -> float | None:
        if not self.knows_diffusion:
            return None
        return images * self.unet_calls(method) / REFERENCE_CALLS * self._area / self._rate("generate") / 3600

    def _classify_hours(self, training_images: float, classifiers: int) -> float:
        """Training with one evaluation on the validation split per epoch."""
        classifier = self.study.classifier
        work = (
            RESNET_WORK[classifier.arch]
            * (classifier.resolution / CLASSIFIER_SIDE) ** 2
            * (classifier.base_width / CLASSIFIER_WIDTH) ** 2
        )
        epochs = min(classifier.max_epochs, self._assume("classifier_epochs"))
        return (
            classifiers
            * epochs
            * (training_images + FORWARD_SHARE * self.sizes.validation)
            * work
            / self._rate("classify")
            / 3600
        )

    @property
    def _classifier_bytes(self) -> float:
        classifier = self.study.classifier
        return (
            self._assume("resnet50_bytes")
            * RESNET_WORK[classifier.arch]
            * (classifier.base_width / CLASSIFIER_WIDTH) ** 2
        )

    # --- images ---

    def pool_images(self, method: str, parts: Sequence[str]) -> int:
        """Images of a generated pool in some parts, of all classes."""
        size = round(self.sizes.per_class)
        return self.sizes.classes * sum(
            len(self.study.augmentation.part_range(int(part), size)) for part in parts
        )

    def added_images(self, method: str) -> int:
        """Images that one training set of a method adds."""
        row = self.study.augmented.get(method)
        return (
            0
            if row is None
            else self.sizes.classes * needed_images(row.added_per_training_image, round(self.sizes.per_class))
        )

    def real_images(self, method: str) -> int:
        """Real images that a method's classifiers are trained on."""
        split = self.study.methods[method].real_split
        everything = self.sizes.train / self.study.dataset.train_fraction - self.sizes.validation
        return round({"train": self.sizes.train, "train2x": 2 * self.sizes.train, "full": everything}[split])

    # --- steps ---

    def _step(
        self,
        stage: str,
        method: str,
        jobs: Sequence[Sequence[str]],
        others: Sequence[Sequence[str]] = (),
        **figures: Any,
    ) -> Step:
        """A step of ``jobs``, whose hours are counted, and of ``others`` that need no GPU; each is given by its files."""
        counts = [(len(outputs), self._disk.count(outputs)) for outputs in (*jobs, *others)]
        done = sum(1 for number, found in counts if number == found)
        step = Step(
            stage,
            method,
            len(counts),
            done,
            sum(n for n, _ in counts),
            sum(found for _, found in counts),
            **figures,
        )
        if step.gpu_hours:
            step = replace(step, gpu_hours=step.gpu_hours + len(jobs) * self._rate("start") / 3600)
        if step.gpu_hours != 0.0 and (seconds := self._job_seconds(stage, method)):
            step = replace(step, gpu_hours=len(jobs) * fmean(seconds) / 3600, measured=True)
        return step

    @cached_property
    def _benchmarks(self) -> dict[str, list[str]]:
        """Files of Snakemake's benchmarks by folder; finished jobs have one each."""
        root = self.plan.path("benchmarks")
        found: dict[str, list[str]] = {}
        for folder, _, names in os.walk(root):
            found[os.path.relpath(folder, root)] = [name for name in names if name.endswith(".tsv")]
        return found

    def _job_seconds(self, stage: str, method: str) -> list[float]:
        """Seconds of the finished jobs of a stage of a method; a GPU is theirs meanwhile."""
        folder = {"select": "classify_candidates"}.get(stage, stage)
        seconds = []
        for name in self._benchmarks.get(folder, []):
            try:
                job = job_file(Path(self.plan.path("benchmarks", folder, name)))
                if job.method == method:
                    seconds.append(read_seconds(job.path)[0])
            except UserError:
                continue
        return seconds

    @cached_property
    def steps(self) -> list[Step]:
        """All steps, in the order of :data:`STAGES` and then of the config."""
        found = [*self._fetch(), *self._prepare(), *self._report()]
        for method in self.plan.methods:
            row = self.study.methods[method]
            if row.retrieves_images:
                found += self._retrieve(method, self.study.retrieved[method])
            if row.learns:
                found += self._personalise(method, self.study.personalised[method])
            if row.generates_images:
                found.append(self._generate(method))
            if row.adds_images:
                index = [[self.plan.pool(method)]] if self.study.leakage.action == "drop" else []
                sets = [self.plan.resample(method, run) for run in self.plan.runs] + (
                    [] if index else [self.plan.pool(method)]
                )
                found.append(self._step("resample", method, [*index, sets]))
            found.append(self._classify(method))
        return sorted(found, key=lambda step: STAGES.index(step.stage))

    def _fetch(self) -> Iterator[Step]:
        sizes = {
            "diffusion": self._assume("diffusion_bytes"),
            "clip": self._assume("clip_bytes"),
            "safety_checker": 1.2e9,
        }
        for layout, hub in self.plan.hub_models.items():
            known = [file.size for file in known_models().get(hub.repository, ("", {}))[1].values()]
            size = float(sum(file or 0 for file in known)) if known and None not in known else sizes[layout]
            yield self._step("fetch", hub.repository, [[hub.marker]], disk_bytes=size, download_bytes=size)
        if self.plan.cluster_files and self.plan.feature_files:
            yield self._step(
                "fetch", "Inception-v3", [self.plan.feature_files], disk_bytes=1.09e8, download_bytes=1.09e8
            )
        if self.plan.aesthetics_files:
            yield self._step(
                "fetch",
                "aesthetics predictor",
                [self.plan.aesthetics_files],
                disk_bytes=3.7e6,
                download_bytes=3.7e6,
            )
        if self.plan.fashion_mnist_files:
            yield self._step(
                "fetch",
                "Fashion-MNIST",
                [self.plan.fashion_mnist_files],
                disk_bytes=3.1e7,
                download_bytes=3.1e7,
            )

    def _prepare(self) -> Iterator[Step]:
        plan = self.plan
        models = [[plan.path("models/diffusion.json")], [plan.path("models/clip.json")]]
        prompts = [[plan.path(f"prompts/{method}.parquet")] for method in plan.study.pooled]
        jobs = [[plan.path("classes.parquet")], list(plan.splits.values()), *models, *prompts]
        if plan.cluster_files:
            jobs.append(list(plan.cluster_files.values()))
        if plan.corpus_parts:
            jobs.append(plan.corpus_parts)
        yield self._step("prepare", "all methods", jobs)
        if plan.searched:
            corpus = self.study.miniature
            images = corpus.images + corpus.distractors if corpus else 0
            chain = [
                [plan.embeddings_folder],
                *([[path] for path in plan.searched if path != plan.embeddings_folder]),
            ]
            yield self._step(
                "prepare", "corpus", chain, images=images, gpu_hours=images / self._rate("embed") / 3600
            )

    def _retrieve(self, method: str, row: RetrieveMethod) -> Iterator[Step]:
        plan, classes = self.plan, self.sizes.classes
        wanted = wanted_images(row, round(self.sizes.per_class))
        largest = prefix_sizes(row, wanted)[-1]
        yield self._step(
            "search",
            method,
            [[plan.neighbours(method)]],
            disk_bytes=float(classes * largest * NEIGHBOUR_BYTES),
        )
        web = self.study.corpus is not None and self.study.corpus.kind in (
            "embeddings",
            "clip_retrieval_index",
            "clip_retrieval_server",
        )
        links = (
            classes * min(wanted / self._assume("link_share"), largest * self._assume("filtered_share"))
            if web
            else 0.0
        )
        downloaded = links * self._assume("link_share") * self._assume("link_bytes")
        kept = downloaded if self.study.retrieval.download.keep else 0.0
        jobs = [
            [
                path
                for class_id in block.members
                for path in (plan.shard(method, class_id, "0"), plan.ledger(method, class_id))
            ]
            for block in plan.class_blocks
        ]
        images = classes * wanted
        yield self._step(
            "retrieve",
            method,
            jobs,
            images=images,
            disk_bytes=images * self._image_bytes + kept,
            download_bytes=downloaded,
        )

    def _personalise(self, method: str, row: PersonaliseMethod) -> Iterator[Step]:
        plan, factors = self.plan, row.lr_grid
        jobs = [
            [
                *(plan.vectors_folder(method, factor, folder) for folder in block.folders),
                *plan.trained_unets(method, factor).values(),
            ]
            for factor in factors
            for block in plan.finetune_blocks(method)
        ]
        choice = [
            plan.lr(method),
            plan.finetune_history(method),
            *plan.embeddings(method).values(),
            *plan.unets(method).values(),
        ]
        epochs = min(self.study.finetune.max_epochs, self._assume("finetune_epochs"))
        seen = (
            epochs
            * len(factors)
            * (
                self.sizes.train
                + FORWARD_SHARE * self.sizes.validation * self.study.finetune.validation_draws
            )
        )
        hours = (
            seen * self._area / self._rate("finetune_unet" if row.train_unet else "finetune_vectors") / 3600
            if self.knows_diffusion
            else None
        )
        vectors = (
            self.sizes.classes
            * row.clusters
            * VECTOR_BYTES[row.learn]
            * len(row.candidates)
            * (len(factors) + 1)
        )
        unets = (
            self._assume("unet_bytes") * len(factors) * len(row.candidates)
            if row.train_unet and self.knows_diffusion
            else 0.0
        )
        yield self._step(
            "finetune",
            method,
            jobs,
            [choice],
            images=self.sizes.train,
            gpu_hours=hours,
            disk_bytes=vectors + unets,
        )

        shards = [
            [
                plan.candidate_folder(method, name, folder)
                for name in row.candidate_names
                for folder in block.folders
            ]
            for block in plan.candidate_blocks
        ]
        images = len(row.candidates) * self.pool_images(method, ["0"])
        kept = images if self.study.execution.keep_candidates else self.pool_images(method, ["0"])
        made = self._step(
            "candidates",
            method,
            shards,
            images=images,
            gpu_hours=self._generate_hours(method, images),
            disk_bytes=kept * self._image_bytes,
        )
        deleted = not self.study.execution.keep_candidates and self._disk.count([plan.selected(method)])
        yield replace(made, jobs_done=made.jobs, files_done=made.files) if deleted else made

        trained = [path for name in row.candidate_names for path in plan.run_files(method, "0", name)]
        pools = [
            path
            for name in row.candidate_names
            for path in (plan.pool(method, name), plan.resample(method, "0", name))
        ]
        training = self.real_images(method) + self.added_images(method)
        yield self._step(
            "select",
            method,
            [trained],
            [pools, [plan.selected(method)]],
            images=training,
            gpu_hours=self._classify_hours(training, len(row.candidates)),
            disk_bytes=len(row.candidates) * self._classifier_bytes,
        )

    def _generate(self, method: str) -> Step:
        """The pool, and what rows that draw from it need besides; part 0 of a fine-tuned method is its winner's."""
        plan = self.plan
        blocks = plan.generate_blocks(method)
        jobs = [
            [plan.shard(method, class_id, part) for class_id in block.members for part in block.parts]
            for block in blocks
        ]
        parts = [str(part) for part in range(self.study.parts_made(method))]
        images = self.pool_images(method, parts) - (
            self.pool_images(method, ["0"]) if method in plan.study.personalised else 0
        )
        return self._step(
            "generate",
            method,
            jobs,
            images=images,
            gpu_hours=self._generate_hours(method, images),
            disk_bytes=images * self._image_bytes,
        )

    def _classify(self, method: str) -> Step:
        """One classifier per run; run 0 of a fine-tuned method is its winner's."""
        plan = self.plan
        jobs = [
            [path for run in block.members for path in plan.run_files(method, run)]
            for block in plan.run_blocks
        ]
        training = self.real_images(method) + self.added_images(method)
        runs = len(plan.runs) - (method in plan.study.personalised)
        hours = self._classify_hours(training, runs)
        return self._step(
            "classify",
            method,
            jobs,
            images=training,
            gpu_hours=hours,
            disk_bytes=runs * self._classifier_bytes,
        )

    def _report(self) -> Iterator[Step]:
        plan = self.plan
        if plan.guarded:
            pools = sum(self._pool_size(method) for method in plan.guarded)
            images = pools + self.sizes.validation + self.sizes.test
            files = [
                *plan.embedded_splits.values(),
                *(path for method in plan.guarded for path in (plan.leaks(method), plan.leak_counts(method))),
            ]
            yield self._step(
                "report",
                "near-duplicates",
                [files],
                [list(plan.leakage_table.values())],
                images=images,
                gpu_hours=images / self._rate("embed") / 3600,
            )
        yield self._step(
            "report",
            "tables and figures",
            [*plan.report_jobs, [plan.path("config.yaml")], [plan.path("provenance.json")]],
        )

    def _pool_size(self, method: str) -> int:
        retrieved = self.study.retrieved.get(self.study.pool_row(method))
        if retrieved is not None:
            return self.sizes.classes * wanted_images(retrieved, round(self.sizes.per_class))
        return self.pool_images(method, self.plan.parts(method))


def total(steps: Iterable[Step], stage: str = "total", method: str = "") -> Step:
    """The sum of some steps; hours that are not known are left out."""
    summed: Counter[str] = Counter()
    unknown = True
    steps = list(steps)
    for step in steps:
        for name in ("jobs", "jobs_done", "files", "files_done", "images"):
            summed[name] += getattr(step, name)
        unknown = unknown and step.gpu_hours is None
    hours = None if unknown and steps else sum(step.gpu_hours or 0.0 for step in steps)
    disk, download = (
        math.fsum(getattr(step, name) for step in steps) for name in ("disk_bytes", "download_bytes")
    )
    return Step(
        stage,
        method,
        **summed,
        gpu_hours=hours,
        disk_bytes=disk,
        download_bytes=download,
        measured=any(step.measured for step in steps),
    )


def hours_left(steps: Iterable[Step]) -> float:
    """GPU-hours of what is not there, as far as they are known."""
    return math.fsum(step.gpu_hours_left or 0.0 for step in steps)


def estimate_study(study: Study, device: str | None = None, throughput: str | Path | None = None) -> Estimate:
    """The estimate of a study in the working directory.

    Raises
    ------
    UserError
        No such device or table, or class ids that are not known without the data.
    """
    figures = read_throughput(device, throughput)
    class_ids = tuple(
        info.class_id for info in open_source(study.dataset, study.seed, study.corpus).classes()
    )
    return Estimate(Plan(study, class_ids), figures)
