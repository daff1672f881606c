"""Generate: prompts to shards of images, through diffusers' own Stable Diffusion pipelines.

Flows in: ``prompts/{method}.parquet``, the model, what was learned, the training images that sampling may start from, the shard
files of a block. Flows out: the shards. Image i of class c depends on (recipe, c, i) alone: it has a generator of its own, seeded
from the study's seed, c and i, not from the method, so that methods differ by what they do and not by their noise. A batch never
crosses a shard, so what a job finds already made changes no bit of what it makes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.config import PersonaliseMethod, SampleMethod
from augbench.data.decode import square
from augbench.errors import UserError
from augbench.files import canonical_hash, read_json
from augbench.models import fingerprint, load_pipeline, pick_device
from augbench.personalise.tokens import placeholders
from augbench.progress import Progress
from augbench.prompts import read_prompts
from augbench.recipes import Recipe, generate_recipe, image_recipe
from augbench.seeds import derive_seed
from augbench.shards import ShardRow, encode_image, is_kept, write_shard

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    from augbench.job import Job

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 20


@dataclass(frozen=True)
class Sample:
    """One finished image: its seed, and how many samples the safety checker refused before it."""

    image: Image.Image
    seed: int
    safety_flags: int


class Sampler:
    """Batched sampling with one generator per image.

    Parameters
    ----------
    pipeline : StableDiffusionPipeline
        On its device, with its scheduler and safety checker.
    steps, guidance_scale, resolution
        As in the config; resolution in pixels.
    batch_size : int
        Images sampled together; changes results by float rounding only.
    noise : float, optional
        Sampling starts from images with this share of the noise schedule added, and walks the rest of the ``steps`` (Boomerang;
        Luzi et al., 2022). None: from pure noise.
    conditioning : mapping of str to Tensor, optional
        Text states ``(77, D)`` that stand for a prompt instead of what the text encoder makes of it.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        steps: int,
        guidance_scale: float,
        resolution: int,
        batch_size: int,
        noise: float | None = None,
        conditioning: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.pipeline, self.steps, self.guidance_scale = pipeline, steps, guidance_scale
        self.resolution, self.batch_size, self.noise = resolution, batch_size, noise
        device, dtype = pipeline.unet.device, pipeline.unet.dtype
        self._states = {prompt: states.to(device, dtype) for prompt, states in (conditioning or {}).items()}

    def _text_states(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text states ``(N, 77, D)``; each distinct prompt is encoded once."""
        import torch

        if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]:
            states, _ = self.pipeline.encode_prompt(missing, self.pipeline._execution_device, 1, False)
            self._states.update(zip(missing, states, strict=True))
        return torch.stack([self._states[prompt] for prompt in prompts])

    @cached_property
    def _from_images(self) -> Any:
        from diffusers import StableDiffusionImg2ImgPipeline

        pipeline = StableDiffusionImg2ImgPipeline(**self.pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _latents(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """The mode of the VAE's posterior of each image, scaled: ``(N, 4, h, w)``."""
        vae = self.pipeline.vae
        pixels = self.pipeline.image_processor.preprocess([square(image, self.resolution) for image in images])
        mode = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return mode * vae.config.scaling_factor

    def _batch(self, prompts: Sequence[str], seeds: Sequence[int], starts: Sequence[Image.Image] | None) -> tuple[list[Image.Image], list[bool]]:
        import torch

        arguments: dict[str, Any] = {
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
        }
        with torch.inference_mode():
            arguments["prompt_embeds"] = self._text_states(prompts)
            if self.guidance_scale > 1:
                arguments["negative_prompt_embeds"] = self._text_states([""] * len(prompts))
            if starts is None:
                output = self.pipeline(**arguments, height=self.resolution, width=self.resolution)
            else:
                output = self._from_images(**arguments, image=self._latents(starts), strength=self.noise)
        return output.images, [bool(flag) for flag in output.nsfw_content_detected or [False] * len(prompts)]

    def sample(
        self,
        prompts: Sequence[str],
        scopes: Sequence[tuple[str | int, ...]],
        study_seed: int,
        progress: Progress | None = None,
        starts: Sequence[Image.Image] | None = None,
    ) -> list[Sample]:
        """Sample one image per prompt; flagged ones are replaced by new samples with their next seeds (paper, section 3.2).

        Parameters
        ----------
        scopes : sequence of tuple
            What each image's seeds derive from: (class_id, i).
        starts : sequence of Image, optional
            The image that each one starts from, with ``noise`` only.

        Raises
        ------
        UserError
            An image was flagged ``MAX_ATTEMPTS`` times.
        """
        done: dict[int, Sample] = {}
        for attempt in range(MAX_ATTEMPTS):
            pending = [i for i in range(len(prompts)) if i not in done]
            for start in range(0, len(pending), self.batch_size):
                batch = pending[start : start + self.batch_size]
                seeds = [derive_seed(study_seed, "image", *scopes[i], attempt) for i in batch]
                images, flags = self._batch([prompts[i] for i in batch], seeds, None if starts is None else [starts[i] for i in batch])
                for i, seed, image, flagged in zip(batch, seeds, images, flags, strict=True):
                    if not flagged:
                        done[i] = Sample(image, seed, attempt)
                if progress is not None:
                    progress.update(len(batch) - sum(flags), note=f"{sum(flags)} flagged" if any(flags) else "")
            if len(done) == len(prompts):
                return [done[i] for i in range(len(prompts))]
        first = next(i for i in range(len(prompts)) if i not in done)
        raise UserError(
            "safety checker",
            f"{len(prompts) - len(done)} of {len(prompts)} images flagged {MAX_ATTEMPTS} times each, first prompt {prompts[first]!r}",
            "change the prompts or leave the class out",
        )


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
            return {name: file.get_tensor(name) for class_id in class_ids for name in placeholders(class_id, clusters)}

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
    work = {name: _shards(job, method, model["id"], prompts, paths, learned[name] if learned else None) for name, paths in targets.items()}
    missing = {name: [shard for shard in shards if not job.store.has("shards", shard.key, ".parquet", is_kept)] for name, shards in work.items()}
    job.store.tally.reused += sum(len(shards) - len(missing[name]) for name, shards in work.items())
    if any(missing.values()):
        images = sum(len(shard.rows) for shards in missing.values() for shard in shards)
        maker = _Maker(job, method, train_path, Progress(method, images, "image"))
        for name, shards in missing.items():
            maker.make(shards, learned[name] if learned else None)
    for shards in work.values():
        for shard in shards:
            job.store.publish("shards", shard.key, shard.target)


def _shards(
    job: Job, method: str, model: str, prompts: Mapping[tuple[str, int], list[dict[str, Any]]], targets: Sequence[str], learned: LearnedFiles | None
) -> list[_Shard]:
    row = job.study.methods[method]
    recipe = generate_recipe(job.study, method)
    unet = learned.unet_id() if learned is not None else None
    shards = []
    for target in targets:
        class_id, part = Path(target).parts[-2], int(Path(target).stem)
        rows = prompts[class_id, part]
        said = canonical_hash([[r["label"], r["index"], r["prompt"], r["source"]] for r in rows])
        key = {**recipe, "model": model if unet is None else f"{model}+{unet}", "class_id": class_id, "rows": said}
        if learned is not None:
            assert isinstance(row, PersonaliseMethod)
            vectors = learned.read([class_id], row.clusters)
            key["learned"] = canonical_hash({name: _bytes_hash(vector) for name, vector in vectors.items()})
        shards.append(_Shard(target, key, rows))
    return shards


def _bytes_hash(vector: np.ndarray) -> str:
    return hashlib.sha256(vector.tobytes()).hexdigest()


class _Maker:
    """Makes missing shards, with one pipeline for all of a job."""

    def __init__(self, job: Job, method: str, train_path: str, progress: Progress) -> None:
        self.job, self.method, self.progress = job, method, progress
        self.row = job.study.methods[method]
        self.sampling = generate_recipe(job.study, method)["diffusion"]
        diffusion = job.study.diffusion.model_copy(update={"scheduler": self.sampling["scheduler"]})
        self.pipeline = load_pipeline(diffusion, pick_device(job.study.execution.device))
        self.train_path = train_path

    def make(self, shards: Sequence[_Shard], learned: LearnedFiles | None) -> None:
        """Make and commit each of ``shards``."""
        if not shards:
            return
        sampler = self._sampler(learned, sorted({shard.key["class_id"] for shard in shards}))
        for shard in shards:
            made = self._rows(sampler, shard)
            self.job.store.commit("shards", shard.key, ".parquet", lambda path, made=made, shard=shard: write_shard(path, made, shard.key))  # type: ignore[misc]
        if learned is not None and self._learns_words:
            self.pipeline.unload_textual_inversion()

    @property
    def _learns_words(self) -> bool:
        return isinstance(self.row, PersonaliseMethod) and self.row.learn == "pseudoword"

    def _sampler(self, learned: LearnedFiles | None, class_ids: Sequence[str]) -> Sampler:
        """A sampler that knows what ``learned`` holds for these classes."""
        import torch

        conditioning = {}
        if learned is not None:
            assert isinstance(self.row, PersonaliseMethod)
            vectors = {name: torch.from_numpy(vector) for name, vector in learned.read(class_ids, self.row.clusters).items()}
            if learned.unet is not None:
                from diffusers import UNet2DConditionModel

                unet = UNet2DConditionModel.from_pretrained(learned.unet, torch_dtype=self.pipeline.unet.dtype, local_files_only=True)
                self.pipeline.unet = unet.to(self.pipeline.device)
            if self._learns_words:
                self.pipeline.load_textual_inversion([{name: vector} for name, vector in vectors.items()])
            else:
                conditioning = vectors
        sampling, batch_size = self.sampling, self.job.study.execution.batch_size
        return Sampler(
            self.pipeline, sampling["steps"], sampling["guidance_scale"], sampling["resolution"], batch_size, sampling.get("noise"), conditioning
        )  # fmt: skip

    def _rows(self, sampler: Sampler, shard: _Shard) -> list[ShardRow]:
        scopes = [(row["class_id"], row["index"]) for row in shard.rows]
        starts = None
        if isinstance(self.row, SampleMethod) and self.row.from_images:
            starts = self._training_images([row["source"] for row in shard.rows])
        samples = sampler.sample([row["prompt"] for row in shard.rows], scopes, self.job.study.seed, self.progress, starts)
        encoding = image_recipe(self.job.study)
        return [
            ShardRow(
                image=encode_image(sample.image, **encoding),
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
            for row, sample in zip(shard.rows, samples, strict=True)
        ]

    @cached_property
    def _places(self) -> dict[str, str]:
        """Where the training split's images are, by image id."""
        from augbench.data.splits import read_split

        split = read_split(self.train_path)
        return dict(zip(split.image_ids, split.sources, strict=True))

    def _training_images(self, image_ids: Sequence[str]) -> list[Image.Image]:
        from augbench.data.source import open_source

        source = open_source(self.job.study.dataset, self.job.study.seed, self.job.study.corpus)
        distinct = dict.fromkeys(image_ids)
        loaded = dict(zip(distinct, source.load([self._places[image_id] for image_id in distinct]), strict=True))
        return [loaded[image_id] for image_id in image_ids]
