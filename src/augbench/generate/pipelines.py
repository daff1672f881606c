"""Sample any text-to-image pipeline of diffusers, by its own loop and with its own scheduler.

The pipeline is called with one random generator per image, so that an image does not depend on its batch.
Stable Diffusion 1.x and 2.x have a faster loop (:mod:`augbench.generate.sampler`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from augbench.config.models import Diffusion
from augbench.config.pipelines import tokenizer_of
from augbench.data.decode import square
from augbench.errors import UserError
from augbench.generate.attempts import Attempts
from augbench.models.folders import check_safety, own_side
from augbench.models.pipelines import Checker, load_checker, load_pipeline
from augbench.progress import Progress
from augbench.runtime.fit import BatchLimit
from augbench.runtime.precision import resolve

if TYPE_CHECKING:
    import torch
    from PIL import Image

# The first rounds sizes to those of a list, which tiny models lack; the second needs packages that may be
# missing, and then does nothing.
SWITCHED_OFF = ("use_resolution_binning", "clean_caption")
ROUNDING = 0.01  # by which half precision may leave the range of pixels


class PipelineSampler(Attempts):
    """Batched sampling of a pipeline with one random generator per image (seeded images).

    Parameters
    ----------
    pipeline : DiffusionPipeline
        On its device; an image-to-image pipeline if sampling starts from images.
    sampling : mapping
        Recipe of the row's sampling (:func:`augbench.plan.recipes.method_sampling`), with a resolution if
        sampling starts from images.
    checker : Checker
        Safety checker.
    limit : BatchLimit
        Number of images sampled together, which halves where memory does not suffice.
    attempts_per_image : int
        As for :class:`augbench.generate.attempts.Attempts`.
    """

    def __init__(
        self,
        pipeline: Any,
        sampling: Mapping[str, Any],
        checker: Checker,
        limit: BatchLimit,
        attempts_per_image: int,
    ) -> None:
        self.pipeline, self.sampling, self.checker = pipeline, sampling, checker
        self.limit, self.attempts_per_image = limit, attempts_per_image
        self._checked = BatchLimit(limit.size, "safety checker")
        self._takes = inspect.signature(type(pipeline).__call__).parameters
        self._finisher = ThreadPoolExecutor(1, "finish")
        self._conditioning: dict[str, dict[str, torch.Tensor]] = {}
        self._own: dict[str, tuple[Any, Any]] = {}  # tokenizer and table of a text encoder without new words

    def set_conditioning(self, entries: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Replace what the pipeline is given in place of prompts, by argument of its call and by prompt."""
        place = {"device": self.pipeline._execution_device, "dtype": self.network.dtype}
        self._conditioning = {
            argument: {prompt: values.to(**place) for prompt, values in learned.items()}
            for argument, learned in entries.items()
        }

    def set_words(self, entries: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Replace text encoders' new words, by part of the pipeline: embeddings ``(1, width)`` by word."""
        from torch import cat, nn

        from augbench.models.words import learn_words

        for part, words in entries.items():
            encoder, name = getattr(self.pipeline, part), tokenizer_of(part)
            own = getattr(self.pipeline, name), encoder.get_input_embeddings()
            tokenizer, table = self._own.setdefault(part, own)
            encoder.set_input_embeddings(table)
            values = cat(list(words.values())).to(encoder.device, encoder.dtype)
            tokenizer = copy.deepcopy(tokenizer)
            learn_words(encoder, tokenizer, list(words), nn.Parameter(values, requires_grad=False))
            setattr(self.pipeline, name, tokenizer)

    @property
    def network(self) -> torch.nn.Module:
        """The network that denoises."""
        network: torch.nn.Module = getattr(self.pipeline, "transformer", None) or self.pipeline.unet
        return network

    @property
    def _together(self) -> BatchLimit:
        return self.limit

    def _arguments(
        self, prompts: Sequence[str], seeds: Sequence[int], starts: Sequence[Image.Image] | None
    ) -> dict[str, Any]:
        """Arguments of the pipeline's call."""
        import torch

        sampling, side = self.sampling, self.sampling["resolution"]
        arguments: dict[str, Any] = {
            **self._asked(prompts),
            "num_inference_steps": sampling["steps"],
            "guidance_scale": sampling["guidance_scale"],
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "output_type": "pt",
            **{name: False for name in SWITCHED_OFF if name in self._takes},
        }
        if "negative_prompt" in sampling:
            arguments["negative_prompt"] = [sampling["negative_prompt"]] * len(prompts)
        if starts is not None:
            arguments["image"] = [square(image, side) for image in starts]
            arguments["strength"] = sampling["noise"]
        if side is not None and "height" in self._takes:
            arguments |= {"height": side, "width": side}
        return arguments

    def _asked(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Arguments that say what images are of: the prompts, or what was learned in place of each."""
        import torch

        if not self._conditioning:
            return {"prompt": list(prompts)}
        return {
            argument: torch.stack([learned[prompt] for prompt in prompts])
            for argument, learned in self._conditioning.items()
        }

    def _batch(
        self, prompts: Sequence[str], seeds: Sequence[int], starts: Sequence[Image.Image] | None
    ) -> torch.Tensor:
        """Sample one batch of images ``(N, 3, H, W)`` from 0 to 1, on the CPU."""
        import torch

        try:
            with torch.inference_mode():
                pixels = self.pipeline(**self._arguments(prompts, seeds, starts)).images.float().cpu()
        except torch.OutOfMemoryError:
            self.pipeline.maybe_free_model_hooks()  # with CPU offload, the last network is still on the GPU
            raise
        if not pixels.isfinite().all():
            raise UserError(
                "dtype",
                f"{self.sampling['dtype']}: {type(self.pipeline).__name__} gives values that are not finite",
                "bfloat16 and float32 do not overflow; if it is one of them already, the model is damaged",
            )
        least, most = pixels.aminmax()
        if least < -ROUNDING or most > 1 + ROUNDING:
            raise UserError(
                type(self.pipeline).__name__,
                f"pixels from {float(least):.3g} to {float(most):.3g}",
                "allowed: 0 to 1; use another pipeline",
            )
        return pixels

    def _handed_over(
        self, sampled: torch.Tensor, progress: Progress | None
    ) -> Future[tuple[list[Image.Image], list[bool]]]:
        return self._finisher.submit(self._finish, sampled, progress)

    def _finish(
        self, pixels: torch.Tensor, progress: Progress | None
    ) -> tuple[list[Image.Image], list[bool]]:
        """Pictures of a batch, and the safety checker's flags."""
        from diffusers.image_processor import VaeImageProcessor

        images = VaeImageProcessor.numpy_to_pil(pixels.permute(0, 2, 3, 1).numpy())
        flags = check_safety(self.checker, images, self._checked)
        if progress is not None:
            progress.update(len(flags) - sum(flags), note=f"{sum(flags)} flagged" if any(flags) else "")
        return images, flags


def pipeline_sampler(
    model: Diffusion,
    sampling: Mapping[str, Any],
    device: torch.device,
    batch_size: int,
    attempts_per_image: int,
) -> PipelineSampler:
    """Load a model, its safety checker, and what samples it as the recipe ``sampling`` says."""
    pipeline = load_pipeline(
        model.folder, device, resolve(model.dtype, device), from_images="noise" in sampling
    )
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # it would replace images by black ones; ours samples again
    if "noise" in sampling and sampling["resolution"] is None:
        sampling = {**sampling, "resolution": own_side(model.folder)}
    limit = BatchLimit(batch_size, "execution.batch_size")
    return PipelineSampler(pipeline, sampling, load_checker(model, device), limit, attempts_per_image)
