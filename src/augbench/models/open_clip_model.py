"""CLIP models of open_clip, SigLIP and DFN among them: its towers, tokenizers and preprocessing.

Input: a description by :mod:`augbench.models.open_clip_files`, and the folder with the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from torchvision.transforms import Normalize, ToTensor

from augbench.data.decode import middle
from augbench.errors import UserError
from augbench.files import canonical_hash
from augbench.models.folders import to_device
from augbench.models.towers import Clip, ImageTower, embed_distinct

if TYPE_CHECKING:
    from PIL import Image


class _HubTokenizer(HFTokenizer):
    """open_clip's wrapper of transformers' tokenizers.

    open_clip calls ``batch_encode_plus``, which transformers 5 no longer has; the rest is as there.
    """

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> torch.Tensor:
        cleaned = [self.clean_fn(text) for text in ([texts] if isinstance(texts, str) else texts)]
        ids: torch.Tensor = self.tokenizer(
            cleaned,
            return_tensors="pt",
            max_length=context_length or self.context_length,
            padding="max_length",
            truncation=True,
        ).input_ids
        if self.strip_sep_token:
            ids = torch.where(ids == self.tokenizer.sep_token_id, torch.zeros_like(ids), ids)
        return ids


Tokenizer: TypeAlias = SimpleTokenizer | HFTokenizer


def load_tokenizer(description: Mapping[str, Any], folder: str | Path) -> Tokenizer:
    """Load the tokenizer of a model; a call with texts gives ids, int64 ``(N, context length)``."""
    text = description["model_cfg"]["text_cfg"]
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    options = text.get("tokenizer_kwargs") or {}
    if text.get("hf_tokenizer_name"):
        return _HubTokenizer(str(folder), context_length=length, local_files_only=True, **options)
    return SimpleTokenizer(context_length=length, **options)


def load_open_clip(clip: Mapping[str, Any], device: torch.device) -> OpenClip:
    """Load the model that ``models/clip.json`` describes.

    Raises
    ------
    UserError
        open_clip can't build the networks, or the weights are not theirs.
    """
    description, folder = clip["open_clip"], Path(clip["folder"])
    weights = folder / description["weights"]
    model_cfg = {**description["model_cfg"]}
    if "timm_model_name" in model_cfg["vision_cfg"]:  # timm's own weights would be fetched and replaced
        model_cfg["vision_cfg"] = {**model_cfg["vision_cfg"], "timm_model_pretrained": False}
    name = f"augbench-{canonical_hash(model_cfg)[:16]}"
    with TemporaryDirectory() as configs:
        (Path(configs) / f"{name}.json").write_text(json.dumps(model_cfg), encoding="utf-8")
        open_clip.add_model_config(configs)
    try:
        model = open_clip.create_model(
            name, pretrained=str(weights), force_preprocess_cfg={**description["preprocess_cfg"]}
        )
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            str(weights),
            f"open_clip {open_clip.__version__} can't load it ({' '.join(str(error).split())[:200]})",
            "allowed: weights of the architecture that clip.model or open_clip_config.json names",
        ) from None
    return OpenClip(model.eval().to(device), load_tokenizer(description, folder))


class OpenClip(Clip):
    """A CLIP model of open_clip."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.model.logit_scale.device
        return device

    @property
    def scale(self) -> torch.Tensor:
        scale: torch.Tensor = self.model.logit_scale.exp()
        return scale

    @property
    def bias(self) -> torch.Tensor | float:
        bias: torch.Tensor | None = self.model.logit_bias
        return 0.0 if bias is None else bias

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Compute unit text embeddings ``float32 (N, D)``, on the model's device.

        Tokens are padded to the context length, as in open_clip: towers without a causal mask read padding.
        """

        def features(batch: Sequence[str]) -> torch.Tensor:
            found: torch.Tensor = self.model.encode_text(to_device(self.tokenizer(list(batch)), self._device))
            return found

        return embed_distinct(features, texts)

    def image_tower(self, half: bool = False, compiled: bool = False) -> OpenClipTower:
        return OpenClipTower(self.model, self._device, half, compiled)


class OpenClipTower(ImageTower):
    """The image tower of an open_clip model, with open_clip's preprocessing.

    open_clip turns pixels into normalised numbers on the CPU. Here they stay bytes until they are on the
    device, with the same result.
    """

    def __init__(self, model: Any, device: torch.device, half: bool = False, compiled: bool = False) -> None:
        self.model = model
        config = PreprocessCfg(**model.visual.preprocess_cfg)
        *self._cut, to_tensor, self._normalise = image_transform_v2(config, is_train=False).transforms
        assert isinstance(to_tensor, ToTensor) and isinstance(self._normalise, Normalize)
        self._squashes = config.resize_mode != "shortest"
        super().__init__(model.visual, device, half, compiled)

    def prepare(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = []
        for image in images:
            cut = image if self._squashes else middle(image)
            for transform in self._cut:
                cut = transform(cut)
            pixels.append(np.asarray(cut))
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()

    @cached_property
    def _normalisation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each colour, ``(1, 3, 1, 1)``, on the device."""
        mean, std = (
            to_device(torch.tensor(numbers).view(1, -1, 1, 1), self.device)
            for numbers in (self._normalise.mean, self._normalise.std)
        )
        return mean, std

    def _normalised(self, values: torch.Tensor) -> torch.Tensor:
        # as ToTensor and Normalize compute it, but for a whole batch at once
        mean, std = self._normalisation
        return values.float().div(255).sub(mean).div(std)

    def _features(self, values: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.model.encode_image(values)
        return features
