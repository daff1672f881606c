"""Generate: prompts to shards of images, through diffusers' own Stable Diffusion models and schedulers.

Flows in: ``prompts/{method}.parquet``, the model, what was learned, the training images that sampling may start from, the shard
files of a block. Flows out: the shards. Image i of class c depends on (recipe, c, i) alone: it has a generator of its own, seeded
from the study's seed, c and i, not from the method, so that methods differ by what they do and not by their noise. A batch never
crosses a shard, so what a job finds already made changes no bit of what it makes.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.artifacts.shards import ShardRow, encode_image, is_kept, write_shard
from augbench.errors import UserError
from augbench.files import canonical_hash, read_json
from augbench.generate.sampler import Pending, Sample, Sampler
from augbench.models.folders import fingerprint, load_pipeline, load_unet, pick_device
from augbench.plan.recipes import Recipe, generate_recipe, image_recipe, method_sampling
from augbench.progress import Progress
from augbench.prompts.placeholders import placeholders
from augbench.prompts.stage import read_prompts
from augbench.runtime.compiling import cache_folder, compile_pipeline, first_alone

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearnedFiles:
    """What fine-tuning left of one candidate: files, read for the classes that are asked for.

    Attributes
    ----------
    embeddings : str
        ``embeddings.safetensors``: a tensor per placeholder.
    unet : str, optional
        Folder of the U-Net that was trained; None where it stayed frozen.
    """

    embeddings: str
    unet: str | None = None

    def read(self, class_ids: Sequence[str], clusters: int) -> dict[str, np.ndarray]:
        """Vectors by placeholder."""
        from safetensors import safe_open

        with safe_open(self.embeddings, "np") as file:
            return {
                name: file.get_tensor(name)
                for class_id in class_ids
                for name in placeholders(class_id, clusters)
            }

    def unet_id(self) -> str | None:
        """Content hash of the trained U-Net."""
        return None if self.unet is None else str(fingerprint(self.unet)["id"])


@dataclass(frozen=True)
class _Shard:
    """A shard to make: where it goes, its recipe in the store, its rows of the prompts file."""

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
) -> None:
    """Make shards (paths that end in ``{class}/{part}.parquet``) of a method that samples the diffusion model.

    What the store holds already is linked; everything else is made, committed to the store and linked, shard by shard. The store knows
    shards by what made them, so a candidate's images are the selected method's too.

    Parameters
    ----------
    train_path : path
        The training split, which holds the images that sampling may start from.
    targets : mapping of str to sequence of path
        Shards by candidate (one key, of any name, for a method without candidates).
    learned : mapping of str to LearnedFiles, optional
        What each of these candidates has learned.
    """
    model = read_json(model_path)
    prompts = read_prompts(prompts_path)
    work = {
        name: _shards(
            job=job,
            method=method,
            model=model["id"],
            prompts=prompts,
            targets=paths,
            learned=learned[name] if learned else None,
        )
        for name, paths in targets.items()
    }
    missing = {
        name: [shard for shard in shards if not job.store.has("shards", shard.key, ".parquet", is_kept)]
        for name, shards in work.items()
    }
    job.store.tally.reused += sum(len(shards) - len(missing[name]) for name, shards in work.items())
    if any(missing.values()):
        images = sum(len(shard.rows) for shards in missing.values() for shard in shards)
        maker = _Maker(job, method, train_path, Progress(method, images, "image"))
        for name, shards in missing.items():
            maker.make(shards, learned[name] if learned else None)
    for shards in work.values():
        for shard in shards:
            job.store.publish("shards", shard.key, shard.target)


def compile_kernels(job: Job, methods: Sequence[str]) -> None:
    """Compile the networks that these methods sample with into the cache that a study's jobs share; methods that sample alike are one.

    Raises
    ------
    UserError
        The study does not compile.
    """
    import torch

    if not job.study.execution.compile:
        raise UserError("execution.compile", "false, so no job uses kernels", "set it to true first")
    alike = {canonical_hash(method_sampling(job.study, method)): method for method in methods}
    progress = Progress("kernels", len(alike), "kind")
    for method in alike.values():
        _Maker(job, method, "").ready()
        torch.compiler.reset()  # each kind's pipeline is a new one to the compiler, which gives up after a few
        progress.update(1, note=method)


def _shards(
    job: Job,
    method: str,
    model: str,
    prompts: Mapping[tuple[str, int], list[dict[str, Any]]],
    targets: Sequence[str],
    learned: LearnedFiles | None,
) -> list[_Shard]:
    recipe = generate_recipe(job.study, method)
    unet = learned.unet_id() if learned is not None else None
    shards = []
    for target in targets:
        class_id, part = Path(target).parts[-2], int(Path(target).stem)
        rows = prompts[class_id, part]
        said = canonical_hash([[r["label"], r["index"], r["prompt"], r["source"]] for r in rows])
        key = {
            **recipe,
            "model": model if unet is None else f"{model}+{unet}",
            "class_id": class_id,
            "rows": said,
        }
        if learned is not None:
            vectors = learned.read([class_id], job.study.personalised[method].clusters)
            key["learned"] = canonical_hash({name: _bytes_hash(vector) for name, vector in vectors.items()})
        shards.append(_Shard(target, key, rows))
    return shards


def _bytes_hash(vector: np.ndarray) -> str:
    return hashlib.sha256(vector.tobytes()).hexdigest()


class _Maker:
    """Makes missing shards, with one pipeline for all of a job."""

    def __init__(self, job: Job, method: str, train_path: str, progress: Progress | None = None) -> None:
        self.job, self.method, self.progress = job, method, progress
        self.row = job.study.methods[method]
        self.sampling = method_sampling(job.study, method)
        diffusion = job.study.diffusion.model_copy(update={"scheduler": self.sampling["scheduler"]})
        self.pipeline = load_pipeline(diffusion, pick_device(job.study.execution.device))
        self.train_path = train_path
        self.compiled = job.study.execution.compile
        if self.compiled:
            compile_pipeline(self.pipeline)

    def make(self, shards: Sequence[_Shard], learned: LearnedFiles | None) -> None:
        """Make and commit each of ``shards``; each is encoded and written while the next one is sampled."""
        if not shards:
            return
        sampler = self.ready(learned, sorted({shard.key["class_id"] for shard in shards}))
        with ThreadPoolExecutor(1, "write") as writer:
            writing: Future[None] | None = None
            for shard, samples in self._sampled(sampler, shards):
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._commit, shard, samples)
            if writing is not None:
                writing.result()
        if learned is not None and self.row.learns_words:
            self.pipeline.unload_textual_inversion()

    def _sampled(self, sampler: Sampler, shards: Sequence[_Shard]) -> Iterator[tuple[_Shard, list[Sample]]]:
        """Each shard's images, once the next one's are under way: a device does not wait for the safety checker."""
        begun: deque[tuple[_Shard, Pending]] = deque()
        for shard in shards:
            begun.append((shard, self._begin(sampler, shard)))
            if len(begun) > 1:
                earlier, pending = begun.popleft()
                yield earlier, sampler.end(pending)
        for last, pending in begun:
            yield last, sampler.end(pending)

    def _begin(self, sampler: Sampler, shard: _Shard) -> Pending:
        scopes = [(row["class_id"], row["index"]) for row in shard.rows]
        starts = None
        if self.row.from_images:
            starts = self._training_images([row["source"] for row in shard.rows])
        return sampler.begin(
            [row["prompt"] for row in shard.rows], scopes, self.job.study.seed, self.progress, starts
        )

    def _commit(self, shard: _Shard, samples: Sequence[Sample]) -> None:
        """Encode a shard's images, on all of the job's threads, and write it to the store."""
        encoding = image_recipe(self.job.study)
        with ThreadPoolExecutor(self.job.threads, "encode") as encoders:
            encoded = list(encoders.map(lambda sample: encode_image(sample.image, **encoding), samples))
        made = [
            ShardRow(
                image=image,
                label=row["label"],
                class_id=row["class_id"],
                index=row["index"],
                method=self.method,
                prompt=row["prompt"],
                model=shard.key["model"],
                seed=sample.seed,
                source=row["source"],
                safety_flags=sample.safety_flags,
            )
            for row, sample, image in zip(shard.rows, samples, encoded, strict=True)
        ]
        self.job.store.commit(
            "shards", shard.key, ".parquet", lambda path: write_shard(path, made, shard.key)
        )

    def ready(self, learned: LearnedFiles | None = None, class_ids: Sequence[str] = ()) -> Sampler:
        """A sampler that knows what ``learned`` holds for these classes, with its networks compiled where the study asks for that."""
        sampler = self._sampler(learned, class_ids)
        if self.compiled:
            with first_alone(cache_folder(), sampler.compiled_for()):
                sampler.warm_up()
        return sampler

    def _sampler(self, learned: LearnedFiles | None, class_ids: Sequence[str]) -> Sampler:
        import torch

        conditioning = {}
        if learned is not None:
            clusters = self.job.study.personalised[self.method].clusters
            vectors = {
                name: torch.from_numpy(vector) for name, vector in learned.read(class_ids, clusters).items()
            }
            if learned.unet is not None:
                load_unet(self.pipeline, learned.unet)
            if self.row.learns_words:
                self.pipeline.load_textual_inversion([{name: vector} for name, vector in vectors.items()])
            else:
                conditioning = vectors
        sampling, execution = self.sampling, self.job.study.execution
        return Sampler(
            pipeline=self.pipeline,
            steps=sampling["steps"],
            guidance_scale=sampling["guidance_scale"],
            resolution=sampling["resolution"],
            batch_size=execution.batch_size,
            noise=sampling.get("noise"),
            conditioning=conditioning,
            guidance_interval=sampling.get("guidance_interval"),
            compiled=self.compiled,
        )

    @cached_property
    def _places(self) -> dict[str, str]:
        """Where the training split's images are, by image id."""
        from augbench.data.splits import read_split

        split = read_split(self.train_path)
        return dict(zip(split.image_ids, split.sources, strict=True))

    def _training_images(self, image_ids: Sequence[str]) -> list[Image.Image]:
        from augbench.data.sources import open_source

        source = open_source(self.job.study.dataset, self.job.study.seed, self.job.study.corpus)
        distinct = dict.fromkeys(image_ids)
        loaded = dict(
            zip(distinct, source.load([self._places[image_id] for image_id in distinct]), strict=True)
        )
        return [loaded[image_id] for image_id in image_ids]
