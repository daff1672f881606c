"""The aesthetics predictor: the five published layers as one, and the inputs that it rejects."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from augbench.errors import UserError
from augbench.files import sha256_file
from augbench.retrieval.aesthetics import LAYERS, WEIGHTS_SHA256, load_predictor


def published_model(width: int = 768) -> nn.Sequential:
    """The layers as published, with dropout where training had it; weights are random."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )


def save(model: nn.Module, path: Path) -> Path:
    torch.save({f"layers.{name}": value for name, value in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the published one."""
    return save(published_model(), tmp_path_factory.mktemp("weights") / "predictor.pth")


def embeddings(count: int = 50) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(count, 768))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_the_layers_multiplied_out_score_as_the_layers_do(weights: Path) -> None:
    with torch.inference_mode():
        expected = (
            published_model().double().eval()(torch.from_numpy(embeddings()).double()).squeeze(1).numpy()
        )
    scores = load_predictor(weights, None).score(embeddings())
    assert scores.dtype == np.float32 and scores.shape == (50,)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_only_the_direction_of_an_embedding_counts(weights: Path) -> None:
    predictor = load_predictor(weights, None)
    np.testing.assert_allclose(predictor.score(embeddings() * 17), predictor.score(embeddings()), atol=1e-6)
    np.testing.assert_allclose(
        predictor.score(embeddings().astype(np.float16)), predictor.score(embeddings()), atol=1e-3
    )


def test_an_embedding_of_zeros_scores_the_bias_and_nan_stays_nan(weights: Path) -> None:
    predictor = load_predictor(weights, None)
    scores = predictor.score(np.stack([np.zeros(768), np.full(768, np.nan)]))
    assert scores[0] == np.float32(predictor.bias) and np.isnan(scores[1])


def test_no_embeddings_have_no_scores(weights: Path) -> None:
    assert load_predictor(weights, None).score(np.empty((0, 768))).shape == (0,)


def test_embeddings_of_another_clip_are_refused(weights: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"embeddings of shape \(2, 512\); it reads \(N, 768\) only, the image embeddings of "
        r"OpenAI's CLIP ViT-L/14",
    ):
        load_predictor(weights, None).score(np.ones((2, 512)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.pth: missing; put sac\+logos\+ava1-l14-linearMSE\.pth"):
        load_predictor(tmp_path / "absent.pth")


def test_by_default_only_the_published_file_is_read(weights: Path) -> None:
    with pytest.raises(
        UserError, match=rf"SHA-256 {sha256_file(weights)}; the file must have {WEIGHTS_SHA256}"
    ):
        load_predictor(weights)
    assert load_predictor(weights, sha256_file(weights)).weight.shape == (768,)


def test_a_predictor_of_another_width_is_refused(tmp_path: Path) -> None:
    path = save(published_model(512), tmp_path / "narrow.pth")
    with pytest.raises(UserError, match=r"other layers \(layers\.0\.weight \(1024, 512\)\); give sac"):
        load_predictor(path, None)


@pytest.mark.parametrize("state", [{"other": torch.zeros(2)}, [torch.zeros(2)], {}])
def test_a_file_with_other_contents_is_refused(state: object, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other layers"):
        load_predictor(tmp_path / "other.pth", None)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "damaged.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.pth: not readable as weights .*; fetch it again"):
        load_predictor(tmp_path / "damaged.pth", None)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"layers.0.weight": Runs(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="not readable as weights"):
        load_predictor(tmp_path / "evil.pth", None)
    assert not (tmp_path / "ran").exists()


class Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_the_published_layers_follow_one_another() -> None:
    shapes = list(LAYERS.values())
    assert shapes[0][1] == 768 and shapes[-1][0] == 1
    assert all(narrow[1] == wide[0] for wide, narrow in pairwise(shapes))
