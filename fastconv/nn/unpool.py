"""Unpooling modules: ``torch.nn``'s own, with the one method replaced that computes, and one of means."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv.pool import Ints
from fastconv.unpool import avg_unpool2d, max_unpool1d, max_unpool2d

__all__ = ["AvgUnpool2d", "MaxUnpool1d", "MaxUnpool2d"]


class MaxUnpool1d(torch.nn.MaxUnpool1d):
    """The values of a 1-D pooling at their indices, a drop-in for :class:`torch.nn.MaxUnpool1d`.

    Shape:
        values and indices ``Tensor[N, C, Q]`` or ``Tensor[C, Q]`` to ``Tensor[N, C, W]`` or ``Tensor[C, W]``.

    >>> MaxUnpool1d(2)(torch.tensor([[3., 5.]]), torch.tensor([[1, 2]]))
    tensor([[0., 3., 5., 0.]])
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return max_unpool1d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    """The values of a pooling at their indices, a drop-in for :class:`torch.nn.MaxUnpool2d`.

    Shape:
        values and indices ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]`` to ``Tensor[N, C, H, W]`` or
        ``Tensor[C, H, W]``.

    >>> MaxUnpool2d(2)(torch.tensor([[[4.]]]), torch.tensor([[[2]]]))
    tensor([[[0., 0.],
             [4., 0.]]])
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class AvgUnpool2d(torch.nn.Module):
    """The mean of the windows that cover each position; ``torch.nn`` has no such module.

    Shape:
        ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]`` to ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``.

    >>> AvgUnpool2d(2)(torch.tensor([[[4.]]]))
    tensor([[[4., 4.],
             [4., 4.]]])
    """

    def __init__(self, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return avg_unpool2d(input, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
