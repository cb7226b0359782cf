"""Transposed convolution: the public functions, and the operator's shape rule and gradients.

It is the input gradient of a convolution with a bias added, and its own gradients are that convolution and its weight
gradient: everything that it needs is in ``conv.py`` already.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastconv._arguments import check_list, check_same, check_shape, each
from fastconv._operator import memory_format, operator
from fastconv.conv import _check_common, _check_types, _convolve, _grad_weight, allows_tf32

__all__ = ["conv_transpose1d", "conv_transpose2d"]


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """1-D transposed convolution, a drop-in for :func:`torch.nn.functional.conv_transpose1d`.

    Args:
        input: ``Tensor[N, C, W]`` or ``Tensor[C, W]``; float32, float64, bfloat16 or float16 (16-bit types are
            accumulated in float32); any strides.
        weight: ``Tensor[C, K / groups, S]``.
        bias: ``Tensor[K]`` or None.
        stride, dilation: positive number of elements.
        padding: number of elements left out on either side.
        output_padding: number of elements added at the end, smaller than ``stride`` or ``dilation``.
        groups: divides ``C`` and ``K``.

    Returns:
        ``Tensor[N, K, Q]`` or ``Tensor[K, Q]``,
        ``Q = (W - 1) * stride - 2 * padding + dilation * (S - 1) + output_padding + 1``.

    Raises:
        RuntimeError, TypeError: see :func:`conv_transpose2d`.

    >>> conv_transpose1d(torch.tensor([[1.0, 2.0]]), torch.ones(1, 1, 3), stride=2)
    tensor([[1., 1., 3., 2., 2.]])
    """
    return _conv_transpose(
        "conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """2-D transposed convolution, a drop-in for :func:`torch.nn.functional.conv_transpose2d`.

    Every element of the input adds the kernel, times itself, to the output at ``stride`` times its place. Computed
    without adding into the output: the outputs whose places have the same remainder modulo ``stride`` are one
    convolution of the input with the taps that reach them.

    Args:
        input: ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``; float32, float64, bfloat16 or float16 (16-bit types are
            accumulated in float32); contiguous, channels_last or any other strides.
        weight: ``Tensor[C, K / groups, R, S]``.
        bias: ``Tensor[K]`` or None.
        stride, dilation: positive number of elements, one for both dimensions or one for each.
        padding: number of elements left out on either side, one for both dimensions or one for each.
        output_padding: number of elements added at the bottom and the right, smaller than ``stride`` or ``dilation``;
            one for both dimensions or one for each.
        groups: divides ``C`` and ``K``; output channel ``k`` sees the channels of group ``k // (K / groups)``.

    Returns:
        ``Tensor[N, K, P, Q]`` or ``Tensor[K, P, Q]`` in the memory format of ``input``,
        ``P = (H - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1``, ``Q`` likewise.

    Raises:
        RuntimeError: wrong number of dimensions, groups that do not divide, mixed dtypes or devices, an input without
            channels or pixels, padding that leaves no output, strides, dilations or paddings out of range.
        TypeError: strides, paddings or dilations that are not integers.

    Source: Zeiler, Krishnan, Taylor and Fergus, *Deconvolutional Networks*, 2010; the arithmetic in Dumoulin and
    Visin, *A guide to convolution arithmetic for deep learning*, 2016.

    >>> conv_transpose2d(torch.ones(1, 2, 4, 4), torch.ones(2, 3, 4, 4), stride=2, padding=1).shape
    torch.Size([1, 3, 8, 8])
    """
    return _conv_transpose(
        "conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def _conv_transpose(
    op: str,
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
) -> Tensor:
    groups = _check_types(op, dims, input, weight, bias, groups)
    lists = (
        each(op, "stride", stride, dims),
        each(op, "padding", padding, dims),
        each(op, "output_padding", output_padding, dims),
        each(op, "dilation", dilation, dims),
    )
    unbatched = input.dim() == dims + 1
    output = _transpose(input.unsqueeze(0) if unbatched else input, weight, bias, *lists, groups, allows_tf32(input))
    return output.squeeze(0) if unbatched else output


def _fake_conv_transpose(input, weight, bias, stride, padding, output_padding, dilation, groups, allow_tf32=False):
    """The rules of ``check_conv_transpose`` in csrc/conv/check.h, in the same words, for tensors without data."""
    given, taps = input.shape, weight.shape
    op = "conv_transpose1d" if len(taps) == 3 else "conv_transpose2d"
    _check_common(op, given, taps, stride, dilation, groups)
    dims = len(taps) - 2
    check_list(op, "padding", padding, dims, 0, "not be negative")
    check_list(op, "output_padding", output_padding, dims, 0, "not be negative")
    if given[1] == 0:
        raise RuntimeError(f"{op}: input must have channels (got {list(given)})")
    if given[1] != taps[0]:
        raise RuntimeError(
            f"{op}: weight must have {given[1]} channels in its first dimension, those of the input (got {list(taps)})"
        )
    if given[1] % groups != 0:
        raise RuntimeError(f"{op}: groups must divide the number of input channels {given[1]} (got {groups})")
    size = [given[0], taps[1] * groups]
    for d in range(dims):
        more = output_padding[d]
        if more >= stride[d] and more >= dilation[d]:
            raise RuntimeError(
                f"{op}: output_padding must be smaller than stride or dilation, {stride[d]} and {dilation[d]} in "
                f"dimension {d - dims} (got {output_padding})"
            )
        if given[2 + d] == 0:
            raise RuntimeError(f"{op}: input must not be empty in dimension {d - dims} (got {list(given)})")
        extent = dilation[d] * (taps[2 + d] - 1) + 1
        size.append((given[2 + d] - 1) * stride[d] + extent + more - 2 * padding[d])
        if size[-1] < 1:
            raise RuntimeError(
                f"{op}: padding must leave at least one output, not {size[-1]}, in dimension {d - dims} (got {padding})"
            )
    check_same(op, input, weight=weight, bias=bias)
    if bias is not None:
        check_shape(op, "bias", bias, size[1:2])
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, weight, _, stride, padding, output_padding, dilation, groups, *tf32 = inputs
    ctx.tf32 = tf32 == [True]
    # The convolution that this one turns round.
    pads = [*padding, *(p - o for p, o in zip(padding, output_padding, strict=True))]
    ctx.rest, ctx.weight_size = (stride, pads, dilation, groups), list(weight.shape)
    # A frozen weight (or input) does not keep the other one alive.
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)


def _backward(ctx: Any, grad_output: Tensor) -> tuple:
    input, weight = ctx.saved_tensors
    needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    return (
        _convolve(grad_output, weight, None, *ctx.rest, None, None, ctx.tf32) if needs_input else None,
        _grad_weight(input, grad_output, ctx.weight_size, *ctx.rest, ctx.tf32) if needs_weight else None,
        grad_output.sum([0, *range(2, grad_output.dim())]) if needs_bias else None,
        *(None,) * len(ctx.needs_input_grad[3:]),
    )


_transpose = operator(
    "conv_transpose", fake=_fake_conv_transpose, setup_context=_setup, backward=_backward, autocast=True
)
