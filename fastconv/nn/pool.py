"""Pooling modules: ``torch.nn``'s own, with the one method replaced that computes, and those that it does not have."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv.bilinear_pool import bilinear_pool2d, compact_bilinear_pool2d
from fastconv.lp_pool import lp_pool2d
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
from fastconv.spatial_pyramid_pool import spatial_pyramid_pool2d
from fastconv.stochastic_pool import stochastic_pool2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "BilinearPool2d",
    "CompactBilinearPool2d",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "LPPool2d",
    "MaxPool1d",
    "MaxPool2d",
    "SpatialPyramidPool2d",
    "StochasticPool2d",
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


class LPPool2d(torch.nn.LPPool2d):
    """The power average of each window, a drop-in for :class:`torch.nn.LPPool2d`.

    Shape:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` to ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]``.

    >>> LPPool2d(2, (1, 2))(torch.tensor([[[3.0, 4.0, 0.0, 1.0]]])).flatten()
    tensor([5., 1.])
    """

    def forward(self, input: Tensor) -> Tensor:
        return lp_pool2d(input, self.norm_type, self.kernel_size, self.stride, self.ceil_mode)


class StochasticPool2d(torch.nn.Module):
    """One element of each window, drawn with a probability proportional to its value; in evaluation mode the mean with
    these probabilities. ``torch.nn`` has no such module.

    Shape:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``, not negative, to ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]``.

    >>> StochasticPool2d(2).eval()(torch.tensor([[[0.0, 3.0], [0.0, 1.0]]]))
    tensor([[[2.5000]]])
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding

    def forward(self, input: Tensor) -> Tensor:
        windows = (self.kernel_size, self.stride, self.padding)
        return stochastic_pool2d(input, *windows, training=self.training)  # type: ignore[return-value]

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class SpatialPyramidPool2d(torch.nn.Module):
    """As many numbers for every size of image: maxima or means of ever finer grids; ``torch.nn`` has no such module.

    Shape:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` to ``Tensor[N, C * sum(l * l)]`` or ``Tensor[C * sum(l * l)]``.

    >>> SpatialPyramidPool2d()(torch.zeros(2, 3, 9, 7)).shape
    torch.Size([2, 63])
    """

    def __init__(self, levels: Sequence[int] = (1, 2, 4), mode: str = "max") -> None:
        super().__init__()
        self.levels = levels
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        return spatial_pyramid_pool2d(input, self.levels, self.mode)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, mode={self.mode!r}"


class BilinearPool2d(torch.nn.Module):
    """The outer product of two feature maps, added up over their positions; ``torch.nn`` has no such module.

    Shape:
        ``Tensor[N, C1, H, W]``, and ``Tensor[N, C2, H, W]`` or nothing, to ``Tensor[N, C1 * C2]``; also without ``N``.

    >>> BilinearPool2d()(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
    tensor([ 5., 11., 11., 25.])
    """

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return bilinear_pool2d(x, y)


class CompactBilinearPool2d(torch.nn.Module):
    """A sketch of :class:`BilinearPool2d` in ``output_dim`` numbers; ``torch.nn`` has no such module.

    Shape:
        ``Tensor[N, C1, H, W]``, and ``Tensor[N, C2, H, W]`` or nothing, to ``Tensor[N, output_dim]``; also without
        ``N``.

    >>> CompactBilinearPool2d(8)(torch.ones(2, 3, 1, 1)).shape
    torch.Size([2, 8])
    """

    def __init__(self, output_dim: int, seed: int = 0) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.seed = seed

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return compact_bilinear_pool2d(x, y, output_dim=self.output_dim, seed=self.seed)

    def extra_repr(self) -> str:
        return f"output_dim={self.output_dim}, seed={self.seed}"
