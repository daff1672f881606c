"""Weights of the denoiser that train: all of a U-Net, or low-rank adapters of some of its layers.

An adapter adds alpha / rank x B A to the weights of a linear layer (Hu et al., 2021). A starts at random and
B at zero, so that training starts from the unchanged model. peft puts them into the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn

from augbench.artifacts.adapters import FILE, check_targets, write_adapter
from augbench.config.methods import Lora
from augbench.files import atomic_path
from augbench.seeds import derive_seed

UNET_WEIGHTS = "diffusion_pytorch_model.safetensors"  # name that diffusers expects


class Weights(Protocol):
    """Weights that train, in a network that is frozen otherwise."""

    name: str  # of the folders of candidates

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that train, float32."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Values of the weights, for a checkpoint."""

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the values of a checkpoint."""

    def save(self, folder: Path) -> None:
        """Write the weights so that diffusers loads the folder."""


class WholeUNet:
    """All weights of a U-Net."""

    name = "unet"

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet

    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the U-Net."""
        return list(self.unet.parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """State of the U-Net."""
        return self.unet.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take a state of the U-Net."""
        self.unet.load_state_dict(state)

    def save(self, folder: Path) -> None:
        """Write config and weights of the U-Net."""
        self.unet.save_config(folder)
        state = {name: tensor.cpu().contiguous() for name, tensor in self.unet.state_dict().items()}
        with atomic_path(folder / UNET_WEIGHTS) as temporary:
            save_file(state, temporary, {"format": "pt"})


class Adapter:
    """A low-rank adapter of a network.

    Parameters
    ----------
    network : Module
        A network of diffusers on its device, which gets the adapter's layers; its own weights are frozen.
    lora : Lora
        Rank, alpha and the layers.
    part : str
        Name of the network in diffusers' pipeline: ``unet`` or ``transformer``.
    key : str
        The config key of the layers, for messages.

    Raises
    ------
    UserError
        The network has no linear layer of a name that ``lora`` lists.
    """

    name = "adapter"

    def __init__(self, network: nn.Module, lora: Lora, part: str = "unet", key: str = "targets") -> None:
        layers = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        for problem in check_targets(key, lora.targets, layers):
            raise problem
        self.lora, self.part = lora, part
        chosen = sorted(
            name for name in layers if any(f".{name}".endswith(f".{end}") for end in lora.targets)
        )
        network.requires_grad_(False)
        network.add_adapter(  # type: ignore[operator]
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,  # type: ignore[arg-type]
                target_modules="|".join(map(re.escape, chosen)),  # a list would match ends of names
                init_lora_weights="gaussian",
            )
        )
        self._parameters = {}
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()
                self._parameters[name.replace(".default.", ".")] = parameter

    def start(self, seed: int, *scope: str) -> None:
        """Give A random values, normal with deviation 1 / rank, derived from (seed, scope), and B zero."""
        for name, parameter in self._parameters.items():
            generator = torch.Generator().manual_seed(derive_seed(seed, "adapter", *scope, name))
            values = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                values.normal_(std=1 / self.lora.rank, generator=generator)
            parameter.data.copy_(values)

    def parameters(self) -> list[nn.Parameter]:
        """A and B of all layers."""
        return list(self._parameters.values())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """A and B by layer."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take A and B by layer."""
        for name, parameter in self._parameters.items():
            parameter.data.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Write the adapter."""
        tensors = {f"{self.part}.{name}": values.cpu().numpy() for name, values in self.state_dict().items()}
        write_adapter(tensors, self.lora, folder / FILE)
