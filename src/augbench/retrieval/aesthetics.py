"""Aesthetics: LAION's improved aesthetic predictor V2, which filtered the paper's corpus.

Input: CLIP ViT-L/14 image embeddings and the published weights. Output: a score per image, about 1 to 10.

The published model has five linear layers (768 to 1024, 128, 64, 16, 1) with dropout between them and no
activation. At inference there is no dropout, so the model is one affine map: layers ``W x + b`` and
``V y + c`` make ``V W x + (V b + c)``. The layers are multiplied once, in double precision, and a score is
one dot product.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from augbench.errors import UserError
from augbench.files import sha256_file

WEIGHTS_FILE = "sac+logos+ava1-l14-linearMSE.pth"
WEIGHTS_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"
"""SHA-256 of the published file (3,714,759 bytes), as several independent public projects pin it."""

WEIGHTS_URL = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
WIDTH = 768
LAYERS = {
    "layers.0": (1024, WIDTH),
    "layers.2": (128, 1024),
    "layers.4": (64, 128),
    "layers.6": (16, 64),
    "layers.7": (1, 16),
}
"""Published layers in order, with the shapes (out, in) of their weights."""


@dataclass(frozen=True)
class AestheticPredictor:
    """The five layers as one affine map: ``weight`` float64 (768,), and ``bias``."""

    weight: np.ndarray
    bias: float

    def score(self, embeddings: np.ndarray) -> np.ndarray:
        """Compute the scores of images, float32 ``(N,)``.

        Parameters
        ----------
        embeddings : ndarray, float (N, 768)
            Embeddings of CLIP ViT-L/14, of any length; scaled to unit length here, as in the predictor's
            training. A row of zeros stays zero, and NaN gives NaN.

        Raises
        ------
        UserError
            The embeddings have another width, so they come from another CLIP model.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != WIDTH:
            raise UserError(
                "aesthetics predictor",
                f"embeddings of shape {embeddings.shape}",
                f"it reads (N, {WIDTH}) only, the image embeddings of OpenAI's CLIP ViT-L/14",
            )
        vectors = embeddings.astype(np.float64)
        norms = np.linalg.norm(vectors, axis=1)
        return (vectors @ self.weight / np.where(norms == 0, 1, norms) + self.bias).astype(np.float32)


def load_predictor(path: str | Path, sha256: str | None = WEIGHTS_SHA256) -> AestheticPredictor:
    """Read the published weights (reference: C. Schuhmann, improved-aesthetic-predictor, 2022).

    Parameters
    ----------
    sha256 : str, optional
        Checksum that the file must have; None accepts any file with the right layers.

    Raises
    ------
    UserError
        The file is missing, has another checksum, is damaged, or holds other layers.
    """
    import torch

    if not Path(path).is_file():
        raise UserError(
            str(path),
            "missing",
            f"put {WEIGHTS_FILE} of christophschuhmann/improved-aesthetic-predictor there",
        )
    if sha256 is not None and (found := sha256_file(path)) != sha256:
        raise UserError(
            str(path),
            f"SHA-256 {found}",
            f"the file must have {sha256}; fetch it again, as the raw file and not its web page",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(str(path), f"not readable as weights ({reason})", "fetch it again") from None
    return _multiplied_out(state, path)


def _multiplied_out(state: Any, path: str | Path) -> AestheticPredictor:
    expected = {f"{name}.weight": shape for name, shape in LAYERS.items()} | {
        f"{name}.bias": shape[:1] for name, shape in LAYERS.items()
    }
    tensors = state if isinstance(state, dict) else {}
    found = {name: tuple(getattr(value, "shape", ())) for name, value in tensors.items()}
    if found != expected:
        odd = sorted(
            f"{name} {found.get(name, 'missing')}"
            for name in expected.keys() | found.keys()
            if found.get(name) != expected.get(name)
        )
        raise UserError(
            str(path),
            f"other layers ({', '.join(odd[:3]) or type(state).__name__})",
            f"give {WEIGHTS_FILE}: the linear predictor of CLIP ViT-L/14, {WIDTH} wide",
        )
    weight, bias = np.eye(WIDTH), np.zeros(WIDTH)
    for name in LAYERS:
        layer = state[f"{name}.weight"].double().numpy()
        weight, bias = layer @ weight, layer @ bias + state[f"{name}.bias"].double().numpy()
    return AestheticPredictor(weight[0], float(bias[0]))
