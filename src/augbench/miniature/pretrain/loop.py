"""The training loop that the miniature's models share: cosine schedule, checkpoints, history.

Samples and random numbers of a step derive from (seed, step), so an interrupted run resumes from its last
checkpoint as if it had not stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from augbench.files import atomic_path
from augbench.progress import Progress
from augbench.seeds import derive_seed


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule: linear warm-up (``warmup``: share of steps), then a cosine to zero.

    With ``restart_at``, a first schedule ends there and a second one takes the steps that are left
    (Loshchilov and Hutter, 2017).
    """

    steps: int
    lr: float
    restart_at: int = 0
    warmup: float = 0.05

    def lr_at(self, step: int) -> float:
        """Return the learning rate of ``step`` (0-based)."""
        first, steps = 0, self.restart_at or self.steps
        if self.restart_at and step >= self.restart_at:
            first, steps = self.restart_at, self.steps - self.restart_at
        done, warm = step - first, max(1, round(self.warmup * steps))
        if done < warm:
            return self.lr * (done + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, steps - warm)))


class EpochSampler:
    """Sampler without replacement within an epoch; each epoch has its own order."""

    def __init__(self, items: int, batch_size: int, seed: int) -> None:
        self.items, self.batch_size, self.seed = items, min(batch_size, items), seed
        self.per_epoch = items // self.batch_size
        self._epoch, self._order = -1, np.empty(0, dtype=int)

    def indices(self, step: int) -> np.ndarray:
        """Return the indices of the items in the batch of ``step``."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng(derive_seed(self.seed, "epoch", epoch))
            self._order = rng.permutation(self.items)
            self._epoch = epoch
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of the random numbers of ``step``: noise, timesteps, dropout of captions."""
    return torch.Generator().manual_seed(derive_seed(seed, "step", step))


def train(
    what: str,
    module: nn.Module,
    loss_at: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    schedule: Schedule,
    checkpoint: Path,
    checkpoint_steps: int,
    weight_decay: float = 0.0,
    average: nn.Module | None = None,
    decay: float = 0.999,
) -> list[dict[str, float]]:
    """Train ``module`` with AdamW and return the history: mean figures of every ``checkpoint_steps`` steps.

    Parameters
    ----------
    what : str
        Name in the progress line.
    loss_at : callable
        Maps a step to (loss, figures to record).
    checkpoint : Path
        File of the latest state. If it exists, training resumes from it.
    average : Module, optional
        A copy of ``module`` that becomes the exponential moving average of its weights with ``decay``.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=schedule.lr, weight_decay=weight_decay, betas=(0.9, 0.98)
    )
    history: list[dict[str, float]] = []
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        history, first = state["history"], state["step"]
    progress = Progress(what, schedule.steps, done=first, interval=30)
    sums: dict[str, float] = {}
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step)
        loss, figures = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if average is not None:
            _follow(average, module, min(decay, (step + 1) / (step + 10)))
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value
        progress.update(note=", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        if (step + 1) % checkpoint_steps == 0 or step + 1 == schedule.steps:
            counted = (step % checkpoint_steps) + 1
            history.append({"step": step + 1, **{name: value / counted for name, value in sums.items()}})
            sums = {}
            state = {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "history": history,
            }
            if average is not None:
                state["average"] = average.state_dict()
            with atomic_path(checkpoint) as temporary:
                torch.save(state, temporary)
    return history


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    pairs = list(zip(average.parameters(), module.parameters(), strict=True))
    torch._foreach_lerp_([a for a, _ in pairs], [m for _, m in pairs], 1 - decay)
