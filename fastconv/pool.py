"""Pooling: the public functions over windows, and the family's shape rule and gradients."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastconv._arguments import check_list, check_same, check_shape, each, integer
from fastconv._operator import in_functorch, memory_format, operator, wants_grad

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "global_avg_pool2d",
    "global_max_pool2d",
    "max_pool1d",
    "max_pool2d",
]

Ints = int | Sequence[int]


def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of a 1-D input, a drop-in for :func:`torch.nn.functional.max_pool1d`.

    Args:
        input: ``Tensor[N, C, W]`` or ``Tensor[C, W]``.
        kernel_size, stride, padding, dilation, ceil_mode, return_indices: see :func:`max_pool2d`.

    Returns:
        ``Tensor[N, C, Q]`` or ``Tensor[C, Q]``; with ``return_indices`` also the indices, int64.

    Raises:
        RuntimeError, TypeError: see :func:`max_pool2d`.

    >>> max_pool1d(torch.tensor([[1., 3., 2., 5., 4.]]), 3, stride=1)
    tensor([[3., 5., 5.]])
    """
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window, a drop-in for :func:`torch.nn.functional.max_pool2d`.

    Of equal values the first in row-major order wins, and NaN wins against all. The gradient goes to the winner alone.
    For it the forward pass keeps which element has won (``max_id``): one byte a window, two where a window has more
    than 256 elements; int64 indices are made only for ``return_indices``. The backward pass is deterministic.

    Args:
        input: ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``; float32, float64, bfloat16 or float16; contiguous,
            channels_last or any other strides. Not empty but for ``N``.
        kernel_size: of the windows, one for both dimensions or one for each; at most 2^30 elements.
        stride: of the windows; ``kernel_size`` if None.
        padding: elements on either side that never win, at most half of what a window spans.
        dilation: distance of the elements of a window.
        ceil_mode: also keep windows that reach beyond the padding; those that begin there are dropped.
        return_indices: return where each maximum was as well, flat within the plane, ``h * W + w``.

    Returns:
        ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]`` in the memory format of ``input``,
        ``P = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1`` (rounded up with ``ceil_mode``) and
        ``Q`` likewise; with ``return_indices`` also the indices, int64. A window without any element (which takes
        dilation and an input smaller than it) is negative infinity with the index -1.

    Raises:
        RuntimeError: wrong number of dimensions, an empty input, a window larger than the padded input, sizes, strides,
            padding or dilations out of range.
        TypeError: sizes, strides, padding or dilations that are not integers, or an input that is no tensor.

    Source: Scherer, Mueller and Behnke, *Evaluation of Pooling Operations in Convolutional Architectures for Object
    Recognition*, 2010.

    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> values, indices = max_pool2d(x, 2, return_indices=True)
    >>> values.flatten(), indices.flatten()
    (tensor([ 5.,  7., 13., 15.]), tensor([ 5,  7, 13, 15]))
    """
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def avg_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of a 1-D input, a drop-in for :func:`torch.nn.functional.avg_pool1d`.

    Args:
        input: ``Tensor[N, C, W]`` or ``Tensor[C, W]``.
        kernel_size, stride, padding, ceil_mode, count_include_pad: see :func:`avg_pool2d`.

    Returns:
        ``Tensor[N, C, Q]`` or ``Tensor[C, Q]``.

    Raises:
        RuntimeError, TypeError: see :func:`avg_pool2d`.

    >>> avg_pool1d(torch.tensor([[1., 3., 2., 5., 4.]]), 3, stride=2)
    tensor([[2.0000, 3.6667]])
    """
    return _avg_pool("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window, a drop-in for :func:`torch.nn.functional.avg_pool2d`.

    Args:
        input: ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``; float32, float64, bfloat16 or float16 (16-bit types are
            added up in float32); any strides. Not empty but for ``N``.
        kernel_size, stride, padding, ceil_mode: see :func:`max_pool2d`.
        count_include_pad: whether a mean divides by the elements in the padding, too.
        divisor_override: what every sum is divided by instead; not zero, and it may be negative.

    Returns:
        ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]`` in the memory format of ``input``, sizes as for
        :func:`max_pool2d`.

    Raises:
        RuntimeError: as :func:`max_pool2d`, and a ``divisor_override`` of zero.
        TypeError: as :func:`max_pool2d`, and a ``divisor_override`` that is not an integer.

    Source: LeCun, Bottou, Bengio and Haffner, *Gradient-Based Learning Applied to Document Recognition*, 1998.

    >>> avg_pool2d(torch.ones(1, 1, 2, 2), 2, stride=1, padding=1).flatten()
    tensor([0.2500, 0.5000, 0.2500, 0.5000, 1.0000, 0.5000, 0.2500, 0.5000, 0.2500])
    """
    rest = (padding, ceil_mode, count_include_pad, divisor_override)
    return _avg_pool("avg_pool2d", 2, input, kernel_size, stride, *rest)


def adaptive_max_pool2d(
    input: Tensor, output_size: int | None | Sequence[int | None], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each of ``output_size`` windows, a drop-in for :func:`torch.nn.functional.adaptive_max_pool2d`.

    Window ``p`` has the rows from ``floor(p * H / P)`` to ``ceil((p + 1) * H / P)``, and its columns likewise. Ties,
    NaN and gradients as for :func:`max_pool2d`.

    Args:
        input: ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``, ``H`` and ``W`` not 0; dtypes and strides as for
            :func:`max_pool2d`.
        output_size: ``(P, Q)``, or one number for both; None for the size of the input.
        return_indices: return where each maximum was as well, flat within the plane.

    Returns:
        ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]`` in the memory format of ``input``; with ``return_indices`` also
        the indices, int64.

    Raises:
        RuntimeError: too many dimensions, an empty plane, a negative size.
        ValueError: too few dimensions.
        TypeError: sizes that are not integers.

    >>> adaptive_max_pool2d(torch.arange(12.0).view(1, 3, 4), 2).flatten()
    tensor([ 5.,  7.,  9., 11.])
    """
    op = "adaptive_max_pool2d"
    return _batched(op, 2, input, _maxima, _output_size(op, input, output_size), False, return_indices)


def adaptive_avg_pool2d(input: Tensor, output_size: int | None | Sequence[int | None]) -> Tensor:
    """The mean of each of ``output_size`` windows, a drop-in for :func:`torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        input, output_size: see :func:`adaptive_max_pool2d`.

    Returns:
        ``Tensor[N, C, P, Q]`` or ``Tensor[C, P, Q]`` in the memory format of ``input``.

    Raises:
        RuntimeError, ValueError, TypeError: see :func:`adaptive_max_pool2d`.

    >>> adaptive_avg_pool2d(torch.arange(12.0).view(1, 3, 4), 2).flatten()
    tensor([2.5000, 4.5000, 6.5000, 8.5000])
    """
    op = "adaptive_avg_pool2d"
    return _batched(op, 2, input, _average, _output_size(op, input, output_size), False, True, None)


def global_max_pool2d(input: Tensor, return_indices: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each plane: :func:`adaptive_max_pool2d` to one window.

    Args:
        input: ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``, ``H`` and ``W`` not 0.
        return_indices: return where each maximum was as well, flat within the plane.

    Returns:
        ``Tensor[N, C, 1, 1]`` or ``Tensor[C, 1, 1]``; with ``return_indices`` also the indices, int64.

    Raises:
        RuntimeError: wrong number of dimensions, an empty plane.

    >>> global_max_pool2d(torch.arange(8.0).view(2, 2, 2)).flatten()
    tensor([3., 7.])
    """
    return _batched("global_max_pool2d", 2, input, _maxima, [1, 1], False, return_indices)


def global_avg_pool2d(input: Tensor) -> Tensor:
    """The mean of each plane: :func:`adaptive_avg_pool2d` to one window.

    Args:
        input: ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``, ``H`` and ``W`` not 0.

    Returns:
        ``Tensor[N, C, 1, 1]`` or ``Tensor[C, 1, 1]``.

    Raises:
        RuntimeError: wrong number of dimensions, an empty plane.

    Source: Lin, Chen and Yan, *Network In Network*, 2014.

    >>> global_avg_pool2d(torch.arange(8.0).view(2, 2, 2)).flatten()
    tensor([1.5000, 5.5000])
    """
    return _batched("global_avg_pool2d", 2, input, _average, [1, 1], False, True, None)


# ---- from the public functions to the operators ----------------------------------------------------------------------
#
# A layer of a few pixels takes less time than to check its arguments carelessly: no closures, no list twice.


def _check_tensor(op: str, input: Any) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"{op}: input must be a Tensor (got {input!r})")


def _batched(op: str, dims: int, input: Tensor, pool: Callable[..., Any], *rest: Any) -> Any:
    """``pool(input, *rest)`` of a batch, or of the input as a batch of one; one tensor or several."""
    _check_tensor(op, input)
    rank = input.dim()
    if rank == dims + 2:
        return pool(input, *rest)
    if rank != dims + 1:
        error = ValueError if op.startswith("adaptive") and rank <= dims else RuntimeError  # PyTorch's habit
        raise error(
            f"{op}: input must have {dims + 2} dimensions, or {dims + 1} without a batch (got {list(input.shape)})"
        )
    result = pool(input.unsqueeze(0), *rest)
    return result.squeeze(0) if isinstance(result, Tensor) else tuple(each.squeeze(0) for each in result)


def _windows(
    op: str, dims: int, kernel_size: Ints, stride: Ints | None, padding: Ints, dilation: Ints = 1
) -> list[int]:
    """Kernel sizes, strides, paddings and dilations in one list, as the operators take them."""
    # The usual arguments, without `each`, which comes to the same.
    if type(kernel_size) is type(padding) is type(dilation) is int and kernel_size < 256 > padding and dilation < 256:
        step = kernel_size if stride is None else stride
        if type(step) is int and step < 256:
            return [kernel_size] * dims + [step] * dims + [padding] * dims + [dilation] * dims
    kernel = each(op, "kernel_size", kernel_size, dims)
    own = stride is None or (isinstance(stride, (list, tuple)) and not stride)  # as PyTorch takes it
    strides = kernel if own else each(op, "stride", stride, dims)  # type: ignore[arg-type]
    return [*kernel, *strides, *each(op, "padding", padding, dims), *each(op, "dilation", dilation, dims)]


def _output_size(op: str, input: Tensor, size: int | None | Sequence[int | None]) -> list[int]:
    _check_tensor(op, input)
    if isinstance(size, (list, tuple)):
        if len(size) == 2 and None in size and input.dim() > 2:
            size = [given if one is None else one for one, given in zip(size, input.shape[-2:], strict=True)]
    elif size is None:
        size = list(input.shape[-2:])
    return each(op, "output_size", size, 2)  # type: ignore[arg-type]


def _maxima(input: Tensor, windows: list[int], ceil_mode: bool, return_indices: bool) -> Any:
    """With ids only where somebody asks for them, or will."""
    if not (return_indices or wants_grad(input) or (not torch.compiler.is_compiling() and in_functorch())):
        return _max(input, windows, ceil_mode)
    output, ids = _max_ids(input, windows, ceil_mode)
    return (output, _indices(ids, list(input.shape), windows, ceil_mode)) if return_indices else output


def _max_pool(
    op: str,
    dims: int,
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    windows = _windows(op, dims, kernel_size, stride, padding, dilation)
    return _batched(op, dims, input, _maxima, windows, bool(ceil_mode), return_indices)


def _avg_pool(
    op: str,
    dims: int,
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    windows = _windows(op, dims, kernel_size, stride, padding)
    divisor = divisor_override
    if divisor is not None:
        divisor = integer(op, "divisor_override", divisor, "an integer or None")
        if abs(divisor) > _LARGEST_DIVISOR:
            rule = f"be at most {_LARGEST_DIVISOR} in magnitude"
            raise RuntimeError(f"{op}: divisor_override must {rule} (got {divisor})")
    return _batched(op, dims, input, _average, windows, bool(ceil_mode), bool(count_include_pad), divisor)


# ---- shape rule ------------------------------------------------------------------------------------------------------


_MOST_TAPS = 2**30  # of a window
_LARGEST_INPUT = 2**60  # of a dimension that has windows
_LARGEST_DIVISOR = 2**63 - 1


def _known(sizes: Sequence[int]) -> bool:
    """Whether they are numbers, not symbols: rules for absurd sizes must not become limits of an exported program."""
    return not any(isinstance(size, torch.SymInt) for size in sizes)


def _adapts(kind: str, windows: list[int]) -> bool:
    return len(windows) <= 2 and kind in ("max", "avg")


def _taps(input: Sequence[int], windows: list[int]) -> int:
    """The elements of the largest window."""
    dims = len(input) - 2
    if not _adapts("max", windows):
        return math.prod(windows[:dims])
    taps = 1
    for size, outputs in zip(input[2:], windows, strict=True):
        exact = outputs > 1 and size % outputs == 0
        taps *= size // outputs if exact else min(size, size // outputs + 2) if outputs > 1 else size
    return taps


def _pool_size(kind: str, input: Sequence[int], windows: list[int], ceil_mode: bool) -> tuple[str, list[int]]:
    """The rules of csrc/pool/check.h, in the same words, for tensors without data: the operator's name and the size of
    the output."""
    adapts = _adapts(kind, windows)
    op = f"{'adaptive_' if adapts else ''}{kind}_pool{'1d' if len(input) == 3 else '2d'}"
    if len(input) not in (3, 4):
        raise RuntimeError(f"{op}: input must have 3 or 4 dimensions (got {list(input)})")
    dims = len(input) - 2
    if any(size <= 0 for size in input[2 if adapts else 1 :]):
        raise RuntimeError(f"{op}: input must not be empty but for its batch (got {list(input)})")
    output = list(input[:2])
    if adapts:
        check_list(op, "output_size", windows, dims, 0, "not be negative")
        if _known(input) and _taps(input, windows) > _MOST_TAPS:
            raise RuntimeError(f"{op}: input must have at most {_MOST_TAPS} positions a window (got {list(input)})")
        return op, output + windows
    if len(windows) != 4 * dims:
        rule = f"have {4 * dims} elements, or {dims} where they adapt"
        raise RuntimeError(f"{op}: windows must {rule} (got {windows})")
    kernel, stride, padding, dilation = (windows[i * dims : (i + 1) * dims] for i in range(4))
    check_list(op, "kernel_size", kernel, dims, 1, "be positive")
    check_list(op, "stride", stride, dims, 1, "be positive")
    check_list(op, "padding", padding, dims, 0, "not be negative")
    check_list(op, "dilation", dilation, dims, 1, "be positive")
    if kind != "max" and max(dilation) > 1:
        raise RuntimeError(f"{op}: dilation must be 1 (got {dilation})")
    if math.prod(kernel) > _MOST_TAPS:
        raise RuntimeError(f"{op}: kernel_size must have at most {_MOST_TAPS} positions (got {kernel})")
    for d in range(dims):
        if _known(input) and input[2 + d] > _LARGEST_INPUT:
            raise RuntimeError(f"{op}: input must be at most {_LARGEST_INPUT} in every dimension (got {list(input)})")
        extent, padded = (kernel[d] - 1) * dilation[d] + 1, input[2 + d] + 2 * padding[d]
        if padding[d] > extent // 2:
            raise RuntimeError(
                f"{op}: padding must be at most half of what a window spans, {extent} in dimension {d} (got {padding})"
            )
        if extent >= padded + (stride[d] if ceil_mode else 1):
            raise RuntimeError(
                f"{op}: kernel_size must not span more than the padded input, {extent} > {padded} in dimension {d} "
                f"(got {kernel})"
            )
        outputs = (padded - extent + (stride[d] - 1 if ceil_mode else 0)) // stride[d] + 1
        if ceil_mode:  # as many as begin before the padding behind the input
            outputs = torch.sym_min(outputs, (input[2 + d] + padding[d] - 1) // stride[d] + 1)
        output.append(outputs)
    return op, output


def _id_dtype(taps: int) -> torch.dtype:
    return torch.uint8 if taps <= 2**8 else torch.int16 if taps <= 2**16 else torch.int32


def _check_ids(op: str, ids: Tensor, size: Sequence[int], taps: int, input: Tensor | None = None) -> None:
    check_shape(op, "ids", ids, size)
    if ids.dtype != _id_dtype(taps):
        wanted, got = (str(dtype).removeprefix("torch.") for dtype in (_id_dtype(taps), ids.dtype))
        raise RuntimeError(f"{op}: ids must be {wanted} (got {got})")
    if input is not None and ids.device != input.device:
        raise RuntimeError(f"{op}: ids must be on the device of input, {input.device} (got {ids.device})")


def _ids_size(input, windows, ceil_mode):
    op, size = _pool_size("max", input, windows, ceil_mode)
    return op, size, _taps(input, windows)


def _fake_max(input, windows, ceil_mode):
    op, size = _pool_size("max", input.shape, windows, ceil_mode)
    check_same(op, input)
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _fake_max_ids(input, windows, ceil_mode):
    op, size, taps = _ids_size(input.shape, windows, ceil_mode)
    check_same(op, input)
    format = memory_format(input)
    return tuple(
        torch.empty(size, dtype=dtype, device=input.device, memory_format=format)
        for dtype in (input.dtype, _id_dtype(taps))
    )


def _fake_indices(ids, input_size, windows, ceil_mode):
    op, size, taps = _ids_size(input_size, windows, ceil_mode)
    _check_ids(op, ids, size, taps)
    return torch.empty(size, dtype=torch.int64, device=ids.device, memory_format=memory_format(ids))


def _fake_max_grad(grad_output, ids, input_size, windows, ceil_mode):
    op, size, taps = _ids_size(input_size, windows, ceil_mode)
    check_same(op, grad_output)
    check_shape(op, "grad_output", grad_output, size)
    _check_ids(op, ids, size, taps, grad_output)
    return grad_output.new_empty(input_size).contiguous(memory_format=memory_format(ids))


def _fake_pick(input, ids, windows, ceil_mode):
    op, size, taps = _ids_size(input.shape, windows, ceil_mode)
    check_same(op, input)
    _check_ids(op, ids, size, taps, input)
    return input.new_empty(size).contiguous(memory_format=memory_format(ids))


def _avg_size(input, windows, ceil_mode, divisor_override):
    op, size = _pool_size("avg", input, windows, ceil_mode)
    if divisor_override == 0:
        raise RuntimeError(f"{op}: divisor_override must not be zero (got 0)")
    return op, size


def _fake_avg(input, windows, ceil_mode, count_include_pad, divisor_override):
    op, size = _avg_size(input.shape, windows, ceil_mode, divisor_override)
    check_same(op, input)
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _fake_avg_grad(grad, input_size, windows, ceil_mode, count_include_pad, divisor_override):
    op, size = _avg_size(input_size, windows, ceil_mode, divisor_override)
    check_same(op, grad)
    check_shape(op, "grad_output", grad, size)
    return torch.empty(input_size, dtype=grad.dtype, device=grad.device, memory_format=memory_format(grad))


# ---- gradients -------------------------------------------------------------------------------------------------------
#
# Given which elements have won, a maximum is a choice of elements: linear, and its gradient puts them back. A mean is
# linear, too.


def _max_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, *ctx.windows = inputs
    ctx.save_for_backward(input)


def _max_backward(ctx: Any, grad: Tensor) -> tuple:
    (input,) = ctx.saved_tensors
    _, ids = _max_ids(input.detach(), *ctx.windows)
    return _max_grad(grad, ids, input.shape, *ctx.windows), *(None,) * len(ctx.windows)


def _ids_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    input, *ctx.windows = inputs
    ctx.input_size = list(input.shape)
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _ids_backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
    (ids,) = ctx.saved_tensors
    return _max_grad(grad, ids, ctx.input_size, *ctx.windows), *(None,) * len(ctx.windows)


def _max_grad_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, ids, _, *ctx.windows = inputs
    ctx.save_for_backward(ids)


def _max_grad_backward(ctx: Any, grad: Tensor) -> tuple:
    (ids,) = ctx.saved_tensors
    return _pick(grad, ids, *ctx.windows), *(None,) * (2 + len(ctx.windows))


def _pick_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, ids, *ctx.windows = inputs
    ctx.input_size = list(input.shape)
    ctx.save_for_backward(ids)


def _pick_backward(ctx: Any, grad: Tensor) -> tuple:
    (ids,) = ctx.saved_tensors
    return _max_grad(grad, ids, ctx.input_size, *ctx.windows), *(None,) * (1 + len(ctx.windows))


def _no_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.arguments = len(inputs)


def _no_gradient(ctx: Any, grad: Tensor) -> tuple:
    return (None,) * ctx.arguments


def _avg_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, *ctx.rest = inputs
    ctx.input_size = list(input.shape)


def _avg_backward(ctx: Any, grad: Tensor) -> tuple:
    return _average_grad(grad, ctx.input_size, *ctx.rest), *(None,) * len(ctx.rest)


def _avg_grad_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, _, *ctx.rest = inputs


def _avg_grad_backward(ctx: Any, grad: Tensor) -> tuple:
    return _average(grad, *ctx.rest), *(None,) * (1 + len(ctx.rest))


_max = operator("max_pool", fake=_fake_max, setup_context=_max_setup, backward=_max_backward)
_max_ids = operator("_max_pool_ids", fake=_fake_max_ids, setup_context=_ids_setup, backward=_ids_backward)
_indices = operator("_max_pool_indices", fake=_fake_indices, setup_context=_no_setup, backward=_no_gradient)
_max_grad = operator("_max_pool_grad", fake=_fake_max_grad, setup_context=_max_grad_setup, backward=_max_grad_backward)
_pick = operator("_max_pool_pick", fake=_fake_pick, setup_context=_pick_setup, backward=_pick_backward)
_average = operator("avg_pool", fake=_fake_avg, setup_context=_avg_setup, backward=_avg_backward)
_average_grad = operator(
    "_avg_pool_grad", fake=_fake_avg_grad, setup_context=_avg_grad_setup, backward=_avg_grad_backward
)
