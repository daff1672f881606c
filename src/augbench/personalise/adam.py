"""Adam for independent rows of one parameter (Kingma and Ba, 2015; Loshchilov and Hutter, 2019).

Moments and step counts are kept per row, and a row without samples in a step does not change. Rows that
learn together therefore end where each would end if it learned alone.
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
        The learned parameter, ``(rows, ...)``; each step reads its ``grad``.
    lr : float
        Learning rate of all rows.
    weight_decay : float
        Decoupled weight decay; 0 makes it Adam.
    betas, eps
        As in :class:`torch.optim.AdamW`.

    A :class:`torch.amp.GradScaler` hands it the scale of the gradient as torch's fused optimisers get it, so
    that a step never waits for the GPU.
    """

    _step_supports_amp_scaling = True

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
        self.steps = torch.zeros(len(values), dtype=torch.int64, device=values.device)
        self.param_groups = [{"params": [values]}]

    @torch.no_grad()
    def step(self, rows: Sequence[int]) -> None:
        """Update ``rows``, the rows that had samples in this step, and clear the gradient.

        With a scaled gradient, rows whose gradient overflowed keep their values and state.
        """
        assert self.values.grad is not None
        index = to_device(torch.tensor(rows), self.values.device)
        steps = self.steps[index] + 1
        shape = (-1, *[1] * (self.values.dim() - 1))
        first, second = (
            (1 - beta ** steps.double()).to(self.values.dtype).view(shape) for beta in self.betas
        )
        gradient, finite = self.values.grad[index], None
        if (scale := getattr(self, "grad_scale", None)) is not None:
            gradient = gradient / scale
            finite = gradient.isfinite().flatten(1).all(1)
        mean = self.mean[index].lerp_(gradient, 1 - self.betas[0])
        square = self.square[index].mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        change = (mean / first).div_((square / second).sqrt_().add_(self.eps))
        values = self.values[index].mul_(1 - self.lr * self.weight_decay).sub_(change, alpha=self.lr)
        for state, new in (
            (self.values, values),
            (self.mean, mean),
            (self.square, square),
            (self.steps, steps),
        ):
            if finite is not None:
                new = torch.where(finite.view(-1, *[1] * (new.dim() - 1)), new, state[index])
            state[index] = new
        self.values.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts of all rows."""
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])
        self.steps.copy_(state["steps"])
