"""CLIP in transformers' layout: its two towers, tokenizer and image processor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import CLIPModel

from augbench.data.decode import middle
from augbench.models.folders import load_processor, to_device
from augbench.models.tokenizer import CleaningTokenizer
from augbench.models.towers import Clip, ImageTower, embed_distinct

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPTokenizer


class TransformersClip(Clip):
    """A CLIP model from a folder in transformers' layout."""

    def __init__(self, folder: str | Path, device: torch.device) -> None:
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self.model = model.eval().to(device)
        self.tokenizer = CleaningTokenizer.from_pretrained(folder, local_files_only=True)
        self._folder = folder

    @property
    def scale(self) -> torch.Tensor:
        return self.model.logit_scale.exp()

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return embed_texts(self.model, self.tokenizer, texts)

    def image_tower(self, half: bool = False, compiled: bool = False) -> TransformersTower:
        return TransformersTower(self.model, load_processor(self._folder), half, compiled)


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Compute unit text embeddings ``float32 (N, D)``, on the model's device.

    The text tower is causal, so padding costs time and does not change the embeddings.
    """

    def features(batch: Sequence[str]) -> torch.Tensor:
        tokens = tokenizer(
            list(batch),
            padding="longest",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        return model.get_text_features(**tokens.to(model.device)).pooler_output

    return embed_distinct(features, texts)


def _cut(image: Image.Image, shorter: int, crop: tuple[int, int], resample: Any) -> Image.Image:
    """Resize and crop an image as transformers' image processor does, bit for bit.

    The processor converts to arrays and back, and blocks other threads meanwhile; this does not.
    """
    width, height = image.size
    short, long = sorted((width, height))
    longer = int(shorter * long / short)
    size = (shorter, longer) if width <= height else (longer, shorter)
    resized = (image if image.mode == "RGB" else image.convert("RGB")).resize(size, resample)
    left, top = ((side - cut) // 2 for side, cut in zip(size, reversed(crop), strict=True))
    return resized.crop((left, top, left + crop[1], top + crop[0]))


class TransformersTower(ImageTower):
    """The image tower of a CLIP in transformers' layout, with its image processor.

    The last layer is computed for the class token alone, the only one that CLIP reads. This saves a
    thirtieth of the work for ViT-L/14 and a fifth for a small network, and leaves the result unchanged.

    Parameters
    ----------
    model : CLIPModel
        It is modified: after its last layer, only the hidden state of the class token is valid.
    processor : CLIPImageProcessorPil
        From the same folder.
    half, compiled : bool
        As in :class:`ImageTower`.
    """

    def __init__(
        self,
        model: CLIPModel,
        processor: CLIPImageProcessorPil,
        half: bool = False,
        compiled: bool = False,
    ) -> None:
        self.model, self.processor = model, processor
        last = model.vision_model.encoder.layers[-1]
        # Keep only the first token. Later additions broadcast the result to all tokens, but only the first
        # is read.
        for module in (last.self_attn.out_proj, last.layer_norm2):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :1],))
        super().__init__(model.vision_model, model.device, half, compiled)

    def prepare(self, images: Sequence[Image.Image]) -> torch.Tensor:
        images = [middle(image) for image in images]
        if self._sides is None:
            cut = self.processor(images, do_rescale=False, do_normalize=False, return_tensors="np")
            return torch.from_numpy(cut.pixel_values)
        pixels = np.stack([np.asarray(_cut(image, *self._sides)) for image in images])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    @cached_property
    def _sides(self) -> tuple[int, tuple[int, int], Any] | None:
        """Shorter side, crop ``(height, width)`` and resampling; None for an unusual processor."""
        processor = self.processor
        shorter = processor.size.get("shortest_edge", 0)
        crop = (processor.crop_size["height"], processor.crop_size["width"])
        usual = (
            processor.do_convert_rgb
            and processor.do_resize
            and processor.do_center_crop
            and shorter >= max(crop)
        )
        return (shorter, crop, processor.resample) if usual else None

    @cached_property
    def _normalisation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each colour, ``(1, 3, 1, 1)``, on the device."""
        mean, std = (
            to_device(torch.tensor(values).view(1, -1, 1, 1), self.model.device)
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        return mean, std

    def _normalised(self, values: torch.Tensor) -> torch.Tensor:
        # same order and precision as the processor, so the same bits, but for a whole batch at once
        if self.processor.do_rescale:
            values = (values.double() * self.processor.rescale_factor).float()
        if self.processor.do_normalize:
            mean, std = self._normalisation
            values = (values - mean) / std
        return values.float()

    def _features(self, values: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixel_values=values).pooler_output
