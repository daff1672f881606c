"""Gradients of one batch: in one piece, or in several where memory does not suffice, and float16's scaling.

Input: images and labels of this process's share of a batch. Output: gradients in the parameters, the same up
to rounding however many pieces there are. A batch can only be cut where batch normalisation cuts it, too
(``classifier.batch_norm_groups``): elsewhere, normalisation would see fewer images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from augbench.classifier.compute import Compute
from augbench.classifier.mixing import Targets
from augbench.classifier.networks import head_of
from augbench.classifier.normalisation import GroupedBatchNorm2d
from augbench.config.classifier import Classifier
from augbench.errors import UserError
from augbench.runtime.fit import advice, give_back
from augbench.runtime.precision import resolve

logger = logging.getLogger(__name__)


def autocast(config: Classifier, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to the config's precision, as :func:`augbench.runtime.precision.resolve` takes it."""
    dtype = resolve(config.dtype, device)
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def _at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def layout(images: torch.Tensor) -> torch.Tensor:
    """Convert images to channels last; features (N, D) stay as they are.

    This is 1.5 times as fast as channels first, on CUDA and, for small networks, on the CPU (measured).
    """
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


class Gradients:
    """Computes gradients of the (weighted) mean loss over a global batch.

    Attributes
    ----------
    network : Module
        ``model``, or its :class:`~torch.nn.parallel.DistributedDataParallel`.
    scaler : GradScaler
        Scale of the loss in float16, whose gradients would otherwise vanish. A step whose gradients overflow
        is left out, and the scale halved. In other types it does nothing.
    at_once : int
        Parts of this process's share that run together.
    head_only : bool
        Whether only the last layer trains (:meth:`train_head_only`).
    """

    def __init__(self, model: nn.Module, config: Classifier, compute: Compute) -> None:
        self.model, self.config, self.compute = model, config, compute
        self.network: nn.Module = model
        half = resolve(config.dtype, compute.device) is torch.float16
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=half)
        self.grouped = [module for module in model.modules() if isinstance(module, GroupedBatchNorm2d)]
        self.parts = self.at_once = self._parts()
        self.before = [buffer.clone() for buffer in model.buffers()]
        self.head_only = False

    def _parts(self) -> int:
        """Number of parts in which this process's share of a batch can be cut, to the same result."""
        if self.grouped:
            return self.grouped[0].groups
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules()):
            return 1
        return max(1, self.config.batch_norm_groups // self.compute.group.size)

    def __call__(self, images: torch.Tensor, targets: Targets, total: float) -> torch.Tensor:
        """Set the gradients of the mean loss over a global batch.

        Parameters
        ----------
        images : Tensor, float (N, 3, H, W)
            This process's share, on the device.
        targets : Targets
            Of its images.
        total : float
            Sum of the weights of all images of the batch: their number, if all have the weight 1.

        Returns
        -------
        Tensor, float32 ()
            Sum of weight x loss of the share.

        Raises
        ------
        torch.OutOfMemoryError
            They do not fit into memory, even one part after another.
        """
        # with several processes, others wait for this one's gradients
        if self.at_once == 1 or self.network is not self.model:
            return self._in_pieces(images, targets, total)
        buffers = [*self.model.buffers()]
        _copy(buffers, self.before)
        while (loss := self._tried(images, targets, total)) is None:
            _copy(self.before, buffers)
            self.at_once = (self.at_once + 1) // 2
            logger.warning(
                "classifier.batch_size: %d images do not fit into the GPU's memory; going on with %d of %d"
                " parts of a batch at once, to the same result", len(images), self.at_once, self.parts,
            )  # fmt: skip
            give_back()
        return loss

    def _tried(self, images: torch.Tensor, targets: Targets, total: float) -> torch.Tensor | None:
        """Return the loss, or None if memory did not suffice and there are fewer parts to try.

        The error is dropped here, because its traceback keeps the tensors alive that filled the memory.
        """
        try:
            return self._in_pieces(images, targets, total)
        except torch.OutOfMemoryError:
            if self.at_once == 1:
                raise
            return None

    def _in_pieces(self, images: torch.Tensor, targets: Targets, total: float) -> torch.Tensor:
        """Add up the gradients of as many parts at a time as fit."""
        self.model.zero_grad(set_to_none=True)
        summed = torch.zeros((), device=images.device)
        ends = [len(part) for part in images.tensor_split(self.parts)]
        for first in range(0, self.parts, self.at_once):
            last = min(first + self.at_once, self.parts)
            piece = slice(sum(ends[:first]), sum(ends[:last]))
            for module in self.grouped:
                module.groups, module.updates = last - first, first == 0
            # gradients are averaged over processes with those of the last piece
            together = last == self.parts or not isinstance(self.network, DistributedDataParallel)
            with nullcontext() if together else self.network.no_sync():  # type: ignore[operator]
                summed += self._backward(images[piece], targets[piece], total)
        return summed

    def _backward(self, images: torch.Tensor, targets: Targets, total: float) -> torch.Tensor:
        with autocast(self.config, images.device):
            logits = self.network(layout(images))
            loss = targets.loss(_at_least_single(logits))
        # gradients are averaged over processes with equal weights; this factor corrects for unequal shares
        self.scaler.scale(loss * (len(images) * self.compute.group.size / total)).backward()
        return loss.detach() * len(images)

    def over_processes(self, images: int) -> None:
        """Average gradients over the group from now on, and do what is only done once, on black images.

        The processes agree on the number of parts that fit at once. From its second step on,
        DistributedDataParallel packs gradients in the order in which they get ready; with the first one done
        here, a resumed run sums in the same order.

        Parameters
        ----------
        images : int
            Number of images in this process's share of a batch.
        """
        compute, side = self.compute, self.config.resolution
        black = torch.zeros((images, 3, side, side), device=compute.device)
        targets = Targets(torch.zeros(images, dtype=torch.int64, device=compute.device))
        before = [buffer.clone() for buffer in self.model.buffers()]
        self(black, targets, images * compute.group.size)
        self.at_once = min(compute.group.collect(self.at_once))
        self.network = DistributedDataParallel(
            self.model,
            device_ids=[compute.device] if compute.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        # Set afterwards, because the argument (forward_sync_buffers) is too new for envs/cuda12.lock, and the
        # older one also leaves running statistics as they are at the start.
        self.network.broadcast_buffers = False
        self(black, targets, images * compute.group.size)
        _copy(before, [*self.model.buffers()])

    def train_head_only(self, images: int) -> None:
        """Train the last layer only from now on; the others, and running statistics, stay as they are.

        Parameters
        ----------
        images : int
            Number of images in this process's share of a batch (:meth:`over_processes`).
        """
        self.model.eval()  # as the features are in evaluation
        if self.head_only:
            return
        self.head_only = True
        self.model.requires_grad_(False)
        head_of(self.model).requires_grad_()
        if self.compute.group.size > 1:
            self.network = self.model  # the wrapper waits for the gradients of all layers
            self.over_processes(images)
        self.model.zero_grad(set_to_none=True)


def _copy(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    """Copy many small tensors; on a GPU, those of one type together."""
    pairs = [*zip(targets, sources, strict=True)]
    for real in (True, False):
        of_type = [pair for pair in pairs if pair[0].is_floating_point() is real]
        if of_type:
            torch._foreach_copy_([target for target, _ in of_type], [source for _, source in of_type])


@contextmanager
def memory_in_one_line(config: Classifier, compute: Compute) -> Iterator[None]:
    """Turn a lack of the GPU's memory into one line that says what helps.

    Raises
    ------
    UserError
        Memory does not suffice.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        processes, groups = compute.group.size, config.batch_norm_groups
        helps = "execution.image_pool: memory, or more GPUs (execution.processes), which share a batch"
        if groups <= processes:
            helps += (
                f", or a classifier.batch_norm_groups above {processes}, whose parts run one after another"
            )
        raise UserError(
            "classifier.batch_size",
            f"{config.batch_size} images on {processes} GPU{'s' * (processes > 1)} do not fit into memory",
            f"{advice()}; or {helps}",
        ) from error
