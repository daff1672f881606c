"""Build the network that the config names: torchvision's ResNet, one of timm's, or CLIP's image tower.

Input: the ``classifier`` section, the number of classes, a seed, and what the network begins with. Output: a
module that maps torchvision-normalised images, float ``(N, 3, H, W)``, to logits ``(N, classes)``. A network
with other means and deviations of colours converts its input itself. Networks draw no random numbers in
training: dropout and stochastic depth are off, so results do not depend on the number of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from augbench.classifier import model as resnet
from augbench.classifier.crops import MEAN, STD
from augbench.classifier.start import Start
from augbench.config.classifier import RESNETS, TIMM, Classifier
from augbench.errors import UserError, some
from augbench.files import read_json

COLOURS = "allowed: mean and std as lists of three numbers, as timm writes them"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # names of weights in a folder, as the Hub has them
ALLOWED = (
    "allowed: weights of this network (.safetensors, .pth or .bin), or a folder with model.safetensors,"
    " pytorch_model.bin or a single other .safetensors file"
)


class Recolour(nn.Module):
    """Convert images from torchvision's normalisation to that of a network, in float32.

    Parameters
    ----------
    mean, std : sequence of float
        Of each colour, with pixels between 0 and 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        ours = torch.tensor([MEAN, STD], dtype=torch.float64).view(2, 3, 1, 1)
        theirs = torch.tensor([[*mean], [*std]], dtype=torch.float64).view(2, 3, 1, 1)
        self.scale = nn.Buffer((ours[1] / theirs[1]).float(), persistent=False)
        self.shift = nn.Buffer(((ours[0] - theirs[0]) / theirs[1]).float(), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Convert float ``(N, 3, H, W)``."""
        return images * self.scale + self.shift


def _recolour(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a network convert its input; its weights keep their names."""
    if (tuple(mean), tuple(std)) == (tuple(MEAN), tuple(STD)):
        return
    network.recolour = Recolour(mean, std)
    network.register_forward_pre_hook(lambda module, inputs: (module.recolour(inputs[0]), *inputs[1:]))


# --- the kinds of networks ---


def _resnet(config: Classifier, classes: int, start: Start | None) -> nn.Module:
    block, layers = resnet.ARCHITECTURES[config.arch]
    return resnet.WidthResNet(block, config.layers or layers, classes, config.base_width, config.stem)


def _timm(config: Classifier, classes: int, start: Start | None) -> nn.Module:
    network = new_timm(config, classes)
    settings = dict(network.pretrained_cfg)
    if start is not None:
        settings |= settings_beside(start.place)
        network.load_state_dict(first_state(network, start.place), strict=False)
    _recolour(network, settings["mean"], settings["std"])
    return network


def new_timm(config: Classifier, classes: int) -> Any:
    """Return timm's network of that name with random weights, for images of the config's resolution.

    Raises
    ------
    UserError
        timm has no such network, or it can't take images of this size.
    """
    import timm

    name, side = config.timm_name, config.resolution
    assert name is not None
    if not timm.is_model(name):
        raise UserError(
            "classifier.arch",
            f"{TIMM}{name}, which timm {timm.__version__} does not have",
            f"allowed: one of timm.list_models(){_like(name, timm.list_models())}",
        )
    try:
        settings = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            "classifier.arch", f"{TIMM}{name}", f"allowed: a known tag of weights ({error})"
        ) from None
    sized: dict[str, Any] = {"img_size": side} if settings is not None and settings.fixed_input_size else {}
    try:
        network = timm.create_model(name, pretrained=False, num_classes=classes, **sized)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(
            "classifier.resolution", side, f"allowed: a size that {TIMM}{name} takes ({_one_line(error)})"
        ) from None
    without_dropout(network)
    return network


def without_dropout(network: nn.Module) -> None:
    """Turn off dropout, stochastic depth and DropBlock, whether modules or numbers that a module keeps."""
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name in ("drop_rate", "drop_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _like(name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name.partition(".")[0], known, 3)
    return f", such as {', '.join(close)}" if close else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def weights_file(place: str | Path) -> Path:
    """Return the file of weights at ``place``, a file or a folder.

    Raises
    ------
    UserError
        There is none, or a folder has several and none of the usual name.
    """
    place = Path(place)
    named = [path for path in (place, *(place / name for name in WEIGHTS)) if path.is_file()]
    found = named[:1] or sorted(place.glob("*.safetensors"))
    if len(found) != 1:
        has = f"several files of weights ({some([path.name for path in found])})" if found else "no weights"
        raise UserError("classifier.pretrained", f"{str(place)!r} has {has}", ALLOWED)
    return found[0]


def settings_beside(place: str | Path) -> dict[str, Any]:
    """Mean and deviation of colours that a folder's config.json states; none without one.

    Raises
    ------
    UserError
        The file can't be read, or they are not three numbers.
    """
    config = Path(place) / "config.json"
    if not config.is_file():
        return {}
    try:
        stated = read_json(config)
        stated = stated.get("pretrained_cfg", stated)
        found = {
            name: [float(value) for value in stated[name]] for name in ("mean", "std") if stated.get(name)
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(str(config), f"can't be read ({_one_line(error)})", COLOURS) from None
    for name, values in found.items():
        if len(values) != 3 or (name == "std" and min(values) <= 0):
            raise UserError(str(config), f"{name}: {values}", COLOURS)
    return found


def first_state(network: Any, place: str | Path) -> dict[str, torch.Tensor]:
    """Read all weights except the last layer's; timm converts their names, and positions to another size.

    Raises
    ------
    UserError
        The file can't be read, or lacks weights of the network.
    """
    from timm.models import load_state_dict

    file = weights_file(place)
    try:
        state = load_state_dict(str(file), use_ema=False)
        if convert := getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None):
            state = convert(state, network)
    except Exception as error:
        raise UserError(
            "classifier.pretrained", f"{str(file)!r} can't be read ({_one_line(error)})", ALLOWED
        ) from None
    head = f"{name_of_head(network)}."
    state = {name: value for name, value in state.items() if not name.startswith(head)}
    expected = {name: value for name, value in network.state_dict().items() if not name.startswith(head)}
    wrong = [
        name for name, value in expected.items() if name not in state or state[name].shape != value.shape
    ]
    if wrong:
        raise UserError(
            "classifier.pretrained",
            f"{str(file)!r} lacks {len(wrong)} of {len(expected)} weights of the network, such as {wrong[0]}",
            ALLOWED,
        )
    return {name: state[name] for name in expected}


class ClipClassifier(nn.Module):
    """CLIP's image tower with a last layer on its unit embeddings.

    Input: float ``(N, 3, H, W)``. Output: logits ``(N, classes)``. Positions are interpolated once, at the
    start, if images have another size than CLIP's: the gradient of the interpolation differs by rounding from
    run to run on a GPU.

    Parameters
    ----------
    clip : CLIPModel
        In transformers' layout.
    classes : int
        Outputs.
    side : int
        Height and width of the images.
    """

    def __init__(self, clip: Any, classes: int, side: int) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = clip.vision_model, clip.visual_projection
        self.head = nn.Linear(clip.visual_projection.out_features, classes)
        _fit_positions(self.vision_model.embeddings, side)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify images."""
        seen = self.vision_model(pixel_values=images, interpolate_pos_encoding=True)
        embedded = self.visual_projection(seen.pooler_output)
        with torch.autocast(images.device.type, enabled=False):  # CLIP's scale would lose digits
            logits: torch.Tensor = self.head(
                nn.functional.normalize(embedded.to(self.head.weight.dtype), dim=-1)
            )
        return logits

    def get_classifier(self) -> nn.Module:
        """Return the last layer, as timm's networks do."""
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm sorts weights into layers."""
        return {
            "stem": r"^vision_model\.(?:embeddings|pre_layrnorm)",
            "blocks": [(r"^vision_model\.encoder\.layers\.(\d+)", None), (r"^vision_model\.post", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Return the names of weights that decay spares besides biases and norms."""
        return {"vision_model.embeddings.position_embedding.weight"}


def _fit_positions(embeddings: Any, side: int) -> None:
    """Interpolate the embeddings of positions for images of this side, as transformers does."""
    patches = (side // embeddings.patch_size) ** 2
    if patches + 1 == embeddings.num_positions:
        return
    with torch.no_grad():
        weight = embeddings.interpolate_pos_encoding(
            torch.empty(1, patches + 1, embeddings.embed_dim), side, side
        )[0]
    embeddings.position_embedding = nn.Embedding.from_pretrained(weight, freeze=False)
    embeddings.position_ids = torch.arange(patches + 1)[None]
    embeddings.num_patches, embeddings.num_positions = patches, patches + 1
    embeddings.image_size = side


@lru_cache(maxsize=2)
def _zero_shot(start: Start) -> torch.Tensor:
    """CLIP's zero-shot weights of the class names, float32 ``(C, D)``: unit embeddings times CLIP's scale."""
    from augbench.measures.clip import class_embeddings
    from augbench.measures.eyes import ZERO_SHOT
    from augbench.models.transformers_clip import TransformersClip

    clip = TransformersClip(start.place, torch.device("cpu"))
    with torch.no_grad():
        return clip.scale * class_embeddings(clip.embed_texts, list(start.classes), ZERO_SHOT)


def _clip_head(start: Start) -> nn.Linear:
    """The last layer that is CLIP's zero-shot classifier."""
    weights = _zero_shot(start)
    head: nn.Linear = nn.utils.skip_init(nn.Linear, weights.shape[1], weights.shape[0])
    with torch.no_grad():
        head.weight.copy_(weights)
        head.bias.zero_()
    return head


def _clip(config: Classifier, classes: int, start: Start | None) -> nn.Module:
    from augbench.models.folders import load_processor
    from augbench.models.transformers_clip import TransformersClip

    assert start is not None
    clip = TransformersClip(start.place, torch.device("cpu"))
    network = ClipClassifier(clip.model, classes, config.resolution)
    if start.classes:
        network.head = _clip_head(start)
    colours = load_processor(start.place)
    _recolour(network, colours.image_mean, colours.image_std)
    return network.train()


Builder = Callable[[Classifier, int, Start | None], nn.Module]
BUILDERS: dict[str, Builder] = {**dict.fromkeys(RESNETS, _resnet), "clip": _clip}


def build(config: Classifier, classes: int, seed: int, start: Start | None = None) -> nn.Module:
    """Build the network of ``config`` with ``classes`` outputs, on the CPU.

    Random weights derive from ``seed`` alone. The global random state stays as it was, so that building a
    network does not change other random draws.

    Parameters
    ----------
    start : Start, optional
        What it begins with; required by ``clip``.

    Raises
    ------
    UserError
        timm has no such network, or the weights are not those of the network.
    """
    builder = BUILDERS.get(config.arch, _timm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builder(config, classes, start)


# --- the last layer ---


def build_head(config: Classifier, classes: int, seed: int, start: Start | None = None) -> nn.Linear:
    """Build the last layer alone, with the weights that :func:`build` gives it."""
    if config.arch == "clip" and start is not None and start.classes:
        return _clip_head(start)
    # first weights are not those of the last layer, so they need not be read
    return head_of(build(config, classes, seed, start if config.arch == "clip" else None))


def head_of(network: nn.Module) -> nn.Linear:
    """Return the last layer.

    Raises
    ------
    UserError
        It is not a single linear layer.
    """
    getter: Any = getattr(network, "get_classifier", None)
    head = network.fc if getter is None else getter()
    if not isinstance(head, nn.Linear):
        raise UserError(
            "classifier.arch",
            f"a network whose last layer is a {type(head).__name__}",
            "allowed: networks with a single linear layer at the end",
        )
    return head


def name_of_head(network: nn.Module) -> str:
    """Return the name of the last layer in the network."""
    head = head_of(network)
    return next(name for name, module in network.named_modules() if module is head)


class Features(nn.Module):
    """The input of a network's last layer, ``(N, D)``, for images as the network takes them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.width = head_of(network).in_features
        self._seen: list[torch.Tensor] = []
        head_of(network).register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the features of images."""
        self._seen.clear()
        self.network(images)
        (features,) = self._seen
        self._seen.clear()
        return features.flatten(1)
