"""Stochastic pooling: the public function, and the shape rules and gradients of its operators."""

from typing import Any

import torch
from torch import Tensor

from fastconv._arguments import check_same
from fastconv._operator import memory_format, operator
from fastconv.pool import (
    Ints,
    _average,
    _average_grad,
    _batched,
    _id_dtype,
    _indices,
    _max_grad,
    _pool_size,
    _taps,
    _windows,
)

__all__ = ["stochastic_pool2d"]


def stochastic_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    *,
    training: bool = True,
    generator: torch.Generator | None = None,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """One element of each window, drawn with a probability proportional to its value.

    In training ``y = x_t`` with probability ``p_t = x_t / sum x``, and only the drawn element receives gradient. In
    evaluation ``y = sum p_t x_t = sum x^2 / sum x``, differentiable as it stands. A window of zeros is zero: nothing is
    drawn, its index names its first element, and nobody receives its gradient. An infinite element is drawn for
    certain, and so is its mean.

    The draws are a function of a seed and of each window's place ``(n, c, p, q)`` (Philox 4x32-10), the same for every
    number of threads, instruction set and memory layout, on the CPU and on CUDA. The seed is drawn anew with every
    call, from PyTorch's generator for the device (``torch.manual_seed``) or from ``generator``.

    Args:
        input: ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``, not negative; float32, float64, bfloat16 or float16
            (16-bit types are computed in float32); any strides. Not empty but for ``N``.
        kernel_size, stride, padding: see :func:`max_pool2d`; elements in the padding are never drawn.
        training: draw, or take the weighted mean.
        generator: what the seed is drawn from; its device may be another than that of ``input``.
        return_indices: return where each drawn element was as well, flat within the plane, ``h * W + w``.

    Returns:
        ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]`` in the memory format of ``input``, sizes as for
        :func:`max_pool2d`; with ``return_indices`` also the indices, int64.

    Raises:
        RuntimeError: as :func:`max_pool2d`, and elements that are negative or NaN. On CUDA nothing waits to hear of
            them: windows that have one are NaN, and their index is that of the first element.
        TypeError: as :func:`max_pool2d`, and a ``generator`` that is none.
        ValueError: ``return_indices`` in evaluation, where nothing is drawn.

    Source: Zeiler and Fergus, *Stochastic Pooling for Regularization of Deep Convolutional Neural Networks*, 2013;
    Salmon, Moraes, Dror and Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3*, 2011.

    >>> x = torch.tensor([[[0., 3., 0., 0.], [0., 1., 0., 2.]]])
    >>> stochastic_pool2d(x, 2)[0, 0, 1]
    tensor(2.)
    >>> stochastic_pool2d(x, 2, training=False)
    tensor([[[2.5000, 2.0000]]])
    """
    op = "stochastic_pool2d"
    windows = _windows(op, 2, kernel_size, stride, padding)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{op}: generator must be a torch.Generator (got {generator!r})")
    if not training:
        if return_indices:
            raise ValueError(f"{op}: return_indices must be False in evaluation (got {return_indices})")
        return _batched(op, 2, input, _mean, windows)

    return _batched(op, 2, input, _drawn, windows, generator, return_indices)


def _drawn(input: Tensor, windows: list[int], generator: torch.Generator | None, return_indices: bool) -> Any:
    output, ids = _draw(input, _seed(generator, input.device), windows)
    return (output, _indices(ids, list(input.shape), windows, False)) if return_indices else output


def _seed(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """64 bits, in a tensor: ``torch.compile`` draws them in each call, too, and CUDA graphs in each replay."""
    drawn_on = generator.device if generator else device
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, generator=generator, device=drawn_on)
    return seed.to(device, non_blocking=True)


# ---- shape rules -----------------------------------------------------------------------------------------------------


def _size(input: Tensor, windows: list[int]) -> list[int]:
    op, size = _pool_size("stochastic", input.shape, windows, False)
    check_same(op, input)
    return size


def _fake_draw(input: Tensor, seed: Tensor, windows: list[int]) -> tuple[Tensor, Tensor]:
    size, taps = _size(input, windows), _taps(input.shape, windows)
    format = memory_format(input)
    output = torch.empty(size, dtype=input.dtype, device=input.device, memory_format=format)
    return output, torch.empty(size, dtype=_id_dtype(taps), device=input.device, memory_format=format)


def _fake_mean(input: Tensor, windows: list[int]) -> Tensor:
    size = _size(input, windows)
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


# ---- gradients -------------------------------------------------------------------------------------------------------
#
# Given what was drawn, the output is a choice of elements like a maximum, but for windows of zeros. The mean is
# Q / S, the sum of squares over the sum; an element has (2 x - Q / S) / S of its gradient.


def _draw_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    input, _, ctx.windows = inputs
    values, ids = output
    ctx.input_size = list(input.shape)
    ctx.save_for_backward(ids, values == 0)
    ctx.mark_non_differentiable(ids)


def _draw_backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
    ids, nothing = ctx.saved_tensors
    grad = torch.where(nothing, 0, grad)  # masked_fill would lose the memory format
    return _max_grad(grad, ids, ctx.input_size, ctx.windows, False), None, None


def _mean_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, ctx.windows = inputs
    ctx.save_for_backward(input, output)


def _mean_backward(ctx: Any, grad: Tensor) -> tuple:
    input, output = (t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in ctx.saved_tensors)
    rest = (ctx.windows, False, True, 1)
    sums = _average(input, *rest)
    share = grad.to(input.dtype) / torch.where(sums == 0, torch.inf, sums)
    spread = 2 * input * _average_grad(share, input.shape, *rest) - _average_grad(share * output, input.shape, *rest)
    return spread.to(grad.dtype), None


_draw = operator("_stochastic_pool", fake=_fake_draw, setup_context=_draw_setup, backward=_draw_backward)
_mean = operator("_stochastic_pool_mean", fake=_fake_mean, setup_context=_mean_setup, backward=_mean_backward)
