"""Deformable convolution: every tap of every pixel looks where an offset says."""

from typing import Any

import torch
from torch import Tensor

from fastconv._arguments import LARGEST, check_list, check_same, check_shape, each
from fastconv._operator import memory_format, operator
from fastconv.pool import Ints

__all__ = ["deform_conv2d"]

_OP = "deform_conv2d"


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = (1, 1),
    padding: Ints = (0, 0),
    dilation: Ints = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution, version 2 with a mask and version 1 without: a drop-in for
    :func:`torchvision.ops.deform_conv2d`.

    Tap ``(r, s)`` looks at ``(p * stride - padding + r * dilation + dy, q * stride - padding + s * dilation + dx)``,
    between the pixels bilinear, and outside of the input at zeros. No column buffer is made: samples go straight into
    the tiles of a matrix product. The backward pass is deterministic with any number of threads. It can be
    differentiated again, through PyTorch's own operators, which keep all samples in memory.

    Args:
        input: ``Tensor[N, C, H, W]``; float32, float64, bfloat16 or float16 (16-bit types are added up in float32); any
            strides. Not empty but for ``N``.
        offset: ``Tensor[N, 2 * G * R * S, P, Q]``, ``dy`` and ``dx`` in pixels of each tap in turn, for each of the
            ``G`` groups of channels that share them; ``G`` divides ``C``. A sample at an offset that is NaN or infinite
            is zero.
        weight: ``Tensor[K, C / groups, R, S]``; ``groups`` follows from the shapes.
        bias: ``Tensor[K]`` or None.
        stride, padding, dilation: integers or pairs.
        mask: ``Tensor[N, G * R * S, P, Q]``, what each sample is multiplied by, or None.

    Returns:
        ``Tensor[N, K, P, Q]`` in the memory format of ``input``, ``P = (H + 2 * padding - dilation * (R - 1) - 1) //
        stride + 1``.

    Raises:
        RuntimeError: tensors of other shapes, dtypes or devices, strides, padding or dilation out of range, a weight
            that spans more than the padded input.
        TypeError: arguments that are no tensors or no integers.

    Source: Dai, Qi, Xiong, Li, Zhang, Hu and Wei, *Deformable Convolutional Networks*, 2017; with masks: Zhu, Hu, Lin
    and Dai, *Deformable ConvNets v2: More Deformable, Better Results*, 2019.

    >>> x = torch.arange(9.0).view(1, 1, 3, 3)
    >>> half = torch.tensor([0., .5]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    >>> deform_conv2d(x, half, torch.ones(1, 1, 1, 1))
    tensor([[[[0.5000, 1.5000, 1.0000],
              [3.5000, 4.5000, 2.5000],
              [6.5000, 7.5000, 4.0000]]]])
    """
    for name, tensor in (("input", input), ("offset", offset), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{_OP}: {name} must be a Tensor (got {tensor!r})")
    for name, optional in (("bias", bias), ("mask", mask)):
        if optional is not None and not isinstance(optional, Tensor):
            raise TypeError(f"{_OP}: {name} must be a Tensor or None (got {optional!r})")
    strides, pads = each(_OP, "stride", stride, 2), each(_OP, "padding", padding, 2)
    return _deform(input, offset, weight, bias, mask, strides, pads, each(_OP, "dilation", dilation, 2))


# ---- shape rules -----------------------------------------------------------------------------------------------------
#
# Those of csrc/deform/check.h, in the same words, for tensors without data.


def _check(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, stride, padding, dilation) -> list:
    """The output's size."""
    for name, tensor in (("input", input), ("weight", weight), ("offset", offset)):
        if tensor.dim() != 4:
            raise RuntimeError(f"{_OP}: {name} must have 4 dimensions (got {list(tensor.shape)})")
    check_same(_OP, input, offset=offset)
    check_same(_OP, input, weight=weight)
    check_list(_OP, "stride", stride, 2, 1, "be positive")
    check_list(_OP, "padding", padding, 2, 0, "not be negative")
    check_list(_OP, "dilation", dilation, 2, 1, "be positive")
    if 0 in input.shape[1:]:
        raise RuntimeError(f"{_OP}: input must not be empty but for its batch (got {list(input.shape)})")
    if 0 in weight.shape:
        raise RuntimeError(f"{_OP}: weight must not be empty (got {list(weight.shape)})")
    N, C, H, W = input.shape
    K, of_group, R, S = weight.shape
    if H * W > LARGEST:
        raise RuntimeError(f"{_OP}: input must have at most {LARGEST} positions a plane (got {list(input.shape)})")
    if C % of_group != 0:
        raise RuntimeError(
            f"{_OP}: weight must have a divisor of input's {C} channels in dimension 1 (got {list(weight.shape)})"
        )
    groups = C // of_group
    if K % groups != 0:
        raise RuntimeError(
            f"{_OP}: weight must have a multiple of {groups} output channels, its groups (got {list(weight.shape)})"
        )
    size = [N, K]
    for d, (image, kernel) in enumerate(((H, R), (W, S))):
        if kernel > LARGEST:
            raise RuntimeError(f"{_OP}: weight must be at most {LARGEST} in every dimension (got {list(weight.shape)})")
        padded, extent = image + 2 * padding[d], dilation[d] * (kernel - 1) + 1
        if extent > padded:
            raise RuntimeError(
                f"{_OP}: weight must not span more than the padded input, {extent} > {padded} in dimension {d} "
                f"(got {list(weight.shape)})"
            )
        size.append((padded - extent) // stride[d] + 1)
    channels, taps = offset.shape[1], 2 * R * S
    if channels == 0 or channels % taps != 0 or C % (channels // taps) != 0:
        raise RuntimeError(
            f"{_OP}: offset must have {taps} channels for each of its groups, whose number divides {C} "
            f"(got {list(offset.shape)})"
        )
    check_shape(_OP, "offset", offset, [N, channels, *size[2:]])
    if mask is not None:
        check_same(_OP, input, mask=mask)
        check_shape(_OP, "mask", mask, [N, channels // 2, *size[2:]])
    return size


def _fake(input, offset, weight, bias, mask, stride, padding, dilation):
    size = _check(input, offset, weight, mask, stride, padding, dilation)
    if bias is not None:
        check_same(_OP, input, bias=bias)
        check_shape(_OP, "bias", bias, size[1:2])
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _fake_grad(grad_output, input, offset, weight, mask, stride, padding, dilation, *wanted):
    size = _check(input, offset, weight, mask, stride, padding, dilation)
    check_same(_OP, input, grad_output=grad_output)
    check_shape(_OP, "grad_output", grad_output, size)
    if mask is None and wanted[3]:
        raise RuntimeError(f"{_OP}: mask must be there for its gradient (got none)")
    return tuple(
        torch.empty(
            of.shape,
            dtype=input.dtype,
            device=input.device,
            memory_format=torch.contiguous_format if of is weight else memory_format(of),
        )
        if wants
        else input.new_empty(0)
        for of, wants in zip((input, offset, weight, mask), wanted, strict=True)
    )


# ---- gradients -------------------------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, offset, weight, _, mask, *ctx.rest = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    of_input, of_offset, of_weight, of_bias, of_mask = ctx.needs_input_grad[:5]
    wanted = of_input, of_offset, of_weight, of_mask
    grads = [None] * 4
    if any(wanted):
        found = _grad(grad, *ctx.saved_tensors, *ctx.rest, *wanted)
        grads = [each if wants else None for each, wants in zip(found, wanted, strict=True)]
    grad_bias = grad.sum((0, 2, 3)) if of_bias else None
    return *grads[:3], grad_bias, grads[3], None, None, None


def _grad_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    grad_output, input, offset, weight, mask, *ctx.rest = inputs
    ctx.save_for_backward(grad_output, input, offset, weight, mask)


def _grad_backward(ctx: Any, *grads: Tensor) -> tuple:
    """The second derivatives are those of the same function put together from PyTorch's operators, which go on to any
    order. (``torch.func`` takes each argument for itself, also where one was computed from another, and works below its
    own transforms.)"""
    *sizes, of_input, of_offset, of_weight, of_mask = ctx.rest
    wanted = of_input, of_offset, of_weight, of_mask
    saved = ctx.saved_tensors
    there = [i for i, tensor in enumerate(saved) if tensor is not None]

    def first(grad_output: Tensor, *leaves: Tensor) -> tuple:
        def output(*leaves: Tensor) -> Tensor:
            return _composed(*leaves, *([None] if len(leaves) == 3 else []), *sizes)  # type: ignore[call-arg]

        found = torch.func.vjp(output, *leaves)[1](grad_output)
        return tuple(grad for grad, wants in zip(found, wanted[: len(found)], strict=True) if wants)

    pull = torch.func.vjp(first, *(saved[i] for i in there))[1]
    second = dict(
        zip(there, pull(tuple(grad for grad, wants in zip(grads, wanted, strict=True) if wants)), strict=True)
    )
    return *(second.get(i) for i in range(len(saved))), *(None,) * 7


def _composed(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, stride, padding, dilation) -> Tensor:
    """Deformable convolution without bias from PyTorch's operators, for derivatives of any order; every sample is kept
    in memory."""
    N, C, H, W = input.shape
    K, of_group, R, S = weight.shape
    P, Q = offset.shape[2:]
    G = offset.shape[1] // (2 * R * S)
    offsets = offset.view(N, G, R * S, 2, P * Q) if offset.is_contiguous() else offset.reshape(N, G, R * S, 2, P * Q)

    def places(d: int, kernel: int, outputs: int) -> Tensor:  # [kernel, outputs]
        first = torch.arange(outputs, device=input.device) * stride[d] - padding[d]
        taps = torch.arange(kernel, device=input.device) * dilation[d]
        return (taps[:, None] + first).to(input.dtype)

    y = places(0, R, P).view(R, 1, P, 1).expand(R, S, P, Q).reshape(R * S, P * Q) + offsets[:, :, :, 0]
    x = places(1, S, Q).view(1, S, 1, Q).expand(R, S, P, Q).reshape(R * S, P * Q) + offsets[:, :, :, 1]
    counts = (y > -1) & (x > -1) & (y < H) & (x < W)
    y, x = torch.where(counts, y, 0), torch.where(counts, x, 0)
    top, left = y.detach().floor(), x.detach().floor()
    planes = input.reshape(N, G, C // G, H * W)
    samples: Any = 0
    for down in (0, 1):
        for right in (0, 1):
            h, w = top.long() + down, left.long() + right
            inside = counts & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            at = torch.where(inside, h * W + w, 0).view(N, G, 1, -1).expand(-1, -1, C // G, -1)
            seen = torch.gather(planes, 3, at).view(N, G, C // G, R * S, P * Q)
            share = (y - top if down else 1 - (y - top)) * (x - left if right else 1 - (x - left))
            samples = samples + torch.where(inside[:, :, None], seen * share[:, :, None], 0)
    if mask is not None:
        samples = samples * mask.reshape(N, G, 1, R * S, P * Q)
    groups = C // of_group
    columns = samples.reshape(N, groups, of_group * R * S, P * Q)
    rows = weight.reshape(groups, K // groups, of_group * R * S)
    return torch.einsum("gkc,ngcp->ngkp", rows, columns).reshape(N, K, P, Q)


_deform = operator(_OP, fake=_fake, setup_context=_setup, backward=_backward, autocast=True)
_grad = operator("_deform_conv2d_grad", fake=_fake_grad, setup_context=_grad_setup, backward=_grad_backward)
