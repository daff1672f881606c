"""Low-rank adapters in the network that samples: one at a time, added to its weights.

Sampling then costs as much as without an adapter, and compiled kernels stay. Each adapter is added to the
weights as they were loaded, so that images do not depend on the adapters before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from augbench.artifacts.adapters import read_adapter

if TYPE_CHECKING:
    import torch
    from torch import nn


class MergedAdapter:
    """The adapter in a network.

    Parameters
    ----------
    network : Module
        The U-Net or transformer of a pipeline, with its own weights.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._own: dict[str, torch.Tensor] = {}  # weights without an adapter, by layer

    def put(self, path: Path | None) -> None:
        """Replace the adapter in the network by the one in a file, or by none.

        The weights of a layer become W + alpha / rank x B A, computed in float32.
        """
        import torch

        with torch.no_grad():
            for layer, weights in self._own.items():
                self._weight(layer).copy_(weights)
            if path is None:
                return
            tensors, scale = read_adapter(path)
            for name, values in tensors.items():
                if not name.endswith(".lora_A.weight"):
                    continue
                layer = name.removesuffix(".lora_A.weight")
                weight = self._weight(layer)
                own = self._own.setdefault(layer, weight.clone())
                down = torch.from_numpy(values).to(weight.device)  # (rank, inputs)
                up = torch.from_numpy(tensors[f"{layer}.lora_B.weight"]).to(weight.device)  # (outputs, rank)
                weight.copy_(own.float() + scale * (up @ down))

    def _weight(self, layer: str) -> torch.Tensor:
        """Weights of a layer of the pipeline, whose name begins with the network's."""
        return self.network.get_submodule(layer.partition(".")[2]).weight  # type: ignore[return-value]
