"""Generate: prompts to shards of images, through diffusers' own Stable Diffusion pipeline.

Flows in: ``prompts/{method}.parquet``, the model, the shard files of a block. Flows out: the shards. Image i of class c depends
on (recipe, c, i) alone: it has a generator of its own, seeded from the study's seed, c and i, not from the method, so that
methods differ by what they do and not by their noise. A batch never crosses a shard, so what a job finds
already made changes no bit of what it makes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.errors import UserError
from augbench.files import canonical_hash, read_json
from augbench.progress import Progress
from augbench.prompts import read_prompts
from augbench.recipes import generate_recipe, image_recipe
from augbench.seeds import derive_seed
from augbench.shards import ShardRow, encode_image, is_whole, write_shard

if TYPE_CHECKING:
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
    """

    def __init__(self, pipeline: StableDiffusionPipeline, steps: int, guidance_scale: float, resolution: int, batch_size: int) -> None:
        self.pipeline, self.steps, self.guidance_scale = pipeline, steps, guidance_scale
        self.resolution, self.batch_size = resolution, batch_size
        self._states: dict[str, torch.Tensor] = {}

    def _text_states(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text states ``(N, 77, D)``; each distinct prompt is encoded once."""
        import torch

        if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]:
            states, _ = self.pipeline.encode_prompt(missing, self.pipeline._execution_device, 1, False)
            self._states.update(zip(missing, states, strict=True))
        return torch.stack([self._states[prompt] for prompt in prompts])

    def _batch(self, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[list[Image.Image], list[bool]]:
        import torch

        with torch.inference_mode():
            output = self.pipeline(
                prompt_embeds=self._text_states(prompts),
                negative_prompt_embeds=self._text_states([""] * len(prompts)),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance_scale,
                height=self.resolution,
                width=self.resolution,
            )
        return output.images, [bool(flag) for flag in output.nsfw_content_detected]

    def sample(self, prompts: Sequence[str], scopes: Sequence[tuple[str | int, ...]], study_seed: int, progress: Progress | None = None) -> list[Sample]:
        """Sample one image per prompt; flagged ones are replaced by new samples with their next seeds (paper, section 3.2).

        Parameters
        ----------
        scopes : sequence of tuple
            What each image's seeds derive from: (class_id, i).

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
                images, flags = self._batch([prompts[i] for i in batch], seeds)
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


def _make_rows(sampler: Sampler, job: Job, method: str, model: str, rows: Sequence[dict[str, Any]], progress: Progress) -> list[ShardRow]:
    scopes = [(row["class_id"], row["index"]) for row in rows]
    samples = sampler.sample([row["prompt"] for row in rows], scopes, job.study.seed, progress)
    encoding = image_recipe(job.study)
    return [
        ShardRow(
            image=encode_image(sample.image, **encoding),
            label=row["label"],
            class_id=row["class_id"],
            index=row["index"],
            method=method,
            prompt=row["prompt"],
            model=model,
            seed=sample.seed,
            safety_flags=sample.safety_flags,
        )
        for row, sample in zip(rows, samples, strict=True)
    ]


def generate(job: Job, method: str, prompts_path: str, model_path: str, targets: Sequence[str]) -> None:
    """Make the shards ``targets`` (paths that end in ``{class}/{part}.parquet``) of a sampled method.

    What the store holds already is linked; everything else is made, committed to the store and linked, shard by shard.
    """
    from augbench.models import load_pipeline, pick_device

    model = read_json(model_path)["id"]
    recipe = generate_recipe(job.study, method)
    prompts = read_prompts(prompts_path)
    wanted = []
    for target in targets:
        class_id, part = Path(target).parts[-2], int(Path(target).stem)
        rows = prompts[class_id, part]
        key = {**recipe, "model": model, "class_id": class_id, "rows": canonical_hash([[r["label"], r["index"], r["prompt"]] for r in rows])}
        wanted.append((target, key, rows))
    missing = [item for item in wanted if not job.store.has("shards", item[1], ".parquet", is_whole)]
    job.store.tally.reused += len(wanted) - len(missing)
    if missing:
        diffusion = job.study.diffusion
        pipeline = load_pipeline(diffusion, pick_device(job.study.execution.device))
        guidance = recipe["diffusion"]["guidance_scale"]
        sampler = Sampler(pipeline, diffusion.steps, guidance, diffusion.resolution, job.study.execution.batch_size)
        progress = Progress(method, sum(len(rows) for _, _, rows in missing), "image")
        for _, key, rows in missing:
            made = _make_rows(sampler, job, method, model, rows, progress)
            job.store.commit("shards", key, ".parquet", lambda path, made=made, key=key: write_shard(path, made, key))  # type: ignore[misc]
    for target, key, _ in wanted:
        job.store.publish("shards", key, target)
