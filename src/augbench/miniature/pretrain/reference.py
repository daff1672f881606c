"""The reference classifiers that judge images: one for clean garments, one for garments in any style.

Both are ResNets trained on the corpus's garments with their true labels. The clean one knows only the
target's style. The robust one also recognises classes in web style. A classifier is shipped as a judge: the
description of its network, the classes that it knows, its weights in half precision.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from augbench.classifier.model import build
from augbench.config.classifier import Classifier
from augbench.config.pretrain import PretrainReference
from augbench.measures.judge import prepare
from augbench.miniature.pretrain.loop import EpochSampler, Schedule, step_generator, train


def network(config: PretrainReference) -> Classifier:
    """Describe the reference classifiers' network: a narrow ResNet for 32-pixel images."""
    return Classifier(arch="resnet18", base_width=config.base_width, resolution=32)


def new_reference(config: PretrainReference, classes: int, seed: int = 0) -> nn.Module:
    """Return an untrained reference classifier."""
    return build(network(config), classes, seed)


def train_reference(
    what: str,
    images: torch.Tensor,
    labels: np.ndarray,
    config: PretrainReference,
    seed: int,
    folder: Path,
    checkpoint_steps: int,
) -> list[dict[str, float]]:
    """Train on ``images`` uint8 (N, 3, 32, 32) with shifts and mirroring, and return the history.

    The weights are written to ``folder/model.pt``.
    """
    targets = torch.from_numpy(labels)
    model = new_reference(config, int(labels.max()) + 1, seed).train()
    sampler = EpochSampler(len(images), config.batch_size, seed)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = torch.from_numpy(sampler.indices(step))
        generator = step_generator(seed, step)
        top, left, mirror = torch.randint(0, 5, (3,), generator=generator).tolist()
        padded = F.pad(prepare(images[chosen]), (2, 2, 2, 2), mode="replicate")
        batch = padded[:, :, top : top + 32, left : left + 32]
        logits = model(batch.flip(3) if mirror % 2 else batch)
        loss = F.cross_entropy(logits, targets[chosen], label_smoothing=0.05)
        top1 = (logits.argmax(1) == targets[chosen]).float().mean()
        return loss, {"loss": loss.item(), "top1": float(top1)}

    schedule = Schedule(config.epochs * sampler.per_epoch, config.lr)
    history = train(
        what,
        module=model,
        loss_at=loss_at,
        schedule=schedule,
        checkpoint=folder / "checkpoint.pt",
        checkpoint_steps=checkpoint_steps,
        weight_decay=0.05,
    )
    torch.save(model.eval().state_dict(), folder / "model.pt")
    return history


@torch.inference_mode()
def judge(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict labels ``(N,)`` and compute penultimate features ``(N, D)``."""
    kept: list[torch.Tensor] = []
    head: nn.Module = model.fc  # type: ignore[assignment]
    hook = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        predicted = torch.cat([model(prepare(batch)).argmax(1) for batch in images.split(256)])
    finally:
        hook.remove()
    return predicted, torch.cat(kept)
