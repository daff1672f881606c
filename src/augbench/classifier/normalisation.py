"""Batch normalisation over the global batch or equal parts of it, for any number of processes.

Torch computes statistics per process by default. The number of GPUs would then be a part of the method: on
eight GPUs, the paper's batch of 256 was normalised in parts of 32. Here ``classifier.batch_norm_groups`` says
how many parts there are, and processes only have to divide it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn.functional import all_reduce

from augbench.classifier.compute import ProcessGroup
from augbench.errors import UserError


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes, on the CPU; ``nn.SyncBatchNorm`` needs CUDA.

    Input and output: float ``(N, C, H, W)``; N may differ between processes.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise with the global batch's statistics in training, with running ones in evaluation."""
        if not self.training:
            return super().forward(input)
        assert (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
            and self.momentum is not None
        )
        images = input.to(torch.promote_types(input.dtype, torch.float32))
        number = torch.tensor([images.numel() // images.shape[1]], dtype=images.dtype, device=images.device)
        # the functional collectives of envs/cuda12.lock's torch give no gradients
        summed = all_reduce(torch.cat([images.sum(dim=(0, 2, 3)), number]))
        *sums, count = summed.split([self.num_features, 1])
        mean = sums[0] / count
        centred = images - mean[:, None, None]
        variance = all_reduce(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of each of several parts of a batch by itself.

    Running statistics are those of the first part, as in distributed training, whose first process passes its
    own on to the others.

    Parameters
    ----------
    groups : int
        Number of parts, whose sizes differ by at most one.

    Attributes
    ----------
    updates : bool
        Whether the first part is that of the whole batch, whose statistics count.
    """

    def __init__(self, groups: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.groups, self.updates = groups, True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise each part with its own statistics in training, with running ones in evaluation."""
        if not self.training:
            return super().forward(input)
        parts = input.tensor_split(self.groups)
        done = [super().forward(parts[0])] if self.updates else []
        others = parts[len(done) :]
        return torch.cat(
            [
                *done,
                *(
                    F.batch_norm(part, None, None, self.weight, self.bias, True, eps=self.eps)
                    for part in others
                ),
            ]
        )


def normalise_over(model: nn.Module, groups: int, group: ProcessGroup, device: torch.device) -> None:
    """Make each ``nn.BatchNorm2d`` of a model normalise parts of the global batch; weights keep their names.

    Parameters
    ----------
    groups : int
        Number of parts: 1, or a multiple of the number of processes, none of which then waits for another.
    """
    make: Callable[..., nn.BatchNorm2d | nn.SyncBatchNorm]
    if groups > group.size:
        make = partial(GroupedBatchNorm2d, groups // group.size)
    elif groups == group.size:
        return
    else:
        make = nn.SyncBatchNorm if device.type == "cuda" else GlobalBatchNorm2d
    _replace(model, make)


def _replace(model: nn.Module, make: Callable[..., nn.Module]) -> None:
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, _replaced(child, make))
        elif isinstance(child, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                "classifier.arch",
                f"a network with {type(child).__name__}, whose statistics can't be those of the parts of a "
                "batch",
                "allowed: batch_norm_groups equal to the number of processes, or a network without it",
            )
        else:
            _replace(child, make)


def _replaced(child: nn.BatchNorm2d, make: Callable[..., nn.Module]) -> nn.Module:
    """Return the module that ``make`` makes in place of ``child``, with its weights.

    timm's BatchNormAct2d also has an activation, which stays.
    """
    replaced = make(child.num_features, child.eps, child.momentum)
    if isinstance(getattr(child, "act", None), nn.Module):
        replaced.drop, replaced.act = child.drop, child.act
        replaced.register_forward_hook(lambda module, _, output: module.act(module.drop(output)))
    replaced.load_state_dict(child.state_dict())
    return replaced
