"""Unpooling: values back to where pooling took them from, and means spread over their windows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastconv._arguments import check_list, check_same, check_shape, dtype_name, each
from fastconv._operator import memory_format, operator
from fastconv.pool import Ints, _average_grad, _batched, _windows

__all__ = ["avg_unpool2d", "max_unpool1d", "max_unpool2d"]


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """The values of a 1-D pooling at their indices, a drop-in for :func:`torch.nn.functional.max_unpool1d`.

    Args:
        input: ``Tensor[N, C, Q]`` or ``Tensor[C, Q]``.
        indices: as many, int64, each in ``[0, W)``.
        kernel_size, stride, padding, output_size: see :func:`max_unpool2d`.

    Returns:
        ``Tensor[N, C, W]`` or ``Tensor[C, W]``.

    Raises:
        RuntimeError, ValueError, TypeError: see :func:`max_unpool2d`.

    >>> max_unpool1d(torch.tensor([[3., 5.]]), torch.tensor([[1, 2]]), 2)
    tensor([[0., 3., 5., 0.]])
    """
    return _max_unpool("max_unpool1d", 1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """The values of a pooling at their indices, zero elsewhere: a drop-in for
    :func:`torch.nn.functional.max_unpool2d`.

    Where windows overlap an index may occur several times in a plane. Then the value of the last window in row-major
    order stays, with any number of threads. (PyTorch does so with one thread; with several it does not say which.) The
    gradient of every window is that of the position its index says, as in PyTorch, also where the value of another one
    stayed. Both passes are deterministic.

    Args:
        input: ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]``; float32, float64, bfloat16 or float16; any strides. Not
            empty but for ``N``.
        indices: as many, int64, flat within the plane, each in ``[0, H * W)``: what :func:`fastconv.max_pool2d`
            returns with ``return_indices``.
        kernel_size, stride, padding: of the windows, as they were given to the pooling. Only the size of the output
            comes from them.
        output_size: ``(H, W)``, or a whole shape that ends with them, less than a stride away from the size that
            belongs to the windows: pooling brings several sizes to the same one.

    Returns:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` in the memory format of ``input``; without ``output_size``
        ``H = (P - 1) * stride - 2 * padding + kernel_size``.

    Raises:
        RuntimeError: wrong number of dimensions, an empty input, indices of another shape or type or outside of the
            plane, sizes, strides or padding out of range. On CUDA nothing waits to hear of indices outside of the
            plane: such windows are left out, and their gradient is zero.
        ValueError: an ``output_size`` too far from the windows', or negative.
        TypeError: sizes, strides or padding that are not integers, or an input that is no tensor.

    Source: Zeiler, Taylor and Fergus, *Adaptive Deconvolutional Networks for Mid and High Level Feature Learning*,
    2011; as layers of a network: Badrinarayanan, Kendall and Cipolla, *SegNet*, 2017.

    >>> x = torch.tensor([[[[1., 2.], [4., 3.]]]])
    >>> max_unpool2d(*torch.nn.functional.max_pool2d(x, 2, return_indices=True), 2)
    tensor([[[[0., 0.],
              [4., 0.]]]])
    """
    return _max_unpool("max_unpool2d", 2, input, indices, kernel_size, stride, padding, output_size)


def avg_unpool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Every position takes the mean of the windows that cover it, or zero where none does.

    Constants stay constant, and where windows do not overlap ``avg_pool2d(avg_unpool2d(y, k), k)`` is ``y``. PyTorch
    has no such function.

    Args:
        input: ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]``; float32, float64, bfloat16 or float16 (16-bit types are
            added up and divided in float32); any strides. Not empty but for ``N``.
        kernel_size, stride, padding: of the windows, as for :func:`fastconv.avg_pool2d`.
        output_size: as for :func:`max_unpool2d`.

    Returns:
        ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]`` in the memory format of ``input``, sizes as for
        :func:`max_unpool2d`.

    Raises:
        RuntimeError: wrong number of dimensions, an empty input, sizes, strides or padding out of range, a padding of
            more than half a window.
        ValueError, TypeError: as :func:`max_unpool2d`.

    >>> avg_unpool2d(torch.tensor([[[2., 4.]]]), (1, 3), stride=(1, 2))
    tensor([[[2., 2., 3., 4., 4.]]])
    """
    op = "avg_unpool2d"
    return _batched(op, 2, input, _spread, op, _windows(op, 2, kernel_size, stride, padding), output_size)


def _max_unpool(
    op: str,
    dims: int,
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    output_size: Sequence[int] | None,
) -> Tensor:
    windows = _windows(op, dims, kernel_size, stride, padding)
    if not isinstance(indices, Tensor):
        raise TypeError(f"{op}: indices must be a Tensor (got {indices!r})")

    def unpool(x: Tensor) -> Tensor:
        size = _unpooled_size(op, x, windows, output_size)
        if x is input:
            return _unpool(x, indices, size)
        check_shape(op, "indices", indices, input.shape)
        return _unpool(x, indices.unsqueeze(0), size)

    return _batched(op, dims, input, unpool)


def _unpooled_size(op: str, input: Tensor, windows: list[int], output_size: Any) -> list[int]:
    """The size of the planes that the windows come from: ``torch.nn.functional._unpool_output_size``."""
    dims = len(windows) // 4
    kernel, stride, padding = (windows[i * dims : (i + 1) * dims] for i in range(3))
    check_list(op, "kernel_size", kernel, dims, 1, "be positive")
    check_list(op, "stride", stride, dims, 1, "be positive")
    check_list(op, "padding", padding, dims, 0, "not be negative")
    if 0 in input.shape[1:]:
        raise RuntimeError(f"{op}: input must not be empty but for its batch (got {list(input.shape)})")
    size = [(input.shape[2 + d] - 1) * stride[d] + kernel[d] - 2 * padding[d] for d in range(dims)]
    if output_size is not None:
        given = list(output_size) if isinstance(output_size, (tuple, list)) else [output_size]
        if len(given) not in (dims, dims + 2):
            raise ValueError(f"{op}: output_size must have {dims} or {dims + 2} elements (got {given})")
        given = each(op, "output_size", given[-dims:], dims)
        for d in range(dims):
            if not size[d] - stride[d] < given[d] < size[d] + stride[d]:
                raise ValueError(
                    f"{op}: output_size must lie between {size[d] - stride[d] + 1} and {size[d] + stride[d] - 1} "
                    f"in dimension {d} (got {given})"
                )
        size = given
    if min(size) < 0:
        raise ValueError(f"{op}: output_size must not be negative (got {size})")
    return size


def _spread(input: Tensor, op: str, windows: list[int], output_size: Any) -> Tensor:
    """The gradient of sums over windows adds up the windows that cover a position; of ones, it counts them."""
    size = _unpooled_size(op, input, windows, output_size)
    check_same(op, input)
    kernel, stride, padding = windows[:2], windows[2:4], windows[4:6]
    for d in range(2):
        if padding[d] > kernel[d] // 2:
            raise RuntimeError(
                f"{op}: padding must be at most half of what a window spans, {kernel[d]} in dimension {d} "
                f"(got {padding})"
            )
    # Windows that reach beyond output_size are no windows of pooling: they get their whole size, and that is cut off.
    whole = [max(size[d], (input.shape[2 + d] - 1) * stride[d] + kernel[d] - 2 * padding[d]) for d in range(2)]
    if 0 in whole:
        return input.new_empty([*input.shape[:2], *size])
    rest = (windows, False, True, 1)
    # Sums of constants are exact enough, and do not overflow, only in a type that is wider than theirs.
    overlap = kernel[0] > stride[0] or kernel[1] > stride[1]
    wide = input.float() if overlap and input.dtype in (torch.bfloat16, torch.float16) else input
    means = _average_grad(wide, [*input.shape[:2], *whole], *rest)
    if overlap:
        count = _average_grad(wide.new_ones([1, 1, *input.shape[2:]]), [1, 1, *whole], *rest)
        means = means.div_(count.clamp(min=1)).to(input.dtype)
    if whole != size:
        means = means[:, :, : size[0], : size[1]].contiguous(memory_format=memory_format(input))
    return means


# ---- shape rules -----------------------------------------------------------------------------------------------------
#
# Those of csrc/pool/operators.h, in the same words, for tensors without data.


def _check_unpool(name: str, given: Tensor, indices: Tensor) -> str:
    op = "max_unpool1d" if given.dim() == 3 else "max_unpool2d"
    if given.dim() not in (3, 4):
        raise RuntimeError(f"{op}: {name} must have 3 or 4 dimensions (got {list(given.shape)})")
    check_same(op, given)
    if indices.dtype != torch.int64:
        raise RuntimeError(f"{op}: indices must be int64 (got {dtype_name(indices)})")
    if indices.device != given.device:
        raise RuntimeError(f"{op}: indices must be on the device of {name}, {given.device} (got {indices.device})")
    return op


def _fake_unpool(input, indices, output_size):
    op = _check_unpool("input", input, indices)
    if 0 in input.shape[1:]:
        raise RuntimeError(f"{op}: input must not be empty but for its batch (got {list(input.shape)})")
    check_shape(op, "indices", indices, input.shape)
    check_list(op, "output_size", output_size, input.dim() - 2, 0, "not be negative")
    return input.new_empty([*input.shape[:2], *output_size]).contiguous(memory_format=memory_format(input))


def _fake_unpool_grad(grad_output, indices):
    op = _check_unpool("grad_output", grad_output, indices)
    if indices.dim() != grad_output.dim() or indices.shape[:2] != grad_output.shape[:2]:
        raise RuntimeError(
            f"{op}: indices must have the batch and the channels of grad_output, {list(grad_output.shape)} "
            f"(got {list(indices.shape)})"
        )
    return grad_output.new_empty(indices.shape).contiguous(memory_format=memory_format(indices))


# ---- gradients -------------------------------------------------------------------------------------------------------


def _unpool_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _unpool_backward(ctx: Any, grad: Tensor) -> tuple:
    (indices,) = ctx.saved_tensors
    return _unpool_grad(grad, indices), None, None


def _unpool_grad_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    grad_output, indices = inputs
    ctx.size = grad_output.shape
    ctx.save_for_backward(indices)


def _unpool_grad_backward(ctx: Any, grad: Tensor) -> tuple:
    """Of equal indices each has taken the element, so each adds to it: not what the forward pass does."""
    (indices,) = ctx.saved_tensors
    planes = grad.new_zeros(ctx.size).flatten(2)
    return planes.scatter_add(2, indices.flatten(2), grad.flatten(2)).view(ctx.size), None


_unpool = operator("max_unpool", fake=_fake_unpool, setup_context=_unpool_setup, backward=_unpool_backward)
_unpool_grad = operator(
    "_max_unpool_grad", fake=_fake_unpool_grad, setup_context=_unpool_grad_setup, backward=_unpool_grad_backward
)
