"""The miniature's conditional U-Net: epsilon prediction on latents (Rombach et al., 2022).

The latents are cached. Text states are computed once per caption and kept in half precision.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from augbench.config.pretrain import PretrainUnet
from augbench.miniature.pretrain.autoencoder import encode_images
from augbench.miniature.pretrain.loop import EpochSampler, Schedule, step_generator, train

# Stable Diffusion v1's noise schedule.
NOISE_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def new_unet(config: PretrainUnet, text_width: int) -> UNet2DConditionModel:
    """Return an untrained U-Net with Stable Diffusion's block types and two resolutions instead of four."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=config.channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=config.layers_per_block,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


class TextStates:
    """The text tower's last hidden states ``(77, width)`` of each distinct caption, computed on first use."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.known: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self.known]
        if missing:
            ids = self.tokenizer(
                missing, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
            )
            states = self.text_encoder(ids.input_ids).last_hidden_state.half()
            self.known.update(zip(missing, states, strict=True))
        return torch.stack([self.known[caption] for caption in captions]).float()


def train_unet(
    images: torch.Tensor,
    captions: Sequence[str],
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    config: PretrainUnet,
    seed: int,
    folder: Path,
    checkpoint_steps: int,
) -> list[dict[str, float]]:
    """Train on ``images`` uint8 (N, 3, 32, 32) and ``captions``, and return the history.

    ``folder/model`` is a ``UNet2DConditionModel`` in diffusers' layout, with the averaged weights.
    """
    torch.manual_seed(seed)
    model = new_unet(config, text_encoder.config.hidden_size).train()
    average = copy.deepcopy(model).requires_grad_(False)
    moments = encode_images(autoencoder, images)
    states = TextStates(tokenizer, text_encoder)
    scheduler = DDPMScheduler(num_train_timesteps=1000, **NOISE_SCHEDULE)
    sampler = EpochSampler(len(images), config.batch_size, seed)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        generator = step_generator(seed, step)
        chosen = sampler.indices(step)
        mean, std = moments[torch.from_numpy(chosen)].chunk(2, dim=1)
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        dropped = (torch.rand(len(chosen), generator=generator) < config.caption_dropout).tolist()
        text = states(["" if drop else captions[i] for i, drop in zip(chosen, dropped, strict=True)])
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(chosen),), generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        loss = F.mse_loss(model(noisy, timesteps, text.clone()).sample, noise)
        return loss, {"loss": loss.item()}

    schedule = Schedule(config.steps, config.lr, config.restart_at)
    history = train(
        "U-Net",
        module=model,
        loss_at=loss_at,
        schedule=schedule,
        checkpoint=folder / "checkpoint.pt",
        checkpoint_steps=checkpoint_steps,
        weight_decay=0.01,
        average=average,
        decay=config.ema_decay,
    )
    average.eval().save_pretrained(folder / "model")
    return history
