"""Files between a study's inputs and results: learned vectors, shards, training sets, classifiers, guard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from augbench.config.draws import drawn_name
from augbench.plan.inputs import InputPaths
from augbench.plan.jobs import Block, FolderBlock, ShardBlock, blocks, cut, numbers

CLASSES_PER_FOLDER = 5
PARTS_PER_LIST = 25  # of a class, in one list of shards and one job
# used in place of a candidate's name: the candidate that the study continues with
SELECTED = "selected"
RUN_FILES = ("result.json", "history.json", "predictions.parquet", "model.safetensors")


@dataclass(frozen=True)
class PoolPaths(InputPaths):
    """Paths of pools of added images, of their inputs, and of the files made from them.

    ``{method}``, ``{candidate}``, ``{class_id}``, ``{part}`` and ``{run}`` in patterns are Snakemake's
    wildcards.
    """

    def parts(self, method: str) -> list[str]:
        """Part numbers of the shards that a method's sets are drawn from; a retrieved pool has one part."""
        return [str(part) for part in range(self.study.parts_drawn(method))]

    def spans(self, method: str) -> list[range]:
        """Consecutive parts of a generated pool that the same rows draw from, in order.

        Long ones are cut, so that a job does not become too long.
        """
        drawing = [name for name, row in self.study.drawn.items() if method in row.pool_rows]
        ends = sorted({self.study.parts_drawn(name, method) for name in (method, *drawing)})
        return [
            range(first, min(first + PARTS_PER_LIST, end))
            for start, end in pairwise([0, *ends])
            for first in range(start, end, PARTS_PER_LIST)
        ]

    def span_targets(self, method: str, span: range, folders: Iterable[Block]) -> dict[str, tuple[str, ...]]:
        """Shards of some parts of a pool by the target that stands for them.

        The time that planning takes grows with the number of targets. A single part's shards are targets
        themselves. Several parts have one target per group of classes: the list of their shards.
        """
        if len(span) == 1:
            paths = [self.shard(method, name, str(span[0])) for folder in folders for name in folder.members]
            return {path: (path,) for path in paths}
        lists = self.path("shards", method, "lists", f"{span[0]}-{span[-1]}")
        return {
            f"{lists}/{folder.name}.json": tuple(
                self.shard(method, class_id, str(part)) for class_id in folder.members for part in span
            )
            for folder in folders
        }

    def generated_targets(self, method: str) -> dict[str, tuple[str, ...]]:
        """All shards that a method generates, by the target that stands for them."""
        return {
            path: shards
            for span in self.spans(method)
            for path, shards in self.span_targets(method, span, self.folders).items()
        }

    def pool_targets(self, pool: str, parts: int) -> list[str]:
        """Targets that stand for the shards of the first ``parts`` parts of a pool."""
        if pool in self.study.retrieved:
            return [self.shard(pool, class_id, "0") for class_id in self.made_ids]
        spans = [span for span in self.spans(pool) if span.start < parts]
        return [path for span in spans for path in self.span_targets(pool, span, self.folders)]

    def generate_blocks(self, method: str) -> list[ShardBlock]:
        """Shards of each generate job of a method.

        A job makes the method's own pool for a block of classes, or further parts that only rows drawing
        from the pool need, of fewer classes if these are more parts.
        """
        return [block for name, block in self.generate_jobs if name == method]

    def _generate_blocks(self, method: str) -> Iterator[ShardBlock]:
        own, spans = len(self.parts(method)), self.spans(method)
        yield from self._span_blocks(method, [span for span in spans if span.start < own], own)
        for span in spans:
            if span.start >= own:
                yield from self._span_blocks(method, [span], own)

    def _span_blocks(self, method: str, spans: Sequence[range], own: int) -> Iterator[ShardBlock]:
        parts = [part for span in spans for part in span]
        size = self.study.execution.classes_per_job
        cuts: list[tuple[str, tuple[Block, ...]]]
        if len(parts) == 1:
            cuts = [(block.name, (block,)) for block in self.class_blocks]
        else:
            cuts = [(block.name, block.folders) for block in self._folder_blocks(size * own // len(parts))]
        for name, folders in cuts:
            yield ShardBlock(
                name=f"{name}_part{parts[0]}" if parts[0] else name,
                members=tuple(class_id for folder in folders for class_id in folder.members),
                parts=tuple(map(str, parts)),
                targets={
                    path: shards
                    for span in spans
                    for path, shards in self.span_targets(method, span, folders).items()
                },
            )

    @cached_property
    def generate_jobs(self) -> list[tuple[str, ShardBlock]]:
        """Method and shards of every generate job."""
        return [(method, block) for method in self.study.generated for block in self._generate_blocks(method)]

    @cached_property
    def retrieve_jobs(self) -> list[tuple[str, Block]]:
        """Method and classes of every retrieve job."""
        return [(method, block) for method in self.study.retrieved for block in self.class_blocks]

    @cached_property
    def embedded_draws(self) -> list[int]:
        """Draws of the training images whose embeddings retrieval needs."""
        rows = self.study.retrieved.items()
        return sorted({self.draw_of(name) for name, row in rows if row.depends_on_training_images})

    def embedded_train(self, draw: int) -> str:
        """Path of the CLIP embeddings of a draw of the training images."""
        return self.path("retrieval/train", f"{drawn_name('train', draw)}.npy")

    def compared_with(self, method: str) -> list[str]:
        """Embeddings of the training images that a row asks with, or compares its images with."""
        row = self.study.retrieved.get(method)
        needed = row is not None and row.depends_on_training_images
        return [self.embedded_train(self.draw_of(method))] if needed else []

    def neighbours(self, method: str = "{method}") -> str:
        """Path of the neighbours of every class's queries."""
        return self.path("retrieval", method, "neighbours.parquet")

    @cached_property
    def search_blocks(self) -> list[str]:
        """Names of the jobs that share the search of a row; none if one job searches the whole corpus."""
        return numbers(self.study.execution.search_jobs) if self.study.searches_exactly else []

    @cached_property
    def searched_in_blocks(self) -> list[str]:
        """Rows whose search several jobs share."""
        searching = (name for name, row in self.study.retrieved.items() if row.manifest is None)
        return list(searching) if self.search_blocks else []

    def queries(self, method: str = "{method}") -> str:
        """Path of a row's queries, while several jobs share its search."""
        return self.path("retrieval", method, "queries.parquet")

    def searched_block(self, method: str = "{method}", block: str = "{block}") -> str:
        """Path of the list of files that one of these jobs has searched."""
        return self.path("retrieval", method, "searched", f"{block}.json")

    def search_files(self, method: str) -> dict[str, list[str]]:
        """Inputs of the job that merges a row's search, by kind; none if it searches by itself."""
        if method not in self.searched_in_blocks:
            return {}
        blocks_of = [self.searched_block(method, block) for block in self.search_blocks]
        return {"queries": [self.queries(method)], "searched": blocks_of}

    def manifest(self, method: str) -> str:
        """Path of the manifest of images that a retrieval method kept."""
        return self.path("retrieval", method, "manifest.parquet")

    def replayed(self, method: str) -> list[str]:
        """Manifest whose images are fetched without a search, if the method names one."""
        row = self.study.retrieved.get(method)
        return [row.manifest] if row is not None and row.manifest else []

    @cached_property
    def excluded(self) -> list[str]:
        """File with the classes that are left out, if there can be any."""
        exclude = self.study.retrieval.exclude
        wanted = exclude != "none" and (isinstance(exclude, tuple) or bool(self.study.retrieved))
        return [self.path("retrieval/excluded.json")] if wanted else []

    def excluded_from_learning(self, method: str) -> list[str]:
        """File with classes that do not train what a row's classes share, if the config leaves any out."""
        finetune, row = self.study.finetune, self.study.personalised[method]
        without = finetune.excluded_classes == "leave_out" or not row.learns_from_training_images
        return (
            self.excluded if row.shares_weights and without and self.study.retrieval.exclude == "auto" else []
        )

    @cached_property
    def retrieval_summary(self) -> dict[str, str]:
        """Results of retrieval: a manifest per method, the yield, and the classes that are left out."""
        if not self.study.retrieved and not self.excluded:
            return {}
        manifests = {f"manifest_{method}": self.manifest(method) for method in self.study.retrieved}
        return {
            **manifests,
            "fates": self.path("retrieval/yield.csv"),
            "excluded": self.path("retrieval/excluded.json"),
        }

    def ledgers(self, method: str) -> list[str]:
        """Paths of the ledgers of all classes of a retrieval method."""
        return [self.ledger(method, class_id) for class_id in self.made_ids]

    @cached_property
    def image_lists(self) -> list[str]:
        """Lists of images that may be downloaded, or must not be used."""
        retrieval = self.study.retrieval
        return [path for path in (retrieval.safe_list, retrieval.takedown) if path is not None]

    @cached_property
    def aesthetics_files(self) -> list[str]:
        """Weights of the aesthetics predictor, if a method needs scores."""
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
        """Path of the shard with one class's images of one part."""
        return self.path("shards", method, candidate, class_id, f"{part}.parquet")

    def shards(self, method: str) -> list[str]:
        """Paths of all shards that a method's training sets are drawn from."""
        return [
            self.shard(pool, class_id, str(part))
            for pool in self.study.pools_of(method)
            for class_id in self.made_ids
            for part in range(self.study.parts_drawn(method, pool))
        ]

    @cached_property
    def scorers(self) -> list[tuple[str, str | None]]:
        """Pools that filters read scores of, each with the row whose classifier scores; None for CLIP."""
        pairs = [
            (pool, self.study.filtering_row(name))
            for name in self.study.filters
            for pool in self.study.pools_of(name)
        ]
        return list(dict.fromkeys(pairs))

    def scored_shards(self, pool: str, scorer: str | None) -> list[str]:
        """Shards of a pool that rows with this filter draw from."""
        return [
            self.shard(pool, class_id, str(part))
            for class_id in self.made_ids
            for part in range(self.parts_scored(pool, scorer))
        ]

    def parts_scored(self, pool: str, scorer: str | None) -> int:
        """Number of parts of a pool that rows with this filter draw from."""
        filtered = [name for name in self.study.filters if self.study.filtering_row(name) == scorer]
        return max(
            self.study.parts_drawn(name, pool) for name in filtered if pool in self.study.pools_of(name)
        )

    @staticmethod
    def score_stage(scorer: str | None) -> str:
        """Name of the stage that scores pools, by CLIP or by the classifier of the row ``scorer``."""
        return "score" if scorer is None else f"score_by_{scorer}"

    def scores(self, pool: str, scorer: str | None) -> str:
        """Path of the scores of a pool's images, by CLIP or by the classifier of the row ``scorer``."""
        return self.path(
            "scores", *(("clip",) if scorer is None else ("classifier", scorer)), f"{pool}.parquet"
        )

    def scores_of(self, method: str) -> list[str]:
        """Scores that the filter of a row reads, one file per pool; none without a filter."""
        if method not in self.study.filters:
            return []
        scorer = self.study.filtering_row(method)
        return [self.scores(pool, scorer) for pool in self.study.pools_of(method)]

    def excluded_from_filter(self, method: str) -> list[str]:
        """File with the classes that are left out, which a row's filter leaves as they are."""
        return self.excluded if method in self.study.filters else []

    def pool(self, method: str = "{method}", candidate: str = SELECTED) -> str:
        """Path of the index of a method's pool: one row per image."""
        return self.path("shards", method, candidate, "index.parquet")

    def started(self, method: str) -> list[str]:
        """List of the images that a row starts from, if it starts from another row's (:meth:`diagnosed`)."""
        row = self.study.methods[method].start_pool
        return [] if row is None else [self.diagnosed(row)]

    def started_leaks(self, method: str) -> list[str]:
        """Pairs whose added images a row does not start from, if near-duplicates are dropped.

        A mixture's set was drawn without them.
        """
        row = self.study.methods[method].start_pool
        return [] if row is None or self.study.methods[row].shares else self.leaks_to_drop(row)

    def ledger(self, method: str = "{method}", class_id: str = "{class_id}") -> str:
        """Path of a class's ledger, which has the fate of every candidate image."""
        return self.path("retrieval", method, "ledgers", f"{class_id}.parquet")

    def resample(self, method: str = "{method}", run: str = "{run}", candidate: str = SELECTED) -> str:
        """Path of the manifest of the added images of one training set."""
        return self.path("resamples", method, candidate, f"{run}.parquet")

    def run_files(self, method: str, run: str, candidate: str = SELECTED) -> list[str]:
        """Files of one trained classifier; a candidate's is never scored on the test split."""
        names = [name for name in RUN_FILES if candidate == SELECTED or name != "predictions.parquet"]
        return [self.path("classifiers", method, candidate, run, name) for name in names]

    def set_files(self, method: str) -> list[str]:
        """Index of a row's images, and the manifests and classifiers of all its training sets."""
        sets = [
            path for run in self.runs for path in (self.resample(method, run), *self.run_files(method, run))
        ]
        return [self.pool(method), *sets]

    def block_run_files(self, block: Block) -> list[str]:
        """Patterns of all files of a block of runs; ``{method}`` is a wildcard."""
        return [path for run in block.members for path in self.run_files("{method}", run)]

    @cached_property
    def cluster_counts(self) -> list[int]:
        """Numbers of clusters per class of training images that rows need, above 1."""
        rows = self.study.personalised.values()
        return sorted({row.clusters for row in rows if row.clusters > 1 and not row.edges})

    @cached_property
    def clustering_apart(self) -> list[str]:
        """Rows with clusters of their own, because they learn from other images than the training images."""
        return [name for name, row in self.study.personalised.items() if row.clusters > 1 and row.edges]

    def learned_images(self, method: str) -> list[str]:
        """Manifest of the images that a row learns from, if they are not the training images alone."""
        apart = bool(self.study.personalised[method].edges)
        return [self.path("finetune", method, "images.parquet")] if apart else []

    def learned_split(self, method: str) -> str:
        """Manifest of the images that a row learns from."""
        return next(iter(self.learned_images(method)), self.train_of(method))

    def cluster_files(self, draw: int = 0) -> list[str]:
        """Files with each training and validation image's cluster, one per number of clusters per class."""
        return [
            self.path("finetune/clusters", f"{drawn_name(f'k{count}', draw)}.parquet")
            for count in self.cluster_counts
        ]

    def clusters_of(self, method: str) -> list[str]:
        """File with the clusters that a row learns for, if it learns for more than one per class."""
        if method in self.clustering_apart:
            return [self.path("finetune/clusters", f"{method}.parquet")]
        count, files = self.study.personalised[method].clusters, self.cluster_files(self.draw_of(method))
        return [files[self.cluster_counts.index(count)]] if count > 1 else []

    @cached_property
    def feature_files(self) -> list[str]:
        """Published weights for the features that are clustered, if any are."""
        finetune, needed = self.study.finetune, self.cluster_counts or self.clustering_apart
        return [finetune.inception_weights] if needed and finetune.features == "inception_v3" else []

    @cached_property
    def folders(self) -> list[Block]:
        """Groups of classes whose files of one kind share a folder, which is one target.

        The time that planning takes grows with the number of targets. Folders do not depend on the size of
        blocks, nor on the classes that the config leaves out.
        """
        made = set(self.made_ids)
        folders = [
            Block(folder.name, tuple(class_id for class_id in folder.members if class_id in made))
            for folder in blocks(self.class_ids, CLASSES_PER_FOLDER)
        ]
        return [folder for folder in folders if folder.members]

    def folders_among(self, paths: Iterable[str]) -> list[Block]:
        """Select the groups of classes whose folders are among a job's targets."""
        names = {Path(path).name for path in paths}
        return [folder for folder in self.folders if folder.name in names]

    def _folder_blocks(self, classes_per_job: int) -> list[FolderBlock]:
        size = max(1, classes_per_job // CLASSES_PER_FOLDER)
        return [FolderBlock(name, part) for name, part in cut(self.folders, size)]

    @cached_property
    def candidate_blocks(self) -> list[FolderBlock]:
        """Blocks of classes, one for each job that generates candidates' images."""
        return self._folder_blocks(self.study.execution.classes_per_job)

    def finetune_blocks(self, method: str) -> list[FolderBlock]:
        """Blocks of classes, one for each fine-tuning job; a single block if classes share what trains."""
        if self.study.personalised[method].shares_weights:
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
        """Folder of the results of fine-tuning at one factor of the learning rates."""
        return self.path("finetune", method, f"lr{factor if isinstance(factor, str) else f'{factor:g}'}")

    def vectors_folder(self, method: str, factor: float | str, folder: Block) -> str:
        """Folder of the vectors that a group of classes learned at one factor of the learning rates."""
        return f"{self.lr_folder(method, factor)}/vectors/{folder.name}"

    def vectors(self, method: str, factor: float | str, folders: Iterable[Block]) -> list[str]:
        """Files with every candidate's vectors, one per class, at one factor of the learning rates."""
        return [
            f"{self.vectors_folder(method, factor, folder)}/{class_id}.safetensors"
            for folder in folders
            for class_id in folder.members
        ]

    def trained_unets(self, method: str, factor: float | str) -> dict[str, str]:
        """U-Net of every candidate at one factor of the learning rates; empty if it stays frozen."""
        row = self.study.personalised[method]
        return (
            {name: f"{self.lr_folder(method, factor)}/unet/{name}" for name in row.candidate_names}
            if row.train_unet
            else {}
        )

    def trained_adapters(self, method: str, factor: float | str) -> dict[str, str]:
        """Folder of the adapter that all classes share, by candidate; empty without one."""
        row = self.study.personalised[method]
        return (
            {name: f"{self.lr_folder(method, factor)}/adapter/{name}" for name in row.candidate_names}
            if row.lora is not None and row.shares_weights
            else {}
        )

    def embeddings(self, method: str) -> dict[str, str]:
        """Files with the vectors that all classes learned, by candidate; empty if classes learn none."""
        row = self.study.personalised[method]
        return (
            {
                name: self.path("finetune", method, name, "embeddings.safetensors")
                for name in row.candidate_names
            }
            if row.learns_vectors
            else {}
        )

    def unets(self, method: str) -> dict[str, str]:
        """U-Nets of the candidates at the chosen learning rate; empty if the U-Net stays frozen."""
        row = self.study.personalised[method]
        return (
            {name: self.path("finetune", method, name, "unet") for name in row.candidate_names}
            if row.train_unet
            else {}
        )

    def adapters(self, method: str) -> dict[str, str]:
        """Folders of the candidates' adapters at the chosen learning rate; empty if the row learns none.

        A folder has the adapter that all classes share, or one folder per class.
        """
        row = self.study.personalised[method]
        return (
            {}
            if row.lora is None
            else {name: self.path("finetune", method, name, "adapters") for name in row.candidate_names}
        )

    def learned_files(self, method: str) -> list[str]:
        """Files and folders of all that the candidates learned, at the chosen learning rate."""
        kinds = (self.embeddings(method), self.unets(method), self.adapters(method))
        return [path for files in kinds for path in files.values()]

    def finetune_history(self, method: str) -> str:
        """Path of the losses of every class, epoch and learning rate."""
        return self.path("finetune", method, "history.parquet")

    def lr(self, method: str) -> str:
        """Path of the chosen learning rate, with the losses it was chosen by."""
        return self.path("finetune", method, "lr.json")

    @property
    def searched_lrs(self) -> list[str]:
        """Chosen learning rates of the rows that search for theirs."""
        rows = self.study.personalised
        return [self.lr(name) for name, row in rows.items() if len(row.lr_grid) > 1]

    def candidate_folder(self, method: str, name: str, folder: Block) -> str:
        """Folder of a candidate's images of a group of classes."""
        return self.path("shards", method, name, folder.name)

    def candidate_shards(self, method: str, folders: Iterable[Block]) -> dict[str, list[str]]:
        """Shards of part 0 of every candidate, which selection compares."""
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
        """Path of the selected candidate, or the chosen row, and the validation accuracy of each."""
        return self.path("selected", f"{method}.json")

    @cached_property
    def guarded(self) -> list[str]:
        """Rows whose images are compared with validation and test images.

        Rows that draw from another row's pool are among them if near-duplicates are dropped, or if they mix,
        filter or are chosen among. The images of a row that chooses are the chosen row's. Where
        near-duplicates are reported, rows of further draws of the training images are among them if they have
        images of their own (:meth:`guarded_in`).
        """
        if self.study.leakage.action == "drop":
            return list(self.study.augmented)
        draws = range(self.study.dataset.draws)
        return [name for draw in draws for name in self.guarded_in(draw) if name in self.study.methods]

    def guarded_in(self, draw: int) -> list[str]:
        """Guarded rows of a draw of the training images; of further draws, those with own images."""
        rows, action = self.study.folded, self.study.leakage.action
        chosen = {name for row in rows.choosing.values() for name in row.among}
        reported = [name for name in rows.augmented if name in rows.examined or name in chosen]
        names = {"off": [], "report": reported, "drop": list(rows.augmented)}[action]
        return [drawn_name(name, draw) for name in names if not draw or rows.depends_on_training_images(name)]

    @cached_property
    def further_guarded(self) -> dict[int, list[str]]:
        """Guarded rows with images of their own in further draws of the training images, by draw."""
        found = {draw: self.guarded_in(draw) for draw in range(1, self.study.dataset.draws)}
        return {draw: names for draw, names in found.items() if names}

    @cached_property
    def guarded_once(self) -> list[str]:
        """Guarded rows of all draws of the training images, those that share a draw's pool left out."""
        return [*self.guarded_in(0), *(name for names in self.further_guarded.values() for name in names)]

    @cached_property
    def choices(self) -> list[str]:
        """Files with the rows that were chosen, in the order of the rows that choose."""
        return [self.selected(name) for name in self.study.choosing]

    @cached_property
    def guard_levels(self) -> list[list[str]]:
        """Guarded rows by the job that searches them, in the jobs' order.

        Where near-duplicates are dropped, rows that make images from other rows' images wait for the search
        of these. Where they are reported, a second job searches the rows of all further draws, so that the
        first one's search does not depend on the number of draws.
        """
        dropping = self.study.leakage.action == "drop"
        levels: dict[int, list[str]] = {}
        for method in self.guarded:
            level = self.study.guard_level(method) if dropping else min(1, self.draw_of(method))
            levels.setdefault(level, []).append(method)
        return [levels[level] for level in sorted(levels)]

    def embedded_pools(self, level: int, block: str) -> str:
        """Path of the number of shards that a job has embedded for the search of a level of guarded rows."""
        return self.path("leakage/embedded", f"{level}_{block}.json")

    def embedded_in_blocks(self, levels: Iterable[int]) -> list[str]:
        """Files of all jobs that embed the added images of some levels; none if the search embeds them."""
        return [self.embedded_pools(level, block) for level in levels for block in self.embed_blocks]

    @cached_property
    def inheriting(self) -> list[str]:
        """Guarded rows with images that were made from other rows' images, those of earlier levels first."""
        rows = self.study.methods
        made = [
            method
            for method in self.guarded
            if any(
                rows[name].generates_images and rows[name].edges
                for name in (method, *self.study.all_built_on(method))
            )
        ]
        return sorted(made, key=self.study.guard_level)

    @cached_property
    def inherited_from(self) -> dict[str, str]:
        """Manifests of the images that rows learned from, by row, for the guard's search through edges."""
        rows = self.study.personalised
        return {name: path for name in rows if self.inheriting for path in self.learned_images(name)}

    def inherited(self, method: str) -> str:
        """Path of a method's images that were made from near-duplicates of validation and test images."""
        return self.path("leakage/inherited", f"{method}.parquet")

    @cached_property
    def guarded_first(self) -> list[str]:
        """Rows whose training sets wait for the guard, and whose pool is therefore indexed before."""
        return list(self.study.augmented) if self.study.leakage.action == "drop" else []

    @cached_property
    def indexed_with_sets(self) -> list[str]:
        """Rows whose pool is indexed by the job that draws the training sets."""
        return [] if self.study.leakage.action == "drop" else list(self.study.augmented)

    def leaks(self, method: str) -> str:
        """Path of the pairs of an added image and its near-duplicate."""
        return self.path("leakage", f"{method}.parquet")

    def leak_counts(self, method: str) -> str:
        """Path of the number of a method's images that near-duplicate a validation or test image."""
        return self.path("leakage", f"{method}.json")

    def diagnosed(self, method: str) -> str:
        """Path of a row's images to measure or start from: its pool, or a mixture's set 0 (its shares)."""
        return self.resample(method, "0") if self.study.methods[method].shares else self.pool(method)

    def repeats(self, method: str) -> str:
        """Path of the pairs of an added image and the training image that it repeats."""
        return self.path("leakage/train", f"{method}.parquet")

    def leaks_to_drop(self, method: str) -> list[str]:
        """Pairs whose added images are left out of a method's training sets."""
        return [self.leaks(method)] if self.study.leakage.action == "drop" else []

    @cached_property
    def embedded_splits(self) -> dict[str, str]:
        """CLIP embeddings of the validation and test images, by split."""
        return {name: self.embedded_split(name) for name in ("val", "test")} if self.guarded else {}

    def embedded_split(self, name: str) -> str:
        """Path of the CLIP embeddings of the images of a split that added images are compared with."""
        return self.path("leakage/splits", f"{name}.npy")

    @cached_property
    def leakage_table(self) -> dict[str, str]:
        """The table of near-duplicates in its formats, and one picture of examples per method."""
        pictures = {
            f"pairs_{method}": self.path("figures/leakage", f"{method}.png") for method in self.guarded
        }
        return (
            {**{kind: self.path("tables", f"leakage.{kind}") for kind in ("csv", "md", "txt")}, **pictures}
            if self.guarded
            else {}
        )
