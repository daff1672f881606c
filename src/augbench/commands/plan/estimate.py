"""Estimate a study's cost before and during a run: jobs, images, GPU-hours, disk and downloads.

Rates come from a table of figures per device (``resources/throughput.yaml``, overridden by measured
figures). As soon as jobs of a stage are finished, their benchmark files replace the table's rate. Nothing
slow is imported, and no data set is needed: published sizes stand in for unknown ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from augbench.commands.plan.steps import STAGES, Step, total
from augbench.commands.plan.throughput import Throughput, read_throughput
from augbench.commands.plan.work import FORWARD_SHARE, Work
from augbench.config.draws import drawn_name
from augbench.config.hub import known_model, known_models
from augbench.config.methods import PersonaliseMethod, RetrieveMethod
from augbench.config.study import Study
from augbench.data.sources import open_source
from augbench.errors import UserError
from augbench.plan.jobs import job_file, read_seconds
from augbench.plan.needs import learned_bytes
from augbench.plan.paths import Plan
from augbench.retrieval.hunt import prefix_sizes, sought_images, wanted_images
from augbench.runtime.gpus import visible_gpus

VECTOR, METADATA_BYTES = 768, 300  # of a neighbour: numbers in float16 by ViT-L/14, and its metadata
WEB_CORPORA = ("embeddings", "clip_retrieval_index", "clip_retrieval_server")


class _Disk:
    """Existence of targets on the disk. Each folder is looked up once, so missing folders cost little."""

    def __init__(self) -> None:
        self._folders: dict[str, bool] = {"": True}

    def _has_folder(self, folder: str) -> bool:
        if folder not in self._folders:
            parent = os.path.dirname(folder)
            self._folders[folder] = (parent == folder or self._has_folder(parent)) and os.path.isdir(folder)
        return self._folders[folder]

    def count(self, paths: Iterable[str]) -> int:
        """Number of ``paths`` that exist."""
        return sum(self._has_folder(os.path.dirname(path)) and os.path.exists(path) for path in paths)


class Estimate(Work):
    """The steps of a study; parameters as in :class:`~augbench.commands.plan.work.Work`.

    ``gpus`` is the number of GPUs that compute at the same time; ``on_cpu``: a run here would use none.
    """

    def __init__(self, plan: Plan, throughput: Throughput, gpus: int = 1, on_cpu: bool = False) -> None:
        super().__init__(plan, throughput)
        self.gpus, self.on_cpu, self._disk = gpus, on_cpu, _Disk()

    def _step(
        self,
        stage: str,
        method: str,
        jobs: Sequence[Sequence[str]],
        others: Sequence[Sequence[str]] = (),
        **figures: Any,
    ) -> Step:
        """Make a step of GPU jobs (``jobs``) and jobs without a GPU (``others``), each given by its files."""
        counts = [(len(outputs), self._disk.count(outputs)) for outputs in (*jobs, *others)]
        done = sum(1 for number, found in counts if number == found)
        step = Step(
            stage=stage,
            method=method,
            jobs=len(counts),
            jobs_done=done,
            files=sum(n for n, _ in counts),
            files_done=sum(found for _, found in counts),
            **figures,
        )
        if step.gpu_hours:
            step = replace(step, gpu_hours=step.gpu_hours + len(jobs) * self.rate("start") / 3600)
        if step.gpu_hours != 0.0 and (seconds := self._job_seconds(stage, method)):
            step = replace(step, gpu_hours=len(jobs) * fmean(seconds) / 3600, measured=True)
        return step

    def on_gpu(self, steps: Iterable[Step]) -> list[Step]:
        """``steps`` without the hours that a CPU measured, for sums of GPU-hours."""
        if not self.on_cpu:
            return list(steps)
        return [replace(step, gpu_hours=0.0, measured=False) if step.measured else step for step in steps]

    @cached_property
    def _benchmarks(self) -> dict[str, list[str]]:
        """Snakemake's benchmark files by folder; each finished job has one."""
        root = self.plan.path("benchmarks")
        found: dict[str, list[str]] = {}
        for folder, _, names in os.walk(root):
            found[os.path.relpath(folder, root)] = [name for name in names if name.endswith(".tsv")]
        return found

    def _job_seconds(self, stage: str, method: str) -> list[float]:
        """Read the seconds of a method's finished jobs of a stage. A job occupies its GPU all that time."""
        searching = "search_block" if method in self.plan.searched_in_blocks else "search"
        folder = {"select": "classify_candidates", "search": searching}.get(stage, stage)
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
        found = [
            *self._fetch(),
            *self._prepare(),
            *self._score_pools(),
            *self._score_further(),
            *self._report(),
        ]
        for method in self.plan.methods:
            row = self.study.methods[method]
            if row.retrieves_images:
                found += self._retrieve(method, self.study.retrieved[method])
            if row.learns:
                found += self._personalise(method, self.study.personalised[method])
            if row.generates_images:
                found.append(self._generate(method))
            if method in self.study.augmented:
                index = [[self.plan.pool(method)]] if self.study.leakage.action == "drop" else []
                sets = [self.plan.resample(method, run) for run in self.plan.runs]
                if not index:
                    sets.append(self.plan.pool(method))
                found.append(self._step("resample", method, [*index, sets]))
            if method in self.study.choosing:
                files = [[self.plan.selected(method)], self.plan.set_files(method)]
                found.append(self._step("select", method, [], files))
            else:
                found.append(self._classify(method))
        found.sort(key=lambda step: STAGES.index(step.stage))
        return found if self.study.dataset.draws == 1 else self._folded(found)

    def _folded(self, steps: Iterable[Step]) -> list[Step]:
        """Sum the steps of a row over the draws of the training images."""
        rows: dict[tuple[str, str], list[Step]] = {}
        for step in steps:
            rows.setdefault((step.stage, self.study.row_and_draw(step.method)[0]), []).append(step)
        return [
            replace(total(group, stage, method), training_steps=group[0].training_steps)
            for (stage, method), group in rows.items()
        ]

    def _fetch(self) -> Iterator[Step]:
        sizes = {
            "diffusion": self.assume("diffusion_bytes"),
            "clip": self.clip_bytes,
            "safety_checker": 1.2e9,
            "classifier": self.classifier_bytes,
        }
        for wanted in self.plan.hub_models.values():
            hub, layout = wanted.hub, wanted.layout
            known = [file.size for file in known_models().get(hub.repository, ("", {}))[1].values()]
            assumed = known_model(hub.repository).get("gigabytes", sizes[layout] / 1e9) * 1e9
            size = float(sum(file or 0 for file in known)) if known and None not in known else assumed
            yield self._fetched(hub.repository, [hub.marker], size)
        if self.plan.feature_files:
            yield self._fetched("Inception-v3", self.plan.feature_files, 1.09e8)
        if self.plan.aesthetics_files:
            yield self._fetched("aesthetics predictor", self.plan.aesthetics_files, 3.7e6)
        if self.plan.fashion_mnist_files:
            yield self._fetched("Fashion-MNIST", self.plan.fashion_mnist_files, 3.1e7)

        if files := list(self.plan.fetched_corpus):
            here = [os.path.getsize(path) for path in files if os.path.isfile(path)]
            size = sum(here) + (len(files) - len(here)) * self.assume("corpus_file_bytes")
            yield self._step(
                "fetch", "corpus", [[path] for path in files], disk_bytes=size, download_bytes=size
            )

    def _fetched(self, name: str, files: Sequence[str], size: float) -> Step:
        return self._step("fetch", name, [files], disk_bytes=size, download_bytes=size)

    def _prepare(self) -> Iterator[Step]:
        plan = self.plan
        models = [[path] for path in plan.model_fingerprints]
        models += [[plan.classifier]] if plan.classifier_weights else []
        prompts = [[plan.prompts(method)] for method in plan.study.pooled]
        jobs = [[plan.classes], list(plan.splits.values()), *models, *prompts]
        if plan.cluster_counts:
            jobs += [plan.cluster_files(draw) for draw in range(self.study.dataset.draws)]
        jobs += [plan.clusters_of(method) for method in plan.clustering_apart]
        jobs += [files for method in plan.study.personalised if (files := plan.learned_images(method))]
        if plan.corpus_parts:
            jobs.append(plan.corpus_parts)
        yield self._step("prepare", "all methods", jobs)
        if plan.embedded_draws:
            images = round(self.sizes.train) * len(plan.embedded_draws)
            embedded = [[plan.embedded_train(draw)] for draw in plan.embedded_draws]
            hours = self.embed_hours(images)
            yield self._step("prepare", "training images", embedded, images=images, gpu_hours=hours)
        if plan.searched:
            corpus = self.study.miniature
            images = corpus.images + corpus.distractors if corpus else 0
            others = [[path] for path in plan.searched if path != plan.embeddings_folder]
            chain = [[plan.embeddings_folder], *others]
            hours = self.embed_hours(images)
            blocks = [[plan.embedded_block(block)] for block in plan.embed_blocks]
            step = self._step("prepare", "corpus", [*blocks, *chain], images=images, gpu_hours=hours)
            yield self._done(step, [path for files in chain for path in files]) if blocks else step

    def _retrieve(self, method: str, row: RetrieveMethod) -> Iterator[Step]:
        plan, wanted = self.plan, wanted_images(row, self.class_sizes)
        sought = {class_id: sought_images(row, images) for class_id, images in wanted.items()}
        largest = {class_id: prefix_sizes(row, images)[-1] for class_id, images in sought.items()}
        numbers = VECTOR if self.clip_config is None else self.clip_config["embed_dim"]
        neighbour_bytes = float(sum(largest.values()) * (2 * numbers + METADATA_BYTES))
        yield self._search(method, neighbour_bytes)
        links = 0.0
        if self.study.corpus is not None and self.study.corpus.kind in WEB_CORPORA:
            filtered, share = self.assume("filtered_share"), self.assume("link_share")
            links = sum(min(sought[class_id] / share, k * filtered) for class_id, k in largest.items())
        downloaded = links * self.assume("link_share") * self.assume("link_bytes")
        kept = downloaded if self.study.retrieval.download.keep else 0.0
        jobs = [
            [
                path
                for class_id in block.members
                for path in (plan.shard(method, class_id, "0"), plan.ledger(method, class_id))
            ]
            for block in plan.class_blocks
        ]
        images = sum(wanted.values())
        yield self._step(
            "retrieve",
            method,
            jobs,
            images=images,
            disk_bytes=images * self.image_bytes + kept,
            download_bytes=downloaded,
        )

    def _search(self, method: str, neighbour_bytes: float) -> Step:
        """A row's search by one job, or by several that one more merges."""
        plan, own = self.plan, self.study.retrieved[method].manifest is None
        hours = self.search_hours(method) if own else 0.0
        neighbours, files = [plan.neighbours(method)], plan.search_files(method)
        if not files:
            return self._step("search", method, [neighbours], gpu_hours=hours, disk_bytes=neighbour_bytes)
        blocks = [[path] for path in files["searched"]]
        shared = self._step(
            "search",
            method,
            blocks,
            others=[files["queries"], neighbours],
            gpu_hours=hours,
            disk_bytes=neighbour_bytes,
        )
        return self._done(shared, neighbours)

    def _done(self, step: Step, targets: Sequence[str]) -> Step:
        """The step, whose other files are deleted once ``targets`` are made, as done if they all exist."""
        if self._disk.count(targets) < len(targets):
            return step
        return replace(step, jobs_done=step.jobs, files_done=step.files)

    def _personalise(self, method: str, row: PersonaliseMethod) -> Iterator[Step]:
        plan, factors = self.plan, row.lr_grid
        jobs = [
            [
                *(plan.vectors_folder(method, factor, folder) for folder in block.folders),
                *plan.trained_unets(method, factor).values(),
                *plan.trained_adapters(method, factor).values(),
            ]
            for factor in factors
            for block in plan.finetune_blocks(method)
        ]
        choice = [plan.lr(method), plan.finetune_history(method), *plan.learned_files(method)]
        epochs = min(row.last_epoch(self.study.finetune.max_epochs), self.assume("finetune_epochs"))
        evaluated = FORWARD_SHARE * self.sizes.validation * self.study.finetune.validation_draws
        images = self.learned_images(method)
        seen = epochs * len(factors) * (images + evaluated)
        hours: float | None = None
        unets, latents = 0.0, self.latents(method)
        if self.knows_diffusion and row.generator is None:
            rate = self.rate("finetune_unet" if row.train_unet else "finetune_vectors")
            hours = seen * self.area / rate / 3600 + self.encode_hours(latents)
        if row.train_unet:
            unets = self.unet_bytes(method) * len(factors) * len(row.candidates)
        model = self.study.generator_of(method)
        vectors = learned_bytes(row, self.sizes.classes, model) * len(row.candidates) * (len(factors) + 1)
        yield self._step(
            stage="finetune",
            method=method,
            jobs=jobs,
            others=[choice],
            images=images,
            gpu_hours=hours,
            disk_bytes=vectors + unets + self.latents_bytes(latents),
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
            gpu_hours=self.generate_hours(method, images),
            disk_bytes=kept * self.image_bytes,
        )
        kept_apart = self.study.execution.keep_candidates
        yield made if kept_apart else self._done(made, [plan.selected(method)])

        trained = [path for name in row.candidate_names for path in plan.run_files(method, "0", name)]
        pools = [
            path
            for name in row.candidate_names
            for path in (plan.pool(method, name), plan.resample(method, "0", name))
        ]
        training = self.real_images(method) + self.added_images(method)
        yield self._step(
            stage="select",
            method=method,
            jobs=[trained],
            others=[pools, [plan.selected(method)]],
            images=training,
            training_steps=self.training_steps(training),
            gpu_hours=self.classify_hours(training, len(row.candidates)),
            disk_bytes=len(row.candidates) * self.classifier_bytes,
        )

    def _generate(self, method: str) -> Step:
        """Generation of the pool, including images for methods that draw from it.

        Part 0 of a fine-tuned method is not generated again: it comes from the selected candidate.
        """
        plan = self.plan
        blocks = plan.generate_blocks(method)
        jobs = [
            list(
                dict.fromkeys(path for listed, shards in block.targets.items() for path in (listed, *shards))
            )
            for block in blocks
        ]
        parts = [str(part) for part in range(self.study.parts_made(method))]
        images = self.pool_images(method, parts)
        if method in plan.study.personalised:
            images -= self.pool_images(method, ["0"])
        return self._step(
            "generate",
            method,
            jobs,
            images=images,
            gpu_hours=self.generate_hours(method, images),
            disk_bytes=images * self.made_bytes(method),
        )

    def _score_pools(self) -> Iterator[Step]:
        """Scores of the pools that rows filter; a classifier's are counted at CLIP's rate."""
        for pool, scorer in self.plan.scorers:
            shards = self.plan.scored_shards(pool, scorer)
            images = (
                self.pool_size(pool)
                if pool in self.study.retrieved
                else self.pool_images(pool, sorted({Path(path).stem for path in shards}))
            )
            yield self._step(
                stage="filter",
                method=pool,
                jobs=[[self.plan.scores(pool, scorer)]],
                images=images,
                gpu_hours=self.embed_hours(images),
            )

    def _classify(self, method: str) -> Step:
        """Training of one classifier per run.

        Run 0 of a fine-tuned method is not trained again: it comes from the selected candidate.
        """
        plan = self.plan
        jobs = [
            [path for run in block.members for path in plan.run_files(method, run)]
            for block in plan.run_blocks
        ]
        training = self.real_images(method) + self.added_images(method)
        runs = len(plan.runs) - (method in plan.study.personalised)
        hours = self.classify_hours(self.pass_images(method), runs)
        return self._step(
            "classify",
            method,
            jobs,
            images=training,
            training_steps=self.training_steps(self.pass_images(method)),
            gpu_hours=hours,
            disk_bytes=runs * self.classifier_bytes,
        )

    def _score_further(self) -> Iterator[Step]:
        """Scoring of all classifiers on each further test set, and the search for its near-duplicates."""
        plan = self.plan.folded
        for test in plan.further_tests:
            images, classifiers = self.further_images(test), len(plan.all_runs)
            hours = self.score_hours(classifiers * images)
            guard = [[plan.further_embeddings(test), *plan.further_leaks(test).values()]] * bool(plan.guarded)
            embedded = images if guard else 0  # added images are embedded once, for the ordinary test
            yield self._step(
                stage="score",
                method=test,
                jobs=[plan.further_predictions(test), *guard],
                others=[[plan.further_split(test)]] if plan.has_own_images(test) else [],
                images=images,
                gpu_hours=None
                if hours is None or (embedding := self.embed_hours(embedded)) is None
                else hours + embedding,
            )

    def _report(self) -> Iterator[Step]:
        plan, folded = self.plan, self.plan.folded
        if plan.guarded:
            pools = sum(self.pool_size(method) for method in plan.guarded_once)
            images = pools + self.sizes.train + self.sizes.validation + self.sizes.test
            guards = [
                [path for method in level for path in (plan.leaks(method), plan.leak_counts(method))]
                for level in plan.guard_levels
            ]
            guards[0] += plan.embedded_splits.values()
            inherited = [plan.inherited(method) for method in plan.inheriting]
            repeats = [[plan.embedded_split("train"), *map(plan.repeats, folded.guarded)]]
            if plan.further_guarded:
                embedded = [plan.embedded_split(drawn_name("train", draw)) for draw in plan.further_guarded]
                names = [name for names in plan.further_guarded.values() for name in names]
                repeats.append([*embedded, *map(plan.repeats, names)])
            blocks = [[path] for path in plan.embedded_in_blocks(range(len(guards)))]
            step = self._step(
                stage="report",
                method="near-duplicates",
                jobs=[*blocks, *guards, *repeats],
                others=[list(folded.leakage_table.values()), *([inherited] if inherited else [])],
                images=images,
                gpu_hours=self.embed_hours(images),
            )
            yield self._done(step, list(folded.leakage_table.values())) if blocks else step
        yield self._step(
            "report", "tables and figures", [*folded.report_jobs, [plan.config], [plan.provenance]]
        )


def estimate_study(
    study: Study,
    device: str | None = None,
    throughput: str | Path | None = None,
    gpus: int | None = None,
) -> Estimate:
    """Estimate the cost of a study in the working directory.

    Parameters
    ----------
    study : Study
        The study.
    device, throughput : optional
        As in :func:`~augbench.commands.plan.throughput.read_throughput`.
    gpus : int, optional
        Number of GPUs. Default: those of this machine, if no device is named, or else 1.

    Raises
    ------
    UserError
        There is no such device or table, or the class ids are unknown without the data.
    """
    here = [] if device else visible_gpus()
    figures = read_throughput(device, throughput, here[0].name if here else None)
    class_ids = tuple(
        info.class_id for info in open_source(study.dataset, study.seed, study.corpus).classes()
    )
    on_cpu = not device and (not here or study.execution.device == "cpu")
    return Estimate(Plan(study, class_ids).unfolded, figures, gpus or len(here) or 1, on_cpu)
