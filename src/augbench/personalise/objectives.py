"""What a denoiser learns: the noisy latents that it is given, its timestep, and what it should predict."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from augbench.errors import UserError

Posed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Objective(Protocol):
    """A training objective; its loss is the mean squared error of the prediction."""

    timesteps: int  # that samples are drawn from, with equal chance

    def pose(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Posed:
        """Noisy latents ``(N, ...)``, timesteps of the network ``(N,)``, and the target ``(N, ...)``."""


def diffusion_target(
    scheduler: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Target of the U-Net's prediction: the noise, or the velocity if the model was trained with it.

    Stable Diffusion 2.x was trained with the velocity.

    Raises
    ------
    UserError
        The model predicts something else.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise UserError(
        "diffusion.model", f"its scheduler's prediction_type is {kind!r}", "allowed: epsilon, v_prediction"
    )


class NoisePrediction:
    """Objective of diffusion models: Stable Diffusion 1.x, 2.x and XL."""

    def __init__(self, scheduler: DDPMScheduler) -> None:
        self.scheduler, self.timesteps = scheduler, scheduler.config.num_train_timesteps

    def pose(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Posed:
        """Latents with noise of the schedule; the target is the noise or the velocity."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        return noisy, timesteps, diffusion_target(self.scheduler, latents, noise, timesteps)


class FlowMatching:
    """Objective of rectified flows: Stable Diffusion 3 (Esser et al., 2024).

    With share s of noise, the network gets (1 - s) x latents + s x noise and predicts noise - latents. Shares
    have a logit-normal distribution of mean 0 and deviation 1, over the scheduler's own (shifted) grid, and
    all errors weigh the same: ``weighting_scheme: logit_normal`` of diffusers' examples. Samples draw a
    quantile of that distribution.
    """

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        self.timesteps = scheduler.config.num_train_timesteps
        quantiles = (torch.arange(self.timesteps, dtype=torch.float64) + 0.5) / self.timesteps
        # float64 on the CPU: the places are the same on all devices
        places = (torch.special.ndtri(quantiles).sigmoid() * self.timesteps).long()
        self.times = scheduler.timesteps.cpu()[places]  # float32 (timesteps,)
        self.shares = scheduler.sigmas.cpu()[places]

    def pose(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Posed:
        """Latents mixed with noise; the target is the velocity from latents to noise."""
        if self.times.device != latents.device:
            self.times, self.shares = self.times.to(latents.device), self.shares.to(latents.device)
        share = self.shares[timesteps].view(-1, *[1] * (latents.dim() - 1))
        return (1 - share) * latents + share * noise, self.times[timesteps], noise - latents


def objective_of(scheduler: Any) -> Objective:
    """The objective that a model with this scheduler was trained with."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return FlowMatching(scheduler)
    return NoisePrediction(scheduler)
