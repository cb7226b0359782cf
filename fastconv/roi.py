"""Regions of interest: boxes on a map, divided into bins, to one number for each bin and channel."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastconv._arguments import check_list, check_same, check_shape, dtype_name, each, integer
from fastconv._operator import in_functorch, memory_format, operator, wants_grad
from fastconv.pool import Ints

__all__ = ["multi_scale_roi_align", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool"]

Boxes = Tensor | Sequence[Tensor]


def roi_align(
    input: Tensor,
    boxes: Boxes,
    output_size: Ints,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """The mean of bilinear samples in each bin of each box, a drop-in for :func:`torchvision.ops.roi_align`.

    The backward pass is deterministic, with any number of threads and on a GPU, and can be differentiated again. There
    is no gradient for the boxes, as in torchvision.

    Args:
        input: ``Tensor[N, C, H, W]``; float32, float64, bfloat16 or float16 (16-bit types are added up in float32); any
            strides.
        boxes: ``Tensor[K, 5]``, each row an index in the batch and ``x1, y1, x2, y2``, or a list of ``Tensor[L, 4]``,
            one for each image; of the dtype of ``input`` or float32. They may lie partly or wholly outside of the map:
            a sample more than a pixel outside is zero.
        output_size: ``(P, Q)``, how many bins a box has, or one number for both.
        spatial_scale: from the boxes' coordinates to those of the map: 1/16 for a map of stride 16.
        sampling_ratio: samples of a bin in each direction; 0 or less for as many as it spans pixels, rounded up.
        aligned: whether a pixel's centre is at .5, as it should be (Detectron2); without, coordinates are half a pixel
            off, and boxes narrower than a pixel are a pixel wide.

    Returns:
        ``Tensor[K, C, P, Q]`` in the memory format of ``input``.

    Raises:
        RuntimeError: tensors of other shapes, dtypes or devices, sizes or a scale that are not positive; on a CPU also
            boxes that are not finite or have an index outside of the batch. On CUDA nothing waits to hear of such
            boxes: what belongs to them is NaN, and they have no gradient.
        TypeError: arguments that are no tensors, integers, numbers or bools.

    Source: He, Gkioxari, Dollár and Girshick, *Mask R-CNN*, 2017.

    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> roi_align(x, torch.tensor([[0., 0., 0., 4., 4.]]), 2, aligned=True)
    tensor([[[[ 2.5000,  4.5000],
              [10.5000, 12.5000]]]])
    """
    op = "roi_align"
    scale, size = _arguments(op, input, spatial_scale, output_size)
    if not isinstance(aligned, bool):
        raise TypeError(f"{op}: aligned must be a bool (got {aligned!r})")
    return _align(input, _rows(op, input, boxes), scale, size, _sampling(op, sampling_ratio), aligned)


def roi_pool(input: Tensor, boxes: Boxes, output_size: Ints, spatial_scale: float = 1.0) -> Tensor:
    """The largest pixel in each bin of each box, a drop-in for :func:`torchvision.ops.roi_pool`.

    Coordinates are rounded twice: boxes to whole pixels, then bins, which share a pixel where they do not end at one.
    Of equal pixels the first in row-major order wins and has the gradient; NaN wins over all (torchvision passes over
    it). Empty bins are zero. The backward pass is deterministic, and can be differentiated again.

    Args:
        input, boxes, output_size, spatial_scale: see :func:`roi_align`. At most 2\\ :sup:`31` - 1 pixels a plane.

    Returns:
        ``Tensor[K, C, P, Q]`` in the memory format of ``input``.

    Raises:
        RuntimeError, TypeError: see :func:`roi_align`.

    Source: Girshick, *Fast R-CNN*, 2015.

    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> roi_pool(x, torch.tensor([[0., 0., 0., 3., 3.]]), 2)
    tensor([[[[ 5.,  7.],
              [13., 15.]]]])
    """
    op = "roi_pool"
    scale, size = _arguments(op, input, spatial_scale, output_size)
    rows = _rows(op, input, boxes)
    functional = in_functorch() and not torch.compiler.is_compiling()
    if wants_grad(input) or functional:
        return _pool_ids(input, rows, scale, size)[0]
    return _pool(input, rows, scale, size)


def ps_roi_align(
    input: Tensor, boxes: Boxes, output_size: Ints, spatial_scale: float = 1.0, sampling_ratio: int = -1
) -> Tensor:
    """Position-sensitive :func:`roi_align`, a drop-in for :func:`torchvision.ops.ps_roi_align`: bin ``(p, q)`` of
    channel ``c`` of the output looks at channel ``(c * P + p) * Q + q`` of the input.

    Args:
        input: ``Tensor[N, C * P * Q, H, W]``, otherwise as for :func:`roi_align`.
        boxes, output_size, spatial_scale, sampling_ratio: see :func:`roi_align`; coordinates are ``aligned``.

    Returns:
        ``Tensor[K, C, P, Q]`` in the memory format of ``input``.

    Raises:
        RuntimeError, TypeError: see :func:`roi_align`; also for channels that are not a multiple of ``P * Q``.

    Source: Li, Peng, Yu, Zhang, Deng and Sun, *Light-Head R-CNN*, 2017.

    >>> x = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 6, 6)
    >>> ps_roi_align(x, torch.tensor([[0., 1., 1., 5., 5.]]), 2)
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    op = "ps_roi_align"
    scale, size = _arguments(op, input, spatial_scale, output_size)
    return _ps_align(input, _rows(op, input, boxes), scale, size, _sampling(op, sampling_ratio))


def ps_roi_pool(input: Tensor, boxes: Boxes, output_size: Ints, spatial_scale: float = 1.0) -> Tensor:
    """The mean of the whole pixels in each bin of each box, position-sensitive: a drop-in for
    :func:`torchvision.ops.ps_roi_pool`.

    As there, the last row and the last column of the map are in no bin.

    Args:
        input: ``Tensor[N, C * P * Q, H, W]``; bin ``(p, q)`` of channel ``c`` looks at channel ``(c * P + p) * Q + q``.
        boxes, output_size, spatial_scale: see :func:`roi_align`.

    Returns:
        ``Tensor[K, C, P, Q]`` in the memory format of ``input``.

    Raises:
        RuntimeError, TypeError: see :func:`ps_roi_align`.

    Source: Dai, Li, He and Sun, *R-FCN: Object Detection via Region-based Fully Convolutional Networks*, 2016.

    >>> x = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 6, 6)
    >>> ps_roi_pool(x, torch.tensor([[0., 1., 1., 5., 5.]]), 2)
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    op = "ps_roi_pool"
    scale, size = _arguments(op, input, spatial_scale, output_size)
    return _ps_pool(input, _rows(op, input, boxes), scale, size)


def multi_scale_roi_align(
    inputs: Sequence[Tensor],
    boxes: Sequence[Tensor],
    output_size: Ints,
    spatial_scales: Sequence[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    canonical_scale: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """:func:`roi_align` over a pyramid of maps: every box on the level that its size belongs to.

    A box of ``w`` by ``h`` belongs to level ``floor(canonical_level + log2(sqrt(w * h) / canonical_scale))``, equation
    1 of the paper, or the nearest that there is; the level of a map of scale ``2 ** -k`` is ``k``.

    Args:
        inputs: maps ``Tensor[N, C, H, W]``, from the finest to the coarsest, one for each level.
        boxes: a list of ``Tensor[L, 4]``, one for each image, or ``Tensor[K, 5]``: see :func:`roi_align`.
        output_size, sampling_ratio, aligned: see :func:`roi_align`.
        spatial_scales: one for each map, powers of two, each half of the one before. (Where one is left out, the maps
            after it have the boxes of the level before theirs, as in torchvision, and the last those of all beyond.)
        canonical_scale, canonical_level: the size of a box that belongs to a level, and that level.

    Returns:
        ``Tensor[K, C, P, Q]`` in the order of the boxes.

    Raises:
        RuntimeError, TypeError: see :func:`roi_align`.
        ValueError: no map, another number of scales than of maps, scales that are not positive or that grow from map to
            map, a canonical scale that is not positive.

    Source: Lin, Dollár, Girshick, He, Hariharan and Belongie, *Feature Pyramid Networks for Object Detection*, 2017.

    >>> levels = [torch.full((1, 1, 32, 32), 2.), torch.full((1, 1, 16, 16), 3.)]
    >>> boxes = [torch.tensor([[0., 0., 60., 60.], [0., 0., 112., 112.]])]
    >>> multi_scale_roi_align(levels, boxes, 1, [1 / 4, 1 / 8], 2).flatten()
    tensor([2., 3.])
    """
    op = "multi_scale_roi_align"
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"{op}: inputs must be a list of Tensors (got {inputs!r})")
    if not inputs:
        raise ValueError(f"{op}: inputs must have at least one map (got none)")
    for input in inputs:
        if not isinstance(input, Tensor):
            raise TypeError(f"{op}: inputs must be Tensors (got {input!r})")
    first = inputs[0]
    for input in inputs[1:]:
        if (input.shape[:2], input.dtype) != (first.shape[:2], first.dtype):
            raise RuntimeError(
                f"{op}: inputs must have the images, channels and dtype of the first, {list(first.shape[:2])} and "
                f"{dtype_name(first)} (got {list(input.shape[:2])} and {dtype_name(input)})"
            )
    scales = _scales(op, spatial_scales, len(inputs))
    if _number(op, "canonical_scale", canonical_scale) <= 0:
        raise ValueError(f"{op}: canonical_scale must be positive (got {canonical_scale})")
    canonical_level = integer(op, "canonical_level", canonical_level, "an integer")
    rows = _rows(op, first, boxes)
    if rows.dim() != 2 or rows.shape[1] != 5:
        raise RuntimeError(f"{op}: boxes must have shape [K, 5] (got {list(rows.shape)})")
    rest = output_size, sampling_ratio, aligned
    if len(inputs) == 1:
        return roi_align(first, rows, rest[0], scales[0], *rest[1:])
    levels = box_levels(rows, scales, canonical_scale, canonical_level)
    where = [torch.nonzero(levels == level).flatten() for level in range(len(inputs))]
    parts = [
        roi_align(input, rows[at], rest[0], scale, *rest[1:])
        for input, at, scale in zip(inputs, where, scales, strict=True)
    ]
    # Back into the order of the boxes; one move, and its gradient is one too.
    return torch.cat(parts).index_select(0, torch.argsort(torch.cat(where)))


def box_levels(rows: Tensor, scales: Sequence[float], canonical_scale: float, canonical_level: int) -> Tensor:
    """The index in ``scales`` of the level that each of the boxes ``Tensor[K, 5]`` belongs to. Levels are counted from
    the first, as in torchvision; where scales leave one out, no box may count beyond the last map and get lost."""
    least, most = (round(-math.log2(scale)) for scale in (scales[0], scales[-1]))
    most = min(most, least + len(scales) - 1)
    if rows.element_size() == 2:  # in which areas overflow, and sizes round to the next level
        rows = rows.float()
    size = ((rows[:, 3] - rows[:, 1]) * (rows[:, 4] - rows[:, 2])).sqrt()
    # Nearly a whole level counts as one: boxes of exactly the canonical size stay where they belong.
    level = torch.floor(canonical_level + torch.log2(size / canonical_scale) + 1e-6)
    return level.nan_to_num(least).clamp(least, most).to(torch.int64) - least


# ---- arguments -------------------------------------------------------------------------------------------------------


def _arguments(op: str, input: Tensor, spatial_scale: float, output_size: Ints) -> tuple[float, list[int]]:
    if not isinstance(input, Tensor):
        raise TypeError(f"{op}: input must be a Tensor (got {input!r})")
    return _number(op, "spatial_scale", spatial_scale), each(op, "output_size", output_size, 2)


def _number(op: str, name: str, value: float) -> float:
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{op}: {name} must be a number (got {value!r})") from None


def _scales(op: str, spatial_scales: Sequence[float], maps: int) -> list[float]:
    """One for each map, from the finest."""
    try:
        given = list(spatial_scales)
    except TypeError:
        raise TypeError(f"{op}: spatial_scales must be a list of numbers (got {spatial_scales!r})") from None
    scales = [_number(op, "spatial_scales", scale) for scale in given]
    if len(scales) != maps:
        raise ValueError(f"{op}: spatial_scales must be one for each of {maps} maps (got {scales})")
    if not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"{op}: spatial_scales must be positive and finite (got {scales})")
    if scales != sorted(scales, reverse=True):
        raise ValueError(f"{op}: spatial_scales must be from the largest to the smallest (got {scales})")
    return scales


def _sampling(op: str, sampling_ratio: int) -> int:
    return integer(op, "sampling_ratio", sampling_ratio, "an integer")


def _rows(op: str, input: Tensor, boxes: Boxes) -> Tensor:
    """All boxes as ``Tensor[K, 5]``."""
    if isinstance(boxes, Tensor):
        return boxes
    if not isinstance(boxes, (list, tuple)) or not all(isinstance(each, Tensor) for each in boxes):
        raise TypeError(f"{op}: boxes must be a Tensor or a list of Tensors (got {boxes!r})")
    for index, some in enumerate(boxes):
        if some.dim() != 2 or some.shape[1] != 4:
            raise RuntimeError(f"{op}: boxes must have shape [L, 4] in a list (got {list(some.shape)} at {index})")
    if input.dim() == 4 and len(boxes) > input.shape[0]:
        raise RuntimeError(f"{op}: boxes must be for {input.shape[0]} images at most (got {len(boxes)})")
    if not boxes:
        return input.new_empty((0, 5))
    # In 16 bits the index of an image would be rounded.
    wide = [some.float() if some.element_size() == 2 else some for some in boxes]
    return torch.cat([torch.cat([some.new_full((some.shape[0], 1), i), some], 1) for i, some in enumerate(wide)])


# ---- shape rules -----------------------------------------------------------------------------------------------------
#
# Those of csrc/roi/check.h, in the same words, for tensors without data.

_MOST_POSITIONS = 2**31 - 1
_MOST_SAMPLES = 2**15


def _check(
    op: str, input: Sequence[int], given: Tensor, boxes: Tensor, scale: float, size: list[int], sampling: int = 0
) -> list:
    """The output's size."""
    if len(input) != 4:
        raise RuntimeError(f"{op}: input must have 4 dimensions (got {list(input)})")
    check_same(op, given)
    if boxes.dim() != 2 or boxes.shape[1] != 5:
        raise RuntimeError(f"{op}: boxes must have shape [K, 5] (got {list(boxes.shape)})")
    if boxes.dtype not in (given.dtype, torch.float32):
        raise RuntimeError(
            f"{op}: boxes must have the dtype of input, {dtype_name(given)}, or be float32 (got {dtype_name(boxes)})"
        )
    if boxes.device != given.device:
        raise RuntimeError(f"{op}: boxes must be on the device of input, {given.device} (got {boxes.device})")
    check_list(op, "output_size", size, 2, 1, "be positive")
    if not 0 < scale < math.inf:
        raise RuntimeError(f"{op}: spatial_scale must be positive and finite (got {scale})")
    if sampling > _MOST_SAMPLES:
        raise RuntimeError(f"{op}: sampling_ratio must be at most {_MOST_SAMPLES} (got {sampling})")
    channels = input[1]
    if op.startswith("ps_"):
        bins = size[0] * size[1]
        if channels % bins != 0:
            raise RuntimeError(
                f"{op}: input must have a multiple of {bins} channels, one for each bin (got {list(input)})"
            )
        channels = channels // bins
    if all(isinstance(each, int) for each in (boxes.shape[0], *input)):
        if boxes.shape[0] > 0 and min(input[0], input[2], input[3]) <= 0:
            raise RuntimeError(f"{op}: input must not be empty where there are boxes (got {list(input)})")
        if input[2] * input[3] > _MOST_POSITIONS:
            raise RuntimeError(f"{op}: input must have at most {_MOST_POSITIONS} positions a plane (got {list(input)})")
    return [boxes.shape[0], channels, *size]


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _fake_forward(op: str) -> Any:
    def fake(input, boxes, spatial_scale, output_size, sampling_ratio=0, aligned=False):
        size = _check(op, input.shape, input, boxes, spatial_scale, output_size, sampling_ratio)
        return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))

    return fake


def _fake_grad(op: str) -> Any:
    def fake(grad_output, boxes, input_size, channels_last, spatial_scale, output_size, sampling_ratio=0, _=False):
        size = _check(op, input_size, grad_output, boxes, spatial_scale, output_size, sampling_ratio)
        check_shape(op, "grad_output", grad_output, size)
        return grad_output.new_empty(input_size).contiguous(memory_format=_format(channels_last))

    return fake


def _check_ids(ids: Tensor, size: Sequence[int], given: Tensor) -> None:
    check_shape("roi_pool", "ids", ids, size)
    if ids.dtype != torch.int32:
        raise RuntimeError(f"roi_pool: ids must be int32 (got {dtype_name(ids)})")
    if ids.device != given.device:
        raise RuntimeError(f"roi_pool: ids must be on the device of input, {given.device} (got {ids.device})")


def _fake_pool_ids(input, boxes, spatial_scale, output_size):
    size = _check("roi_pool", input.shape, input, boxes, spatial_scale, output_size)
    format = memory_format(input)
    return tuple(
        torch.empty(size, dtype=dtype, device=input.device, memory_format=format)
        for dtype in (input.dtype, torch.int32)
    )


def _bins_of(name: str, tensor: Tensor) -> list[int]:
    if tensor.dim() != 4:
        raise RuntimeError(f"roi_pool: {name} must have 4 dimensions (got {list(tensor.shape)})")
    return list(tensor.shape[2:])


def _fake_pool_grad(grad_output, ids, boxes, input_size, channels_last):
    size = _check("roi_pool", input_size, grad_output, boxes, 1.0, _bins_of("grad_output", grad_output))
    check_shape("roi_pool", "grad_output", grad_output, size)
    _check_ids(ids, size, grad_output)
    return grad_output.new_empty(input_size).contiguous(memory_format=_format(channels_last))


def _fake_pool_pick(input, ids, boxes):
    size = _check("roi_pool", input.shape, input, boxes, 1.0, _bins_of("ids", ids))
    _check_ids(ids, size, input)
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


# ---- gradients -------------------------------------------------------------------------------------------------------
#
# A mean is linear in its input, and so is a choice of elements. The gradient is given the memory format of the input:
# that of what comes in says nothing about it.


def _linear(name: str) -> tuple[Any, Any]:
    """The operators of a mean and of its gradient, each the other's backward."""

    def setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, boxes, *ctx.rest = inputs
        ctx.size, ctx.channels_last = list(input.shape), memory_format(input) == torch.channels_last
        ctx.save_for_backward(boxes)

    def backward(ctx: Any, grad: Tensor) -> tuple:
        (boxes,) = ctx.saved_tensors
        return grad_of(grad, boxes, ctx.size, ctx.channels_last, *ctx.rest), *(None,) * (1 + len(ctx.rest))

    def grad_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, boxes, _, _, *ctx.rest = inputs
        ctx.save_for_backward(boxes)

    def grad_backward(ctx: Any, grad: Tensor) -> tuple:
        (boxes,) = ctx.saved_tensors
        return forward(grad, boxes, *ctx.rest), *(None,) * (3 + len(ctx.rest))

    forward = operator(name, fake=_fake_forward(name), setup_context=setup, backward=backward)
    grad_of = operator(f"_{name}_grad", fake=_fake_grad(name), setup_context=grad_setup, backward=grad_backward)
    return forward, grad_of


def _pool_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, boxes, *ctx.rest = inputs
    ctx.save_for_backward(input, boxes)


def _pool_backward(ctx: Any, grad: Tensor) -> tuple:
    input, boxes = ctx.saved_tensors
    _, ids = _pool_ids(input.detach(), boxes, *ctx.rest)
    return _pool_grad(grad, ids, boxes, input.shape, memory_format(input) == torch.channels_last), None, None, None


def _pool_ids_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    input, boxes, *_ = inputs
    ctx.size, ctx.channels_last = list(input.shape), memory_format(input) == torch.channels_last
    ctx.save_for_backward(output[1], boxes)
    ctx.mark_non_differentiable(output[1])


def _pool_ids_backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
    ids, boxes = ctx.saved_tensors
    return _pool_grad(grad, ids, boxes, ctx.size, ctx.channels_last), None, None, None


def _pool_grad_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, ids, boxes, *_ = inputs
    ctx.save_for_backward(ids, boxes)


def _pool_grad_backward(ctx: Any, grad: Tensor) -> tuple:
    return _pool_pick(grad, *ctx.saved_tensors), None, None, None, None


def _pool_pick_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, ids, boxes = inputs
    ctx.size, ctx.channels_last = list(input.shape), memory_format(input) == torch.channels_last
    ctx.save_for_backward(ids, boxes)


def _pool_pick_backward(ctx: Any, grad: Tensor) -> tuple:
    ids, boxes = ctx.saved_tensors
    return _pool_grad(grad, ids, boxes, ctx.size, ctx.channels_last), None, None


_align, _align_grad = _linear("roi_align")
_ps_align, _ps_align_grad = _linear("ps_roi_align")
_ps_pool, _ps_pool_grad = _linear("ps_roi_pool")
_pool = operator("roi_pool", fake=_fake_forward("roi_pool"), setup_context=_pool_setup, backward=_pool_backward)
_pool_ids = operator("_roi_pool_ids", fake=_fake_pool_ids, setup_context=_pool_ids_setup, backward=_pool_ids_backward)
_pool_grad = operator(
    "_roi_pool_grad", fake=_fake_pool_grad, setup_context=_pool_grad_setup, backward=_pool_grad_backward
)
_pool_pick = operator(
    "_roi_pool_pick", fake=_fake_pool_pick, setup_context=_pool_pick_setup, backward=_pool_pick_backward
)
