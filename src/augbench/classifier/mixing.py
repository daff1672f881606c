"""Mix the images of a batch with partners, and weigh their losses (:mod:`augbench.config.use`).

Input: which images of a global batch are added ones, and a seed that derives from the run and the step. The
CPU draws partners, shares and boxes for the whole batch, so they are the same on each device and for any
number of processes. Output: what a process reads, the mixed images of its share on the device, and the
targets of their loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from augbench.classifier.crops import send
from augbench.config.use import Use


@dataclass(frozen=True)
class Mix:
    """How the images of a batch are mixed.

    Attributes
    ----------
    partners : ndarray, int (N,)
        Place in the batch of each image's partner.
    share : float
        Share of the image itself; the rest is its partner's.
    box : tuple of int, optional
        CutMix: top, left, bottom and right of the part that shows the partner. None: MixUp.
    """

    partners: np.ndarray
    share: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(use: Use, added: np.ndarray, side: int, seed: int) -> Mix | None:
    """Draw how a batch is mixed; None if it is not.

    One share is drawn per batch, as in the code of both papers. A batch is mixed by one of MixUp and CutMix;
    if both are set, by either with the same probability, as in torchvision's reference.

    Parameters
    ----------
    added : ndarray, bool (N,)
        Which images of the batch are added ones.
    side : int
        Height and width of the images, in pixels.
    """
    if not use.mixes:
        return None
    rng = np.random.default_rng(seed)
    cuts = bool(use.cutmix) and (not use.mixup or rng.random() < 0.5)
    alpha = use.cutmix if cuts else use.mixup
    share = float(rng.beta(alpha, alpha))
    partners = _partners(use, added, rng)
    if not cuts:
        return Mix(partners, share)
    half = int(side * np.sqrt(1 - share)) // 2
    middle = rng.integers(side, size=2)
    top, left = (int(start) for start in np.maximum(middle - half, 0))
    bottom, right = (int(end) for end in np.minimum(middle + half, side))
    return Mix(partners, 1 - (bottom - top) * (right - left) / side**2, (top, left, bottom, right))


def _partners(use: Use, added: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw partners: a permutation of the batch, or each kind's from the other, all about equally often.

    In a batch of one kind no image has a partner of the other; each is its own, and stays as it is.
    """
    if use.pairs == "within":
        return rng.permutation(len(added))
    partners = np.arange(len(added))
    kinds = [np.flatnonzero(~added), np.flatnonzero(added)]
    for own, other in zip(kinds, reversed(kinds), strict=True):
        if len(other):
            partners[own] = np.resize(rng.permutation(other), len(own))
    return partners


@dataclass(frozen=True)
class Targets:
    """Labels of images, and how their losses count.

    Attributes
    ----------
    labels : Tensor, int64 (N,)
    smoothing : float
        Share of the target that all classes have in equal parts.
    weights : Tensor, float (N,), optional
        Weight of each loss; None: 1.
    partners : Targets, optional
        Those of the images that were mixed in.
    share : float
        Share of ``labels`` in the target; the rest is the partners'.
    """

    labels: torch.Tensor
    smoothing: float = 0.0
    weights: torch.Tensor | None = None
    partners: Targets | None = None
    share: float = 1.0

    def __getitem__(self, rows: slice) -> Targets:
        """Return the targets of consecutive images."""
        weights = None if self.weights is None else self.weights[rows]
        partners = None if self.partners is None else self.partners[rows]
        return Targets(self.labels[rows], self.smoothing, weights, partners, self.share)

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the mean over images of weight x cross-entropy, of ``logits`` (N, classes)."""
        if self.partners is None:
            return self._of_labels(logits)
        return self.share * self._of_labels(logits) + (1 - self.share) * self.partners.loss(logits)

    def _of_labels(self, logits: torch.Tensor) -> torch.Tensor:
        if self.weights is None:
            return F.cross_entropy(logits, self.labels, label_smoothing=self.smoothing)
        losses = F.cross_entropy(logits, self.labels, label_smoothing=self.smoothing, reduction="none")
        return (self.weights * losses).mean()


@dataclass(frozen=True)
class Share:
    """A process's share of a global batch.

    Attributes
    ----------
    read : ndarray, int (M,)
        Places in the batch of the images to read: first the share's own, then partners that other processes
        have in theirs.
    own : int
        Number of the share's own images.
    added : ndarray, bool (B,)
        Which images of the batch are added ones.
    mix : Mix, optional
        How the batch is mixed.
    """

    read: np.ndarray
    own: int
    added: np.ndarray
    mix: Mix | None
    use: Use

    @classmethod
    def of(cls, places: np.ndarray, added: np.ndarray, mix: Mix | None, use: Use) -> Share:
        """Return the share with the images at ``places`` of a batch."""
        others = places[:0] if mix is None else np.setdiff1d(mix.partners[places], places)
        return cls(np.concatenate([places, others]), len(places), added, mix, use)

    @property
    def total(self) -> float:
        """Sum of the weights of the whole batch: its number of images if all have the weight 1."""
        if self.use.weight == 1:
            return len(self.added)
        weights = np.where(self.added, self.use.weight, 1.0)
        if self.mix is None:
            return float(weights.sum())
        share = self.mix.share
        return float(share * weights.sum() + (1 - share) * weights[self.mix.partners].sum())

    def mixed(self, images: torch.Tensor, labels: np.ndarray) -> tuple[torch.Tensor, Targets]:
        """Return the share's images and their targets, on the device of ``images``.

        Parameters
        ----------
        images : Tensor, float (M, 3, H, W)
            Those at ``read``.
        labels : ndarray, int (B,)
            Of the whole batch.
        """
        places, device = self.read[: self.own], images.device
        if self.mix is None:
            own, added = send([labels[places], self.added[places]], device)
            return images, self._targets(own, added)
        mix, partners = self.mix, self.mix.partners[places]
        place_of = np.empty(len(self.added), dtype=np.int64)
        place_of[self.read] = np.arange(len(self.read))
        own, added, theirs, their_added, rows = send(
            [labels[places], self.added[places], labels[partners], self.added[partners], place_of[partners]],
            device,
        )
        targets = self._targets(own, added, self._targets(theirs, their_added), mix.share)
        return _mixed(images, self.own, rows, mix), targets

    def _targets(
        self, labels: torch.Tensor, added: torch.Tensor, partners: Targets | None = None, share: float = 1.0
    ) -> Targets:
        weights = None if self.use.weight == 1 else torch.where(added.bool(), self.use.weight, 1.0)
        return Targets(labels, self.use.label_smoothing, weights, partners, share)


def _mixed(images: torch.Tensor, own: int, partners: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Return the first ``own`` images, mixed with those at ``partners``."""
    if mix.box is None:
        return mix.share * images[:own] + (1 - mix.share) * images.index_select(0, partners)
    top, left, bottom, right = mix.box
    pasted = images[:own].clone()
    pasted[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].index_select(0, partners)
    return pasted
