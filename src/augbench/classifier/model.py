"""The network: torchvision's ResNet, which the config can narrow, shorten or adapt to tiny images.

With ``base_width: 64``, the ImageNet stem and the architecture's own ``layers`` it is torchvision's
network, weight by weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from augbench.config.classifier import Classifier

# Kind of block and blocks per stage (He et al., 2016, table 1), as torchvision builds them.
ARCHITECTURES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}

FEWEST_CHANNELS = 16


class SteppedConv2d(nn.Conv2d):
    """A 1x1 convolution of stride 2, as one of stride 1 over every second row and column.

    torch's own ends the process on a CPU if it has fewer than :data:`FEWEST_CHANNELS` inputs in channels
    last: oneDNN's gradient of the weights writes past a buffer (torch 2.15, AVX-512, float32; the more
    threads and pixels, the sooner).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve float ``(N, C, H, W)``."""
        return F.conv2d(input[:, :, ::2, ::2], self.weight)


class WidthResNet(ResNet):
    """torchvision's ResNet with ``base_width`` channels in the first stage and a choice of stem.

    Parameters
    ----------
    block : type
        ``BasicBlock`` or ``Bottleneck``.
    layers : sequence of int
        Blocks in each of the four stages.
    classes : int
        Outputs.
    base_width : int
        Channels of the first stage; every further stage doubles them (64 in torchvision).
    stem : str
        ``imagenet``: 7x7 convolution of stride 2 and max-pooling; ``small``: 3x3 convolution of stride 1,
        for images of about 32 pixels.

    Input: float ``(N, 3, H, W)``. Output: logits ``(N, classes)``.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        classes: int,
        base_width: int = 64,
        stem: str = "imagenet",
    ) -> None:
        super().__init__(block, list(layers), num_classes=classes)
        if base_width == 64 and stem == "imagenet":
            return
        self.inplanes = base_width
        if stem == "small":
            self.conv1 = nn.Conv2d(3, base_width, kernel_size=3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, base_width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_width)
        self.layer1 = self._make_layer(block, base_width, layers[0])
        self.layer2 = self._make_layer(block, base_width * 2, layers[1], stride=2)
        self.layer3 = self._make_layer(block, base_width * 4, layers[2], stride=2)
        self.layer4 = self._make_layer(block, base_width * 8, layers[3], stride=2)
        self.fc = nn.Linear(base_width * 8 * block.expansion, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if (
                    module.kernel_size == (1, 1)
                    and module.stride == (2, 2)
                    and module.in_channels < FEWEST_CHANNELS
                ):
                    module.__class__ = SteppedConv2d  # same weights and names


def build(config: Classifier, classes: int, seed: int) -> WidthResNet:
    """Build the network of ``config`` with ``classes`` outputs, initialised from ``seed`` alone, on the CPU.

    The global random state stays as it was, so that building a network does not change other random draws.
    """
    block, layers = ARCHITECTURES[config.arch]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WidthResNet(block, config.layers or layers, classes, config.base_width, config.stem)
