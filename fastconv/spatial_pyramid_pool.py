"""Spatial pyramid pooling: adaptive pooling to several grids, written as one list of numbers for each image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv._arguments import DTYPES, dtype_name, integer
from fastconv.pool import _average, _batched, _maxima

__all__ = ["spatial_pyramid_pool2d"]


def spatial_pyramid_pool2d(input: Tensor, levels: Sequence[int] = (1, 2, 4), mode: str = "max") -> Tensor:
    """As many numbers for every size of image: the maxima or means of ever finer grids of windows.

    Level ``l`` is ``adaptive_max_pool2d(input, l)`` or ``adaptive_avg_pool2d(input, l)``, flattened as ``(C, l, l)``;
    the levels follow each other.

    Args:
        input: ``Tensor[N, C, H, W]`` or ``Tensor[C, H, W]``; float32, float64, bfloat16 or float16; any strides. Not
            empty but for ``N``, and as small as one pixel.
        levels: of each level the rows and columns of its grid.
        mode: ``"max"`` or ``"avg"``.

    Returns:
        ``Tensor[N, C * sum(l * l)]``, or without a batch ``Tensor[C * sum(l * l)]``: 21 times C by default. Of equal
        maxima one receives the gradient: the first in row-major order of the first window of a finer grid.

    Raises:
        RuntimeError: wrong number of dimensions, an empty input.
        ValueError: no levels, levels that are not positive, an unknown mode.
        TypeError: levels that are no integers, or an input that is no tensor.

    Source: He, Zhang, Ren and Sun, *Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition*,
    2014.

    >>> spatial_pyramid_pool2d(torch.arange(16.0).view(1, 1, 4, 4), (1, 2))
    tensor([[15.,  5.,  7., 13., 15.]])
    """
    op = "spatial_pyramid_pool2d"
    if not isinstance(levels, (list, tuple)):
        raise TypeError(f"{op}: levels must be a list of integers (got {levels!r})")
    grids = [integer(op, "levels", level, "a list of integers") for level in levels]
    if not grids or min(grids) < 1:
        raise ValueError(f"{op}: levels must be positive, and at least one (got {grids})")
    if mode not in ("max", "avg"):
        raise ValueError(f"{op}: mode must be 'max' or 'avg' (got {mode!r})")
    return _batched(op, 2, input, _pyramid, op, grids, mode)


def _pyramid(input: Tensor, op: str, levels: list[int], mode: str) -> Tensor:
    if input.dtype not in DTYPES:
        raise RuntimeError(f"{op}: input must be float32, float64, bfloat16 or float16 (got {dtype_name(input)})")
    if 0 in input.shape[1:]:
        raise RuntimeError(f"{op}: input must not be empty but for its batch (got {list(input.shape)})")
    pooled = _largest(input, levels) if mode == "max" else _means(input, levels)
    return torch.cat([pooled[level].flatten(1) for level in levels], 1)


def _means(input: Tensor, levels: list[int]) -> dict[int, Tensor]:
    return {level: _average(input, [level, level], False, True, None) for level in set(levels)}


def _largest(input: Tensor, levels: list[int]) -> dict[int, Tensor]:
    """Nested levels: the windows of a grid are unions of those of any grid that is a multiple as fine, whatever the
    size of the input (``floor(o * H / l) = floor(k * o * H / (k * l))``, and the ends likewise). So the maxima of a
    coarse level are those of a fine one's, and levels that divide each other read the input once."""
    pooled: dict[int, Tensor] = {}
    for level in sorted(set(levels), reverse=True):
        multiples = [finer for finer in pooled if finer % level == 0]
        if not multiples:
            pooled[level] = _maxima(input, [level, level], False, False)
        else:
            finer = min(multiples)
            ratio = finer // level
            pooled[level] = _maxima(pooled[finer], [ratio] * 4 + [0, 0, 1, 1], False, False)
    return pooled
