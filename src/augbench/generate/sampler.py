"""Sample the diffusion model: from prompts and seeds to images, batch by batch.

The sampling loop is that of diffusers' pipelines and gives the same images, bit for bit. It is written
out here because theirs reads a value back from the GPU at every step, and guides every step. The work
after it (pixels to pictures, the safety checker, encoding, writing) is done in threads while the next
batch is sampled.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from augbench.config.stages import ATTEMPTS_PER_IMAGE
from augbench.data.decode import square
from augbench.errors import UserError
from augbench.generate.attempts import Attempts
from augbench.models.folders import check_safety, to_device
from augbench.progress import Progress
from augbench.runtime.compiling import copies_to_fill, kernels_of, run_filled
from augbench.runtime.fit import BatchLimit

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from PIL import Image

logger = logging.getLogger(__name__)
BATCH_SIZE = "execution.batch_size"
DECODED_TOGETHER = 8  # fills a GPU; the decoder needs two to three times the U-Net's memory per image


@dataclass(frozen=True)
class SamplingStep:
    """One step of the sampling loop.

    ``timestep`` is on the host, for the scheduler. ``on_device`` is the same timestep on the U-Net's
    device. ``guided`` says whether the step is guided.
    """

    timestep: int
    on_device: torch.Tensor
    guided: bool


class Batches:
    """Largest batches of sampling, which halve where memory does not suffice; one object for a whole job.

    The decoder needs more memory per image than the U-Net, so on a GPU it has smaller batches, of about
    equal size.

    Parameters
    ----------
    size : int
        Number of images sampled together.
    device : device
        Of the networks.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.sampled = BatchLimit(size, BATCH_SIZE)
        slices = -(-size // DECODED_TOGETHER) if device.type == "cuda" else 1
        self.decoded = BatchLimit(-(-size // slices), "decoding")
        self.checked = BatchLimit(size, "safety checker")
        self.again = BatchLimit(1, "decoding in float32")
        self.overflowed: set[str] = set()  # parts of the VAE


def _once(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap ``function`` so that it is called once for each distinct object."""
    known: list[tuple[Any, Any]] = []

    def remembered(given: Any) -> Any:
        for before, result in known:
            if before is given:
                return result
        known.append((given, function(given)))
        return known[-1][1]

    return remembered


@contextmanager
def text_once(unet: UNet2DConditionModel) -> Iterator[None]:
    """Context in which cross-attention computes keys and values once per text states, not at every step.

    The images stay the same, bit for bit.
    """
    layers = [
        layer
        for name, module in unet.named_modules()
        if name.endswith(".attn2")
        for layer in (module.to_k, module.to_v)
    ]
    with ExitStack() as changes:
        for layer in layers:
            changes.callback(setattr, layer, "forward", layer.forward)
            layer.forward = _once(layer.forward)
        yield


class Sampler(Attempts):
    """Batched sampling with one random generator per image (seeded images).

    Parameters
    ----------
    pipeline : StableDiffusionPipeline
        On its device, with its scheduler and safety checker.
    steps, guidance_scale, resolution
        As in the config; resolution in pixels.
    batch_size : int or Batches
        Number of images sampled together, or the batches of an earlier sampler of this job. It changes
        results only by floating-point rounding.
    noise : float, optional
        Sampling starts from images with this share of the noise schedule added and runs the remaining
        ``steps`` (Boomerang; Luzi et al., 2022). None: it starts from pure noise.
    conditioning : mapping of str to Tensor, optional
        Text states ``(77, D)`` by prompt, used instead of the text encoder's.
    guidance_interval : tuple of float, optional
        Noise levels between which steps are guided, the lower one excluded (Kynkäänniemi et al., 2024).
        Other steps evaluate only the prompt. None: all steps are guided.
    compiled : bool
        Whether the networks are compiled, for batches of that size. A batch of at least half that size is
        filled up; a smaller one runs uncompiled.
    attempts_per_image : int
        Mean number of samples per image, over the images that are sampled together, after which those
        that the safety checker still flags are given up.
    negative_prompt : str
        Text that guidance leads away from.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        steps: int,
        guidance_scale: float,
        resolution: int,
        batch_size: int | Batches,
        noise: float | None = None,
        conditioning: Mapping[str, torch.Tensor] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        compiled: bool = False,
        attempts_per_image: int = ATTEMPTS_PER_IMAGE,
        negative_prompt: str = "",
    ) -> None:
        self.attempts_per_image, self.negative_prompt = attempts_per_image, negative_prompt
        self.pipeline, self.steps, self.guidance_scale = pipeline, steps, guidance_scale
        self.resolution, self.noise = resolution, noise
        self.guidance_interval, self.compiled = guidance_interval, compiled
        device, dtype = pipeline.unet.device, pipeline.unet.dtype
        self.batches = batch_size if isinstance(batch_size, Batches) else Batches(batch_size, device)
        self._states = {prompt: states.to(device, dtype) for prompt, states in (conditioning or {}).items()}
        self._finisher = ThreadPoolExecutor(1, "finish")

    @property
    def _together(self) -> BatchLimit:
        return self.batches.sampled

    def _text_states(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text states ``(N, 77, D)``; each distinct prompt is encoded once."""
        import torch

        if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]:
            states, _ = self.pipeline.encode_prompt(missing, self.pipeline._execution_device, 1, False)
            self._states.update(zip(missing, states, strict=True))
        return torch.stack([self._states[prompt] for prompt in prompts])

    @cached_property
    def _noise_levels(self) -> list[float]:
        """Standard deviation of the noise relative to the image's, by timestep."""
        return [((1 - alpha) / alpha) ** 0.5 for alpha in self.pipeline.scheduler.alphas_cumprod.tolist()]

    def _is_guided(self, timestep: int) -> bool:
        if self.guidance_scale <= 1 or self.guidance_interval is None:
            return self.guidance_scale > 1
        low, high = self.guidance_interval
        return low < self._noise_levels[timestep] <= high

    def schedule(self) -> list[SamplingStep]:
        """Reset the scheduler to its first step; returns all steps from there."""
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(self.steps)
        skipped = (
            0
            if self.noise is None
            else (self.steps - min(int(self.steps * self.noise), self.steps)) * scheduler.order
        )
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        timesteps = scheduler.timesteps[skipped:]
        on_device = timesteps.to(self.pipeline.unet.device)
        return [
            SamplingStep(timestep, there, self._is_guided(timestep))
            for timestep, there in zip(timesteps.tolist(), on_device, strict=True)
        ]

    def _first_latents(
        self, seeds: Sequence[int], starts: Sequence[Image.Image] | None, first: SamplingStep
    ) -> torch.Tensor:
        """Latents that sampling starts from, ``(N, 4, h, w)``: noise, or images with noise added."""
        import torch
        from diffusers.utils.torch_utils import randn_tensor

        unet, scheduler = self.pipeline.unet, self.pipeline.scheduler
        side = self.resolution // self.pipeline.vae_scale_factor
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = randn_tensor(
            (len(seeds), unet.config.in_channels, side, side), generators, unet.device, unet.dtype
        )
        if starts is None:
            return noise * scheduler.init_noise_sigma
        return scheduler.add_noise(self._latents(starts), noise, first.on_device.expand(len(seeds)))

    def _latents(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Mode of the VAE's posterior of each image, scaled: ``(N, 4, h, w)``."""
        import torch

        vae = self.pipeline.vae
        pixels = to_device(
            self.pipeline.image_processor.preprocess([square(image, self.resolution) for image in images]),
            vae.device,
        )
        mode = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        if vae.dtype == torch.float16 and not mode.isfinite().all():
            self._note_overflow("encoder")
            mode = self._wide_vae.encode(pixels.float()).latent_dist.mode().to(vae.dtype)
        return mode * vae.config.scaling_factor

    @cached_property
    def _wide_vae(self) -> AutoencoderKL:
        """The VAE in float32, uncompiled, for values that overflow in the pipeline's precision."""
        return copy.deepcopy(self.pipeline.vae).float()

    def _denoise(
        self,
        latents: torch.Tensor,
        steps: Sequence[SamplingStep],
        prompted: torch.Tensor,
        unprompted: torch.Tensor | None,
    ) -> torch.Tensor:
        """Denoise the latents through all steps, without waiting for the device.

        Parameters
        ----------
        latents : Tensor
            ``(N, 4, h, w)``.
        prompted, unprompted : Tensor
            Text states ``(N, 77, D)`` of the prompts and of the negative prompt; the latter may be None if
            no step is guided.
        """
        import torch

        unet, scheduler = self.pipeline.unet, self.pipeline.scheduler
        both = prompted if unprompted is None else torch.cat([unprompted, prompted])  # (2N, 77, D)
        for step in steps:
            twice = torch.cat([latents] * 2) if step.guided else latents  # (2N or N, 4, h, w)
            inputs = scheduler.scale_model_input(twice, step.timestep)
            states = both if step.guided else prompted  # (2N or N, 77, D)
            predicted = unet(inputs, step.on_device, encoder_hidden_states=states, return_dict=False)[0]
            if step.guided:
                without, towards = predicted.chunk(2)  # (N, 4, h, w) each
                predicted = without + self.guidance_scale * (towards - without)  # (N, 4, h, w)
            latents = scheduler.step(predicted, step.timestep, latents, return_dict=False)[0]  # (N, 4, h, w)
        return latents

    def pixels(
        self, prompts: Sequence[str], seeds: Sequence[int], starts: Sequence[Image.Image] | None
    ) -> torch.Tensor:
        """Sample a batch of images ``(N, 3, H, W)`` from -1 to 1; the device may still be computing them."""
        return self.decode(self.latents(prompts, seeds, starts))

    def _batch(
        self, prompts: Sequence[str], seeds: Sequence[int], starts: Sequence[Image.Image] | None
    ) -> torch.Tensor:
        return self.latents(prompts, seeds, starts)

    def latents(
        self, prompts: Sequence[str], seeds: Sequence[int], starts: Sequence[Image.Image] | None
    ) -> torch.Tensor:
        """Sample one batch of latents ``(N, 4, h, w)``; the device may still be computing them.

        Networks are compiled for whole batches. A batch that is at least half full is filled up with
        copies of its last image; a smaller one runs uncompiled.
        """
        import torch

        images, whole = len(prompts), self.batches.sampled.size
        copies = copies_to_fill(images, whole) if self.compiled else 0
        if copies is None:
            with torch.compiler.set_stance("force_eager"):
                return self._sampled(prompts, seeds, starts)
        more = None if starts is None else [*starts, *[starts[-1]] * copies]
        sampled = self._sampled([*prompts, *[prompts[-1]] * copies], [*seeds, *[seeds[-1]] * copies], more)
        return sampled[:images]

    def _sampled(
        self, prompts: Sequence[str], seeds: Sequence[int], starts: Sequence[Image.Image] | None
    ) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            prompted = self._text_states(prompts)
            unprompted = (
                self._text_states([self.negative_prompt] * len(prompts)) if self.guidance_scale > 1 else None
            )
            steps = self.schedule()
            with nullcontext() if self.compiled else text_once(self.pipeline.unet):
                return self._denoise(
                    self._first_latents(seeds, starts, steps[0]), steps, prompted, unprompted
                )

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents ``(N, 4, h, w)`` to pixels, a few at a time, without waiting for the device."""
        import torch

        vae, limit = self.pipeline.vae, self.batches.decoded

        def decoded(part: torch.Tensor) -> torch.Tensor:
            return vae.decode(part / vae.config.scaling_factor, return_dict=False)[0]

        def tried(rows: Sequence[int]) -> torch.Tensor:
            part = latents[rows[0] : rows[-1] + 1]
            return run_filled(decoded, self._decoded_whole, part) if self.compiled else decoded(part)

        with torch.inference_mode():
            return torch.cat(list(limit.run(tried, range(len(latents)))))

    @property
    def _decoded_whole(self) -> int:
        """Size of the batches for which the decoder is compiled."""
        return min(self.batches.decoded.size, self.batches.sampled.size)

    def _finite(self, pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Replace pixels that are not finite, by decoding their latents in float32.

        Raises
        ------
        UserError
            They are not finite then, either, because the latents are not.
        """
        import torch

        found = (~pixels.isfinite()).flatten(1).any(1).cpu()
        bad = [place for place, is_bad in enumerate(found.tolist()) if is_bad]
        if not bad:
            return pixels
        vae = self._wide_vae
        again = torch.cat(
            list(
                self.batches.again.run(
                    lambda rows: vae.decode(
                        latents[rows].float() / vae.config.scaling_factor, return_dict=False
                    )[0],
                    bad,
                )
            )
        )
        if not again.isfinite().all():
            raise UserError(
                "diffusion.dtype",
                f"{self._precision}: sampling gives values that are not finite",
                "float32 (or bfloat16) does not overflow; if it is that already, the model is damaged",
            )
        self._note_overflow("decoder")
        pixels[bad] = again.to(pixels.dtype)
        return pixels

    @property
    def _precision(self) -> str:
        return str(self.pipeline.vae.dtype).removeprefix("torch.")

    def _note_overflow(self, part: str) -> None:
        """Log that a part of the VAE overflows, once per job."""
        noted = self.batches.overflowed
        if part not in noted:
            noted.add(part)
            logger.warning(
                "diffusion.dtype %s: the VAE's %s overflows; these images are computed again in float32",
                self._precision,
                part,
            )

    def compiled_for(self) -> dict[str, Any]:
        """Properties that determine the kernels of :meth:`warm_up`: versions, device, networks, sizes."""
        guided = sorted({step.guided for step in self.schedule()})
        return kernels_of(
            self.pipeline.unet,
            vae=self.pipeline.vae.to_json_string(),
            batch=[self.batches.sampled.size, self._decoded_whole, self.resolution],
            guided=guided,
        )

    def warm_up(self) -> None:
        """Compile the networks by running them at the size of a whole batch, halved until it fits.

        The U-Net runs with and without guidance, as the steps need it, then the VAE's decoder.
        """
        import torch

        def denoised(seeds: Sequence[int]) -> torch.Tensor:
            steps = {step.guided: step for step in self.schedule()}
            states = self._text_states([""] * len(seeds))
            latents = self._first_latents(seeds, None, next(iter(steps.values())))
            return self._denoise(latents, list(steps.values()), states, states)

        limit = self.batches.sampled
        with torch.inference_mode():
            self.decode(next(limit.run(denoised, range(limit.size))))

    @cached_property
    def _beside(self) -> Any:
        """CUDA stream for the work on finished images, beside the one that samples; None without a GPU."""
        import torch

        return torch.cuda.Stream() if self.pipeline.unet.device.type == "cuda" else None

    def _finish(
        self, pixels: torch.Tensor, latents: torch.Tensor, made: Any, progress: Progress | None
    ) -> tuple[list[Image.Image], list[bool]]:
        """Pictures of a batch, and the safety checker's flags.

        ``made`` is the event after which the GPU has pixels and latents; None without a GPU.
        """
        import torch

        stream: AbstractContextManager[Any] = (
            nullcontext() if made is None else torch.cuda.stream(self._beside)
        )
        with torch.inference_mode(), stream:
            if made is not None:
                self._beside.wait_event(made)
            images = self.pipeline.image_processor.postprocess(self._finite(pixels, latents))
            flags = check_safety(self.pipeline, images, self.batches.checked)
        if progress is not None:
            progress.update(len(flags) - sum(flags), note=f"{sum(flags)} flagged" if any(flags) else "")
        return images, flags

    def _handed_over(
        self, latents: torch.Tensor, progress: Progress | None
    ) -> Future[tuple[list[Image.Image], list[bool]]]:
        """Decode a batch and hand it to the thread that finishes pictures."""
        import torch

        pixels = self.decode(latents)
        made = torch.cuda.current_stream().record_event() if pixels.device.type == "cuda" else None
        return self._finisher.submit(self._finish, pixels, latents, made, progress)
