"""Convolution modules: ``torch.nn``'s own, with the one method replaced that computes.

Everything else (constructor, initialisation, ``state_dict``, ``repr``) is inherited. A twin adds no instance
attribute either: ``fastconv.convert`` relies on that when it turns one into the other. In evaluation mode a module
keeps its weight packed for the kernel that it uses (``fastconv._packed``).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv._packed import convolve
from fastconv.conv import conv1d, conv2d
from fastconv.conv_transpose import conv_transpose1d, conv_transpose2d

__all__ = ["Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d"]


class Conv1d(torch.nn.Conv1d):
    """1-D convolution, a drop-in for :class:`torch.nn.Conv1d`.

    Shape:
        ``Tensor[N, C, L]`` or ``Tensor[C, L]`` to ``Tensor[N, K, Q]`` or ``Tensor[K, Q]``.

    >>> Conv1d(4, 8, 3, padding="same")(torch.zeros(2, 4, 16)).shape
    torch.Size([2, 8, 16])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,)
        return convolve(self, conv1d, input, weight, bias, self.stride, padding, self.dilation, self.groups)


class Conv2d(torch.nn.Conv2d):
    """2-D convolution, a drop-in for :class:`torch.nn.Conv2d`.

    Shape:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` to ``Tensor[N, K, P, Q]`` or ``Tensor[K, P, Q]``.

    >>> Conv2d(4, 8, 3, stride=2, padding=1)(torch.zeros(2, 4, 16, 16)).shape
    torch.Size([2, 8, 8, 8])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return convolve(self, conv2d, input, weight, bias, self.stride, padding, self.dilation, self.groups)


def _conv_transpose(
    module: torch.nn.ConvTranspose1d | torch.nn.ConvTranspose2d,
    function: Callable[..., Tensor],
    input: Tensor,
    output_size: Sequence[int] | None,
) -> Tensor:
    if module.padding_mode != "zeros":
        raise ValueError(f"{type(module).__name__}: padding_mode must be 'zeros' (got {module.padding_mode!r})")
    geometry = (module.stride, module.padding, module.kernel_size, len(module.kernel_size), module.dilation)
    output_padding = module._output_padding(input, output_size, *geometry)  # type: ignore[arg-type]
    rest = (module.stride, module.padding, output_padding, module.groups, module.dilation)
    return function(input, module.weight, module.bias, *rest)


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """1-D transposed convolution, a drop-in for :class:`torch.nn.ConvTranspose1d`.

    Shape:
        ``Tensor[N, C, L]`` or ``Tensor[C, L]`` to ``Tensor[N, K, Q]`` or ``Tensor[K, Q]``.

    >>> ConvTranspose1d(4, 8, 4, stride=2, padding=1)(torch.zeros(2, 4, 16)).shape
    torch.Size([2, 8, 32])
    """

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return _conv_transpose(self, conv_transpose1d, input, output_size)


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """2-D transposed convolution, a drop-in for :class:`torch.nn.ConvTranspose2d`.

    Shape:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` to ``Tensor[N, K, P, Q]`` or ``Tensor[K, P, Q]``.
        ``output_size`` asks for one of the sizes that a convolution with these strides brings to that of ``input``.

    >>> ConvTranspose2d(4, 8, 3, stride=2, padding=1)(torch.zeros(2, 4, 16, 16), output_size=(32, 31)).shape
    torch.Size([2, 8, 32, 31])
    """

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return _conv_transpose(self, conv_transpose2d, input, output_size)
