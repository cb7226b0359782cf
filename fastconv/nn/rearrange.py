"""Modules that move elements and compute nothing."""

import torch
from torch import Tensor

from fastconv.rearrange import channel_shuffle, channel_unshuffle

__all__ = ["ChannelShuffle", "ChannelUnshuffle"]


class ChannelShuffle(torch.nn.ChannelShuffle):
    """Interleaves the channels of ``groups`` groups, a drop-in for :class:`torch.nn.ChannelShuffle`.

    Shape:
        ``Tensor[N, C, *]``, ``groups`` a divisor of ``C``, to ``Tensor[N, C, *]``.

    >>> ChannelShuffle(2)(torch.arange(6.0).view(1, 6, 1, 1)).flatten()
    tensor([0., 3., 1., 4., 2., 5.])
    """

    def forward(self, input: Tensor) -> Tensor:
        return channel_shuffle(input, self.groups)


class ChannelUnshuffle(torch.nn.Module):
    """Undoes :class:`ChannelShuffle` with the same ``groups``; ``torch.nn`` has no such module.

    Shape:
        ``Tensor[N, C, *]``, ``groups`` a divisor of ``C``, to ``Tensor[N, C, *]``.

    >>> ChannelUnshuffle(2)(ChannelShuffle(2)(torch.arange(6.0).view(1, 6, 1, 1))).flatten()
    tensor([0., 1., 2., 3., 4., 5.])
    """

    groups: int

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        return channel_unshuffle(input, self.groups)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
