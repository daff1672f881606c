"""The reference classifiers that judge images: one trained on clean garments, one on clean and web-style ones.

Flows in: the corpus's garments with their true labels, clean and as the corpus shows them. Flows out: ResNets with their test
accuracy. The clean one knows the target's style only; the robust one also tells whether an image in web style shows its class.
A classifier is shipped as a judge: its network's description, the classes it knows, its weights in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from augbench.classifier.model import build
from augbench.config.study import Classifier, PretrainReference
from augbench.errors import UserError
from augbench.files import atomic_path, write_json
from augbench.miniature.pretrain.judge import REMEDY, JudgeConfig, check_judge
from augbench.miniature.pretrain.loop import EpochSampler, Schedule, step_generator, train


def network(config: PretrainReference) -> Classifier:
    """The reference classifiers' network: a narrow ResNet for 32-pixel images."""
    return Classifier(arch="resnet18", base_width=config.base_width, resolution=32)


def new_reference(config: PretrainReference, classes: int, seed: int = 0) -> nn.Module:
    """An untrained reference classifier."""
    return build(network(config), classes, seed)


def prepare(images: torch.Tensor) -> torch.Tensor:
    """``uint8 (N, 3, H, W)`` to the reference's input."""
    return images.float() / 127.5 - 1


def train_reference(
    what: str, images: torch.Tensor, labels: np.ndarray, config: PretrainReference, seed: int, folder: Path, checkpoint_steps: int
) -> list[dict[str, float]]:
    """Train on ``images`` uint8 (N, 3, 32, 32) with shifts and mirroring; the state goes to ``folder/model.pt``."""
    targets = torch.from_numpy(labels)
    model = new_reference(config, int(labels.max()) + 1, seed).train()
    sampler = EpochSampler(len(images), config.batch_size, seed)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = torch.from_numpy(sampler.indices(step))
        generator = step_generator(seed, step)
        top, left, mirror = torch.randint(0, 5, (3,), generator=generator).tolist()
        batch = F.pad(prepare(images[chosen]), (2, 2, 2, 2), mode="replicate")[:, :, top : top + 32, left : left + 32]
        logits = model(batch.flip(3) if mirror % 2 else batch)
        loss = F.cross_entropy(logits, targets[chosen], label_smoothing=0.05)
        return loss, {"loss": loss.item(), "top1": float((logits.argmax(1) == targets[chosen]).float().mean())}

    schedule = Schedule(config.epochs * sampler.per_epoch, config.lr)
    history = train(what, model, loss_at, schedule, folder / "checkpoint.pt", checkpoint_steps, weight_decay=0.05)
    torch.save(model.eval().state_dict(), folder / "model.pt")
    return history


@torch.inference_mode()
def judge(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted labels ``(N,)`` and penultimate features ``(N, D)``."""
    kept: list[torch.Tensor] = []
    head: nn.Module = model.fc  # type: ignore[assignment]
    hook = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        predicted = torch.cat([model(prepare(batch)).argmax(1) for batch in images.split(256)])
    finally:
        hook.remove()
    return predicted, torch.cat(kept)


@dataclass(frozen=True)
class Judge:
    """A reference classifier that judges images of a study.

    Attributes
    ----------
    model : Module
        In evaluation mode, float32; its outputs are the judge's own classes.
    outputs : Tensor, int64 (C,)
        The output of each of the study's C classes, in label order.
    resolution : int
        Side of the square that it sees, in pixels.
    """

    model: nn.Module
    outputs: torch.Tensor
    resolution: int

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """The image's central square at the judge's resolution, ``uint8 (3, resolution, resolution)``."""
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        cropped = image.convert("RGB").crop((left, top, left + side, top + side))
        square = cropped.resize((self.resolution, self.resolution), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    @torch.inference_mode()
    def labels(self, images: torch.Tensor) -> torch.Tensor:
        """The study's label that the judge gives each of ``images`` uint8 (N, 3, resolution, resolution): int64 (N,)."""
        device = self.outputs.device
        return self.model(prepare(images.to(device)))[:, self.outputs].argmax(1).cpu()


def save_judge(model: nn.Module, class_ids: Sequence[str], network: Classifier, folder: str | Path) -> None:
    """Write ``model`` as a judge: ``model.safetensors`` (half precision) and ``config.json``.

    Parameters
    ----------
    class_ids : sequence of str
        The classes in the order of the model's outputs.
    network : Classifier
        What :func:`augbench.classifier.model.build` made the model from.
    """
    folder = Path(folder)
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
    write_json(folder / "config.json", JudgeConfig(network, tuple(class_ids)).as_json())


def load_judge(folder: str | Path, class_ids: Sequence[str], device: torch.device) -> Judge:
    """The judge in ``folder``, for a study whose classes are ``class_ids`` in label order.

    It chooses among these alone, as zero-shot classification does, even if it knows more.

    Raises
    ------
    UserError
        As :func:`augbench.miniature.pretrain.judge.check_judge`, or weights that are not those of its network.
    """
    config = check_judge(folder, class_ids)
    model = build(config.network, len(config.class_ids), 0)
    weights = Path(folder) / "model.safetensors"
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(str(weights), f"not the weights of its config.json ({str(error).splitlines()[0]})", REMEDY) from None
    outputs = torch.tensor([config.class_ids.index(class_id) for class_id in class_ids], device=device)
    return Judge(model.eval().to(device), outputs, config.network.resolution)
