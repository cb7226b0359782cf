"""Modules with the names, arguments and ``state_dict`` keys of ``torch.nn``, on fastconv's operators.

A module that has a namesake in ``torch.nn`` derives from it, so ``isinstance`` checks and tools that look for
``torch.nn.Conv2d`` go on working, and a checkpoint loads either way.
"""

from fastconv.nn.conv import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from fastconv.nn.deform import DeformConv2d
from fastconv.nn.pool import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool1d,
    AvgPool2d,
    BilinearPool2d,
    CompactBilinearPool2d,
    GlobalAvgPool2d,
    GlobalMaxPool2d,
    LPPool2d,
    MaxPool1d,
    MaxPool2d,
    SpatialPyramidPool2d,
    StochasticPool2d,
)
from fastconv.nn.rearrange import ChannelShuffle, ChannelUnshuffle
from fastconv.nn.roi import MultiScaleRoIAlign, PSRoIAlign, PSRoIPool, RoIAlign, RoIPool
from fastconv.nn.unpool import AvgUnpool2d, MaxUnpool1d, MaxUnpool2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgUnpool2d",
    "BilinearPool2d",
    "ChannelShuffle",
    "ChannelUnshuffle",
    "CompactBilinearPool2d",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "DeformConv2d",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "LPPool2d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MultiScaleRoIAlign",
    "PSRoIAlign",
    "PSRoIPool",
    "RoIAlign",
    "RoIPool",
    "SpatialPyramidPool2d",
    "StochasticPool2d",
]
