"""Pooling modules: ``torch.nn``'s own, with the one method replaced that computes."""

import torch
from torch import Tensor

from fastconv.pool import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool1d,
    avg_pool2d,
    global_avg_pool2d,
    global_max_pool2d,
    max_pool1d,
    max_pool2d,
)

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "MaxPool1d",
    "MaxPool2d",
]


class MaxPool1d(torch.nn.MaxPool1d):
    """The maximum of each window of a 1-D input, a drop-in for :class:`torch.nn.MaxPool1d`.

    Shape:
        ``Tensor[N, C, W]`` or ``Tensor[C, W]`` to ``Tensor[N, C, Q]`` or ``Tensor[C, Q]``.

    >>> MaxPool1d(2)(torch.arange(6.0).view(1, 1, 6)).flatten()
    tensor([1., 3., 5.])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        windows = (self.kernel_size, self.stride, self.padding, self.dilation)
        return max_pool1d(input, *windows, self.ceil_mode, self.return_indices)


class MaxPool2d(torch.nn.MaxPool2d):
    """The maximum of each window, a drop-in for :class:`torch.nn.MaxPool2d`.

    Shape:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` to ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]``.

    >>> MaxPool2d(2)(torch.arange(16.0).view(1, 1, 4, 4)).flatten()
    tensor([ 5.,  7., 13., 15.])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        windows = (self.kernel_size, self.stride, self.padding, self.dilation)
        return max_pool2d(input, *windows, self.ceil_mode, self.return_indices)


class AvgPool1d(torch.nn.AvgPool1d):
    """The mean of each window of a 1-D input, a drop-in for :class:`torch.nn.AvgPool1d`.

    Shape:
        ``Tensor[N, C, W]`` or ``Tensor[C, W]`` to ``Tensor[N, C, Q]`` or ``Tensor[C, Q]``.

    >>> AvgPool1d(2)(torch.arange(6.0).view(1, 1, 6)).flatten()
    tensor([0.5000, 2.5000, 4.5000])
    """

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class AvgPool2d(torch.nn.AvgPool2d):
    """The mean of each window, a drop-in for :class:`torch.nn.AvgPool2d`.

    Shape:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` to ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]``.

    >>> AvgPool2d(2)(torch.arange(16.0).view(1, 1, 4, 4)).flatten()
    tensor([ 2.5000,  4.5000, 10.5000, 12.5000])
    """

    def forward(self, input: Tensor) -> Tensor:
        windows = (self.kernel_size, self.stride, self.padding)
        return avg_pool2d(input, *windows, self.ceil_mode, self.count_include_pad, self.divisor_override)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """The maximum of each of ``output_size`` windows, a drop-in for :class:`torch.nn.AdaptiveMaxPool2d`.

    Shape:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` to ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]``.

    >>> AdaptiveMaxPool2d(2)(torch.arange(12.0).view(1, 3, 4)).flatten()
    tensor([ 5.,  7.,  9., 11.])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """The mean of each of ``output_size`` windows, a drop-in for :class:`torch.nn.AdaptiveAvgPool2d`.

    Shape:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` to ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]``.

    >>> AdaptiveAvgPool2d(1)(torch.arange(12.0).view(1, 3, 4)).flatten()
    tensor([5.5000])
    """

    def forward(self, input: Tensor) -> Tensor:
        return adaptive_avg_pool2d(input, self.output_size)


class GlobalMaxPool2d(torch.nn.Module):
    """The maximum of each plane; ``torch.nn`` has no such module.

    Shape:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` to ``Tensor[N, C, 1, 1]`` or ``Tensor[C, 1, 1]``.

    >>> GlobalMaxPool2d()(torch.arange(8.0).view(2, 2, 2)).flatten()
    tensor([3., 7.])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return global_max_pool2d(input)


class GlobalAvgPool2d(torch.nn.Module):
    """The mean of each plane; ``torch.nn`` has no such module.

    Shape:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` to ``Tensor[N, C, 1, 1]`` or ``Tensor[C, 1, 1]``.

    >>> GlobalAvgPool2d()(torch.arange(8.0).view(2, 2, 2)).flatten()
    tensor([1.5000, 5.5000])
    """

    def forward(self, input: Tensor) -> Tensor:
        return global_avg_pool2d(input)
