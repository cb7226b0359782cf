"""Deformable convolution: every tap of every pixel looks where an offset says."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastconv._arguments import LARGEST, check_list, check_same, check_shape, each
from fastconv._operator import memory_format, operator
from fastconv.pool import Ints

__all__ = ["deform_conv2d", "deform_sample2d"]


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
    op = "deform_conv2d"
    _tensors(op, {"input": input, "offset": offset, "weight": weight}, {"bias": bias, "mask": mask})
    return _deform(input, offset, weight, bias, mask, *_windows(op, stride, padding, dilation))


def deform_sample2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    kernel_size: Ints = 3,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    softmax: bool = False,
) -> Tensor:
    """Deformable sampling, the operator of DCNv3 and DCNv4: what the taps of a pixel see, times their masks, added up.
    Each channel is on its own; there are no weights but the masks.

    It is :func:`deform_conv2d` with weights of one in as many groups as channels, many times as fast. Its gradients are
    deterministic and can be differentiated again in the same way.

    Args:
        input: ``Tensor[N, C, H, W]``, fastest in channels_last memory; otherwise as for :func:`deform_conv2d`.
        offset: ``Tensor[N, 2 * G * R * S, P, Q]``, as for :func:`deform_conv2d`: ``dy`` before ``dx``, taps row by row.
            (InternImage's code has ``dx`` first and its taps column by column.)
        mask: ``Tensor[N, G * R * S, P, Q]``, the weight of each sample in each group, or None for ones.
        kernel_size: ``(R, S)``, or one number for both.
        stride, padding, dilation: integers or pairs.
        softmax: whether the masks of a group are made to add up to one, by softmax over its taps: DCNv3 does, DCNv4
            does not.

    Returns:
        ``Tensor[N, C, P, Q]`` in the memory format of ``input``.

    Raises:
        RuntimeError, TypeError: see :func:`deform_conv2d`.
        ValueError: ``softmax`` without a mask.

    Source: Wang et al., *InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions*,
    2023; Xiong et al., *Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision Applications*,
    2024.

    >>> x = torch.arange(9.0).view(1, 1, 3, 3)
    >>> deform_sample2d(x, torch.zeros(1, 8, 2, 2), torch.full((1, 4, 2, 2), .25), kernel_size=2)
    tensor([[[[2., 3.],
              [5., 6.]]]])
    """
    op = "deform_sample2d"
    _tensors(op, {"input": input, "offset": offset}, {"mask": mask})
    kernel = each(op, "kernel_size", kernel_size, 2)
    windows = _windows(op, stride, padding, dilation)
    if softmax:
        if mask is None:
            raise ValueError(f"{op}: mask must be there for softmax (got None)")
        taps = kernel[0] * kernel[1]
        fits = taps > 0 and mask.dim() == 4 and mask.shape[1] % taps == 0
        if fits and mask.is_floating_point():  # else the operator says what is wrong
            mask = mask.unflatten(1, (-1, taps)).softmax(2).flatten(1, 2)
    return _sample(input, offset, mask, kernel, *windows)


def _tensors(op: str, needed: dict[str, Any], optional: dict[str, Any]) -> None:
    for name, tensor in needed.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor (got {tensor!r})")
    for name, tensor in optional.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor or None (got {tensor!r})")


def _windows(op: str, stride: Ints, padding: Ints, dilation: Ints) -> list[list[int]]:
    return [each(op, name, value, 2) for name, value in zip(_WINDOWS, (stride, padding, dilation), strict=True)]


_WINDOWS = ("stride", "padding", "dilation")


# ---- shape rules -----------------------------------------------------------------------------------------------------
#
# Those of csrc/deform/check.h, in the same words, for tensors without data.


def _check(
    input: Tensor,
    offset: Tensor,
    weight: Tensor | None,
    kernel: list[int],
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[str, list]:
    """The operator's name, and the output's size. ``kernel``: where there is no weight."""
    op = "deform_sample2d" if weight is None else "deform_conv2d"
    for name, tensor in (("input", input), ("weight", weight), ("offset", offset)):
        if tensor is not None and tensor.dim() != 4:
            raise RuntimeError(f"{op}: {name} must have 4 dimensions (got {list(tensor.shape)})")
    check_same(op, input, offset=offset)
    check_same(op, input, weight=weight)
    if weight is None:
        check_list(op, "kernel_size", kernel, 2, 1, "be positive")
    check_list(op, "stride", stride, 2, 1, "be positive")
    check_list(op, "padding", padding, 2, 0, "not be negative")
    check_list(op, "dilation", dilation, 2, 1, "be positive")
    if 0 in input.shape[1:]:
        raise RuntimeError(f"{op}: input must not be empty but for its batch (got {list(input.shape)})")
    if weight is not None and 0 in weight.shape:
        raise RuntimeError(f"{op}: weight must not be empty (got {list(weight.shape)})")
    N, C, H, W = input.shape
    if H * W > LARGEST:
        raise RuntimeError(f"{op}: input must have at most {LARGEST} positions a plane (got {list(input.shape)})")
    size = [N, C if weight is None else _output_channels(op, C, weight)]
    name, given = ("kernel_size", kernel) if weight is None else ("weight", list(weight.shape))
    R, S = given[-2:]
    for d, (image, taps) in enumerate(((H, R), (W, S))):
        padded, extent = image + 2 * padding[d], dilation[d] * (taps - 1) + 1
        if taps > LARGEST:
            raise RuntimeError(f"{op}: {name} must be at most {LARGEST} in every dimension (got {given})")
        if extent > padded:
            raise RuntimeError(
                f"{op}: {name} must not span more than the padded input, {extent} > {padded} in dimension {d} "
                f"(got {given})"
            )
        size.append((padded - extent) // stride[d] + 1)
    if R * S > LARGEST:
        raise RuntimeError(f"{op}: {name} must have at most {LARGEST} taps (got {given})")
    channels, per_group = offset.shape[1], 2 * R * S
    if channels == 0 or channels % per_group != 0 or C % (channels // per_group) != 0:
        raise RuntimeError(
            f"{op}: offset must have {per_group} channels for each of its groups, whose number divides {C} "
            f"(got {list(offset.shape)})"
        )
    check_shape(op, "offset", offset, [N, channels, *size[2:]])
    if mask is not None:
        check_same(op, input, mask=mask)
        check_shape(op, "mask", mask, [N, channels // 2, *size[2:]])
    return op, size


def _output_channels(op: str, C: int, weight: Tensor) -> int:
    K, of_group = weight.shape[:2]
    if C % of_group != 0:
        raise RuntimeError(
            f"{op}: weight must have a divisor of input's {C} channels in dimension 1 (got {list(weight.shape)})"
        )
    if K % (C // of_group) != 0:
        raise RuntimeError(
            f"{op}: weight must have a multiple of {C // of_group} output channels, its groups "
            f"(got {list(weight.shape)})"
        )
    return K


def _empty(size: list, like: Tensor) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format(like))


def _fake(input, offset, weight, bias, mask, stride, padding, dilation):
    op, size = _check(input, offset, weight, [], mask, stride, padding, dilation)
    if bias is not None:
        check_same(op, input, bias=bias)
        check_shape(op, "bias", bias, size[1:2])
    return _empty(size, input)


def _fake_sample(input, offset, mask, kernel, stride, padding, dilation):
    return _empty(_check(input, offset, None, kernel, mask, stride, padding, dilation)[1], input)


def _check_grad(op: str, size: list, grad_output: Tensor, input: Tensor, mask: Tensor | None, of_mask: bool) -> None:
    check_same(op, input, grad_output=grad_output)
    check_shape(op, "grad_output", grad_output, size)
    if mask is None and of_mask:
        raise RuntimeError(f"{op}: mask must be there for its gradient (got none)")


def _empty_grads(tensors: Sequence[Any], wanted: Sequence[bool]) -> list[Tensor]:
    """The first of the tensors says what those are that are not wanted."""
    return [
        _empty(list(of.shape), of) if wants else tensors[0].new_empty(0)
        for of, wants in zip(tensors, wanted, strict=True)
    ]


def _fake_grad(grad_output, input, offset, weight, mask, stride, padding, dilation, *wanted):
    op, size = _check(input, offset, weight, [], mask, stride, padding, dilation)
    _check_grad(op, size, grad_output, input, mask, wanted[3])
    grads = _empty_grads((input, offset, weight, mask), wanted)
    return *grads[:2], grads[2].contiguous(), grads[3]


def _fake_sample_grad(grad_output, input, offset, mask, kernel, stride, padding, dilation, *wanted):
    op, size = _check(input, offset, None, kernel, mask, stride, padding, dilation)
    _check_grad(op, size, grad_output, input, mask, wanted[2])
    return tuple(_empty_grads((input, offset, mask), wanted))


# ---- gradients -------------------------------------------------------------------------------------------------------
#
# One operator computes those of all tensors. Its own gradients, the second derivatives, are those of the same function
# put together from PyTorch's operators.


def _chosen(found: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    return [each if wants else None for each, wants in zip(found, wanted, strict=True)]


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, offset, weight, _, mask, *ctx.rest = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    of_input, of_offset, of_weight, of_bias, of_mask = ctx.needs_input_grad[:5]
    wanted = of_input, of_offset, of_weight, of_mask
    grads: list[Tensor | None] = [None] * 4
    if any(wanted):
        grads = _chosen(_grad(grad, *ctx.saved_tensors, *ctx.rest, *wanted), wanted)
    grad_bias = grad.sum((0, 2, 3)) if of_bias else None
    return *grads[:3], grad_bias, grads[3], None, None, None


def _sample_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, offset, mask, *ctx.rest = inputs
    ctx.save_for_backward(input, offset, mask)


def _sample_backward(ctx: Any, grad: Tensor) -> tuple:
    wanted = ctx.needs_input_grad[:3]
    return *_chosen(_sample_grad(grad, *ctx.saved_tensors, *ctx.rest, *wanted), wanted), *(None,) * 4


def _grad_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    grad_output, input, offset, weight, mask, *ctx.rest = inputs
    ctx.save_for_backward(grad_output, input, offset, weight, mask)


def _grad_backward(ctx: Any, *grads: Tensor) -> tuple:
    *sizes, of_input, of_offset, of_weight, of_mask = ctx.rest
    wanted = of_input, of_offset, of_weight, of_mask
    return *_second(_composed, ctx.saved_tensors, sizes, wanted, grads), *(None,) * 7


def _sample_grad_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    grad_output, input, offset, mask, *ctx.rest = inputs
    ctx.save_for_backward(grad_output, input, offset, mask)


def _sample_grad_backward(ctx: Any, *grads: Tensor) -> tuple:
    *sizes, of_input, of_offset, of_mask = ctx.rest
    return *_second(_composed_sample, ctx.saved_tensors, sizes, (of_input, of_offset, of_mask), grads), *(None,) * 7


def _second(
    function: Callable[..., Tensor],
    saved: Sequence[Tensor | None],
    sizes: list,
    wanted: Sequence[bool],
    grads: Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradients of ``saved``, which are grad_output and the tensors of ``function``, given those of the ``wanted``
    first gradients. They can be differentiated again. (``torch.func`` takes each argument for itself, also where one
    was computed from another, and works below its own transforms.)"""
    there = [i for i, tensor in enumerate(saved) if tensor is not None]  # a mask that there is not is the last

    def first(grad_output: Tensor, *leaves: Tensor) -> tuple:
        def output(*leaves: Tensor) -> Tensor:
            return function(*leaves, *[None] * (len(saved) - len(there)), *sizes)

        found = torch.func.vjp(output, *leaves)[1](grad_output)
        return tuple(grad for grad, wants in zip(found, wanted, strict=False) if wants)

    pull = torch.func.vjp(first, *(saved[i] for i in there))[1]
    found = dict(zip(there, pull(tuple(g for g, wants in zip(grads, wanted, strict=True) if wants)), strict=True))
    return [found.get(i) for i in range(len(saved))]


def _composed(input, offset, weight, mask, stride, padding, dilation) -> Tensor:
    samples = _composed_samples(input, offset, mask, list(weight.shape[2:]), stride, padding, dilation)
    N, C, _, pixels = samples.shape
    K, of_group = weight.shape[:2]
    groups = C // of_group
    columns = samples.reshape(N, groups, -1, pixels)
    rows = weight.reshape(groups, K // groups, -1)
    return torch.einsum("gkc,ngcp->ngkp", rows, columns).reshape(N, K, *offset.shape[2:])


def _composed_sample(input, offset, mask, kernel, stride, padding, dilation) -> Tensor:
    samples = _composed_samples(input, offset, mask, kernel, stride, padding, dilation)
    return samples.sum(2).reshape(*input.shape[:2], *offset.shape[2:])


def _composed_samples(input, offset, mask, kernel, stride, padding, dilation) -> Tensor:
    """All samples, ``[N, C, R * S, P * Q]``, by PyTorch's operators, for derivatives of any order."""
    N, C, H, W = input.shape
    (R, S), (P, Q) = kernel, offset.shape[2:]
    G = offset.shape[1] // (2 * R * S)
    offsets = offset.reshape(N, G, R * S, 2, P * Q)

    def places(d: int, taps: int, outputs: int) -> Tensor:  # [taps, outputs]
        first = torch.arange(outputs, device=input.device) * stride[d] - padding[d]
        return (torch.arange(taps, device=input.device)[:, None] * dilation[d] + first).to(input.dtype)

    y = places(0, R, P).view(R, 1, P, 1).expand(R, S, P, Q).reshape(R * S, P * Q) + offsets[:, :, :, 0]
    x = places(1, S, Q).view(1, S, 1, Q).expand(R, S, P, Q).reshape(R * S, P * Q) + offsets[:, :, :, 1]
    counts = (y >= -1) & (x >= -1) & (y < H) & (x < W)
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
    return samples.reshape(N, C, R * S, P * Q)


_deform = operator("deform_conv2d", fake=_fake, setup_context=_setup, backward=_backward, autocast=True)
_grad = operator("_deform_conv2d_grad", fake=_fake_grad, setup_context=_grad_setup, backward=_grad_backward)
_sample = operator(
    "deform_sample2d", fake=_fake_sample, setup_context=_sample_setup, backward=_sample_backward, autocast=True
)
_sample_grad = operator(
    "_deform_sample2d_grad",
    fake=_fake_sample_grad,
    setup_context=_sample_grad_setup,
    backward=_sample_grad_backward,
)
