"""Checks of a classifier's network other than torchvision's ResNet: timm's names, first weights, sizes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from augbench.commands.check.models import HUB_HINT, pointer_problem
from augbench.config.hub import HUB_ID
from augbench.config.study import Study
from augbench.data.classes import SHIPPED_TABLES, load_class_table
from augbench.errors import UserError
from augbench.files import read_json

IMAGENET_TABLES = ("imagenet", "imagenet100")  # shipped tables of ImageNet's classes


def network_problems(study: Study) -> Iterator[UserError]:
    """Yield the problems of the network and its first weights; torch is imported for timm's networks only."""
    try:
        if study.classifier.timm_name is not None:
            network = _timm(study)
            if study.classifier.pretrained is not None:
                yield from _weights(study, network)
        elif study.classifier.arch == "clip":
            _clip(study)
    except UserError as error:
        yield error


def _timm(study: Study) -> Any:
    """Return the network without memory for its weights, after it has seen an image of the study's size."""
    import torch

    from augbench.classifier.networks import head_of, new_timm

    config = study.classifier
    with torch.device("meta"):
        network = new_timm(config, 2)
        head_of(network)
        try:
            network.eval()(torch.zeros(1, 3, config.resolution, config.resolution))
        except NotImplementedError:  # by a tensor that needs its values
            pass
        except (RuntimeError, AssertionError, ValueError) as error:
            takes = "x".join(map(str, network.pretrained_cfg["input_size"][1:]))
            raise UserError(
                "classifier.resolution",
                config.resolution,
                f"allowed: a size that {config.arch} takes, such as {takes} ({' '.join(str(error).split())})",
            ) from None
    return network


def _clip(study: Study) -> None:
    """Check that CLIP's patches tile an image."""
    path, side = Path(study.clip.folder) / "config.json", study.classifier.resolution
    if not path.is_file():  # fetched later, or reported with the models
        return
    patch = (read_json(path).get("vision_config") or {}).get("patch_size", 32)  # transformers' default
    if side % patch:
        raise UserError(
            "classifier.resolution",
            side,
            f"allowed: a multiple of {patch}, the side of a patch of clip.model",
        )


def _weights(study: Study, network: Any) -> Iterator[UserError]:
    """Yield the problems of a timm network's weights that are here; those of the Hub may still be missing."""
    from augbench.classifier.networks import first_state, settings_beside, weights_file

    hub, place = study.classifier_hub, str(study.classifier_weights)
    if hub is not None and not Path(hub.marker).is_file():
        return
    if not Path(place).exists():
        hint = f"{HUB_HINT} (classifier.pretrained_revision)" if re.fullmatch(HUB_ID, place) else ""
        yield UserError(
            "classifier.pretrained", f"{place!r}, which does not exist", f"allowed: a file or a folder{hint}"
        )
        return
    if (problem := pointer_problem(weights_file(place))) is not None:
        yield problem
        return
    settings_beside(place)
    first_state(network.to_empty(device="cpu"), place)


@cache
def _imagenets() -> frozenset[str]:
    """WordNet ids of ImageNet's classes."""
    return frozenset(info.class_id for info in load_class_table(SHIPPED_TABLES["imagenet"]))


def first_weights_notes(study: Study, class_ids: Collection[str] = ()) -> Iterator[str]:
    """Yield what the first weights of classifiers have seen, and that this changes the question.

    Parameters
    ----------
    class_ids : collection of str
        The study's classes, as far as its data set can be read.
    """
    config = study.classifier
    if not config.begins_trained:
        return
    yield (
        "note: classifiers begin with weights trained before; labels that these have seen:"
        f" {config.labels_seen}. The study then says what added images do for such a network"
    )
    named = getattr(study.dataset, "classes", None) in IMAGENET_TABLES
    if config.has_seen_imagenet and (named or not _imagenets().isdisjoint(class_ids)):
        yield (
            "warning: classifier.pretrained: the weights have seen the labels of the study's own classes"
            " (ImageNet) on far more images; accuracies answer another question than those of the paper"
        )
