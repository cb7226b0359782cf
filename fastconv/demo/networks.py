"""The networks of the demo, written from their papers with ``torch.nn`` alone.

They are the case that matters to a user, whole models that know nothing of fastconv, and they lean on the
layers that fastconv is written for: grouped, depthwise and grouped 1x1 convolution, and channel shuffle.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "MobileNetV2", "Network", "ResNeXt50", "ShuffleNetV1", "calibrate", "initialise"]


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution that keeps the size (divided by the stride), batch normalisation, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


def classifier(channels: int, classes: int) -> nn.Sequential:
    """``Tensor[N, channels, H, W]`` to ``Tensor[N, classes]``."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class ResNeXtBlock(nn.Module):
    """1x1 reduce, grouped 3x3, 1x1 expand, and the shortcut around them (the paper's figure 3c)."""

    def __init__(self, in_channels: int, width: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv_bn(in_channels, width, 1),
            conv_bn(width, width, 3, stride, groups=groups),
            conv_bn(width, out_channels, 1, activation=None),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = conv_bn(in_channels, out_channels, 1, stride, activation=None)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


class ResNeXt50(nn.Sequential):
    """ResNeXt-50 32x4d: ``Tensor[N, 3, H, W]`` to ``Tensor[N, classes]``.

    Source: Xie et al., *Aggregated Residual Transformations for Deep Neural Networks*, 2017, table 1.
    """

    def __init__(self, classes: int = 1000) -> None:
        stages: list[nn.Module] = []
        channels = 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            width, out_channels = 128 << stage, 256 << stage
            units = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                units.append(ResNeXtBlock(channels, width, out_channels, stride, groups=32))
                channels = out_channels
            stages.append(nn.Sequential(*units))
        super().__init__(conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), *stages, classifier(channels, classes))


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; with stride 2, appended to the pooled input and
    not added to it (the paper's figures 2b and 2c)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        width = out_channels // 4
        branch_channels = out_channels - in_channels if stride == 2 else out_channels
        self.branch = nn.Sequential(
            conv_bn(in_channels, width, 1, groups=first_groups),
            nn.ChannelShuffle(groups),
            conv_bn(width, width, 3, stride, groups=width, activation=None),
            conv_bn(width, branch_channels, 1, groups=groups, activation=None),
        )
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is None:
            return self.relu(x + self.branch(x))
        return self.relu(torch.cat((self.pool(x), self.branch(x)), 1))


class ShuffleNetV1(nn.Sequential):
    """ShuffleNet 1x with three groups: ``Tensor[N, 3, H, W]`` to ``Tensor[N, classes]``.

    Source: Zhang et al., *ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
    Devices*, 2018, table 1.
    """

    def __init__(self, classes: int = 1000, groups: int = 3) -> None:
        stages: list[nn.Module] = []
        channels = 24
        for stage, blocks in enumerate((4, 8, 4)):
            out_channels = 240 << stage
            units = []
            for block in range(blocks):
                # The very first 1x1 has so few input channels that the paper does not group it.
                first_groups = 1 if stage == 0 and block == 0 else groups
                units.append(ShuffleUnit(channels, out_channels, 2 if block == 0 else 1, groups, first_groups))
                channels = out_channels
            stages.append(nn.Sequential(*units))
        super().__init__(conv_bn(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1), *stages, classifier(channels, classes))


class InvertedResidual(nn.Module):
    """1x1 expand, depthwise 3x3, linear 1x1 project, and the shortcut where the shapes allow it (table 1)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [conv_bn(in_channels, width, 1, activation=nn.ReLU6)]
        layers.append(conv_bn(width, width, 3, stride, groups=width, activation=nn.ReLU6))
        layers.append(conv_bn(width, out_channels, 1, activation=None))
        self.branch = nn.Sequential(*layers)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.adds else self.branch(x)


class MobileNetV2(nn.Sequential):
    """MobileNetV2 1.0: ``Tensor[N, 3, H, W]`` to ``Tensor[N, classes]``.

    Source: Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, 2018, table 2.
    """

    #: expansion, output channels, blocks, stride of the first block
    STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, classes: int = 1000) -> None:
        stages: list[nn.Module] = []
        channels = 32
        for expansion, out_channels, blocks, stride in self.STAGES:
            units = []
            for block in range(blocks):
                units.append(InvertedResidual(channels, out_channels, stride if block == 0 else 1, expansion))
                channels = out_channels
            stages.append(nn.Sequential(*units))
        super().__init__(
            conv_bn(3, 32, 3, 2, activation=nn.ReLU6),
            *stages,
            conv_bn(channels, 1280, 1, activation=nn.ReLU6),
            classifier(1280, classes),
        )


@dataclass(frozen=True)
class Network:
    """One network of the demo."""

    name: str
    build: Callable[[], nn.Sequential]
    #: index of the stage whose output the picture shows
    shown: int


NETWORKS = (
    Network("ResNeXt-50 32x4d", ResNeXt50, shown=2),
    Network("ShuffleNet 1x g=3", ShuffleNetV1, shown=2),
    Network("MobileNetV2", MobileNetV2, shown=2),
)


def initialise(model: nn.Module, seed: int) -> None:
    """Random weights whose activations neither vanish nor explode (He et al., 2015), given by the seed."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Gives batch normalisation the statistics of ``images``, ``Tensor[N, 3, H, W]``; ends in eval mode.

    Untrained running statistics would let the activations grow from block to block; with these every layer
    sees values of about unit variance, as in a trained network, and a relative difference means something.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain average of what is seen
    model.train()
    model(images)
    model.eval()
