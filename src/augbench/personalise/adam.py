"""Adam over a stack of vectors that learn independently of each other (Kingma and Ba, 2015; Loshchilov and Hutter, 2019).

Flows in: a parameter whose first dimension counts rows, and which rows have a gradient in this step. Flows out: updated rows.
Moments and step counts are kept per row, and a row without samples stays as it is, so that rows that learn together end where
they would have ended alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from augbench.models.folders import to_device


class RowAdam:
    """AdamW with the state of a separate optimiser for every row.

    Parameters
    ----------
    values : Tensor
        What is learned, ``(rows, ...)``; its ``grad`` is read at every step.
    lr : float
        Learning rate of all rows.
    weight_decay : float
        Decoupled weight decay; 0 makes it Adam.
    betas, eps
        As in :class:`torch.optim.AdamW`.
    """

    def __init__(
        self,
        values: torch.Tensor,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.values, self.lr, self.weight_decay, self.betas, self.eps = values, lr, weight_decay, betas, eps
        self.mean = torch.zeros_like(values, requires_grad=False)
        self.square = torch.zeros_like(values, requires_grad=False)
        self.steps = torch.zeros(len(values), dtype=torch.int64)

    @torch.no_grad()
    def step(self, rows: Sequence[int]) -> None:
        """Update ``rows``, those that had samples, and forget all gradients."""
        assert self.values.grad is not None
        index = torch.tensor(rows)
        self.steps[index] += 1
        first, second = (
            (1 - beta ** self.steps[index].double()).to(self.values.dtype) for beta in self.betas
        )
        shape = (-1, *[1] * (self.values.dim() - 1))
        index, first, second = (
            to_device(tensor, self.values.device) for tensor in (index, first.view(shape), second.view(shape))
        )
        gradient = self.values.grad[index]
        mean = self.mean[index].lerp_(gradient, 1 - self.betas[0])
        square = self.square[index].mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        change = (mean / first).div_((square / second).sqrt_().add_(self.eps))
        self.values[index] = (
            self.values[index].mul_(1 - self.lr * self.weight_decay).sub_(change, alpha=self.lr)
        )
        self.mean[index], self.square[index] = mean, square
        self.values.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts."""
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])
        self.steps.copy_(state["steps"])
