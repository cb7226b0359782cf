"""Power-average pooling: the public function, and the shape rule and gradient of its kernel.

Norms of 1 and of infinity are means and maxima (``pool.py``), the Euclidean norm has a kernel of its own, all others
are means of powers.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fastconv._arguments import check_same
from fastconv._operator import memory_format, operator
from fastconv.pool import Ints, _average, _average_grad, _batched, _maxima, _pool_size, _windows

__all__ = ["lp_pool2d"]


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The power average of each window, a drop-in for :func:`torch.nn.functional.lp_pool2d`.

    ``y = (sum x^p)^(1 / p)`` with ``p = norm_type``, as PyTorch has it: of ``x``, not of ``|x|``, so that 1 is a sum
    that may be negative, and an odd power of a negative sum is NaN. Infinity is the maximum of ``|x|``, negative
    infinity the minimum. A window that ``ceil_mode`` cuts short counts as if it went on with the same mean.

    The gradient is ``(x / y)^(p - 1)`` times what comes in, and zero for windows whose sum is zero, which have none;
    for norms below 1 also for elements that are zero, where PyTorch has infinity or NaN. Norms of 1 and 2 take one pass
    over the input, and never overflow in 16 bits; others are computed in steps.

    Args:
        input: ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``; float32, float64, bfloat16 or float16 (16-bit types are
            computed in float32); any strides. Not empty but for ``N``.
        norm_type: the power, any number but zero.
        kernel_size, stride, ceil_mode: see :func:`max_pool2d`.

    Returns:
        ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]`` in the memory format of ``input``, sizes as for
        :func:`max_pool2d`.

    Raises:
        ValueError: ``norm_type`` is zero or NaN.
        RuntimeError: as :func:`max_pool2d`.
        TypeError: as :func:`max_pool2d`, and a ``norm_type`` that is no number.

    Source: Sermanet, Chintala and LeCun, *Convolutional Neural Networks Applied to House Numbers Digit Classification*,
    2012.

    >>> lp_pool2d(torch.tensor([[[3., 4., 0., 1.]]]), 2, (1, 2)).flatten()
    tensor([5., 1.])
    """
    op = "lp_pool2d"
    if isinstance(norm_type, bool) or not isinstance(norm_type, (int, float)):
        raise TypeError(f"{op}: norm_type must be a number (got {norm_type!r})")
    if norm_type == 0 or math.isnan(norm_type):
        raise ValueError(f"{op}: norm_type must be a number other than 0 (got {norm_type})")
    windows = _windows(op, 2, kernel_size, stride, 0)
    return _batched(op, 2, input, _power_average, norm_type, windows, bool(ceil_mode))


def _power_average(input: Tensor, norm: float, windows: list[int], ceil: bool) -> Tensor:
    op, _ = _pool_size("lp", input.shape, windows, ceil)
    check_same(op, input)
    if math.isinf(norm):
        sign = 1 if norm > 0 else -1
        return sign * _maxima(sign * input.abs(), windows, ceil, False)
    if norm == 2:
        return _l2(input, windows, ceil)
    if norm == 1:
        return _sums(input, windows, ceil)
    wide = _wide(input)
    if 0 < norm < 1:  # infinitely steep at zero, and infinity times no gradient would be NaN
        wide = torch.where(wide == 0, 0, wide)
    return _sums(wide.pow(norm), windows, ceil).pow(1 / norm).to(input.dtype)


def _wide(tensor: Tensor) -> Tensor:
    """16-bit types as float32."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _sums(input: Tensor, windows: list[int], ceil: bool) -> Tensor:
    """Of windows cut short as many times their mean as a whole one has elements. Sums of zero have no gradient, not
    even for a norm of 1: PyTorch's rule."""
    if ceil:
        sums = _average(input, windows, True, True, None) * (windows[0] * windows[1])
    else:
        sums = _average(input, windows, False, True, 1)
    return torch.where(sums == 0, 0, sums)  # masked_fill would lose the memory format


# ---- the Euclidean norm: shape rule and gradient ---------------------------------------------------------------------


def _fake_l2(input: Tensor, windows: list[int], ceil: bool) -> Tensor:
    op, size = _pool_size("lp", input.shape, windows, ceil)
    check_same(op, input)
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _l2_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, *ctx.windows = inputs
    ctx.save_for_backward(input, output)


def _l2_backward(ctx: Any, grad: Tensor) -> tuple:
    """``x / y`` times what comes in, added up over the windows: the gradient of a sum of squares with every window's
    share divided by its root first. In float32, because these shares may be far larger than the gradients."""
    input, output = ctx.saved_tensors
    windows, ceil = ctx.windows
    share = _wide(grad) / torch.where(output == 0, torch.inf, _wide(output))
    if ceil:
        share = share * math.prod(windows[: input.dim() - 2])
    spread = _average_grad(share, input.shape, windows, ceil, True, None if ceil else 1)
    return (spread * input).to(input.dtype), None, None


_l2 = operator("_l2_pool", fake=_fake_l2, setup_context=_l2_setup, backward=_l2_backward)
