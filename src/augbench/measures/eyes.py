"""Embed images with CLIP, and label them with CLIP and a judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from augbench.config.methods import Prompting
from augbench.data.classes import ClassInfo
from augbench.progress import Progress
from augbench.runtime.fit import BatchLimit

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from augbench.measures.judge import Judge

BATCH = 32  # images embedded together; more do not fit into a CPU's cache
ZERO_SHOT = Prompting(templates="clip", class_name="lemmas")


@dataclass(frozen=True)
class Seen:
    """Images as CLIP and the judge see them.

    Attributes
    ----------
    labels : ndarray, int (N,)
        Their classes.
    embeddings : Tensor, float32 (N, D)
        CLIP's unit embeddings, on the device.
    clip, judge : ndarray, int (N,)
        Labels predicted by CLIP and by the judge; ``judge`` is None if there is no judge.
    """

    labels: np.ndarray
    embeddings: torch.Tensor
    clip: np.ndarray
    judge: np.ndarray | None


class Eyes:
    """CLIP and the judge, loaded once for all methods.

    Parameters
    ----------
    clip : mapping
        Content of ``models/clip.json``.
    judge_folder : path or None
        A judge written by :func:`augbench.measures.judge.save_judge`.
    classes : sequence of ClassInfo
        The study's classes, in label order.

    Raises
    ------
    UserError
        The judge does not know all classes.
    """

    def __init__(
        self,
        clip: Mapping[str, Any],
        judge_folder: str | Path | None,
        classes: Sequence[ClassInfo],
        device: torch.device,
    ) -> None:
        from augbench.measures.clip import class_embeddings
        from augbench.measures.judge import load_judge
        from augbench.models.clip import load_clip

        self.judge: Judge | None = (
            None
            if judge_folder is None
            else load_judge(judge_folder, [info.class_id for info in classes], device)
        )
        network = load_clip(clip, device)
        self.embed = network.image_tower()
        self.limit = BatchLimit(BATCH, "diagnostics")
        self.texts = class_embeddings(network.embed_texts, list(classes), ZERO_SHOT)

    def look(self, images: Iterable[Image.Image], labels: np.ndarray, what: str) -> Seen:
        """Embed and label ``images`` of the classes ``labels``, int (N,); ``what`` names them in the log."""
        import torch

        def seen(batch: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor | None]:
            embedded = torch.nn.functional.normalize(self.embed(batch), dim=-1)
            if self.judge is None:
                return embedded, None
            return embedded, self.judge.labels(torch.stack([self.judge.pixels(image) for image in batch]))

        embeddings, judged = [], []
        progress = Progress(f"diagnostics: {what}", len(labels), "image")
        for vectors, predicted in self.limit.stream(seen, images):
            embeddings.append(vectors)
            if predicted is not None:
                judged.append(predicted)
            progress.update(len(vectors))
        embedded = torch.cat(embeddings)
        return Seen(
            labels=labels,
            embeddings=embedded,
            clip=(embedded @ self.texts.T).argmax(1).cpu().numpy(),
            judge=torch.cat(judged).numpy() if judged else None,
        )
