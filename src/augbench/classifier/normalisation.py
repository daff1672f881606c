"""Batch normalisation over the global batch, for any number of processes that share it.

torchvision's reference computes statistics per process by default. The number of GPUs would then be a part
of the method: on eight GPUs, the paper's batch of 256 would be normalised in groups of 32.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed import _functional_collectives as collectives
from torch.distributed import group


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes, on the CPU; ``nn.SyncBatchNorm`` needs CUDA.

    Input and output: float ``(N, C, H, W)``; N may differ between processes.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise with the global batch's statistics in training, with running ones in evaluation."""
        if not self.training:
            return super().forward(input)
        world = group.WORLD
        assert world is not None
        assert (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
            and self.momentum is not None
        )
        images = input.to(torch.promote_types(input.dtype, torch.float32))
        number = torch.tensor([images.numel() // images.shape[1]], dtype=images.dtype, device=images.device)
        *sums, count = collectives.all_reduce(
            torch.cat([images.sum(dim=(0, 2, 3)), number]), "sum", world
        ).split([self.num_features, 1])
        mean = sums[0] / count
        centred = images - mean[:, None, None]
        variance = collectives.all_reduce(centred.square().sum(dim=(0, 2, 3)), "sum", world) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def over_the_global_batch(model: nn.Module, device: torch.device) -> None:
    """Make every ``nn.BatchNorm2d`` of ``model`` normalise over all processes; weights keep their names."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            kind = nn.SyncBatchNorm if device.type == "cuda" else GlobalBatchNorm2d
            replaced = kind(child.num_features, child.eps, child.momentum)
            replaced.load_state_dict(child.state_dict())
            setattr(model, name, replaced)
        else:
            over_the_global_batch(child, device)
