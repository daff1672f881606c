"""Generate shards of images from prompts, with diffusers' models and schedulers.

Input: ``prompts/{method}.parquet``, the model, results of fine-tuning, the training images or the pool of
another row that sampling may start from. Output: the shards of a block. Image i of class c depends only on
(recipe, c, i) (seeded images). It has its own random generator, seeded from the study's seed, c and i, not
from the method, so that methods differ by what they do and not by their noise. A batch never crosses a shard.
The shards that a job makes therefore do not depend, in any bit, on the shards that already exist, unless a
batch did not fit into the GPU's memory.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.artifacts.adapters import adapter_id, adapter_of
from augbench.artifacts.shards import (
    Lacking,
    ShardRow,
    content_of,
    encode_image,
    is_kept,
    key_after,
    write_shard,
)
from augbench.config.pipelines import learned_entries
from augbench.errors import UserError
from augbench.files import canonical_hash, read_json
from augbench.generate.adapters import MergedAdapter
from augbench.generate.attempts import Attempts, Pending, Samples
from augbench.generate.sampler import Batches, Sampler
from augbench.models.folders import fingerprint, load_pipeline, load_unet, pick_device
from augbench.plan.recipes import Recipe, data_set_recipe, generate_recipe, image_recipe, method_sampling
from augbench.progress import Progress
from augbench.prompts.placeholders import placeholders
from augbench.prompts.stage import read_prompts
from augbench.runtime.compiling import cache_folder, compile_pipeline, first_alone

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from PIL import Image

    from augbench.data.splits import Split
    from augbench.data.stamps import KeyName
    from augbench.generate.pipelines import PipelineSampler
    from augbench.plan.paths import Plan
    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearnedFiles:
    """Files that fine-tuning wrote for one candidate.

    Attributes
    ----------
    embeddings : str, optional
        ``embeddings.safetensors``: one tensor per placeholder; None if no vectors were learned.
    unet : str, optional
        Folder of the trained U-Net; None if the U-Net was frozen.
    adapters : str, optional
        Folder of adapters (:mod:`augbench.artifacts.adapters`); None if none were learned.
    entries : tuple of str
        Names of the entries of each vector (:data:`augbench.config.pipelines.LEARNED`); empty if it is one
        tensor without a name.
    """

    embeddings: str | None = None
    unet: str | None = None
    adapters: str | None = None
    entries: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: Plan, method: str, candidate: str) -> LearnedFiles:
        """Files of a row's candidate in a study."""
        kinds = (plan.embeddings(method), plan.unets(method), plan.adapters(method))
        embeddings, unet, adapters = (files.get(candidate) for files in kinds)
        kind = plan.study.generator_of(method).pipeline_class
        entries = learned_entries(kind, plan.study.personalised[method].learn)
        return cls(embeddings, unet, adapters, entries)

    def read(self, class_ids: Sequence[str], clusters: int) -> dict[str, np.ndarray]:
        """Read classes' vectors, by placeholder or ``{placeholder}.{entry}``; none if none are learned."""
        from safetensors import safe_open

        if self.embeddings is None:
            return {}
        endings = [f".{entry}" for entry in self.entries] or [""]
        with safe_open(self.embeddings, "np") as file:
            return {
                f"{name}{ending}": file.get_tensor(f"{name}{ending}")
                for class_id in class_ids
                for name in placeholders(class_id, clusters)
                for ending in endings
            }

    def unet_id(self) -> str | None:
        """Content hash of the trained U-Net; None if it was frozen."""
        return None if self.unet is None else str(fingerprint(self.unet)["id"])

    def adapter(self, class_id: str) -> Path | None:
        """File of the adapter that images of a class are made with, if there is one."""
        return None if self.adapters is None else adapter_of(self.adapters, class_id)


@dataclass(frozen=True)
class _Shard:
    """A shard to make: its target, its recipe in the store if it is full, its rows of the prompts file."""

    target: str
    key: Recipe
    rows: list[dict[str, Any]]


def generate(
    job: Job,
    method: str,
    prompts_path: str,
    model_path: str,
    train_path: str,
    targets: Mapping[str, Sequence[str]],
    learned: Mapping[str, LearnedFiles] | None = None,
    started_path: str | None = None,
) -> None:
    """Make the shards of a method that samples the diffusion model.

    Shards that the store holds are linked. All others are made, committed to the store and linked, one by
    one. The store's keys are recipes, so the selected method reuses the images of its candidate. A shard
    without some images, which were given up, is known by the number of attempts, too.

    Parameters
    ----------
    train_path : path
        The training split, which holds the images that sampling may start from.
    targets : mapping of str to sequence of path
        Shards by candidate, paths that end in ``{class}/{part}.parquet``. A method without candidates has
        one key of any name.
    learned : mapping of str to LearnedFiles, optional
        Results of fine-tuning, by candidate.
    started_path : path, optional
        Index of the pool of another row whose images sampling starts from.
    """
    model = read_json(model_path)
    prompts = read_prompts(prompts_path)
    from_training_images = job.study.methods[method].from_training_images
    origin, starts = _starts(job, train_path) if from_training_images else ({}, {})
    work = {
        name: _shards(
            job=job,
            method=method,
            model=model["id"],
            prompts=prompts,
            origin=origin,
            starts=starts,
            targets=paths,
            learned=learned[name] if learned else None,
        )
        for name, paths in targets.items()
    }
    store, attempts = job.store, job.study.augmentation.attempts_per_image

    is_valid = partial(is_kept, attempts_per_image=attempts)

    def is_there(shard: _Shard) -> bool:
        keys = (shard.key, key_after(shard.key, attempts))
        return any(store.take("shards", key, shard.target, is_valid) for key in keys)

    missing = {name: [one for one in shards if not is_there(one)] for name, shards in work.items()}
    if not any(missing.values()):
        store.tally.reused += sum(map(len, work.values()))
        return
    images = sum(len(shard.rows) for shards in missing.values() for shard in shards)
    maker = _Maker(job, method, train_path, Progress(method, images, "image"), started_path)
    for name, shards in work.items():
        # candidates that learned the same bits share their images: the first has just made them
        for group in store.in_turn("shards", shards, lambda shard: shard.key, is_there):
            maker.make(group, learned[name] if learned else None)


def compile_kernels(job: Job, methods: Sequence[str]) -> None:
    """Compile the networks of these methods into the cache that a study's jobs share.

    Methods with the same model and sampling settings are compiled once. Models other than Stable Diffusion
    1.x and 2.x are not compiled.

    Raises
    ------
    UserError
        ``execution.compile`` is false.
    """
    import torch

    if not job.study.execution.compile:
        raise UserError("execution.compile", "false, so no job uses compiled kernels", "set it to true first")
    compiled = [method for method in methods if job.study.generator_of(method).other is None]
    alike = {
        canonical_hash([method_sampling(job.study, method), job.study.generator_of(method).folder]): method
        for method in compiled
    }
    progress = Progress("kernels", len(alike), "kind")
    for method in alike.values():
        _Maker(job, method, "").ready()
        torch.compiler.reset()  # the compiler takes each pipeline for a new one, and gives up after a few
        progress.update(1, note=method)


def _shards(
    job: Job,
    method: str,
    model: str,
    prompts: Mapping[tuple[str, int], list[dict[str, Any]]],
    origin: Recipe,
    starts: Mapping[str, KeyName],
    targets: Sequence[str],
    learned: LearnedFiles | None,
) -> list[_Shard]:
    recipe, row = content_of(generate_recipe(job.study, method)), job.study.methods[method]
    unet, hashed = (learned.unet_id() if learned is not None else None), cache(adapter_id)
    shards = []
    for target in targets:
        class_id, part = Path(target).parts[-2], int(Path(target).stem)
        # a class that is left out may have no image to start from, and then has none
        rows = prompts.get((class_id, part), []) if row.start_pool is not None else prompts[class_id, part]
        further = ["origin"] if row.start_pool is not None else []
        said = [
            [
                r["label"],
                r["index"],
                r["prompt"],
                starts.get(r["source"], r["source"]),
                *(r[name] for name in further),
            ]
            for r in rows
        ]
        key = {
            **recipe,
            **origin,
            "model": model if unet is None else f"{model}+{unet}",
            "class_id": class_id,
            "rows": canonical_hash(said),
        }
        if learned is not None:
            vectors = learned.read([class_id], job.study.personalised[method].clusters)
            key["learned"] = canonical_hash({name: _bytes_hash(vector) for name, vector in vectors.items()})
            if (adapter := learned.adapter(class_id)) is not None:
                key["model"], key["learned"] = f"{model}+{hashed(adapter)}", hashed(adapter)
        shards.append(_Shard(target, key, rows))
    return shards


def _starts(job: Job, train_path: str) -> tuple[Recipe, dict[str, KeyName]]:
    """What names training images in keys, if sampling starts from them: their data set, and a name by id."""
    from augbench.data.splits import read_split

    split = read_split(train_path)
    names = dict(zip(split.image_ids, split.key_names, strict=True))
    return data_set_recipe(job.study, split.stamps is not None), names


def _bytes_hash(vector: np.ndarray) -> str:
    return hashlib.sha256(vector.tobytes()).hexdigest()


class _Maker:
    """Maker of missing shards, with one pipeline for a whole job."""

    def __init__(
        self,
        job: Job,
        method: str,
        train_path: str,
        progress: Progress | None = None,
        started_path: str | None = None,
    ) -> None:
        self.job, self.method, self.progress = job, method, progress
        self.started_path = started_path
        self.row, self.train_path = job.study.methods[method], train_path
        self.sampling = method_sampling(job.study, method)
        model, execution = job.study.generator_of(method), job.study.execution
        device = pick_device(execution.device)
        self.other: PipelineSampler | None = None  # of a model that is not Stable Diffusion 1.x or 2.x
        if model.other is not None:
            from augbench.generate.pipelines import pipeline_sampler

            attempts = job.study.augmentation.attempts_per_image
            self.other = pipeline_sampler(model, self.sampling, device, execution.batch_size, attempts)
            return
        diffusion = model.model_copy(update={"scheduler": self.sampling["scheduler"]})
        self.pipeline = load_pipeline(diffusion, device)
        self.batches = Batches(execution.batch_size, self.pipeline.unet.device)
        self.compiled = execution.compile
        if self.compiled:
            compile_pipeline(self.pipeline)

    def make(self, shards: Sequence[_Shard], learned: LearnedFiles | None) -> None:
        """Make and publish the shards; each is encoded and written while the next one is sampled."""
        alike: dict[Path | None, list[_Shard]] = {}
        for shard in shards:
            adapter = None if learned is None else learned.adapter(shard.key["class_id"])
            alike.setdefault(adapter, []).append(shard)
        for adapter, group in alike.items():
            if adapter is not None:
                # the images of one adapter are finished before the next is put into the network
                self._adapted.put(adapter)
            self._make(group, learned)

    @cached_property
    def _adapted(self) -> MergedAdapter:
        """The network that denoises, with its adapter."""
        return MergedAdapter(self.pipeline.unet if self.other is None else self.other.network)

    def _make(self, shards: Sequence[_Shard], learned: LearnedFiles | None) -> None:
        """Make and publish shards with the network as it is."""
        class_ids = sorted({shard.key["class_id"] for shard in shards})
        if self.other is not None:
            self._teach(self.other, learned, class_ids)
        sampler = self.other or self.ready(learned, class_ids)
        with ThreadPoolExecutor(1, "write") as writer:
            writing: Future[None] | None = None
            for shard, samples in self._sampled(sampler, shards):
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._commit, shard, samples)
            if writing is not None:
                writing.result()
        if learned is not None and self.row.learns_words and self.other is None:
            self.pipeline.unload_textual_inversion()

    def _sampled(self, sampler: Attempts, shards: Sequence[_Shard]) -> Iterator[tuple[_Shard, Samples]]:
        """Yield each shard's images after the sampling of the next shard has started.

        The device therefore does not wait for the safety checker.
        """
        begun: deque[tuple[_Shard, Pending]] = deque()
        for shard in shards:
            begun.append((shard, self._begin(sampler, shard)))
            if len(begun) > 1:
                earlier, pending = begun.popleft()
                yield earlier, sampler.end(pending)
        for last, pending in begun:
            yield last, sampler.end(pending)

    def _begin(self, sampler: Attempts, shard: _Shard) -> Pending:
        scopes = [(row["class_id"], row["index"]) for row in shard.rows]
        starts = None
        if self.row.start_pool is not None:
            starts = self._added_images([row["origin"] for row in shard.rows])
        elif self.row.from_images:
            starts = self._training_images([row["source"] for row in shard.rows])
        prompts, seed = [row["prompt"] for row in shard.rows], self.job.study.seed_of(self.method)
        return sampler.begin(prompts, scopes, seed, self.progress, starts)

    def _commit(self, shard: _Shard, samples: Samples) -> None:
        """Encode a shard's images with all of the job's threads; store it and link its target."""
        encoding, made = image_recipe(self.job.study), samples.made
        with ThreadPoolExecutor(self.job.threads, "encode") as encoders:
            encoded = encoders.map(lambda sample: encode_image(sample.image, **encoding), made.values())
        rows = [
            ShardRow(
                image=image,
                label=row["label"],
                class_id=row["class_id"],
                index=row["index"],
                prompt=row["prompt"],
                model=shard.key["model"],
                seed=sample.seed,
                source=row["source"],
                safety_flags=sample.safety_flags,
                origin=row.get("origin"),
            )
            for (place, sample), image in zip(made.items(), encoded, strict=True)
            for row in [shard.rows[place]]
        ]
        lacking, key = None, shard.key
        if samples.flagged:
            flagged = {shard.rows[place]["index"]: times for place, times in samples.flagged.items()}
            lacking = Lacking(self.job.study.augmentation.attempts_per_image, flagged)
            key = key_after(key, lacking.attempts_per_image)
            logger.warning(
                "%s: %d of %d images of class %s given up after %d samples, which the safety checker flagged",
                self.method,
                len(flagged),
                len(shard.rows),
                shard.key["class_id"],
                sum(flagged.values()),
            )
        write = partial(write_shard, rows=rows, recipe=shard.key, lacking=lacking)
        self.job.store.make("shards", key, shard.target, write)

    def ready(self, learned: LearnedFiles | None = None, class_ids: Sequence[str] = ()) -> Sampler:
        """Sampler with the learned vectors of these classes; compiled and warmed up if the study compiles."""
        sampler = self._sampler(learned, class_ids)
        if self.compiled:
            with first_alone(cache_folder(), sampler.compiled_for()):
                sampler.warm_up()
        return sampler

    def _vectors(self, learned: LearnedFiles, class_ids: Sequence[str]) -> dict[str, torch.Tensor]:
        """Learned vectors of some classes, by their names in files."""
        import torch

        clusters = self.job.study.personalised[self.method].clusters
        read = learned.read(class_ids, clusters)
        return {name: torch.from_numpy(vector) for name, vector in read.items()}

    def _teach(
        self, sampler: PipelineSampler, learned: LearnedFiles | None, class_ids: Sequence[str]
    ) -> None:
        """Give the sampler of another model what was learned of some classes; adapters are in its network."""
        if learned is None or learned.embeddings is None:
            return
        if learned.unet is not None:
            load_unet(sampler.pipeline, learned.unet)
        entries: dict[str, dict[str, torch.Tensor]] = {entry: {} for entry in learned.entries}
        for name, vector in self._vectors(learned, class_ids).items():
            placeholder, _, entry = name.rpartition(".")
            entries[entry][placeholder] = vector
        if self.row.learns_words:
            sampler.set_words(entries)
        else:
            sampler.set_conditioning(entries)

    def _sampler(self, learned: LearnedFiles | None, class_ids: Sequence[str]) -> Sampler:
        conditioning = {}
        if learned is not None:
            vectors = self._vectors(learned, class_ids)
            if learned.unet is not None:
                load_unet(self.pipeline, learned.unet)
            if self.row.learns_words:
                self.pipeline.load_textual_inversion([{name: vector} for name, vector in vectors.items()])
            else:
                conditioning = vectors
        sampling = self.sampling
        return Sampler(
            pipeline=self.pipeline,
            steps=sampling["steps"],
            guidance_scale=sampling["guidance_scale"],
            resolution=sampling["resolution"],
            batch_size=self.batches,
            noise=sampling.get("noise"),
            conditioning=conditioning,
            guidance_interval=sampling.get("guidance_interval"),
            compiled=self.compiled,
            attempts_per_image=self.job.study.augmentation.attempts_per_image,
            negative_prompt=sampling.get("negative_prompt", ""),
        )

    @cached_property
    def _train(self) -> tuple[Split, dict[str, int]]:
        """The training split, and the row of each image by its id."""
        from augbench.data.splits import read_split

        split = read_split(self.train_path)
        return split, {image_id: row for row, image_id in enumerate(split.image_ids)}

    def _training_images(self, image_ids: Sequence[str]) -> list[Image.Image]:
        from augbench.data.sources import open_source

        source = open_source(self.job.study.dataset, self.job.study.seed, self.job.study.corpus)
        distinct, (split, places) = dict.fromkeys(image_ids), self._train
        rows = [places[image_id] for image_id in distinct]
        images = source.load_unchanged([split.sources[row] for row in rows], split.stamps_at(rows))
        loaded = dict(zip(distinct, images, strict=True))
        return [loaded[image_id] for image_id in image_ids]

    @cached_property
    def _started(self) -> tuple[pa.Table, Mapping[str, int]]:
        """Index of the pool that sampling starts from, and the row of each image by its hash."""
        from augbench.artifacts.origins import rows_by_hash
        from augbench.artifacts.pool import read_index

        assert self.started_path is not None
        index = read_index(self.started_path)
        return index, rows_by_hash(index)

    def _added_images(self, hashes: Sequence[str]) -> list[Image.Image]:
        from augbench.artifacts.pool import load_images

        index, places = self._started
        distinct = sorted(dict.fromkeys(hashes), key=lambda sha256: places[sha256])
        images = load_images(index.take([places[sha256] for sha256 in distinct]), self.job.folder)
        loaded = dict(zip(distinct, images, strict=True))
        return [loaded[sha256] for sha256 in hashes]
