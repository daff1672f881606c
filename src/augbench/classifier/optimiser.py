"""The optimiser of a classifier's training: SGD or AdamW, with the same or other rates for each layer.

A group of parameters has ``lr_scale``, the factor of the schedule's learning rate for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from augbench.config.classifier import RESNETS, Classifier

OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def new_optimiser(network: nn.Module, config: Classifier) -> torch.optim.Optimizer:
    """Return the optimiser of all parameters of ``network``, which is on its device."""
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "foreach": True}
    if config.optimiser == "sgd":
        settings["momentum"] = config.momentum
    return OPTIMISERS[config.optimiser](_groups(network, config), **settings)


def _groups(network: nn.Module, config: Classifier) -> Any:
    """Parameters in groups of their own weight decay and rate; all in one as far as nothing differs."""
    if config.optimiser == "sgd" and config.layer_decay == 1:
        return network.parameters()
    from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay

    exclusions: Any = getattr(network, "no_weight_decay", tuple)
    spared = exclusions()
    decay: dict[str, Any] = {"weight_decay": config.weight_decay, "no_weight_decay_list": spared}
    if config.optimiser == "sgd":  # which decays all weights
        decay |= {"weight_decay_exclude_1d": False, "no_weight_decay_list": ()}
    if config.layer_decay == 1:
        return param_groups_weight_decay(network, **decay)
    assert config.arch not in RESNETS
    return param_groups_layer_decay(network, layer_decay=config.layer_decay, **decay)


def set_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the schedule's learning rate for the next step."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
