"""The module of deformable convolution, with the arguments and the ``state_dict`` keys of ``torchvision.ops``."""

import math

import torch
from torch import Tensor

from fastconv._arguments import check_list, each, integer
from fastconv.deform import deform_conv2d
from fastconv.pool import Ints

__all__ = ["DeformConv2d"]


class DeformConv2d(torch.nn.Module):
    """Deformable convolution, a drop-in for ``torchvision.ops.DeformConv2d``: :func:`fastconv.deform_conv2d`.

    Shape:
        ``Tensor[N, C, H, W]``, offsets ``Tensor[N, 2 * G * R * S, P, Q]`` and, where there are any, masks
        ``Tensor[N, G * R * S, P, Q]`` to ``Tensor[N, K, P, Q]``.

    >>> DeformConv2d(4, 6, 3, padding=1)(torch.ones(1, 4, 5, 5), torch.zeros(1, 18, 5, 5)).shape
    torch.Size([1, 6, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        counts = {"groups": groups, "in_channels": in_channels, "out_channels": out_channels}
        for name, count in counts.items():
            if integer("DeformConv2d", name, count, "an integer") < 1:
                raise ValueError(f"DeformConv2d: {name} must be positive (got {count})")
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups != 0:
                raise ValueError(f"DeformConv2d: {name} must be divisible by groups, {groups} (got {channels})")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = tuple(each("DeformConv2d", "kernel_size", kernel_size, 2))
        self.stride = tuple(each("DeformConv2d", "stride", stride, 2))
        self.padding = tuple(each("DeformConv2d", "padding", padding, 2))
        self.dilation = tuple(each("DeformConv2d", "dilation", dilation, 2))
        check_list("DeformConv2d", "kernel_size", list(self.kernel_size), 2, 1, "be positive")
        self.groups = groups
        self.weight = torch.nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts += [f"padding={self.padding}"] if self.padding != (0, 0) else []
        parts += [f"dilation={self.dilation}"] if self.dilation != (1, 1) else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        return ", ".join(parts)
